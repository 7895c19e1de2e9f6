"""With many processes every JAX array of a model must be a global one: Orbax refuses those that one process holds alone.

What a process holds alone (small states made eagerly, random keys, NumPy arrays, numbers) is the same on all of them or the run
is not one run; a digest of it is compared. Knows nothing of files and snapshots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lax.lax import _convert_element_type  # no public name makes an array in place weakly typed
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def is_alone(leaf: Any) -> bool:
    """Whether a leaf is a JAX array on devices of this process only."""
    return isinstance(leaf, jax.Array) and leaf.is_fully_addressable


def digest_alone(leaves: Iterable[tuple[str, Any]]) -> str | None:
    """SHA-256 over paths, dtypes and values of all leaves that this process holds alone; None if it holds none so."""
    found = None
    for path, leaf in leaves:
        if leaf is None or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            continue
        value = _host_value(leaf)
        found = found or hashlib.sha256()
        found.update(f"{path} {value.dtype} {value.shape} ".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return None if found is None else found.hexdigest()


def _host_value(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(leaf)


def make_global(model: Any, mesh: Mesh | None = None) -> Any:
    """The model with every array that this process holds alone as a global one, replicated on all devices of all processes.

    The values must be the same on all processes; compare `model_item.held_alone` first.

    Args:
        model: a PyTree.
        mesh: whose devices to use; by default all.
    """
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("all",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: replicated(leaf, everywhere) if is_alone(leaf) else leaf, model)


def replicated(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """A global array of the value, dtype and weak type of one that this process holds."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = global_array(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(data, impl=str(jax.random.key_impl(leaf)))
    value = global_array(np.asarray(leaf), sharding)
    return weakly_typed(value) if leaf.weak_type else value


def global_array(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A value that every process has, under any sharding; no process asks another."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def weakly_typed(array: jax.Array) -> jax.Array:
    """The same array under the same sharding, weakly typed; works on arrays that span processes."""
    convert = jax.jit(lambda x: _convert_element_type(x, weak_type=True), out_shardings=array.sharding)
    return convert(array)
