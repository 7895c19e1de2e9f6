"""Host rows -> global `jax.Array` under the sharding that the caller gave; no integer is cut on its way.

Knows nothing of steps or orders. Which rows are read here is for `multihost/slots.py` to say.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from datarax.multihost import leading_axis


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
            leading_axis(sharding, array.ndim), array, (batch_size, *array.shape[1:])
        )

    return jax.tree_util.tree_map_with_path(leaf, batch)


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
