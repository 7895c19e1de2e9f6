"""Which records were in which steps of a run, and in which steps a record or a file was: blocks of rows, and tables of them.

Reads no record. Steps that were done are computed by the recipe of then (`history.py`) and held against the digests that were
recorded at delivery, before a row of them is given out. Tables are formatted by whole blocks of columns: a million rows take
seconds.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt

from datarax.audit.history import History
from datarax.checkpoint import Snapshot
from datarax.checkpoint.snapshot import item_steps
from datarax.core.errors import InputError, MismatchError, SnapshotDamagedError, SnapshotNotFoundError
from datarax.order import Rows, Segment, Timeline
from datarax.sources import DataSource, SourceFile
from datarax.store.files import check_path, sync
from datarax.training import LOADER_NAME

# Rows that are proven at once.
_BLOCK_ROWS = 1 << 16


@dataclass
class Summary:
    """What is known of the rows that were given out."""

    rows: int = 0
    """How many."""
    steps: tuple[int, int] | None = None
    """The first and the last step."""
    epochs: tuple[int, int] | None = None
    """The least and the greatest epoch of any row but padding."""
    unknown_files: str | None = None
    """Why some do not name their file although they lie in one."""
    agreed: int = 0
    """Steps whose keys are the ones that were recorded when they were delivered."""
    unrecorded: int = 0
    """Steps that were done, but snapshot and ledger entry with their digests are gone or damaged."""

    def add(self, rows: Rows) -> None:
        """Counts some more rows, of later steps than those before."""
        self.rows += len(rows)
        first, last = int(rows.step[0]), int(rows.step[-1])
        self.steps = (first if self.steps is None else self.steps[0], last)
        epochs = rows.keys.epoch[rows.keys.epoch >= 0]
        if len(epochs):
            ends = [int(epochs.min()), int(epochs.max()), *(self.epochs or ())]
            self.epochs = min(ends), max(ends)


def parse_interval(text: str, num_steps: int | None) -> range:
    """The steps that `A:B`, `A:`, `:B` or `A` names.

    Args:
        text: what the user wrote.
        num_steps: steps of the run; None if it is endless.

    Raises:
        InputError: if it names none, or some that the run does not have.
    """
    first, colon, last = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(last) if last else (num_steps if colon else start + 1)
    except ValueError:
        raise InputError(f"--steps needs A:B with whole numbers, got {text!r}") from None
    if stop is None:
        raise InputError(f"--steps {text} has no end, and neither has this run; give A:B")
    if start < 0 or stop <= start:
        raise InputError(f"--steps {text} holds no step: steps count from 0, and B must be above A")
    if num_steps is not None and stop > num_steps:
        raise InputError(f"--steps {text}: this run has only {num_steps} steps")
    return range(start, stop)


def rows_of(history: History, steps: range, wanted: Sequence[str], summary: Summary) -> Iterator[Rows]:
    """The rows of these steps, in order: every one, or those that hold a wanted record.

    Args:
        history: of the run.
        steps: consecutive steps of it.
        wanted: each a record, `SOURCE:INDEX`, or a file: its name, the end of its name, or a path that ends with it; if
            there are none, every row is.
        summary: counts the steps that are held against what was recorded.

    Raises:
        InputError: if there is no such step, or one of `wanted` names nothing, or several files, in any of them.
        MismatchError: before the first step whose records are not the ones that were recorded as delivered.
    """
    timeline, proof = history.timeline, _Proof(history, summary)
    try:
        parts = list(timeline.parts(steps))
    except IndexError as error:
        raise InputError(f"--steps: {error}") from error
    if not wanted:
        for rows in timeline.rows(steps):
            proof.check_whole(rows)
            yield rows
        return
    chosen = _chosen(wanted, history, [segment for segment, _ in parts])
    for (_, part), ranges in zip(parts, chosen, strict=True):
        for rows in timeline.find(ranges, part):
            proof.check_steps(rows)
            yield rows


class _Proof:
    """Holds computed steps against recorded ones."""

    def __init__(self, history: History, summary: Summary) -> None:
        self._history = history
        self._ends = [] if history.recorded_in is None else item_steps(history.recorded_in)
        self._digests_before = lru_cache(maxsize=1)(self._read)
        self._summary = summary
        self._next = 0

    def check_steps(self, rows: Rows) -> None:
        """Checks the steps that rows are of; the one that was checked last is not checked again."""
        steps = np.unique(rows.step)
        steps = steps[(steps >= self._next) & (steps < self._history.steps_done)]
        size = max(1, _BLOCK_ROWS // rows.segment.batch_size)
        for first in range(0, len(steps), size):
            self.check_whole(self._history.timeline.rows_at(steps[first : first + size]))

    def check_whole(self, rows: Rows) -> None:
        """Checks rows that are whole steps."""
        steps = rows.step[:: rows.segment.batch_size]
        if steps[0] >= self._history.steps_done:
            return
        for step, digest in zip(steps.tolist(), rows.step_digests().tolist(), strict=True):
            if step >= self._history.steps_done:
                break
            recorded = self._recorded(step)
            self._summary.agreed += recorded == digest
            self._summary.unrecorded += recorded is None
            if recorded is not None and recorded != digest:
                raise MismatchError(
                    f"step {step} of {self._history.recorded_in} cannot be told: the recipe that the run recorded gives other "
                    f"records than were delivered (key digest recorded as {recorded:016x}, computed {digest:016x}), so it is "
                    f"not the recipe of then; no row of this or a later step was given out. `datarax verify` says what else "
                    f"differs"
                )
        self._next = int(steps[-1]) + 1

    def _recorded(self, step: int) -> int | None:
        """The recorded sum of key hashes of a step; None if it is not kept, or not as it was written."""
        place = bisect_right(self._ends, step)
        if place == len(self._ends):
            return None
        first, digests = self._digests_before(self._ends[place])
        return int(digests[step - first]) if first <= step < first + len(digests) else None

    def _read(self, end: int) -> tuple[int, npt.NDArray[np.uint64]]:
        """The digests of the steps before a snapshot, and the first of these steps."""
        assert self._history.recorded_in is not None
        with contextlib.suppress(SnapshotDamagedError, SnapshotNotFoundError, KeyError):
            return Snapshot.find(self._history.recorded_in, end).steps[LOADER_NAME][:2]
        return 0, np.zeros(0, np.uint64)


# What is wanted


def _chosen(wanted: Sequence[str], history: History, segments: Sequence[Segment]) -> list[list[range]]:
    """For each segment the ranges of records that are wanted: ascending, apart from each other."""
    chosen: list[list[range]] = [[] for _ in segments]
    sources = {name for segment in segments for name in segment.order.source_names}
    for text in wanted if segments else ():
        found = [_named(text, history, segment, sources) for segment in segments]
        if all(isinstance(each, str) for each in found):
            raise InputError(str(found[-1]))
        for ranges, each in zip(chosen, found, strict=True):
            ranges += [] if isinstance(each, str) else [each]
    return [_merged(ranges) for ranges in chosen]


def _named(text: str, history: History, segment: Segment, sources: Collection[str]) -> range | str:
    """The records of a segment that `text` names, or why it names none; `sources` are those of all segments.

    Raises:
        InputError: if it is a file, and which files there were is not known, or several are called so.
    """
    name, _, index = text.rpartition(":")
    # No index has more digits; `int` takes no more than a few thousand.
    is_record = name != "" and index.isascii() and index.isdigit() and len(index) < 100
    if is_record and name in sources:
        try:
            segment.order.check_record(name, int(index))
        except InputError as error:
            return str(error)
        return range(int(index), int(index) + 1)
    files, path = history.files_of(segment), f"/{text.removeprefix('./')}"
    called = [file for file in files if f"/{file.name}".endswith(path) or path.endswith(f"/{file.name}")]
    called = [file for file in called if file.name == text] or called
    if len(called) == 1:
        return range(called[0].first_index, called[0].first_index + called[0].num_records)
    if called:
        shown = ", ".join(file.name for file in called[:4]) + (", …" if len(called) > 4 else "")
        raise InputError(f"--find {text}: {len(called)} files are called so ({shown}); give more of the path")
    if is_record:
        return f"no source is called {name!r}; this order has {', '.join(segment.order.source_names)}"
    needs = f"--find needs SOURCE:INDEX, for instance {segment.order.source_names[0]}:17"
    if not files:
        return f"{needs}; got {text!r}, and this source has no files"
    return f"{needs}, or the name of one of {len(files)} files, for instance {files[0].name}; got {text!r}"


def _merged(ranges: Sequence[range]) -> list[range]:
    merged: list[range] = []
    for each in sorted(ranges, key=lambda each: each.start):
        if merged and each.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, each.stop))
        elif each:
            merged.append(each)
    return merged


# Of a replay


def indices_of(timeline: Timeline, steps: range) -> npt.NDArray[np.int64]:
    """int64[steps, batch size]: the record in each row of steps of one segment; -1 in padding."""
    index = timeline.rows_at(np.arange(steps.start, steps.stop)).keys.index
    return index.reshape(len(steps), -1)


def changed_records(source: DataSource, timeline: Timeline, step: int) -> list[str]:
    """The records of a step that are not what the manifest says, with their rows."""
    (indices,) = indices_of(timeline, range(step, step + 1))
    changed = source.changed_among(indices[indices >= 0])
    return [
        f"row {row} is {source.name}:{index} ({changed[index]})"
        for row, index in enumerate(indices.tolist())
        if index in changed
    ]


# As text

COLUMNS = ("step", "row", "source", "index", "epoch", "file", "index_in_file")
"""Of CSV and JSON lines. Padding has no source and no file, and index and epoch -1; `file` is empty where a record is in no one
file, or where which file it was is not known any more."""
_JSON = "{" + ", ".join(f'"{name}": %s' for name in COLUMNS) + "}\n"


Style = Literal["lines", "json", "csv"]
"""A line for people; one JSON object per line; a header and comma-separated rows."""


def write_table(
    history: History, steps: range, wanted: Sequence[str], style: Style, stream: TextIO
) -> Summary:
    """Writes the rows that `rows_of` gives to a stream as they come.

    Raises:
        InputError: as `rows_of`.
        MismatchError: as `rows_of`.
    """
    summary, write_csv = Summary(), csv.writer(stream, lineterminator="\n")

    @lru_cache(maxsize=1)
    def files_of(segment: Segment) -> tuple[Sequence[SourceFile], npt.NDArray[np.int64]]:
        files: Sequence[SourceFile] = ()
        try:
            files = history.files_of(segment)
        except InputError as error:
            summary.unknown_files = str(error)
        return files, np.array([file.first_index for file in files] or [0], np.int64)

    if style == "csv":
        write_csv.writerow(COLUMNS)
    for rows in rows_of(history, steps, wanted, summary):
        summary.add(rows)
        if style == "csv":
            write_csv.writerows(_columns(rows, lambda name: name, files_of))
        elif style == "json":
            stream.writelines(_JSON % row for row in _columns(rows, json.dumps, files_of))
        else:
            for step, slot, name, index, epoch in _columns(rows, lambda name: name):
                record = "(padding)" if name is None else f"{name}:{index}"
                stream.write(f"step {step}  row {slot}  {record}  epoch {epoch}\n")
    return summary


@contextlib.contextmanager
def new_file(path: str) -> Iterator[TextIO]:
    """A text file that gets its name when all of it is on the disk; one that is there already is never replaced.

    Raises:
        InputError: if it exists, or cannot be made where it shall be.
        OSError: if it cannot be written; then nothing is left.
    """
    check_path(path, "the table")
    refusal = InputError(f"{path} exists already; a table replaces nothing: remove it or choose another name")
    if os.path.lexists(path):
        raise refusal
    directory = os.path.dirname(path) or "."
    partial = f"{path}.{os.getpid()}.partial"
    try:
        opened = open(partial, "w", encoding="utf-8", newline="")  # noqa: SIM115, closed below
    except OSError as error:
        raise InputError(
            f"--output {path}: nothing can be written in {directory}: {error.strerror}"
        ) from error
    try:
        with opened as stream:
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
    sync(directory)


def _columns(
    rows: Rows,
    show: Callable[[str | None], Any],
    files_of: Callable[[Segment], tuple[Sequence[SourceFile], npt.NDArray[np.int64]]] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """The columns, with files if they are asked for, as tuples of one row each; names and None as `show` makes them."""
    keys = rows.keys
    columns = [column.tolist() for column in (rows.step, rows.slot, keys.index, keys.epoch)]
    columns.insert(2, _picked(rows.segment.order.source_names, keys.source, show))
    if files_of is None:
        return zip(*columns, strict=True)
    files, firsts = files_of(rows.segment)
    # An empty file begins where the next one does; the last of those that begin there holds the record.
    number = np.searchsorted(firsts, keys.index, side="right") - 1 if files else np.full(len(rows), -1)
    within = (keys.index - firsts[number]).astype(object)
    within[number < 0] = show(None)
    return zip(*columns, _picked([file.name for file in files], number, show), within.tolist(), strict=True)


def _picked(names: Sequence[str], number: np.ndarray, show: Callable[[str | None], Any]) -> list[Any]:
    """The names by number; -1 is None."""
    used, place = np.unique(number, return_inverse=True)
    shown = np.empty(len(used), object)
    shown[:] = [show(names[each] if each >= 0 else None) for each in used.tolist()]
    return shown[place].tolist()


__all__ = [
    "COLUMNS",
    "Style",
    "Summary",
    "changed_records",
    "indices_of",
    "new_file",
    "parse_interval",
    "rows_of",
    "write_table",
]
