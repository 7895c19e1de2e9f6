"""Which slots of the global batch a loader reads, and which of them count there: what it was told, or what its sharding says.

Knows nothing of records and steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from datarax.core.errors import ConfigError
from datarax.loader.device import check_rows
from datarax.multihost import Slots, slots_of


def chosen_slots(
    rows: np.ndarray | Sequence[int] | None,
    owned: np.ndarray | Sequence[int] | None,
    sharding: jax.sharding.Sharding | None,
    batch_size: int,
) -> Slots:
    """Which slots are read here, and which of them count here; None: those that the sharding gives, without one all.

    Raises:
        ConfigError: if they are no slots of a batch, do not fit the sharding, or others count than are read.
    """
    held = None if sharding is None else slots_of(sharding, batch_size)
    if rows is None and held is not None:
        read = held.rows
    else:
        read = _checked_rows(rows, batch_size)
        if sharding is not None:
            check_rows(read, sharding, batch_size)
    if owned is None:
        return Slots(read, held.owned if held is not None else read)
    counted = np.asarray(owned)
    if len(counted) == 0:
        counted = np.zeros(0, np.int64)
    elif not np.isin(_checked_rows(counted, batch_size), read).all():
        raise ConfigError(f"owned must be some of rows, got {counted}, but rows is {read}")
    return Slots(read, counted.astype(np.int64))


def _checked_rows(rows: np.ndarray | Sequence[int] | None, batch_size: int) -> np.ndarray:
    if rows is None:
        return np.arange(batch_size, dtype=np.int64)
    slots = np.asarray(rows)
    if slots.ndim != 1 or len(slots) == 0 or slots.dtype.kind not in "iu":
        raise ConfigError(f"rows must be a non-empty list of slots of the global batch, got {rows!r}")
    slots = slots.astype(np.int64)
    if slots[0] < 0 or slots[-1] >= batch_size or np.any(np.diff(slots) <= 0):
        raise ConfigError(f"rows must be sorted, distinct and in [0, {batch_size}), got {slots}")
    return slots
