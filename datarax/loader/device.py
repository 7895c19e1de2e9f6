"""Process batch -> global `jax.Array` under the sharding that the caller gave.

Checks what jax would not say, or say only at the first batch: that the rows which are read here are those that the
sharding's devices hold, and that no integer is cut on its way. Knows nothing of steps or orders.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from datarax.core.errors import ConfigError
from datarax.multihost import slots_of


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


def check_rows(rows: np.ndarray, sharding: Sharding, batch_size: int) -> None:
    """Checks that `rows` are the slots that this process's devices hold under `sharding`.

    Raises:
        ConfigError: if they are not, or if the sharding does not divide the batch.
    """
    needed = slots_of(sharding, batch_size).rows
    if not np.array_equal(rows, needed):
        raise ConfigError(
            f"the devices of this process hold {_described(needed)} of the global batch under the given sharding, but "
            f"rows says {_described(rows)}; leave out the sharding to read any rows as NumPy arrays"
        )


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
