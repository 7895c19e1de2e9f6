"""One start of a run in a real process: watched from outside, signalled, waited for; nothing of it is ever left behind.

It is watched through what it writes: `metrics.jsonl`, committed snapshots, and directories of snapshots not yet committed. With
many processes the process is their launcher. Each carries a mark in its environment, by which it is found wherever it ends up;
that needs `/proc`, so elsewhere than on Linux only the process itself and its group are seen.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from datarax.checkpoint import list_steps

_MARK = "DATARAX_CHAOS_START"
_POLL_SECONDS = 0.003
_END_TRIES = 50


class Start:
    """One process that runs the run, from its start to its end.

    Args:
        command: the program and its arguments.
        run: the run's directory.
        log: where its output goes.
        environment: its environment, before the mark.
        check: called again and again while anything is waited for; what it raises ends the waiting.

    A context manager: at its end everything that was started is dead.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        run: Path,
        log: Path,
        environment: Mapping[str, str],
        check: Callable[[], None],
    ) -> None:
        self._run, self._log, self._check = run, log, check
        self._mark = str(log)
        self._metrics = _Tail(run / "metrics.jsonl")
        self._left_before = _unfinished(run)
        self.newest_before = newest(run)
        """The newest committed snapshot when this began; 0 if there was none."""
        self.first_step: int | None = None
        """The first step that it reported."""
        self.last_step: int | None = None
        """The last one."""
        self.seconds_to_first_step: float | None = None
        """How long it took until then."""
        self.seconds_to_last_step = 0.0
        """How long it took until the last step that it reported."""
        self._began = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, _MARK: self._mark},
                start_new_session=True,  # Ctrl-C is not for it
            )

    def __enter__(self) -> Start:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def seconds(self) -> float:
        """How long ago this began."""
        return time.monotonic() - self._began

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def reached(self) -> int:
        """How far the run is known to be: the last reported step, or the snapshot that it went on from."""
        return self.newest_before if self.last_step is None else self.last_step

    @property
    def newest(self) -> int:
        """The newest committed snapshot of the run now; 0 if there is none."""
        return newest(self._run)

    @property
    def saving(self) -> bool:
        """Whether a snapshot is being written, as far as can be seen; what an earlier start left does not count."""
        return bool(_unfinished(self._run) - self._left_before)

    def wait_for(self, condition: Callable[[], bool], limit_seconds: float) -> bool:
        """Waits until something is so; False if the process has ended before, or after the limit."""
        end = time.monotonic() + limit_seconds
        while self.alive and time.monotonic() < end:
            self._look()
            if condition():
                return True
            self._rest()
        return False

    def wait_while_alive(self, seconds: float) -> None:
        """Waits so long, or until the process has ended."""
        end = self.seconds + seconds
        self.wait_for(lambda: self.seconds >= end, math.inf)

    def signal(self, name: str, victim: int | None = None) -> bool:
        """Sends a signal to the process, or to one of those that it launched, if that is there; returns whether to that one."""
        number = signal.Signals[name]
        pid = self._launched(victim) if victim is not None else None
        if pid is None:
            self._process.send_signal(number)
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def wait(self, limit_seconds: float) -> int | None:
        """The exit code (negative: ended by that signal) when all of it is gone; None if it hung and was ended."""
        self.wait_for(lambda: False, limit_seconds)
        if self.alive:
            self.end()
            self._look()
            return None
        # Those that lost their launcher save and stop; the next start must not meet them.
        end = time.monotonic() + limit_seconds
        while self._others():
            if time.monotonic() > end:
                self.end()
                self._look()
                return None
            self._rest()
        self._look()
        return self._process.returncode

    def end(self) -> None:
        """Kills whatever is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for _ in range(_END_TRIES):
            left = self._others()
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def last_lines(self, count: int) -> list[str]:
        """The end of its output."""
        return self._log.read_text(errors="replace").splitlines()[-count:]

    def _look(self) -> None:
        for step in self._metrics.steps():
            if self.first_step is None:
                self.first_step, self.seconds_to_first_step = step, self.seconds
            self.last_step, self.seconds_to_last_step = step, self.seconds

    def _rest(self) -> None:
        self._check()
        time.sleep(_POLL_SECONDS)

    def _launched(self, index: int) -> int | None:
        place = f"JAX_PROCESS_ID={index}".encode()
        return next((pid for pid, words in self._marked().items() if place in words), None)

    def _others(self) -> list[int]:
        return [pid for pid in self._marked() if pid != self._process.pid]

    def _marked(self) -> dict[int, list[bytes]]:
        mark, found = f"{_MARK}={self._mark}".encode(), {}
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                words = entry.read_bytes().split(b"\0")
                if mark in words:
                    found[int(entry.parent.name)] = words
        return found


def newest(run: Path) -> int:
    """The newest committed step of a run; 0 if there is none."""
    return max(list_steps(run), default=0)


def _unfinished(run: Path) -> set[tuple[str, int]]:
    """Directories of snapshots that are not committed: a step's number, a dot, and more."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(run) as entries:
        for entry in entries:
            number, dot, _ = entry.name.partition(".")
            if dot and number.isdigit():
                found.add((entry.name, entry.inode()))
    return found


class _Tail:
    """The steps in the lines that are appended to a JSONL file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.steps()

    def steps(self) -> list[int]:
        """Those of whole lines that came since the last call; a file that has become shorter is another one."""
        try:
            size = self._path.stat().st_size
            if size == self._offset:
                return []
            if size < self._offset:
                self._offset = 0
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line)["step"] for line in whole.splitlines() if line.startswith(b"{")]
