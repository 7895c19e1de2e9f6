"""What was handed over, as values: the counts, the digests of each step, and the sums over processes. All of it is exact.

Knows neither modules nor batches, asks no process. Next: `runtime.py`, which keeps them for a stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from datarax.core.tree import decode, digest, encode
from datarax.loader.state import spelled
from datarax.loader.statistics import RunningMeans, Statistics
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


class StepLog(NamedTuple):
    """Key and byte digests of consecutive steps. What lies beyond the place of its stream is no part of any answer.

    A value, but for steps that are put later. Whoever adds up looks at one, for another thread may drop steps at any moment.
    """

    first: int = 0
    """The first step."""
    steps: np.ndarray = np.zeros((3, 0), np.uint64)
    """uint64[3, capacity]: for each step the sums of key hashes and of row hashes, and whether it has the latter."""
    known: Delivered | None = None
    """All that was delivered up to `first` or later; None while nothing was dropped."""

    def put(self, step: int, keys: int, row_bytes: int | None) -> StepLog:
        """With the digests of a step, the one after the last that counts; doing it again changes nothing."""
        at = step - self.first
        log = self if at < self.steps.shape[1] else self._tail(self.first, max(64, 2 * at), self.known)
        log.steps[0, at] = keys
        log.steps[1, at] = row_bytes or 0
        log.steps[2, at] = row_bytes is not None
        return log

    def since(self, step: int, known: Delivered) -> StepLog:
        """Without the digests of steps before `step`, which the log has; `known` has their sums, and maybe those of more."""
        if step <= self.first:
            return self
        return self._tail(step, max(0, self.steps.shape[1] - (step - self.first)), known)

    def sums(self, first: int, stop: int) -> tuple[int, int | None]:
        """Sums mod 2^64 over the steps from `first` up to `stop`: of key digests, and of byte digests, None if one has none."""
        keys, hashed, with_bytes = self.steps[:, first - self.first : stop - self.first].sum(axis=1).tolist()
        return keys, hashed if with_bytes == stop - first else None

    def arrays(self, stop: int) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes (0 without) up to `stop`, and whether all have bytes."""
        keys, hashed, with_bytes = self.steps[:, : stop - self.first].copy()
        return self.first, keys, hashed, bool(with_bytes.all())

    def _tail(self, first: int, capacity: int, known: Delivered | None) -> StepLog:
        """The same from `first` on, with room for `capacity` steps."""
        steps, rest = np.zeros((3, capacity), np.uint64), self.steps[:, first - self.first :][:, :capacity]
        steps[:, : rest.shape[1]] = rest
        return StepLog(first, steps, known)


# Many processes, one state: that which all share (of the last restore, or of the beginning) is counted once; each adds what it
# has delivered since. Counters and digests are sums over the rows that each process owns, so they are exact whoever read what.

# Of a state, what each process has of its own; the rest is the same on all.
_OWN = frozenset(
    {
        "_applied_count",
        "_skipped_count",
        "digest_rows",
        "digest_keys",
        "digest_bytes",
        "_is_stats_reset",
        "part",
    }
)
_OWN_MEANS = frozenset({"_computed_stats", "stats_rows"})
_WRAP = (1 << 64) - 1


def share(
    base: Delivered, now: Delivered, statistics: Statistics, state: Mapping[str, Any], *, own_means: bool
) -> dict[str, Any]:
    """What one process has added, and what it must have in common with the others; has JSON.

    Args:
        base: what all began with.
        now: what this one has by now.
        statistics: of this one.
        state: of this one.
        own_means: whether each process averages statistics of its own rows.
    """
    own = _OWN | _OWN_MEANS if own_means else _OWN
    began = [
        base.digest.to_state(),
        base.applied,
        base.skipped,
        statistics.base.rows,
        statistics.base.values(),
    ]
    return {
        "idx": now.idx,
        "position": now.position,
        "the state they began with": digest(encode(began))[:16],
        "the rest of the state": digest(encode({k: v for k, v in state.items() if k not in own}))[:16],
        "applied": now.applied - base.applied,
        "skipped": now.skipped - base.skipped,
        "rows": now.digest.rows - base.digest.rows,
        "keys": (now.digest.keys - base.digest.keys) & _WRAP,
        # All rows since are hashed if those before were, and none if not.
        "bytes": None
        if base.digest.bytes is None
        else (cast(int, now.digest.bytes) - base.digest.bytes) & _WRAP,
        "means": encode([statistics.added.values(), statistics.added.rows]),
    }


def summed(
    shares: Sequence[Mapping[str, Any]], base: Delivered, means: RunningMeans
) -> tuple[dict[str, Any], Digest]:
    """The fields of a state that are sums, and the digest, as if one process had read all rows.

    Args:
        shares: one of each process, in the order of processes.
        base: what all began with.
        means: those that all began with.

    Raises:
        ValueError: if they are not of one moment, naming what differs.
    """
    for name in ("idx", "position", "the state they began with", "the rest of the state"):
        values = [each[name] for each in shares]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} differs between the processes: {', '.join(map(str, values[:8]))}")
    total = base.digest
    for each in shares:
        total = total.add(each["keys"], each["bytes"], each["rows"])
        added, rows = decode(each["means"])
        means = means.after(added, rows) if rows else means
    fields = {
        "_applied_count": base.applied + sum(each["applied"] for each in shares),
        "_skipped_count": base.skipped + sum(each["skipped"] for each in shares),
        "digest_rows": total.rows,
        "digest_keys": total.keys,
        "digest_bytes": total.bytes,
    }
    if len(shares) > 1 and means.rows:
        fields |= {"_computed_stats": means.values(), "stats_rows": means.rows}
    return spelled(fields), total
