"""The digest of one element: every byte of a tree of arrays and plain values, with their paths, types and shapes.

Lists and tuples count alike, and so does an empty container and none. Knows nothing of Grain.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import jax
import numpy as np

from datarax.core.errors import InputError
from datarax.core.tree import hash_tree
from datarax.order.digest import row_hashes

_PLAIN_LEAF = "#plain"
_SAME_EVERYWHERE = "biufcmMSU"


def element_hash(element: Any, position: int) -> int:
    """The row hash of an element, taken as one row: see `datarax.order.digest.row_hashes`.

    Arrays and NumPy scalars are hashed as they are; None, bool, int, float, str and bytes go through one SHA-256, with
    their paths, whose 32 bytes are a leaf of their own.

    Raises:
        InputError: if a leaf has no bytes that are the same everywhere, naming its path and what to do.
    """
    leaves, structure = jax.tree.flatten(element, is_leaf=lambda leaf: leaf is None)
    arrays: list[tuple[str, np.ndarray]] = []
    plain = hashlib.sha256()
    has_plain = False
    for path, leaf in zip(_paths(structure), leaves, strict=True):
        if isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            arrays.append((path, _checked(leaf, path)[np.newaxis]))
            continue
        has_plain = True
        try:
            hash_tree(plain, path, path)
            hash_tree(plain, leaf, path)
        except TypeError:
            raise _unhashable(path, f"a {type(leaf).__module__}.{type(leaf).__qualname__}") from None
    if has_plain:
        arrays.append((_PLAIN_LEAF, np.frombuffer(plain.digest(), np.uint8)[np.newaxis]))
    return int(row_hashes(np.array([position], np.int64), arrays)[0])


def num_rows(element: Any) -> int:
    """Length of the leading axis that all arrays of an element share; 1 if there is none."""
    shapes = [
        np.shape(leaf) for leaf in jax.tree.leaves(element) if isinstance(leaf, (np.ndarray, jax.Array))
    ]
    lengths = {shape[0] if shape else 1 for shape in shapes}
    return lengths.pop() if len(lengths) == 1 else 1


def _checked(leaf: Any, path: str) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise _unhashable(path, "a jax.Array that spans processes")
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise _unhashable(path, "an array of random keys")
    array = np.asarray(leaf)
    dtype = array.dtype
    fixed = dtype.kind in _SAME_EVERYWHERE or (dtype.kind == "V" and dtype.names is None)
    if dtype.hasobject or not fixed or dtype.char in "gG" or dtype.subdtype is not None:
        raise _unhashable(path, f"an array of {dtype}")
    return array


def _unhashable(path: str, what: str) -> InputError:
    return InputError(
        f"the element has {what} at {path or 'its top'}, whose bytes are not the same everywhere, so it can be neither "
        f"recorded nor verified; end the pipeline with a map that makes it arrays of numbers, fixed-width strings, str, "
        f"bytes or plain numbers"
    )


@functools.lru_cache(maxsize=64)
def _paths(structure: Any) -> list[str]:
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]
