"""Digests of each step since the last committed snapshot, so that a divergence can be given an exact step.

Sixteen bytes per step. Without a checkpointer nobody ever says "committed", so the log keeps a bounded tail.
"""

from __future__ import annotations

from array import array

import numpy as np

MAX_STEPS = 1 << 20
"""Steps that are kept if nobody says that older ones may go; up to twice as many for a while."""


class StepLog:
    """Key and byte digests of consecutive steps. For one thread: commits too are told on the training loop's.

    Args:
        step: the first to come.
    """

    def __init__(self, step: int = 0) -> None:
        self._first = step
        self._keys = array("Q")
        # Of the steps from `_bytes_first` on; they end with the keys, or before them if the last had no byte digest.
        self._bytes_first = step
        self._bytes = array("Q")

    def append(self, keys: int, row_bytes: int | None) -> None:
        """Adds the digests of the step after the last one."""
        self._keys.append(keys)
        if row_bytes is not None:
            step = self._first + len(self._keys) - 1
            if self._bytes_first + len(self._bytes) != step:
                self._bytes_first, self._bytes = step, array("Q")
            self._bytes.append(row_bytes)

    def take_back(self, step: int) -> None:
        """Undoes what an append of `step` did, as far as it came."""
        del self._keys[max(0, step - self._first) :]
        del self._bytes[max(0, step - self._bytes_first) :]

    def sums(self, first: int, stop: int) -> tuple[int, int | None]:
        """Sums mod 2^64 over the steps from `first` up to `stop`: of key digests, and of byte digests, None if one has none."""
        assert self._first <= first <= stop <= self._first + len(self._keys), "these steps are not in the log"
        keys = _sum(self._keys[first - self._first : stop - self._first])
        if not self._has_bytes(first, stop):
            return keys, None
        return keys, _sum(self._bytes[first - self._bytes_first : stop - self._bytes_first])

    def forget_before(self, step: int) -> None:
        """Drops the digests of steps before `step`."""
        first = min(step, self._first + len(self._keys))
        if first > self._first:
            of_bytes = max(0, first - self._bytes_first)
            # At one stroke: an interrupt finds either all of it or nothing done.
            self._first, self._keys, self._bytes_first, self._bytes = (
                first,
                self._keys[first - self._first :],
                max(first, self._bytes_first),
                self._bytes[of_bytes:],
            )

    def arrays(self, stop: int) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes (0 without) up to `stop`, and whether all have bytes."""
        keys = np.array(self._keys[: stop - self._first], np.uint64)
        row_bytes = np.zeros(len(keys), np.uint64)
        digested = np.array(self._bytes[: max(0, stop - self._bytes_first)], np.uint64)
        at = self._bytes_first - self._first
        row_bytes[at : at + len(digested)] = digested
        return self._first, keys, row_bytes, self._has_bytes(self._first, stop)

    def _has_bytes(self, first: int, stop: int) -> bool:
        return first == stop or self._bytes_first <= first <= stop <= self._bytes_first + len(self._bytes)


def _sum(words: array[int]) -> int:
    # A copy of the words: an array that NumPy looks into refuses to grow.
    return int(np.add.reduce(np.frombuffer(words, np.uint64))) if words else 0
