"""Process batch -> global `jax.Array` under the sharding that the caller gave."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def place(batch: Any, sharding: jax.sharding.Sharding, batch_size: int) -> Any:
    """Puts each leaf, [rows, ...], on the devices of `sharding` as part of a global array [batch_size, ...]."""

    def leaf(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, array, (batch_size, *array.shape[1:]))

    return jax.tree.map(leaf, batch)
