"""Which process of how many this is: how the processes of a run find each other, and how they leave.

The engine is JAX's own: `jax.distributed` with its coordinator, cluster detection and preemption notice. Knows nothing of
batches and of what the processes agree on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import jax
from jax._src import distributed  # the client of the coordination service has no public name

from datarax.core.config import Checked, Positive, check_fields
from datarax.core.errors import ConfigError, PeerLostError
from datarax.multihost.processes import Processes

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
"""Environment variables from which a process learns its place; all three or none."""


@dataclass(frozen=True, kw_only=True)
class MultihostConfig:
    """How processes find each other and how long they wait. Never part of the identity of a run."""

    start: Checked[Literal["auto", "cluster", "off"]] = "auto"
    """'auto': many processes if the environment has JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else one.
    'cluster': ask JAX's cluster detection (Slurm, Open MPI, GKE and Cloud TPU). 'off': one process, whatever the environment
    says."""

    start_timeout_seconds: Positive = 120
    """How long to wait at the start until all processes are there."""

    exchange_timeout_seconds: Positive = 60
    """How long one process waits for the others when they agree on something."""

    heartbeat_seconds: Positive = 30
    """After how long without a sign of life a process counts as dead."""

    def __post_init__(self) -> None:
        check_fields(self)


_current: Processes | None = None


def current() -> Processes:
    """The processes of this run: those of `start` or of a `jax.distributed.initialize` of the caller's own, else one alone."""
    global _current
    client = distributed.global_state.client
    if client is None:
        return Processes()
    if _current is None or _current._client is not client:
        _current = _joined(MultihostConfig())
    return _current


def start(
    config: MultihostConfig | None = None,
    *,
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
) -> Processes:
    """Joins the processes of a run. Call it before JAX starts its backend; for one process it does nothing.

    From then on SIGTERM belongs to JAX, whose notice makes all processes save at one step: install no handler of your own.

    Args:
        config: where to learn this process's place from, and the deadlines.
        coordinator: `host:port` of process 0; with the next two, instead of the environment.
        process_count: number of processes.
        process_index: index of this process.

    Raises:
        ConfigError: if the place of this process is not completely known.
        PeerLostError: if the coordinator has no room for this process.
        SystemExit: never; but if peers are missing at the deadline, the process says so and ends with code 74, and if a
            signal comes while it waits, with 75: nothing has run yet.
    """
    config = config or MultihostConfig()
    if distributed.global_state.client is not None:
        return current()
    given = {"coordinator": coordinator, "process_count": process_count, "process_index": process_index}
    if all(value is None for value in given.values()):
        if config.start == "off":
            return Processes()
        if config.start == "cluster":
            return _initialize(config, "the cluster", {})
        given = _from_environment()
        if not given:
            return Processes()
    absent = [name for name, value in given.items() if value is None]
    if absent:
        raise ConfigError(
            f"many processes need coordinator, process_count and process_index; {absent[0]} is missing"
        )
    count, index = given["process_count"], given["process_index"]
    if not (isinstance(count, int) and isinstance(index, int) and 0 <= index < count):
        raise ConfigError(f"process {index!r} of {count!r} does not exist; indices count from 0")
    if not re.fullmatch(r".+:\d+", str(given["coordinator"])):
        raise ConfigError(f"the coordinator must be host:port, got {given['coordinator']!r}")
    if count == 1:
        return Processes()
    where = f"process {index} of {count}, coordinator {given['coordinator']}"
    return _initialize(
        config,
        where,
        {"coordinator_address": given["coordinator"], "num_processes": count, "process_id": index},
    )


def _from_environment() -> dict[str, Any]:
    found = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    # The address alone belongs to whoever uses JAX's own start-up.
    if found[COUNT] is None and found[INDEX] is None:
        return {}
    absent = [name for name, value in found.items() if not value]
    if absent:
        raise ConfigError(
            f"the environment has some of {COORDINATOR}, {COUNT} and {INDEX}, but not {', '.join(absent)}; "
            f"set all three, none, or multihost.start = 'off'"
        )
    numbers = {}
    for name in (COUNT, INDEX):
        if not re.fullmatch(r"\d{1,9}", str(found[name])):
            raise ConfigError(f"the environment variable {name} must be a number, got {found[name]!r}")
        numbers[name] = int(str(found[name]))
    return {
        "coordinator": found[COORDINATOR],
        "process_count": numbers[COUNT],
        "process_index": numbers[INDEX],
    }


def _initialize(config: MultihostConfig, where: str, place: Mapping[str, Any]) -> Processes:
    global _current
    with _Watch(config.start_timeout_seconds, where):
        try:
            jax.distributed.initialize(
                **place,
                # Later than the watch, which has the better message: JAX aborts the process.
                initialization_timeout=config.start_timeout_seconds + 30,
                heartbeat_timeout_seconds=config.heartbeat_seconds,
                shutdown_timeout_seconds=config.exchange_timeout_seconds,
            )
            if distributed.global_state.num_processes == 1:
                return _alone_after_all()
            # The backend starts on all processes together or hangs: at once, not when one of them first needs it.
            jax.devices()
        except ValueError as error:
            raise ConfigError(
                f"multihost.start = 'cluster', but JAX finds no cluster here: {error}; under another launcher set "
                f"{COORDINATOR}, {COUNT} and {INDEX}"
            ) from error
        except RuntimeError as error:
            raise PeerLostError(f"{where}: could not join the others: {error}", missing=[]) from error
    _current = _joined(config)
    return _current


def _alone_after_all() -> Processes:
    """A cluster of one process: no others are waited for, and SIGTERM belongs to Python again."""
    jax.distributed.shutdown()
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    return Processes()


def _joined(config: MultihostConfig) -> Processes:
    global _handler_at_start
    _handler_at_start = handler_address(signal.SIGTERM)
    state = distributed.global_state
    return Processes(
        state.process_id,
        state.num_processes,
        client=state.client,
        timeout_seconds=config.exchange_timeout_seconds,
    )


def finish() -> None:
    """Leaves the others in peace, when all of them have come to their end. Does nothing for one process."""
    global _current
    if distributed.global_state.client is not None:
        jax.distributed.shutdown()
    _current = None


class _Watch:
    """Ends the process with a clear message if joining takes too long or a signal comes meanwhile.

    JAX waits in C++, where Python runs no signal handlers (a script has one for Ctrl-C), and aborts with a stack trace at its
    own deadline. A thread sees both: the deadline by its clock, signals by the descriptor that Python's C handler writes to.
    """

    def __init__(self, seconds: float, where: str) -> None:
        self._deadline = time.monotonic() + seconds
        self._seconds, self._where = seconds, where

    def __enter__(self) -> _Watch:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._main = threading.current_thread() is threading.main_thread()
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) if self._main else -1
        self._thread = threading.Thread(target=self._run, name="datarax-start", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._main:
            signal.set_wakeup_fd(self._before)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _run(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if select.select([self._read], [], [], left)[0]:
                number = os.read(self._read, 1)[0]
                if number == 0:
                    return
                if number in (signal.SIGTERM, signal.SIGINT):
                    name = signal.Signals(number).name
                    leave_at_once(
                        75, f"{name} received while waiting for the other processes; nothing was running yet"
                    )
        leave_at_once(
            74,
            f"{self._where}: not all processes were there within {self._seconds:g} seconds "
            f"(multihost.start_timeout_seconds). Look whether each was started, has the same coordinator and count, an index "
            f"of its own, and can reach that address",
        )


def leave_at_once(code: int, why: str | None = None) -> NoReturn:
    """Says why, if there is something to say, and ends the process without any clean-up.

    What is committed stays; nothing waits for processes that hang.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue
    if why is not None:
        with contextlib.suppress(OSError):
            os.write(2, f"datarax: {why}\n".encode())
    os._exit(code)


# JAX's notice of a preemption.

_handler_at_start: int | None = None


def notice_replaced() -> bool:
    """Whether somebody has taken SIGTERM from JAX since the start: then no notice of a preemption comes any more."""
    return _handler_at_start is not None and handler_address(signal.SIGTERM) != _handler_at_start


def handler_address(number: int) -> int | None:
    """The address of the process's handler of a signal, 0 for the default action; None if that cannot be told.

    Python does not know of one that was installed from C or C++.
    """
    try:
        action = ctypes.create_string_buffer(512)
        if ctypes.CDLL(None).sigaction(int(number), None, action) != 0:
            return None
        return ctypes.c_void_p.from_buffer(action).value or 0
    except (OSError, AttributeError):
        return None
