"""Digests of each step since the last committed snapshot, so that a divergence can be given an exact step.

Seventeen bytes per step. Without a checkpointer nobody ever says "committed", so a stream keeps a bounded tail.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_STEPS = 1 << 16
"""Steps that are kept if nobody says that older ones may go; up to twice as many for a while."""


class _Kept(NamedTuple):
    first: int
    keys: np.ndarray  # uint64[capacity]
    row_bytes: np.ndarray  # uint64[capacity]; 0 without
    has_bytes: np.ndarray  # bool[capacity]

    def tail(self, first: int, capacity: int) -> _Kept:
        """The same from `first` on, with room for `capacity` steps."""
        made = [np.zeros(capacity, array.dtype) for array in self[1:]]
        for new, old in zip(made, self[1:], strict=True):
            rest = old[first - self.first :][:capacity]
            new[: len(rest)] = rest
        return _Kept(first, *made)


class StepLog:
    """Key and byte digests of consecutive steps. What lies beyond the place of its stream is no part of any answer.

    Args:
        step: the first to come.
    """

    def __init__(self, step: int = 0) -> None:
        self._kept = _Kept(step, np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, bool))

    def put(self, step: int, keys: int, row_bytes: int | None) -> None:
        """Keeps the digests of a step, the one after the last that counts; doing it again changes nothing."""
        kept = self._kept
        at = step - kept.first
        if at >= len(kept.keys):
            self._kept = kept = kept.tail(kept.first, max(64, 2 * at))
        kept.keys[at] = keys
        kept.row_bytes[at] = row_bytes or 0
        kept.has_bytes[at] = row_bytes is not None

    def sums(self, first: int, stop: int) -> tuple[int, int | None]:
        """Sums mod 2^64 over the steps from `first` up to `stop`: of key digests, and of byte digests, None if one has none."""
        kept = self._kept
        part = slice(first - kept.first, stop - kept.first)
        keys = int(kept.keys[part].sum(dtype=np.uint64))
        if not kept.has_bytes[part].all():
            return keys, None
        return keys, int(kept.row_bytes[part].sum(dtype=np.uint64))

    def forget_before(self, step: int) -> None:
        """Drops the digests of steps before `step`, which the log has."""
        kept = self._kept
        if step > kept.first:
            # At one stroke: an interrupt finds either all of it or nothing done.
            self._kept = kept.tail(step, max(0, len(kept.keys) - (step - kept.first)))

    def arrays(self, stop: int) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes (0 without) up to `stop`, and whether all have bytes."""
        kept = self._kept
        count = stop - kept.first
        has_bytes = bool(kept.has_bytes[:count].all())
        return kept.first, kept.keys[:count].copy(), kept.row_bytes[:count].copy(), has_bytes
