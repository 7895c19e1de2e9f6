"""What people see of a run: a bar on a terminal, plain lines elsewhere, and the same as JSONL in the run directory.

Read from the side: the loop reports each step, and only at the log interval are metrics fetched from the device.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from datarax.core.config import at_least, check_fields
from datarax.loader.runtime import StreamMetrics
from datarax.store.files import is_same_file, open_file, read_file, write_whole

_FACTS = {
    "rows_per_second": "{:,.0f} rows/s",
    "wait_share": "data wait {:.1%}",
    "snapshot_age_seconds": "snapshot {:.0f} s ago",
}
"""How people read the facts of a report that are not the task's own."""

_MOST_COPIED_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run reports."""

    every_seconds: Annotated[float, at_least(0)] = 1.0
    """Time between two reports, in seconds; 0 reports every step."""

    def __post_init__(self) -> None:
        check_fields(self)


class RunProgress:
    """Reports of one run. They never end it: where they cannot be written, that is said once, and training goes on.

    Args:
        every_seconds: time between two reports, in seconds.
        stream: where to print; None prints nothing.
    """

    def __init__(self, *, every_seconds: float, stream: TextIO | None) -> None:
        self._every_seconds = every_seconds
        self._stream = stream
        self._bar: Progress | None = None
        self._path: Path | None = None
        self._file: BinaryIO | None = None
        self._snapshot_time: float | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.stop()
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()

    def begin(self, path: Path | None, *, start: int, total: int, metrics: StreamMetrics) -> None:
        """From here on there are steps to report.

        Args:
            path: the JSONL file to append to; None writes none.
            start: the step that the run continues from.
            total: the last step of the run.
            metrics: the loader's counters.
        """
        self._path = path
        self._total = total
        self._metrics = metrics
        self._last = self._reading()
        if self._stream is not None and self._stream.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=10),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(compact=True),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("run", total=total, completed=start, facts="")
            self._bar.start()
        self._write(b"")  # what cannot be written is said before the first step

    def snapshot_committed(self) -> None:
        """Told when a snapshot is safe: its age counts from here."""
        self._snapshot_time = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, Any], *, last: bool = False) -> None:
        """Told after each step; reports at the interval and at the last one."""
        if not last and time.monotonic() - self._last[0] < self._every_seconds:
            return
        # The task may have a metric called "step": the run's own comes first and wins.
        report: dict[str, Any] = {"step": step}
        report |= {name: _number(value) for name, value in metrics.items() if name != "step"}
        # Read after the metrics have arrived: until then the steps were only handed to the device.
        now = self._reading()
        seconds, rows, waited = (after - before for before, after in zip(self._last, now, strict=True))
        self._last = now
        report["rows_per_second"] = round(rows / max(seconds, 1e-9), 1)
        report["wait_share"] = round(min(1.0, waited / max(seconds, 1e-9)), 4)
        if self._snapshot_time is not None:
            report["snapshot_age_seconds"] = round(now[0] - self._snapshot_time, 1)
        facts = "  ".join(_fact(name, value) for name, value in report.items() if name != "step")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts)
        else:
            self.say(f"step {step}/{self._total}  {facts}")
        report["time"] = round(time.time(), 3)
        # One unbuffered write: a kill leaves whole lines, and what could not be written is not tried again.
        self._write((json.dumps(report) + "\n").encode())

    def say(self, text: str) -> None:
        """Prints one line of its own, above the bar if there is one."""
        try:
            if self._bar is not None:
                self._bar.console.print(text, highlight=False, markup=False)
            elif self._stream is not None:
                print(text, file=self._stream, flush=True)
        except (
            OSError
        ):  # who reads our output may leave (`| head`, a closed terminal); the run does not end with them
            self._stream = self._bar = None

    def _reading(self) -> tuple[float, int, float]:
        """Of two readings the differences are seconds, rows that were handed over, and seconds waited for them."""
        return time.monotonic(), self._metrics.rows, self._metrics.wait_seconds

    def _write(self, data: bytes) -> None:
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = _open_for_lines(self._path)
            self._file.write(data)
            if not is_same_file(self._file.fileno(), self._path):
                raise OSError(0, "it was deleted, moved or replaced")
        except OSError as error:
            self._path = None
            self.say(f"metrics.jsonl cannot be written ({error.strerror}); training goes on without it")


def _fact(name: str, value: Any) -> str:
    if name in _FACTS:
        return _FACTS[name].format(value)
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _number(value: Any) -> Any:
    """A metric as JSON: what is not finite becomes text, since JSON has no NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    except OverflowError:  # an int, which Python may not even spell
        return "too large"
    return round(number, 6) if math.isfinite(number) else str(number)


def _open_for_lines(path: Path) -> BinaryIO:
    """Opens for appending, unbuffered; a line that a full disk left half written is ended first."""
    with contextlib.suppress(FileNotFoundError):
        # Then it is another directory's too: a copy by links, or what it was copied from.
        if path.is_file() and os.lstat(path).st_nlink > 1:
            write_whole(path, read_file(path, _MOST_COPIED_BYTES, root=path.parent))
    descriptor = open_file(path, root=path.parent, flags=os.O_RDWR | os.O_APPEND | os.O_CREAT)
    file = os.fdopen(descriptor, "ab", buffering=0)
    try:
        size = os.fstat(descriptor).st_size
        if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
            file.write(b"\n")
        return file
    except BaseException:
        file.close()
        raise
