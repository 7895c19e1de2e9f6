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
import re
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


class Start(contextlib.AbstractContextManager["Start"]):
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
        self._mark = f"{_MARK}={log}"
        self._metrics = run / "metrics.jsonl"
        self._metrics_read = self._metrics.stat().st_size if self._metrics.exists() else 0
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
                env={**environment, _MARK: str(log)},
                start_new_session=True,  # Ctrl-C is not for it
            )

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
            self._check()
            time.sleep(_POLL_SECONDS)
        return False

    def wait_while_alive(self, seconds: float) -> bool:
        """Waits so long, or until the process has ended; whether it is alive."""
        end = self.seconds + seconds
        return self.wait_for(lambda: self.seconds >= end, math.inf) and self.alive

    def signal(self, name: str, victim: int | None = None) -> bool:
        """Sends a signal to the process, or to one of those that it launched, if that is there; returns whether to that one."""
        place = f"JAX_PROCESS_ID={victim}".encode()
        launched = [] if victim is None else [pid for pid, words in self._others() if place in words]
        if launched:
            with contextlib.suppress(ProcessLookupError):
                os.kill(launched[0], signal.Signals[name])
        else:
            self._process.send_signal(signal.Signals[name])
        return bool(launched)

    def wait(self, limit_seconds: float) -> int | None:
        """The exit code (negative: ended by that signal) when all of it is gone; None if it hung and was ended."""
        self.wait_for(lambda: False, limit_seconds)
        # Those that lost their launcher save and stop; the next start must not meet them.
        end = time.monotonic() + limit_seconds
        while not self.alive and self._others() and time.monotonic() < end:
            self._check()
            time.sleep(_POLL_SECONDS)
        hangs = self.alive or bool(self._others())
        if hangs:
            self.end()
        self._look()
        return None if hangs else self._process.returncode

    def end(self) -> None:
        """Kills whatever is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for _ in range(_END_TRIES):
            left = self._others()
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(_POLL_SECONDS)

    def last_lines(self, count: int) -> list[str]:
        """The end of its output."""
        return self._log.read_text(errors="replace").splitlines()[-count:]

    def _look(self) -> None:
        """Notes the steps in the whole lines of metrics that came since the last look."""
        lines: list[bytes] = []
        with contextlib.suppress(FileNotFoundError), self._metrics.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._metrics_read:  # shorter, so another file
                self._metrics_read = 0
            file.seek(self._metrics_read)
            lines = [line for line in file if line.endswith(b"\n")]
        self._metrics_read += sum(map(len, lines))
        for line in lines:
            if line.startswith(b"{"):
                self.last_step, self.seconds_to_last_step = json.loads(line)["step"], self.seconds
                if self.first_step is None:
                    self.first_step, self.seconds_to_first_step = self.last_step, self.seconds

    def _others(self) -> list[tuple[int, list[bytes]]]:
        """The other processes that carry the mark, and their environments."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                words = entry.read_bytes().split(b"\0")
                if self._mark.encode() in words and entry.parent.name != str(self._process.pid):
                    found.append((int(entry.parent.name), words))
        return found


def newest(run: Path) -> int:
    """The newest committed step of a run; 0 if there is none."""
    return max(list_steps(run), default=0)


def _unfinished(run: Path) -> set[tuple[str, int]]:
    """Directories of snapshots that are not committed: a step's number, a dot, and more."""
    with contextlib.suppress(OSError), os.scandir(run) as entries:
        return {(entry.name, entry.inode()) for entry in entries if re.match(r"\d+\.", entry.name)}
    return set()
