"""What a position is: an int64 from 0 to 2^63 - 1, or -1 for a pad slot."""

from __future__ import annotations

import numpy as np

from datarax.core.errors import InputError

MAX_POSITION = 2**63 - 1


def checked_positions(positions: np.ndarray) -> np.ndarray:
    """The positions as int64[n].

    Raises:
        TypeError: if they are not integers.
        InputError: if one is below -1 or beyond 2^63 - 1.
    """
    return positions_and_lowest(positions)[0]


def positions_and_lowest(positions: np.ndarray) -> tuple[np.ndarray, int]:
    """The same with the lowest of them, 0 if there are none: below 0 there are pads among them.

    Raises:
        TypeError: as `checked_positions` does.
        InputError: likewise.
    """
    array = np.asarray(positions)
    if array.size == 0:
        return np.zeros(0, np.int64), 0
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions are int64[n], got {array.dtype}{list(array.shape)}")
    if array.ndim != 1:
        raise InputError(f"positions are int64[n], got the shape {array.shape}")
    if array.dtype == np.uint64 and array.max() > MAX_POSITION:
        raise InputError(f"position {array.max()} is beyond the last one, 2^63 - 1")
    array = array.astype(np.int64, copy=False)
    lowest = int(array.min())
    if lowest < -1:
        raise InputError(f"position {lowest} is negative; only -1, a pad slot, may be")
    return array, lowest
