"""Which rows were delivered in which steps of a run, and in which steps a record or a file was: in blocks of columns.

Reads no record. Steps that were done are computed by the recipe of then (`lineage.py`) and held against the digests that were
recorded at delivery, before a row of them is given out. Read next: `delivery_table.py`, which makes text of the rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datarax.checkpoint.items import item_steps, read_item
from datarax.core.errors import InputError, MismatchError, SnapshotDamagedError, SnapshotNotFoundError
from datarax.lineage import Lineage, Stretch
from datarax.order import RecordKeys, key_hashes
from datarax.sources import SourceFile
from datarax.training import LOADER_NAME

# Rows evaluated at once: the fixed cost of an order no longer shows, and the work space is a few MiB.
_BLOCK_ROWS = 1 << 16
# Positions of one epoch that are sorted in memory, 8 bytes each; beyond, the steps are scanned.
_MOST_INVERTED = 1 << 24
# What one more epoch costs an inverse, in rows of a scan.
_EPOCH_COST_ROWS = 1 << 12


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of the steps of one stretch, ascending by step and slot."""

    step: np.ndarray
    """int64[n], counted from 0."""
    slot: np.ndarray
    """int64[n], row of the global batch."""
    keys: RecordKeys
    """Which record each is; padding has (-1, -1, -1)."""
    stretch: Stretch
    """Whose recipe delivered them."""

    def __len__(self) -> int:
        return len(self.step)


@dataclass
class Checked:
    """How many of the steps given out were held against the digest that was recorded when they were delivered."""

    agreed: int = 0
    """Their keys are the ones recorded."""
    unrecorded: int = 0
    """They were done, but snapshot and ledger entry with their digests are gone or damaged."""


class RecordedDigests:
    """The key digest of each step of a run, from snapshots and ledger, read as they are needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends = item_steps(directory)
        self._held: tuple[int, tuple[int, np.ndarray]] | None = None

    def of(self, step: int) -> int | None:
        """The recorded sum of key hashes of a step; None if it is not kept, or not as it was written."""
        place = bisect_right(self._ends, step)
        if place == len(self._ends):
            return None
        first, digests = self._item(self._ends[place])
        return int(digests[step - first]) if first <= step < first + len(digests) else None

    def _item(self, end: int) -> tuple[int, np.ndarray]:
        if self._held is None or self._held[0] != end:
            try:
                steps = read_item(self._directory, end).steps(LOADER_NAME)
            except (SnapshotDamagedError, SnapshotNotFoundError, KeyError):
                steps = None
            self._held = end, (0, np.zeros(0, np.uint64)) if steps is None else steps[:2]
        return self._held[1]


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


def rows_of_steps(lineage: Lineage, steps: range, checked: Checked | None = None) -> Iterator[Rows]:
    """Every row of these steps, in order.

    Args:
        lineage: of the run.
        steps: consecutive steps of it.
        checked: counts what was checked.

    Raises:
        MismatchError: before the first step whose records are not the ones that were recorded as delivered.
    """
    proof = _Proof(lineage, Checked() if checked is None else checked)
    for stretch, part in _parts(lineage, steps):
        for block in _blocks(part, stretch.schedule.batch_size):
            rows = _whole_steps(stretch, np.arange(block.start, block.stop))
            proof.check_whole(rows)
            yield rows


def find_rows(
    lineage: Lineage, wanted: Sequence[str], steps: range, checked: Checked | None = None
) -> Iterator[Rows]:
    """Every row of these steps that holds a wanted record, in order.

    Args:
        lineage: of the run.
        wanted: each a record, `SOURCE:INDEX`, or a file: its name, the end of its name, or a path that ends with it.
        steps: consecutive steps of the run.
        checked: counts what was checked.

    Raises:
        InputError: if one of `wanted` names nothing, or several files, in any of these steps.
        MismatchError: before the first step whose records are not the ones that were recorded as delivered.
    """
    parts = list(_parts(lineage, steps))
    chosen = _chosen(wanted, [stretch for stretch, _ in parts])
    proof = _Proof(lineage, Checked() if checked is None else checked)
    for (stretch, part), ranges in zip(parts, chosen, strict=True):
        for rows in _find(stretch, part, ranges):
            proof.check_steps(stretch, np.unique(rows.step))
            yield rows


def _parts(lineage: Lineage, steps: range) -> Iterator[tuple[Stretch, range]]:
    """The stretches that hold some of these steps, and which."""
    for stretch in lineage.stretches:
        end = steps.stop if stretch.end is None else min(steps.stop, stretch.end)
        part = range(max(steps.start, stretch.first_step), end)
        if part:
            yield stretch, part


def _blocks(steps: range, batch_size: int) -> Iterator[range]:
    size = max(1, _BLOCK_ROWS // batch_size)
    for first in range(steps.start, steps.stop, size):
        yield range(first, min(first + size, steps.stop))


def _whole_steps(stretch: Stretch, steps: np.ndarray) -> Rows:
    size = stretch.schedule.batch_size
    keys = stretch.order.keys(stretch.schedule.positions_of(steps).reshape(-1))
    return Rows(steps.repeat(size), np.tile(np.arange(size), len(steps)), keys, stretch)


class _Proof:
    """Holds computed steps against recorded ones."""

    def __init__(self, lineage: Lineage, checked: Checked) -> None:
        self._steps_done = lineage.steps_done
        self._directory = lineage.recorded_in
        self._digests = None if lineage.recorded_in is None else RecordedDigests(lineage.recorded_in)
        self._checked = checked
        self._last = -1

    def check_steps(self, stretch: Stretch, steps: np.ndarray) -> None:
        """Checks single steps, ascending; one that was checked last is not checked again."""
        steps = steps[steps > self._last]
        steps = steps[steps < self._steps_done]
        size = max(1, _BLOCK_ROWS // stretch.schedule.batch_size)
        for first in range(0, len(steps), size):
            self.check_whole(_whole_steps(stretch, steps[first : first + size]))

    def check_whole(self, rows: Rows) -> None:
        """Checks rows that are whole steps."""
        if self._digests is None or rows.step[0] >= self._steps_done:
            return
        size = rows.stretch.schedule.batch_size
        steps = rows.step[::size]
        order, keys = rows.stretch.order, rows.keys
        positions = rows.stretch.schedule.positions_of(steps).reshape(-1)
        source_ids = order.source_ids[np.maximum(keys.source, 0)]
        hashes = key_hashes(positions, source_ids, keys.index, keys.epoch).reshape(-1, size)
        for step, digest in zip(steps.tolist(), hashes.sum(axis=1, dtype=np.uint64).tolist(), strict=True):
            recorded = self._digests.of(step)
            self._checked.agreed += recorded == digest
            self._checked.unrecorded += recorded is None
            if recorded is not None and recorded != digest:
                raise MismatchError(
                    f"step {step} of {self._directory} cannot be told: the recipe that the run recorded gives other records "
                    f"than were delivered (key digest recorded as {recorded:016x}, computed {digest:016x}), so it is not the "
                    f"recipe of then; no row of this or a later step was given out. `datarax verify` says what else differs"
                )
        self._last = int(steps[-1])


# What is wanted


def _chosen(wanted: Sequence[str], stretches: Sequence[Stretch]) -> list[list[range]]:
    """For each stretch the ranges of records that are wanted: ascending, apart from each other."""
    chosen: list[list[range]] = [[] for _ in stretches]
    sources = {name for stretch in stretches for name in stretch.order.source_names}
    for text in wanted if stretches else ():
        name, index = _as_record(text)
        if name in sources:
            found = [_record(name, index, stretch) for stretch in stretches]
        else:
            found = [_file(text, stretch) for stretch in stretches]
        if not any(isinstance(each, range) for each in found):
            raise InputError(str(found[-1]))
        for ranges, each in zip(chosen, found, strict=True):
            if isinstance(each, range):
                ranges.append(each)
    return [_merged(ranges) for ranges in chosen]


def _as_record(text: str) -> tuple[str, int]:
    """Name and index in `NAME:INDEX`; ("", -1) in any other form."""
    name, _, index = text.rpartition(":")
    return (name, int(index)) if name and index.isascii() and index.isdigit() else ("", -1)


def _record(source: str, index: int, stretch: Stretch) -> range | InputError:
    """The record of a stretch, or why it has none."""
    try:
        stretch.order.check_record(source, index)
    except InputError as error:
        return error
    return range(index, index + 1)


def _file(text: str, stretch: Stretch) -> range | InputError:
    """The records of the file of a stretch that `text` names, or why it names none.

    Raises:
        InputError: if which files there were is not known, or if several are called so.
    """
    files = stretch.list_files()
    named = [file for file in files if _is_called(file.name, text)]
    exact = [file for file in named if file.name == text]
    if len(exact or named) == 1:
        file = (exact or named)[0]
        return range(file.first_index, file.first_index + file.num_records)
    if named:
        shown = ", ".join(file.name for file in named[:4]) + (", …" if len(named) > 4 else "")
        raise InputError(f"--find {text}: {len(named)} files are called so ({shown}); give more of the path")
    name, _ = _as_record(text)
    if name:
        return InputError(
            f"no source is called {name!r}; this order has {', '.join(stretch.order.source_names)}"
        )
    return InputError(_no_such_file(text, stretch, files))


def _is_called(name: str, text: str) -> bool:
    """Whether `text` is the file's name, whole parts from the end of it, or a path that ends with it."""
    asked = text.removeprefix("./")
    return f"/{name}".endswith(f"/{asked}") or f"/{asked}".endswith(f"/{name}")


def _no_such_file(text: str, stretch: Stretch, files: Sequence[SourceFile]) -> str:
    example = f"{stretch.order.source_names[0]}:17"
    if not files:
        return (
            f"--find needs SOURCE:INDEX, for instance {example}; got {text!r}, and this source has no files"
        )
    return (
        f"--find needs SOURCE:INDEX, for instance {example}, or the name of one of {len(files)} files, for instance "
        f"{files[0].name}; got {text!r}"
    )


def _merged(ranges: Sequence[range]) -> list[range]:
    merged: list[range] = []
    for each in sorted(ranges, key=lambda each: each.start):
        if merged and each.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, each.stop))
        elif each:
            merged.append(each)
    return merged


# Where it was


def _find(stretch: Stretch, steps: range, ranges: Sequence[range]) -> Iterator[Rows]:
    """By the inverse of the order if few records are wanted, else by a scan of the steps, whichever is less work."""
    schedule, order = stretch.schedule, stretch.order
    first, end = schedule.first_position(steps.start), schedule.first_position(steps.stop)
    records = sum(map(len, ranges))
    if not records or end <= first:
        return
    epochs = range(first // order.num_records, (end - 1) // order.num_records + 1)
    if records <= _MOST_INVERTED and (records + _EPOCH_COST_ROWS) * len(epochs) <= end - first + _BLOCK_ROWS:
        yield from _find_by_inverse(stretch, ranges, epochs, first, end)
    else:
        yield from _find_by_scan(stretch, steps, ranges)


def _find_by_inverse(
    stretch: Stretch, ranges: Sequence[range], epochs: range, first: int, end: int
) -> Iterator[Rows]:
    schedule, order = stretch.schedule, stretch.order
    (source,) = order.source_names
    for epoch in epochs:
        found = [
            order.positions_of(source, np.arange(start, min(start + _BLOCK_ROWS, each.stop)), epoch)
            for each in ranges
            for start in range(each.start, each.stop, _BLOCK_ROWS)
        ]
        positions = np.sort(np.concatenate(found))
        positions = positions[(positions >= first) & (positions < end)]
        for start in range(0, len(positions), _BLOCK_ROWS):
            some = positions[start : start + _BLOCK_ROWS]
            batch, slot = np.divmod(some - schedule.base_position, schedule.batch_size)
            yield Rows(batch + schedule.base_step, slot, order.keys(some), stretch)


def _find_by_scan(stretch: Stretch, steps: range, ranges: Sequence[range]) -> Iterator[Rows]:
    starts = np.array([each.start for each in ranges])
    stops = np.array([each.stop for each in ranges])
    for block in _blocks(steps, stretch.schedule.batch_size):
        rows = _whole_steps(stretch, np.arange(block.start, block.stop))
        # Padding has index -1, before all ranges: place -1 is the last range, in which it does not lie.
        place = np.searchsorted(starts, rows.keys.index, side="right") - 1
        hit = np.flatnonzero((place >= 0) & (rows.keys.index < stops[place]))
        if len(hit):
            yield Rows(rows.step[hit], rows.slot[hit], rows.keys[hit], stretch)


__all__ = ["Checked", "RecordedDigests", "Rows", "find_rows", "parse_interval", "rows_of_steps"]
