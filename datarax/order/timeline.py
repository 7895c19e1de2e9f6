"""Which positions, and so which records, each step of a run covers: past and future, one immutable value.

A run is a row of segments, each made by one recipe: an order and a batch size, from a step and a position on. A change in
mid-run adds a segment, so the steps before it keep their meaning. Pure arithmetic: knows no files, threads or processes; a
process asks for the slots that it reads. Read `order.py` first: it says which record stands at a position.
"""

from __future__ import annotations

import enum
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from datarax.core.config import BatchSize, Checked, Natural, Positive, check_fields
from datarax.core.errors import ConfigError, InputError, MismatchError
from datarax.order.digest import key_hashes, key_hashes_of_pass
from datarax.order.order import Order, RecordKeys
from datarax.order.seeds import MAX_POSITION

# Rows that a search evaluates at once: the fixed cost of an order no longer shows, and the work space is a few MiB.
_SEARCH_ROWS = 1 << 16
# Records of one epoch whose positions are sorted in memory, 8 bytes each; beyond, the steps are scanned.
_MOST_INVERTED = 1 << 24
# What one more epoch costs an inverse, in rows of a scan.
_EPOCH_COST_ROWS = 1 << 12


class Remainder(enum.StrEnum):
    """What becomes of a budget's last rows if they do not fill a batch; acts once, at the end of the run."""

    DROP = "drop"
    """They are not delivered."""
    PAD = "pad"
    """They come in a last batch whose other slots are pad slots: position -1, key (-1, -1, -1), masked."""
    ERROR = "error"
    """A budget that leaves a remainder is refused before the run starts."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Steps from `first_step` up to the next segment, by one recipe.

    Step s begins at the position `first_position` + (s - `first_step`) * `batch_size`.

    Raises:
        ConfigError: if a field is out of range.
    """

    order: Order
    """Which record stands at which position."""
    batch_size: BatchSize
    """Rows of a global batch, over all processes."""
    first_step: Natural = 0
    """The first step of the segment."""
    first_position: Natural = 0
    """The position at which that step begins. Beyond the end of the segment before: what lies between is skipped. Below it:
    the last batch before was padded."""
    excluded: str | None = None
    """SHA-256 of the list of records that are left out; None: none are. There is no way to leave any out yet."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.excluded is not None:
            raise ConfigError("excluded records are not available yet")


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a segment's steps, ascending by step and slot."""

    segment: Segment
    """Whose recipe gives them."""
    step: np.ndarray
    """int64[n], counted from 0."""
    slot: np.ndarray
    """int64[n], row of the global batch."""
    position: np.ndarray
    """int64[n]; -1 is a pad slot."""
    keys: RecordKeys
    """Which record each is; padding has (-1, -1, -1)."""

    def __len__(self) -> int:
        return len(self.step)

    def hashes(self) -> np.ndarray:
        """The key hash of each row: uint64[n]; 0 for padding."""
        order, epoch = self.segment.order, self.keys.epoch
        # Positions ascend, and with them epochs; pads, whose epoch is -1, come last.
        if len(self) and len(order.source_ids) == 1 and 0 <= epoch[0] == epoch[-1]:
            # What all rows share goes into the hash as one number, which saves passes over memory.
            return key_hashes_of_pass(self.position, int(order.source_ids[0]), self.keys.index, int(epoch[0]))
        source_id = order.source_ids[np.maximum(self.keys.source, 0)]
        return key_hashes(self.position, source_id, self.keys.index, epoch)

    def step_digests(self) -> np.ndarray:
        """The sum of key hashes of each step, if these are all rows of their steps: uint64[k]."""
        return self.hashes().reshape(-1, self.segment.batch_size).sum(axis=1, dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The whole run: which segment holds at which step, and where the run ends.

    Immutable, so calls from several threads at once are safe; equal timelines cover the same positions by the same orders.

    Raises:
        ConfigError: if a field is out of range, the segments do not follow each other, `error` meets a remainder, or there
            would be no step at all.
    """

    segments: tuple[Segment, ...]
    """In the order of their steps; the last goes on to the end. Steps before the first are unknown."""
    num_rows: Positive | None = None
    """Budget in rows: positions up to num_rows - 1 are delivered. None is endless."""
    remainder: Checked[Remainder] = Remainder.DROP
    """What becomes of rows at the end of the budget that do not fill a batch."""
    lanes: int | None = None
    """Lanes of count-changing stages, which there are none of yet; None: a step is a range of positions."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lanes is not None:
            raise ConfigError("lanes are not available yet")
        for before, after in pairwise(self.segments):
            if after.first_step <= before.first_step or after.first_position < before.first_position:
                raise ConfigError(
                    f"a segment from step {after.first_step}, position {after.first_position} cannot follow one from step "
                    f"{before.first_step}, position {before.first_position}"
                )
        if self.num_rows is not None:
            self._check_budget(self.num_rows)

    def _check_budget(self, num_rows: int) -> None:
        last = self.last
        rows = num_rows - last.first_position
        if rows < 0:
            raise ConfigError(
                f"first_position is {last.first_position}, beyond the budget of {num_rows} rows"
            )
        if self.remainder is Remainder.ERROR and rows % last.batch_size:
            raise ConfigError(
                f"{rows} rows do not make whole batches of {last.batch_size}: {rows % last.batch_size} are left over; choose "
                "remainder = 'drop' or 'pad', or another batch size"
            )
        if self.num_steps == 0:
            raise ConfigError(
                f"a batch of {last.batch_size} rows is larger than the budget of {num_rows} rows, so dropping the "
                "remainder leaves no step; choose remainder = 'pad' or a smaller batch size"
            )

    # Steps and positions

    @property
    def last(self) -> Segment:
        """The segment that goes on to the end."""
        return self.segments[-1]

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole run, those of all segments included; None if it is endless."""
        if self.num_rows is None:
            return None
        last, rows = self.last, self.num_rows - self.last.first_position
        is_padded = self.remainder is Remainder.PAD
        return last.first_step + (-(-rows // last.batch_size) if is_padded else rows // last.batch_size)

    def parts(self, steps: range) -> Iterator[tuple[Segment, range]]:
        """Each segment that holds some of these steps, and which.

        Raises:
            IndexError: if one of them does not exist, or is unknown.
        """
        at = steps.start
        while at < steps.stop:
            number = self._number(at)
            part = range(at, min(steps.stop, self._end(number)))
            yield self.segments[number], part
            at = part.stop

    def block_of(self, step: int, most_steps: int) -> range:
        """Up to `most_steps` steps of one segment, `step` among them; where they begin depends on `most_steps` only.

        Raises:
            IndexError: if the step does not exist, or is unknown.
        """
        number = self._number(operator.index(step))
        first = step - (step - self.segments[number].first_step) % most_steps
        return range(first, min(first + most_steps, self._end(number)))

    def position_of(self, step: int) -> int:
        """The global row at which a step begins; the end of the run, which is no step, begins at the end of its rows.

        Raises:
            IndexError: if the step lies beyond the end, or is unknown.
        """
        step = operator.index(step)  # exact, where np.int64 would wrap
        if step < self.segments[0].first_step or (self.num_steps is not None and step > self.num_steps):
            self._number(step)  # says why
        segment = self.segments[bisect_right(self.segments, step, key=lambda segment: segment.first_step) - 1]
        position = segment.first_position + (step - segment.first_step) * segment.batch_size
        return position if self.num_rows is None else min(position, self.num_rows)

    def positions(self, steps: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The positions that some slots of the global batches of some steps have.

        Args:
            steps: int64[k], ascending, at least one, all of one segment.
            slots: int64[m], each from 0 to that segment's batch size - 1.

        Returns:
            int64[k, m]; -1 for a pad slot.

        Raises:
            IndexError: if there is no such step or slot, or a step is unknown.
        """
        number = self._number(int(steps[0]))
        segment = self.segments[number]
        if self._number(int(steps[-1])) != number:
            raise IndexError(f"step {steps[-1]} is of a later segment than step {steps[0]}")
        slots = np.asarray(slots, np.int64)
        if slots.size and not (slots.min() >= 0 and slots.max() < segment.batch_size):
            raise IndexError(
                f"slots go from 0 to {segment.batch_size - 1}, got {slots.min()} to {slots.max()}"
            )
        first = (steps - segment.first_step) * np.int64(segment.batch_size) + np.int64(segment.first_position)
        positions = first[:, np.newaxis] + slots
        limit = self.num_rows if segment is self.last else self.segments[number + 1].first_position
        if limit is not None:
            # Where a sum passed 2^63 it is negative; the slot lies beyond the budget all the same.
            positions[(positions >= limit) | (positions < 0)] = -1
        return positions

    def num_real(self, steps: range, slots: np.ndarray) -> int:
        """How many of these slots of these steps of one segment are not padding: only the last step of a segment has any."""
        if not steps or steps.stop < self._end(self._number(steps[-1])):
            return len(slots) * len(steps)
        (last,) = self.positions(np.array([steps[-1]]), slots)
        return len(slots) * (len(steps) - 1) + int(np.count_nonzero(last >= 0))

    # Records

    def rows_at(self, steps: np.ndarray, slots: np.ndarray | None = None) -> Rows:
        """The rows of some steps of one segment, step by step.

        Args:
            steps: int64[k], ascending, at least one. Large blocks of steps cost far less for each row than small ones.
            slots: int64[m], sorted slots of that segment's batch; None: all of them.

        Raises:
            IndexError: if there is no such step or slot, or a step is unknown.
        """
        segment = self.segments[self._number(int(steps[0]))]
        slots = np.arange(segment.batch_size) if slots is None else slots
        position = self.positions(steps, slots).reshape(-1)
        return Rows(
            segment,
            steps.repeat(len(slots)),
            np.tile(slots, len(steps)),
            position,
            segment.order.keys(position),
        )

    def rows(self, steps: range) -> Iterator[Rows]:
        """Every row of these steps, in order, whole steps at a time."""
        for segment, part in self.parts(steps):
            size = max(1, _SEARCH_ROWS // segment.batch_size)
            for first in range(part.start, part.stop, size):
                yield self.rows_at(np.arange(first, min(first + size, part.stop)))

    def find(self, ranges: Sequence[range], part: range) -> Iterator[Rows]:
        """Every row of steps of one segment that holds a wanted record, in order.

        By the inverse of the order if few records are wanted, else by a scan of the steps, whichever is less work.

        Args:
            ranges: records of the segment's source, ascending and apart from each other.
            part: steps of one segment.
        """
        if not part or not ranges:
            return
        segment = self.segments[self._number(part.start)]
        first = self.position_of(part.start)
        # What the next segment begins with may lie beyond, and where a batch was padded it lies before.
        end = min(first + len(part) * segment.batch_size, self.position_of(part.stop))
        records, length = sum(map(len, ranges)), segment.order.num_records
        epochs = range(first // length, (end - 1) // length + 1)
        if (
            records <= _MOST_INVERTED
            and (records + _EPOCH_COST_ROWS) * len(epochs) <= end - first + _SEARCH_ROWS
        ):
            yield from _find_by_inverse(segment, ranges, epochs, range(first, end))
            return
        starts, stops = (np.array([getattr(each, border) for each in ranges]) for border in ("start", "stop"))
        for rows in self.rows(part):
            # Padding has index -1, before all ranges: place -1 is the last range, in which it does not lie.
            place = np.searchsorted(starts, rows.keys.index, side="right") - 1
            hit = np.flatnonzero((place >= 0) & (rows.keys.index < stops[place]))
            if len(hit):
                yield Rows(segment, rows.step[hit], rows.slot[hit], rows.position[hit], rows.keys[hit])

    # Other timelines

    def changed_at(self, step: int, position: int, *, order: Order, batch_size: int) -> Timeline:
        """The same up to `step`; from there on, which begins at `position`, by this order and batch size.

        Segments that would have begun at `step` or later go.
        """
        kept = tuple(each for each in self.segments if each.first_step < step)
        new = Segment(order=order, batch_size=batch_size, first_step=step, first_position=position)
        if kept and kept[-1].batch_size == batch_size and kept[-1].order == order:
            before = kept[-1]
            if position == before.first_position + (step - before.first_step) * batch_size:
                return replace(self, segments=kept)  # it just goes on
        return replace(self, segments=(*kept, new))

    @staticmethod
    def recorded(
        history: Sequence[tuple[int, int, Mapping[str, Any]]],
        now: tuple[int, int],
        saved_within: Callable[[range], Sequence[int]],
        position_at: Callable[[int], int],
    ) -> Timeline:
        """The timeline of what a run recorded of itself, endless from where it stands: no config and no data are needed.

        Each recipe that made a step has a segment of its own, also where order and batch size just go on: something else may
        have changed with it, such as the files of the data.

        Args:
            history: (first step, first position, a loader's identity) of each recipe, ascending.
            now: (step, position) where the run stands.
            saved_within: more steps at which the position was recorded, ascending; asked only where whole batches do not lead
                from one recipe to the next, for then a padded batch had ended the run, and it was prolonged later.
            position_at: the position at one of these.

        Raises:
            InputError: if a recorded order cannot be computed, or nothing is recorded.
            MismatchError: if history and positions contradict each other.
        """
        segments: list[Segment] = []
        ends = [(step, position) for step, position, _ in history[1:]] + [now]
        for (first_step, first_position, recipe), end in zip(history, ends, strict=True):
            first = Segment(
                order=Order.from_identity(recipe["order"]),
                batch_size=recipe["batch_size"],
                first_step=first_step,
                first_position=first_position,
            )
            # One that was changed again before it made a step has made none.
            segments = [each for each in segments if each.first_step < first_step]
            segments += [first, *_after_padded_batches(first, end, saved_within, position_at)]
        if not segments:
            raise InputError("nothing is recorded of how the run was made")
        return Timeline(segments=tuple(segments))

    # Inside

    def _number(self, step: int) -> int:
        """Which segment holds a step."""
        first = self.segments[0].first_step
        if step < first:
            raise IndexError(
                f"step {step} lies before step {first}, where this timeline begins: how the steps before were made is unknown"
                if step >= 0
                else f"step {step} is negative; steps count from 0"
            )
        num_steps = self.num_steps
        if num_steps is not None and step >= num_steps:
            raise IndexError(f"step {step} does not exist: the budget ends after {num_steps} steps")
        number = bisect_right(self.segments, step, key=lambda segment: segment.first_step) - 1
        if step >= self._end(number):
            raise IndexError(f"step {step} passes the last position, 2^63 - 1")
        return number

    def _end(self, number: int) -> int:
        """The step after the last of a segment; of an endless one, the step that passes the last position."""
        if number + 1 < len(self.segments):
            return self.segments[number + 1].first_step
        if self.num_steps is not None:
            return self.num_steps
        return self.last.first_step + (MAX_POSITION + 1 - self.last.first_position) // self.last.batch_size


def _after_padded_batches(
    first: Segment,
    end: tuple[int, int],
    saved_within: Callable[[range], Sequence[int]],
    position_at: Callable[[int], int],
) -> Iterator[Segment]:
    """The segments that begin behind a padded batch, up to `end`; see `Timeline.recorded`."""

    def pads_before(step: int) -> int:
        position = end[1] if step == end[0] else position_at(step)
        return (step - first.first_step) * first.batch_size - (position - first.first_position)

    before, pads, most = first, 0, pads_before(end[0])
    saved = [*saved_within(range(first.first_step + 1, end[0])), end[0]] if most else []
    while pads != most:
        # Pads only grow, so few of thousands of records are read.
        step = saved[min(bisect_right(saved, pads, key=pads_before), len(saved) - 1)]
        position, more = end[1] if step == end[0] else position_at(step), pads_before(step) - pads
        if not 0 < more < first.batch_size:
            raise MismatchError(
                f"steps {before.first_step} to {step - 1} are recorded as rows {before.first_position} to {position - 1}, "
                f"which are not {step - before.first_step} batches of {first.batch_size}"
            )
        before, pads = replace(first, first_step=step, first_position=position), pads + more
        yield before


def _find_by_inverse(
    segment: Segment, ranges: Sequence[range], epochs: range, wanted: range
) -> Iterator[Rows]:
    order = segment.order
    (source,) = order.source_names
    for epoch in epochs:
        found = [
            order.positions_of(source, np.arange(start, min(start + _SEARCH_ROWS, each.stop)), epoch)
            for each in ranges
            for start in range(each.start, each.stop, _SEARCH_ROWS)
        ]
        positions = np.sort(np.concatenate(found))
        positions = positions[(positions >= wanted.start) & (positions < wanted.stop)]
        for start in range(0, len(positions), _SEARCH_ROWS):
            some = positions[start : start + _SEARCH_ROWS]
            batch, slot = np.divmod(some - segment.first_position, segment.batch_size)
            yield Rows(segment, batch + segment.first_step, slot, some, order.keys(some))
