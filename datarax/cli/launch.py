"""Many processes on one machine, as if each were a host: start them, pass signals on, and say who ended how, and why.

The launcher starts no backend. It is the one process that sees all the others die, so it explains what none of them can: which
was first, and why JAX aborted the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

_POLL_SECONDS = 0.05
_AFTER_LOSS_SECONDS = 15.0
_AFTER_SIGTERM_SECONDS = 10.0

LAUNCHER_VARIABLE = "DATARAX_LAUNCHER_PID"
"""Environment variable with the pid of who started a process and must not be outlived by it; see `follow_launcher`."""

OWN_COMMAND = (
    sys.executable,
    *(["-P"] if sys.flags.safe_path else []),
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "__main__.py"),
)
"""This very datarax in another process. With `-m` Python would look for it in the working directory first."""

_PR_SET_PDEATHSIG = 1

_REAL_FAILURES = (1, 2, 70, 74)
"""Exit codes that say what is wrong; the other processes' ends only follow from it."""

# What absl prints when JAX aborts a process: a page of addresses that helps nobody here.
_STACK_TRACE = re.compile(rb"^(\*\*\* Check failure stack trace: \*\*\*|\s+@\s+0x[0-9a-f]+\s)")


@dataclass(frozen=True)
class _Ended:
    index: int
    pid: int
    code: int
    """As `Popen` gives it: negative for a signal."""

    def __str__(self) -> str:
        who = f"process {self.index} (pid {self.pid})"
        if self.code == -signal.SIGABRT:
            return f"{who} was aborted (SIGABRT): JAX does so when the coordinator or another process dies"
        if self.code < 0:
            return f"{who} was killed by {signal.Signals(-self.code).name}"
        meaning = {0: ", complete", 75: ", stopped well"}.get(self.code, "")
        return f"{who} ended with code {self.code}{meaning}"


def launch(
    arguments: Sequence[str],
    *,
    processes: int,
    run_directory: str,
    heartbeat_seconds: float,
    signals: Sequence[str] = ("TERM", "INT"),
    command: Sequence[str] = OWN_COMMAND,
) -> int:
    """Runs one command in several processes that are one run, until all have ended.

    Args:
        arguments: what each gets after `command`.
        processes: how many.
        run_directory: the run; what is committed there decides what a loss means.
        heartbeat_seconds: after how long without a sign of life a process counts as dead.
        signals: names (without SIG) of those that ask all processes to save and stop.
        command: the program.

    Returns:
        0 if all are complete; the code of a process that says what is wrong; 75 if the run stopped, or lost a process and can
        be continued from a snapshot, 74 if there is none; 128 + the signal's number after a second signal.
    """
    launcher = _Launcher(heartbeat_seconds)
    with launcher.signals(signals):
        launcher.start([*command, *arguments], processes)
        ended = launcher.wait()
    if launcher.left_at_once:
        return 128 + launcher.left_at_once
    return _result(ended, run_directory)


def _result(ended: Sequence[_Ended], run_directory: str) -> int:
    """The exit code of all, in the order in which they ended; what it means is printed unless it is plain."""
    codes = {each.code for each in ended}
    if codes == {0} or codes == {75}:
        return ended[0].code
    odd = [each for each in ended if each.code not in (0, 75)] or [each for each in ended if each.code]
    lines = [f"datarax: {odd[0]}; it was the first that did not end well"]
    lines += [f"  {each}" for each in ended if each is not odd[0]]
    failure = next((each for each in ended if each.code in _REAL_FAILURES), None)
    if failure is not None:
        _say(
            [
                *lines,
                f"  code {failure.code} of process {failure.index} says what to look at, see its messages above",
            ]
        )
        return failure.code
    from datarax.checkpoint import list_steps

    steps = list_steps(run_directory)
    if steps:
        _say(
            [*lines, f"  snapshot {steps[-1]} is committed; run the same command again to continue after it"]
        )
        return 75
    _say([*lines, "  no snapshot was committed yet; run the same command again to start over"])
    # SIGTERM ends a process only before it has anything to save.
    return 75 if codes <= {75, -signal.SIGTERM} else 74


def follow_launcher() -> None:
    """In a process that a launcher has started: if the launcher dies, save and stop. Only Linux can tell."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if str(os.getppid()) != launcher:  # it died before that
        os.kill(os.getpid(), signal.SIGTERM)


class _Launcher:
    """The processes, and what has been asked of them."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat = heartbeat_seconds
        self._children: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._asked_to_stop = False
        self._urgent = 0
        self.left_at_once = 0
        """Number of the second signal, if there was one."""

    @contextlib.contextmanager
    def signals(self, names: Sequence[str]) -> Iterator[None]:
        """While this lasts: the first of these signals goes to all processes as SIGTERM, a second SIGINT or SIGTERM kills them.

        One that is ignored stays so, here and in the processes (`nohup`, a background job of a script).
        """
        numbers = [signal.Signals[f"SIG{name}"] for name in dict.fromkeys(names)]
        before = {
            number: signal.signal(number, self._handle)
            for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for child in self._children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, command: Sequence[str], count: int) -> None:
        """Starts all; a signal that came meanwhile reaches those that are there."""
        port = _free_port()
        for index in range(count):
            if self._asked_to_stop:
                break
            place = {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
                LAUNCHER_VARIABLE: str(os.getpid()),
            }
            self._children.append(self._child(command, index, place))
        if self._asked_to_stop:
            self._send(signal.SIGTERM)

    def wait(self) -> list[_Ended]:
        """Waits for all; once one has ended badly the others get some seconds, then they are ended."""
        ended: list[_Ended] = []
        waiting = dict(enumerate(self._children))
        steps: list[tuple[float, Callable[[], None]]] = []
        while waiting:
            for index, child in list(waiting.items()):
                code = child.poll()
                if code is not None:
                    del waiting[index]
                    ended.append(_Ended(index, child.pid, code))
                    if code != 0 and not steps:
                        steps = self._last_steps(code)
            if steps and time.monotonic() >= steps[0][0]:
                steps.pop(0)[1]()
            time.sleep(_POLL_SECONDS)
        for reader in self._readers:
            reader.join()
        return ended

    def _last_steps(self, code: int) -> list[tuple[float, Callable[[], None]]]:
        # One that stopped well may have left the others with work to end; of a dead one they hear soon or by the heartbeat.
        first = time.monotonic() + _AFTER_LOSS_SECONDS + (self._heartbeat if code == 75 else 0)
        return [
            (first, lambda: self._send(signal.SIGTERM)),
            (first + _AFTER_SIGTERM_SECONDS, lambda: self._send(signal.SIGKILL)),
        ]

    def _child(self, command: Sequence[str], index: int, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
        piped = (
            None if index == 0 else subprocess.PIPE
        )  # the first one has the terminal, with its progress bar
        child = subprocess.Popen(
            command,
            env={**os.environ, **place},
            stdin=subprocess.DEVNULL,
            stdout=piped,
            stderr=piped,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
            if source is not None:
                reader = threading.Thread(target=_copy, args=(source, target.fileno(), index), daemon=True)
                reader.start()
                self._readers.append(reader)
        return child

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._urgent += number in (signal.SIGINT, signal.SIGTERM)
        if self._urgent > 1:
            self.left_at_once = number
            self._send(signal.SIGKILL)
        elif not self._asked_to_stop:
            self._asked_to_stop = True
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for child in self._children:
            child.send_signal(number)  # nothing if it has ended


def _copy(source: IO[bytes], target: int, index: int) -> None:
    """Passes the lines of one process on, each with its number."""
    with source:
        for line in source:
            if _STACK_TRACE.match(line):
                continue
            with contextlib.suppress(OSError):
                os.write(target, f"[{index}] ".encode() + line.rstrip(b"\r\n") + b"\n")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
