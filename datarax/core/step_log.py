"""Digests of each step since the last committed snapshot, so that a divergence can be given an exact step.

Sixteen bytes per step. Without a checkpointer nobody ever says "committed", so the log keeps a bounded tail.
"""

from __future__ import annotations

from array import array

import numpy as np

_MAX_STEPS = 1 << 20


class StepLog:
    """Key and byte digests of consecutive steps. For one thread: commits too are told on the training loop's."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, step: int) -> None:
        """Forgets everything; the next step to come is `step`."""
        self._first = step
        self._keys = array("Q")
        self._bytes = array("Q")
        # Steps from here on have their bytes digested; one step without moves it past that step.
        self._bytes_from = step

    def append(self, step: int, keys: int, row_bytes: int | None) -> None:
        """Adds the digests of `step`, which must follow the last one."""
        assert step == self._first + len(self._keys), "steps are logged one after the other"
        self._keys.append(keys)
        self._bytes.append(row_bytes or 0)
        if row_bytes is None:
            self._bytes_from = step + 1
        # Trimmed in halves, so that an append stays O(1) on average.
        if len(self._keys) > 2 * _MAX_STEPS:
            self._trim(step - _MAX_STEPS)

    def take_back(self, step: int) -> None:
        """Undoes what an append of `step` did, as far as it came."""
        count = max(0, step - self._first)
        del self._keys[count:]
        del self._bytes[count:]

    def forget_before(self, step: int) -> None:
        """Drops the digests of steps before `step`."""
        if step > self._first:
            self._trim(step)

    def arrays(self) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes, and whether all of them have bytes."""
        return (
            self._first,
            np.array(self._keys, np.uint64),
            np.array(self._bytes, np.uint64),
            self._bytes_from <= self._first,
        )

    def _trim(self, step: int) -> None:
        count = min(step - self._first, len(self._keys))
        del self._keys[:count]
        del self._bytes[:count]
        self._first += count
