"""Which slots of the global batch are read here, and host rows -> global `jax.Array` under the sharding that the caller gave.

Checks what jax would not say, or say only at the first batch: that the rows which are read here are those that the
sharding's devices hold, and that no integer is cut on its way. Knows nothing of steps or orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from datarax.core.errors import ConfigError
from datarax.multihost import Slots, slots_of


def place(batch: Any, sharding: Sharding, batch_size: int) -> Any:
    """Puts each leaf, [rows, ...], on the devices of `sharding` as part of a global array [batch_size, ...].

    A leaf with fewer axes than a `NamedSharding` names (labels or a row mask beside images) is placed under the first
    of them, so that the rows of all leaves lie on the same devices.

    Raises:
        OverflowError: if an integer does not fit the dtype that jax gives it: 32 bits, unless x64 is on.
    """

    def leaf(path: Any, array: np.ndarray) -> jax.Array:
        _check_fits(path, array)
        return jax.make_array_from_process_local_data(
            _for_rank(sharding, array.ndim), array, (batch_size, *array.shape[1:])
        )

    return jax.tree_util.tree_map_with_path(leaf, batch)


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
    every = np.arange(batch_size, dtype=np.int64) if held is None else held.rows
    read = every if rows is None else _checked_slots(rows, batch_size)
    if held is not None and not np.array_equal(read, held.rows):
        raise ConfigError(
            f"the devices of this process hold {_described(held.rows)} of the global batch under the given sharding, but "
            f"rows says {_described(read)}; leave out the sharding to read any rows as NumPy arrays"
        )
    if owned is None:
        return Slots(read, read if held is None else held.owned)
    counted = _checked_slots(owned, batch_size) if len(owned) else np.zeros(0, np.int64)
    if not np.isin(counted, read).all():
        raise ConfigError(f"owned must be some of rows, got {counted}, but rows is {read}")
    return Slots(read, counted)


def _checked_slots(chosen: np.ndarray | Sequence[int], batch_size: int) -> np.ndarray:
    slots = np.asarray(chosen)
    if slots.ndim != 1 or len(slots) == 0 or slots.dtype.kind not in "iu":
        raise ConfigError(f"rows must be a non-empty list of slots of the global batch, got {chosen!r}")
    slots = slots.astype(np.int64)
    if slots[0] < 0 or slots[-1] >= batch_size or np.any(np.diff(slots) <= 0):
        raise ConfigError(f"rows must be sorted, distinct and in [0, {batch_size}), got {slots}")
    return slots


def _for_rank(sharding: Sharding, rank: int) -> Sharding:
    if isinstance(sharding, NamedSharding) and len(sharding.spec) > rank:
        spec = PartitionSpec(*sharding.spec[:rank])
        return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return sharding


def _check_fits(path: Any, array: np.ndarray) -> None:
    if array.dtype.kind not in "iu" or array.size == 0:
        return
    there = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if there.itemsize >= array.dtype.itemsize:
        return
    limits = np.iinfo(there)
    for value in (int(array.min()), int(array.max())):
        if not limits.min <= value <= limits.max:
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "the batch"
            raise OverflowError(
                f"{name} holds {value}, which {there} on the device cannot: jax would cut it in silence; turn on "
                f"jax_enable_x64, split it into two 32-bit numbers in a transform, or leave it out"
            )


def _described(slots: np.ndarray) -> str:
    if len(slots) and slots[-1] - slots[0] == len(slots) - 1:
        return f"rows {slots[0]} to {slots[-1]}"
    return f"{len(slots)} rows {slots}"
