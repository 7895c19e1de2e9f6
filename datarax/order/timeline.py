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
from typing import Any, NamedTuple

import numpy as np

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
    batch_size: int
    """Rows of a global batch, over all processes."""
    first_step: int = 0
    """The first step of the segment."""
    first_position: int = 0
    """The position at which that step begins. Beyond the end of the segment before: what lies between is skipped. Below it:
    the last batch before was padded."""
    excluded: str | None = None
    """SHA-256 of the list of records that are left out; None: none are. There is no way to leave any out yet."""

    def __post_init__(self) -> None:
        for field, low in (("batch_size", 1), ("first_step", 0), ("first_position", 0)):
            _check_int(field, getattr(self, field), low)
        if self.excluded is not None:
            raise ConfigError("excluded records are not available yet")


class Block(NamedTuple):
    """What consecutive steps of one segment cover, in some slots of the global batch."""

    segment: Segment
    """Whose recipe holds."""
    steps: range
    """The steps."""
    num_real: int
    """Rows of the whole global batches of all these steps that are no padding."""
    positions: np.ndarray
    """int64[steps, slots]; -1 is a pad slot."""
    keys: RecordKeys
    """The keys of all of them, row by row: steps * slots."""
    hashes: np.ndarray
    """uint64[steps, slots], the key hashes; 0 for a pad slot."""

    def real_rows(self, step: int) -> int:
        """Rows of the whole global batch of one of the steps that are no padding: only the last step can have any."""
        size = self.segment.batch_size
        return size if step < self.steps[-1] else self.num_real - (len(self.steps) - 1) * size


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a segment's steps, ascending by step and slot."""

    segment: Segment
    """Whose recipe gives them."""
    step: np.ndarray
    """int64[n], counted from 0."""
    slot: np.ndarray
    """int64[n], row of the global batch."""
    keys: RecordKeys
    """Which record each is; padding has (-1, -1, -1)."""

    def __len__(self) -> int:
        return len(self.step)


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
    num_rows: int | None = None
    """Budget in rows: positions up to num_rows - 1 are delivered. None is endless."""
    remainder: Remainder = Remainder.DROP
    """What becomes of rows at the end of the budget that do not fill a batch."""
    lanes: int | None = None
    """Lanes of count-changing stages, which there are none of yet; None: a step is a range of positions."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "remainder", Remainder(self.remainder))
        except ValueError:
            known = ", ".join(remainder.value for remainder in Remainder)
            raise ConfigError(f"remainder is {self.remainder!r}; choose one of: {known}") from None
        if self.num_rows is not None:
            _check_int("num_rows", self.num_rows, 1)
        if self.lanes is not None:
            raise ConfigError("lanes are not available yet")
        for before, after in pairwise(self.segments):
            if after.first_step <= before.first_step or after.first_position < before.first_position:
                raise ConfigError(
                    f"a segment from step {after.first_step}, position {after.first_position} cannot follow one from step "
                    f"{before.first_step}, position {before.first_position}"
                )
        self._check_budget()

    def _check_budget(self) -> None:
        last = self.last
        if self.num_rows is None:
            return
        rows = self.num_rows - last.first_position
        if rows < 0:
            raise ConfigError(
                f"first_position is {last.first_position}, beyond the budget of {self.num_rows} rows"
            )
        if self.remainder is Remainder.ERROR and rows % last.batch_size:
            raise ConfigError(
                f"{rows} rows do not make whole batches of {last.batch_size}: {rows % last.batch_size} are left over; choose "
                "remainder = 'drop' or 'pad', or another batch size"
            )
        if self.num_steps == 0:
            raise ConfigError(
                f"a batch of {last.batch_size} rows is larger than the budget of {self.num_rows} rows, so dropping the "
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

    def step_of(self, position: int) -> tuple[int, int]:
        """The step and the slot at which a position is delivered.

        Raises:
            IndexError: if it is in no step: skipped, in a dropped remainder, beyond the budget, or unknown.
        """
        position = operator.index(position)
        number = bisect_right(self.segments, position, key=lambda segment: segment.first_position) - 1
        if number < 0:
            raise IndexError(f"position {position} lies before the first, {self.segments[0].first_position}")
        segment, limit = self.segments[number], self._limit(number)
        if limit is not None and position >= limit:
            raise IndexError(f"position {position} lies beyond the budget of {limit} rows, or was skipped")
        step, slot = divmod(position - segment.first_position, segment.batch_size)
        self._number(step + segment.first_step)  # refuses one in a dropped remainder
        return step + segment.first_step, slot

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
        segment, limit = self.segments[number], self._limit(number)
        if int(steps[-1]) >= self._end(number):
            self._number(int(steps[-1]))
            raise IndexError(f"step {steps[-1]} is of a later segment than step {steps[0]}")
        slots = np.asarray(slots, np.int64)
        if slots.size and not (slots.min() >= 0 and slots.max() < segment.batch_size):
            raise IndexError(
                f"slots go from 0 to {segment.batch_size - 1}, got {slots.min()} to {slots.max()}"
            )
        first = (steps - segment.first_step) * np.int64(segment.batch_size) + np.int64(segment.first_position)
        positions = first[:, np.newaxis] + slots
        if limit is not None:
            # Where a sum passed 2^63 it is negative; the slot lies beyond the budget all the same.
            positions[(positions >= limit) | (positions < 0)] = -1
        return positions

    def num_real(self, steps: range, slots: np.ndarray) -> int:
        """How many of these slots of these steps of one segment are not padding: only the last step of a segment has any."""
        if not steps:
            return 0
        (last,) = self.positions(np.array([steps[-1]]), slots)
        return len(slots) * (len(steps) - 1) + int(np.count_nonzero(last >= 0))

    # Records

    def block(self, step: int, slots: np.ndarray, most_steps: int) -> Block:
        """What up to `most_steps` steps cover, `step` among them: large blocks cost far less for each row than small ones.

        Args:
            step: one of them; where the block begins depends on `most_steps` and the segment only.
            slots: int64[m], sorted slots of that segment's batch.
            most_steps: how many at most.

        Raises:
            IndexError: if there is no such step, or no such slot.
        """
        number = self._number(operator.index(step))
        segment = self.segments[number]
        first = step - (step - segment.first_step) % most_steps
        steps = range(first, min(first + most_steps, self._end(number)))
        positions = self.positions(np.arange(steps.start, steps.stop), slots)
        keys = segment.order.keys(positions.reshape(-1))
        hashes = key_hashes_at(segment.order, positions.reshape(-1), keys)
        limit, size = self._limit(number), segment.batch_size
        last = segment.first_position + (steps[-1] - segment.first_step) * size
        num_real = len(steps) * size - (0 if limit is None else max(0, last + size - limit))
        return Block(segment, steps, num_real, positions, keys, hashes.reshape(positions.shape))

    def rows(self, steps: range) -> Iterator[Rows]:
        """Every row of these steps, in order, whole steps at a time."""
        for segment, part in self.parts(steps):
            size = max(1, _SEARCH_ROWS // segment.batch_size)
            for first in range(part.start, part.stop, size):
                yield self.whole_steps(np.arange(first, min(first + size, part.stop)))

    def whole_steps(self, steps: np.ndarray) -> Rows:
        """Every row of some steps of one segment: int64[k] ascending -> k * batch size rows.

        Raises:
            IndexError: if one does not exist, or is unknown.
        """
        segment = self.segments[self._number(int(steps[0]))]
        slots = np.arange(segment.batch_size)
        keys = segment.order.keys(self.positions(steps, slots).reshape(-1))
        return Rows(segment, steps.repeat(len(slots)), np.tile(slots, len(steps)), keys)

    def key_digests(self, rows: Rows) -> np.ndarray:
        """The sum of key hashes of each step of `rows`, which are whole steps: uint64[k]."""
        slots = np.arange(rows.segment.batch_size)
        positions = self.positions(rows.step[:: len(slots)], slots)
        hashes = key_hashes_at(rows.segment.order, positions.reshape(-1), rows.keys)
        return hashes.reshape(positions.shape).sum(axis=1, dtype=np.uint64)

    def find(self, ranges: Sequence[range], part: range) -> Iterator[Rows]:
        """Every row of steps of one segment that holds a wanted record, in order.

        By the inverse of the order if few records are wanted, else by a scan of the steps, whichever is less work.

        Args:
            ranges: records of the segment's source, ascending and apart from each other.
            part: steps of one segment.
        """
        if not part or not ranges:
            return
        number = self._number(part.start)
        segment = self.segments[number]
        first = self.position_of(part.start)
        end, limit = first + len(part) * segment.batch_size, self._limit(number)
        end = end if limit is None else min(end, limit)
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
                yield Rows(segment, rows.step[hit], rows.slot[hit], rows.keys[hit])

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
            order, size = Order.from_identity(recipe["order"]), int(recipe["batch_size"])
            first = Segment(
                order=order, batch_size=size, first_step=first_step, first_position=first_position
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
        last = self.last
        beyond = last.first_step + (MAX_POSITION + 1 - last.first_position) // last.batch_size
        return beyond if self.num_steps is None else self.num_steps

    def _limit(self, number: int) -> int | None:
        """The position at which a segment ends; slots from there on are padding."""
        if number + 1 == len(self.segments):
            return self.num_rows
        segment, after = self.segments[number], self.segments[number + 1]
        end = segment.first_position + (after.first_step - segment.first_step) * segment.batch_size
        return min(end, after.first_position)


def key_hashes_at(order: Order, positions: np.ndarray, keys: RecordKeys) -> np.ndarray:
    """The key hashes of rows: uint64[n].

    Args:
        order: whose keys they are.
        positions: int64[n], ascending within each step; -1 is a pad slot, whose hash is 0.
        keys: of these positions.
    """
    if not len(positions):
        return np.zeros(0, np.uint64)
    # Positions ascend, and with them epochs; pads, whose epoch is -1, come last.
    first_epoch, last_epoch = int(keys.epoch[0]), int(keys.epoch[-1])
    if len(order.source_ids) == 1 and 0 <= first_epoch == last_epoch:
        # What all rows share goes into the hash as one number, which saves passes over memory.
        return key_hashes_of_pass(positions, int(order.source_ids[0]), keys.index, first_epoch)
    source_id = order.source_ids[np.maximum(keys.source, 0)]
    return key_hashes(positions, source_id, keys.index, keys.epoch)


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
            yield Rows(segment, batch + segment.first_step, slot, order.keys(some))


def _check_int(field: str, value: object, low: int) -> None:
    if type(value) is not int or not low <= value <= MAX_POSITION:
        raise ConfigError(f"{field} is {value!r}; give an int from {low} to 2^63 - 1")
