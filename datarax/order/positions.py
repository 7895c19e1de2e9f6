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
    array = np.asarray(positions)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions are int64[n], got {array.dtype}{list(array.shape)}")
    if array.ndim != 1:
        raise InputError(f"positions are int64[n], got the shape {array.shape}")
    if array.dtype == np.uint64 and array.max() > MAX_POSITION:
        raise InputError(f"position {array.max()} is beyond the last one, 2^63 - 1")
    array = array.astype(np.int64, copy=False)
    if array.min() < -1:
        raise InputError(f"position {array.min()} is negative; only -1, a pad slot, may be")
    return array
