"""Delivered rows as text: lines for people, JSON lines and CSV for audits, and a table file that is whole or not there.

Formats whole blocks of columns: a million rows take seconds. Knows nothing of how the rows were found.
"""

from __future__ import annotations

import contextlib
import csv
import enum
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from datarax.core.errors import InputError
from datarax.deliveries import Rows
from datarax.lineage import Stretch
from datarax.sources.durable import flush_to_disk

COLUMNS = ("step", "row", "source", "index", "epoch", "file", "index_in_file")
"""Of CSV and JSON lines. Padding has no source and no file, and index and epoch -1; `file` is empty where a record is in no one
file, or where which file it was is not known any more."""


class Style(enum.StrEnum):
    """What a table looks like."""

    LINES = "lines"
    """A line for people."""
    JSON = "json"
    """One JSON object per line."""
    CSV = "csv"
    """A header and comma-separated rows."""


@dataclass
class Summary:
    """What was written."""

    rows: int = 0
    """Rows of the table."""
    steps: tuple[int, int] | None = None
    """The first and the last step."""
    epochs: tuple[int, int] | None = None
    """The least and the greatest epoch of any row but padding."""
    unknown_files: str | None = None
    """Why some rows do not name their file although they lie in one."""

    def add(self, rows: Rows) -> None:
        """Counts some more rows, of later steps than those before."""
        self.rows += len(rows)
        first, last = int(rows.step[0]), int(rows.step[-1])
        self.steps = (first if self.steps is None else self.steps[0], last)
        epochs = rows.keys.epoch[rows.keys.epoch >= 0]
        if len(epochs):
            ends = [int(epochs.min()), int(epochs.max()), *(self.epochs or ())]
            self.epochs = min(ends), max(ends)


def write_table(blocks: Iterable[Rows], style: Style, stream: TextIO) -> Summary:
    """Writes blocks of rows to a stream as they come."""
    summary = Summary()
    files = _Files(summary)
    if style is Style.CSV:
        csv.writer(stream, lineterminator="\n").writerow(COLUMNS)
    for rows in blocks:
        if len(rows):
            summary.add(rows)
            _WRITERS[style](rows, files, stream)
    return summary


@contextlib.contextmanager
def new_file(path: str) -> Iterator[TextIO]:
    """A text file that gets its name when all of it is on the disk; one that is there already is never replaced.

    Raises:
        InputError: if it exists.
        OSError: if it cannot be written; then nothing is left.
    """
    refusal = InputError(f"{path} exists already; a table replaces nothing: remove it or choose another name")
    if os.path.lexists(path):
        raise refusal
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # A link fails where a rename would replace what another process has written meanwhile.
        os.link(partial, path)
    except FileExistsError:
        raise refusal from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    flush_to_disk(os.path.dirname(path))


class _Files:
    """Which file each row's record lies in; keeps the list of the stretch that rows came from last."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._stretch: Stretch | None = None
        self._names: list[str] = []
        self._firsts = np.zeros(0, np.int64)

    def columns(self, rows: Rows, show: Callable[[str | None], Any]) -> tuple[Iterable[Any], Iterable[Any]]:
        """The file of each row and the index in it, names and None as `show` makes them."""
        if self._stretch is not rows.stretch:
            self._turn_to(rows.stretch)
        index = rows.keys.index
        if not self._names:
            nothing = show(None)
            return itertools.repeat(nothing), itertools.repeat(nothing)
        # An empty file begins where the next one does; the last of those that begin there holds the record.
        number = np.searchsorted(self._firsts, index, side="right") - 1
        within = index - self._firsts[number]
        names = _picked(self._names, number, show)
        if number.min() >= 0:
            return names, within.tolist()
        return names, np.where(number < 0, show(None), within.astype(object)).tolist()

    def _turn_to(self, stretch: Stretch) -> None:
        self._stretch = stretch
        try:
            files = stretch.list_files()
        except InputError as error:
            files, self._summary.unknown_files = (), str(error)
        self._names = [file.name for file in files]
        self._firsts = np.array([file.first_index for file in files], np.int64)


def _picked(names: Sequence[str], number: np.ndarray, show: Callable[[str | None], Any]) -> list[Any]:
    """The names by number, the last for -1 being None."""
    shown = np.empty(len(names) + 1, object)
    shown[:] = [*map(show, names), show(None)]
    return shown.take(number, mode="wrap").tolist()


def _columns(rows: Rows, files: _Files, show: Callable[[str | None], Any]) -> Iterator[tuple[Any, ...]]:
    """The columns, as tuples of one row each."""
    keys = rows.keys
    numbers = (rows.step, rows.slot, keys.index, keys.epoch)
    step, slot, index, epoch = (column.tolist() for column in numbers)
    source = _picked(rows.stretch.order.source_names, keys.source, show)
    # Not strict: the columns of a source without files go on for ever.
    return zip(step, slot, source, index, epoch, *files.columns(rows, show), strict=False)


def _write_csv(rows: Rows, files: _Files, stream: TextIO) -> None:
    csv.writer(stream, lineterminator="\n").writerows(_columns(rows, files, lambda name: name))


_JSON = "{" + ", ".join(f'"{name}": %s' for name in COLUMNS) + "}\n"


def _write_json(rows: Rows, files: _Files, stream: TextIO) -> None:
    stream.writelines(_JSON % row for row in _columns(rows, files, json.dumps))


def _write_lines(rows: Rows, files: _Files, stream: TextIO) -> None:
    keys = rows.keys
    source = _picked(rows.stretch.order.source_names, keys.source, lambda name: name)
    columns = (rows.step.tolist(), rows.slot.tolist(), source, keys.index.tolist(), keys.epoch.tolist())
    for step, slot, name, index, epoch in zip(*columns, strict=True):
        record = "(padding)" if name is None else f"{name}:{index}"
        stream.write(f"step {step}  row {slot}  {record}  epoch {epoch}\n")


_WRITERS = {Style.LINES: _write_lines, Style.JSON: _write_json, Style.CSV: _write_csv}

__all__ = ["COLUMNS", "Style", "Summary", "new_file", "write_table"]
