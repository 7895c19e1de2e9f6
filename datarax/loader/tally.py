"""What was handed over, as values: the counts, and the digests of each step. All of it is exact.

Knows neither modules nor batches, asks no process. Next: `stream.py`, which decides when a batch counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from datarax.core.variables import looked_up
from datarax.loader.feed import Feed, Place
from datarax.order import Digest


class Delivered(NamedTuple):
    """What the training loop has received so far. Plain Python ints: exact at any size."""

    idx: int
    """Batches handed over; the step of the next batch."""
    position: int
    """Where that begins: global rows handed over, or whatever the stream counts."""
    applied: int
    """Rows handed over that count here."""
    skipped: int
    """Rows that a stage left out and that count here."""
    digest: Digest
    """Digest of the rows handed over that count here."""


# The digests of each step since the last committed snapshot, so that a divergence can be given an exact step: 24 bytes a
# step. Without a checkpointer nobody ever says "committed", so a stream keeps a bounded tail.

MAX_STEPS = 1 << 16
"""Steps that are kept if nobody says that older ones may go; up to twice as many for a while."""


class Kept(NamedTuple):
    """What a log holds at one moment, but for steps that are put later."""

    first: int
    """The first step."""
    steps: np.ndarray
    """uint64[3, capacity]: for each step the sums of key hashes and of row hashes, and whether it has the latter."""
    known: Delivered | None = None
    """All that was delivered up to `first` or later; None while nothing was dropped."""

    def tail(self, first: int, capacity: int, known: Delivered | None) -> Kept:
        """The same from `first` on, with room for `capacity` steps."""
        steps, rest = np.zeros((3, capacity), np.uint64), self.steps[:, first - self.first :][:, :capacity]
        steps[:, : rest.shape[1]] = rest
        return Kept(first, steps, known)

    def sums(self, first: int, stop: int) -> tuple[int, int | None]:
        """Sums mod 2^64 over the steps from `first` up to `stop`: of key digests, and of byte digests, None if one has none."""
        keys, hashed, with_bytes = self.steps[:, first - self.first : stop - self.first].sum(axis=1).tolist()
        return keys, hashed if with_bytes == stop - first else None


class StepLog:
    """Key and byte digests of consecutive steps. What lies beyond the place of its stream is no part of any answer.

    Args:
        step: the first to come.
    """

    def __init__(self, step: int = 0) -> None:
        self.kept = Kept(step, np.zeros((3, 0), np.uint64))
        """Looked at once by whoever adds up: another thread may drop steps at any moment."""

    def put(self, step: int, keys: int, row_bytes: int | None) -> None:
        """Keeps the digests of a step, the one after the last that counts; doing it again changes nothing."""
        kept = self.kept
        at = step - kept.first
        if at >= kept.steps.shape[1]:
            self.kept = kept = kept.tail(kept.first, max(64, 2 * at), kept.known)
        kept.steps[0, at] = keys
        kept.steps[1, at] = row_bytes or 0
        kept.steps[2, at] = row_bytes is not None

    def forget_before(self, step: int, known: Delivered) -> None:
        """Drops the digests of steps before `step`, which the log has; `known` has their sums, and maybe those of more."""
        kept = self.kept
        if step > kept.first:
            # At one stroke: an interrupt finds either all of it or nothing done.
            self.kept = kept.tail(step, max(0, kept.steps.shape[1] - (step - kept.first)), known)

    def arrays(self, stop: int) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes (0 without) up to `stop`, and whether all have bytes."""
        kept = self.kept
        keys, hashed, with_bytes = kept.steps[:, : stop - kept.first].copy()
        return kept.first, keys, hashed, bool(with_bytes.all())


class Tally:
    """What was handed over as of now, and the contents of a stream's variables; left behind, it keeps what it said last.

    A hand-over writes into the log and then swaps the place, and only that counts. Sums go on from the last look, so a look
    costs what was delivered since: made at each hand-over they would cost a small batch more than its digest does. A look
    changes no answer, so a signal's handler may look at any moment. NNX looks here too: to set a variable costs 3 us and more,
    so the variables of a stream hold content that looks into a tally when asked.

    Args:
        delivered: what to begin with.
        place: the same place.
        feed: of the batches from there on.
        log: of the steps from there on.
    """

    def __init__(self, delivered: Delivered, place: Place, feed: Feed, log: StepLog) -> None:
        self.place = place
        self.log = log
        self.feed = feed
        self.recipe = recipe = feed.recipe
        self._summed = delivered
        self.contents: dict[str, Any] = {
            "idx": looked_up(lambda: self.place.step),
            "position": looked_up(lambda: self.position),
            "epoch": None
            if recipe is None
            else looked_up(lambda: self.position // recipe.timeline.last.order.num_records),
            "_applied_count": looked_up(lambda: self.delivered.applied),
            "_skipped_count": looked_up(lambda: self.delivered.skipped),
            "digest_rows": looked_up(lambda: self.delivered.digest.rows),
            "digest_keys": looked_up(lambda: self.delivered.digest.keys),
            # None is no number that could be looked up; only a restore brings another kind.
            "digest_bytes": None
            if delivered.digest.bytes is None
            else looked_up(lambda: self.delivered.digest.bytes or 0),
        }
        """The raw content of each variable, by the name of the attribute that holds it."""
        if recipe is not None:
            self.contents["stats_rows"] = looked_up(lambda: self.place.statistics.total.rows)

    @property
    def position(self) -> int:
        """Where the next step begins."""
        summed, step = self._summed, self.place.step
        if self.recipe is None:
            return step
        return summed.position if step == summed.idx else self.recipe.timeline.position_of(step)

    @property
    def delivered(self) -> Delivered:
        """All that was handed over."""
        summed, step = self._summed, self.place.step
        if step == summed.idx:
            return summed
        kept = self.log.kept  # after the step, so that it has it
        if summed.idx < kept.first and kept.known is not None:
            # Another thread has dropped steps since, or a slower one has left an older sum here.
            summed = kept.known
        if step <= summed.idx:
            return summed
        keys, hashed = kept.sums(summed.idx, step)
        steps, recipe = range(summed.idx, step), self.recipe
        digest, rows = summed.digest, len(steps) if recipe is None else recipe.counted_in(steps)
        # A stretch without byte digests leaves none: a sum over some of the rows would compare with nothing.
        if digest.bytes is None or hashed is None:
            digest, hashed = Digest(digest.rows, digest.keys, None), None
        made = Delivered(
            step,
            step if recipe is None else recipe.timeline.position_of(step),
            summed.applied + rows,
            summed.skipped,
            digest.add(keys, hashed, rows),
        )
        self._summed = made  # one assignment; an older sum that a slower thread puts here is as right
        return made
