"""A record with one bit flipped. Knows nothing of sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def altered(record: Any) -> Any:
    """A copy of `record` in which one bit of the first leaf with content is another.

    Raises:
        TypeError: if it holds nothing whose bits are known.
    """
    leaves, structure = jax.tree.flatten(record)
    for i, leaf in enumerate(leaves):
        for kind, alter in _ALTER.items():
            if isinstance(leaf, kind) and not isinstance(leaf, bool) and _has_content(leaf):
                return jax.tree.unflatten(structure, [*leaves[:i], alter(leaf), *leaves[i + 1 :]])
    raise TypeError(f"cannot change a bit of {record!r}; define changed() in the subclass of SourceLaws")


def _has_content(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.size > 0 and not leaf.dtype.hasobject and leaf.dtype != np.bool_
    return isinstance(leaf, int) or len(leaf) > 0


def _flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _altered_array(array: Any) -> Any:
    changed = np.frombuffer(bytearray(_flipped(array.tobytes())), array.dtype).reshape(array.shape)
    return changed if isinstance(array, np.ndarray) else changed[()]


# NumPy's byte strings are bytes as well, so arrays and scalars come first.
_ALTER: dict[type | tuple[type, ...], Callable[[Any], Any]] = {
    (np.ndarray, np.generic): _altered_array,
    bytes: _flipped,
    str: lambda text: chr(ord(text[0]) ^ 1) + text[1:],
    int: lambda number: number ^ 1,
}
