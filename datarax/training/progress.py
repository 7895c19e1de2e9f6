"""What people see of a run: a bar on a terminal, plain lines elsewhere, and the same as JSONL in the run directory.

Read from the side: the loop reports each step, and only at the log interval are metrics fetched from the device.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from datarax.loader.stream import StreamMetrics
from datarax.store.files import is_same_file, open_file, read_file, write_whole


class RunProgress:
    """Reports of one run.

    Args:
        path: the JSONL file to append to; None writes none.
        total: the last step of the run.
        start: the step that the run continues from.
        metrics: the loader's counters.
        every_seconds: time between two reports, in seconds.
        stream: where to print; None prints nothing.

    Reports never end a run: where they cannot be written, that is said once, if it can be, and training goes on.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        total: int,
        start: int,
        metrics: StreamMetrics,
        every_seconds: float,
        stream: TextIO | None,
    ) -> None:
        self._total = total
        self._metrics = metrics
        self._every_seconds = every_seconds
        self._stream = stream
        self._file: BinaryIO | None = None
        self._bar: Progress | None = None
        if stream is not None and stream.isatty():
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=10),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(compact=True),
                console=Console(file=stream),
            )
            self._task = self._bar.add_task("run", total=total, completed=start, facts="")
        self._snapshot_time: float | None = None
        self._last_step = start
        self._last_time = time.monotonic()
        self._last_rows = metrics.rows
        self._last_wait = metrics.wait_seconds
        self._path = path
        if path is not None:
            try:
                self._file = _open_for_lines(path)
            except OSError as error:
                self._lose_file(str(error.strerror))

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def snapshot_committed(self) -> None:
        """Told when a snapshot is safe: its age counts from here."""
        self._snapshot_time = time.monotonic()

    def step(self, step: int, metrics: Mapping[str, Any], *, last: bool = False) -> None:
        """Told after each step; reports at the interval and at the last one."""
        if not last and time.monotonic() - self._last_time < self._every_seconds:
            return
        # The task may have a metric called "step": the run's own comes first and wins.
        report: dict[str, Any] = {"step": step}
        report.update({name: _number(value) for name, value in metrics.items() if name != "step"})
        # Read after the metrics have arrived: until then the steps were only handed to the device.
        now = time.monotonic()
        elapsed = max(now - self._last_time, 1e-9)
        report["rows_per_second"] = round((self._metrics.rows - self._last_rows) / elapsed, 1)
        report["wait_share"] = round(min(1.0, (self._metrics.wait_seconds - self._last_wait) / elapsed), 4)
        if self._snapshot_time is not None:
            report["snapshot_age_seconds"] = round(now - self._snapshot_time, 1)
        report["time"] = round(time.time(), 3)
        self._show(step, report)
        self._append(report)
        self._last_step, self._last_time = step, now
        self._last_rows, self._last_wait = self._metrics.rows, self._metrics.wait_seconds

    def say(self, text: str) -> None:
        """Prints one line of its own, above the bar if there is one."""
        with self._printing():
            if self._bar is not None:
                self._bar.console.print(text, highlight=False, markup=False)
            elif self._stream is not None:
                print(text, file=self._stream, flush=True)

    def _show(self, step: int, report: Mapping[str, Any]) -> None:
        facts = []
        for name, value in report.items():
            if name in ("step", "time"):
                continue
            facts.append(_FACTS.get(name, lambda v, n=name: f"{n} {_short(v)}")(value))
        with self._printing():
            if self._bar is not None:
                self._bar.update(self._task, completed=step, facts="  ".join(facts))
            elif self._stream is not None:
                print(f"step {step}/{self._total}  {'  '.join(facts)}", file=self._stream, flush=True)

    def _append(self, report: Mapping[str, Any]) -> None:
        if self._file is None or self._path is None:
            return
        try:
            # One unbuffered write: a kill leaves whole lines, and what could not be written is not tried again.
            self._file.write((json.dumps(report) + "\n").encode())
        except OSError as error:
            self._lose_file(str(error.strerror))
        else:
            if not is_same_file(self._file.fileno(), self._path):
                self._lose_file("it was deleted, moved or replaced")

    def _lose_file(self, why: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        self.say(f"metrics.jsonl cannot be written ({why}); training goes on without it")

    @contextlib.contextmanager
    def _printing(self) -> Iterator[None]:
        """Who reads our output may leave (`| head`, a closed terminal); the run does not end with them."""
        try:
            yield
        except OSError:
            self._stream = self._bar = None


_FACTS: dict[str, Any] = {
    "rows_per_second": lambda value: f"{value:,.0f} rows/s",
    "wait_share": lambda value: f"data wait {value:.1%}",
    "snapshot_age_seconds": lambda value: f"snapshot {value:.0f} s ago",
}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> Any:
    """A metric as JSON: what is not finite becomes text, since JSON has no NaN."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    except OverflowError:  # an int, which Python may not even spell
        return "too large"
    return round(number, 6) if math.isfinite(number) else str(number)


_MOST_COPIED_BYTES = 1 << 28


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
