"""How much the training loop has received: one number that a hand-over moves, and sums that are made when somebody looks.

`Delivered` is the state, a value. `Shown` says what it is now: it counts steps, and finds everything else in the schedule
and in the log of steps, because sums made at each hand-over would cost a small batch more than its digest does. NNX looks
here too: to set a variable costs 3 us and more, so the variables of a loader hold content that looks into a `Shown` when
asked. Whoever writes a variable, NNX included, takes that content out of it, and the loader notices. Knows no variables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from datarax.core.step_log import StepLog
from datarax.core.variables import looked_up
from datarax.loader.plan import BatchPlan
from datarax.order import Digest

_WRAP = (1 << 64) - 1


class Delivered(NamedTuple):
    """What the training loop has received so far. Plain Python ints: exact at any size."""

    idx: int
    """Batches handed over; the step of the next batch."""
    position: int
    """Global rows handed over; the first slot of the next batch."""
    applied: int
    """Rows handed over that count here."""
    skipped: int
    """Rows that a stage left out and that count here."""
    digest: Digest
    """Digest of the rows handed over that count here."""


class Shown:
    """What was delivered as of now, and the contents of a loader's variables; left behind, it keeps what it said last.

    A hand-over appends to the log and then moves `idx`, and only that counts: what the log holds beyond it is no part of any
    answer. Sums go on from the last look, so a look costs what was delivered since. A look changes no answer, so a
    signal's handler may look at any moment.

    Args:
        delivered: what to begin with.
        plan: the one whose steps are handed over from there on.
        log: of the steps from there on.
    """

    def __init__(self, delivered: Delivered, plan: BatchPlan, log: StepLog) -> None:
        self.idx = delivered.idx
        """Batches handed over."""
        self._summed = delivered
        self._plan = plan
        self._log = log
        num_records = plan.order.num_records
        self.contents: dict[str, Any] = {
            "idx": looked_up(lambda: self.idx),
            "position": looked_up(lambda: self.position),
            "epoch": looked_up(lambda: self.position // num_records),
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

    @property
    def position(self) -> int:
        """Global rows handed over."""
        summed = self._summed
        return summed.position if self.idx == summed.idx else self._plan.schedule.first_position(self.idx)

    @property
    def delivered(self) -> Delivered:
        """All that was handed over."""
        summed = self._summed
        if self.idx != summed.idx:
            # One assignment, of what is the same whoever computes it.
            self._summed = summed = self._after(summed, self.idx)
        return summed

    def _after(self, summed: Delivered, idx: int) -> Delivered:
        rows = self._plan.rows_of(summed.idx, idx)
        keys, hashed = self._log.sums(summed.idx, idx)
        digest = summed.digest
        # A stretch without byte digests leaves none: a sum over some of the rows would compare with nothing.
        if digest.bytes is None or hashed is None:
            digest, hashed = Digest(digest.rows, digest.keys, None), None
        return Delivered(
            idx,
            self._plan.schedule.first_position(idx),
            summed.applied + rows,
            summed.skipped,
            digest.add(keys, hashed, rows),
        )
