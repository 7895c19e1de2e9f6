"""The first difference between two trees, bit for bit, in words; and copies that nothing else can change.

Trees are elements of a stream or states: dicts, lists, tuples, arrays, PyTrees, plain values. Knows nothing of
modules.
"""

from __future__ import annotations

import struct
from typing import Any, cast

import jax
import numpy as np

from datarax.core.tree import ARRAYS, detached, plain_array

__all__ = ["detached", "difference", "must_equal", "overwrite"]


def must_equal(expected: Any, found: Any, claim: str) -> None:
    """Checks that two trees are the same.

    Raises:
        AssertionError: if they are not: the claim, and the first difference.
    """
    told = difference(expected, found)
    if told is not None:
        raise AssertionError(f"{claim} {told}" if claim.endswith(" at") else f"{claim}: {told}")


def difference(expected: Any, found: Any, path: str = "") -> str | None:
    """The first leaf that differs in type, dtype, shape or bits, as `path: expected …, got …`; None if none does.

    NaN equals NaN of the same bits; 0.0 and -0.0 differ.
    """
    if isinstance(expected, ARRAYS):
        return _array_difference(expected, found, path)
    if type(expected) is not type(found):
        return _told(path, shown(expected), shown(found))
    if isinstance(expected, dict):
        return _dict_difference(expected, found, path)
    if isinstance(expected, (list, tuple)):
        return _sequence_difference(expected, found, path)
    if isinstance(expected, float):
        same = struct.pack(">d", expected) == struct.pack(">d", found)
        return None if same else _told(path, shown(expected), shown(found))
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(expected))
    if expected is None or (len(leaves) == 1 and leaves[0] is expected):
        return None if expected == found else _told(path, shown(expected), shown(found))
    found_leaves, found_structure = jax.tree.flatten(found)
    if structure != found_structure:
        return _told(path, str(structure), str(found_structure))
    return _sequence_difference(leaves, found_leaves, path)


def shown(value: Any) -> str:
    """A value as it stands in messages: its type, and as much of it as fits."""
    text = repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return "None" if value is None else f"{type(value).__name__} {text}"


def overwrite(tree: Any) -> None:
    """Spoils every dict, list and NumPy array of a tree in place."""
    if isinstance(tree, np.ndarray):
        _overwrite_array(tree)
    elif isinstance(tree, dict):
        for value in tree.values():
            overwrite(value)
        tree.clear()
        tree["overwritten"] = True
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            overwrite(value)
        if isinstance(tree, list):
            tree[:] = ["overwritten"]


def _overwrite_array(array: np.ndarray) -> None:
    if not array.flags.writeable or array.dtype.hasobject:
        return
    if array.dtype == np.bool_:
        array[...] = ~array
        return
    flipped = np.frombuffer(array.tobytes(), np.uint8) ^ np.uint8(0xFF)
    array[...] = np.frombuffer(flipped.tobytes(), array.dtype).reshape(array.shape)


def _dict_difference(expected: dict[Any, Any], found: dict[Any, Any], path: str) -> str | None:
    keys, found_keys = ({(type(key), key) for key in each} for each in (expected, found))
    if keys != found_keys:
        missing = sorted(repr(key) for _, key in keys - found_keys)
        extra = sorted(repr(key) for _, key in found_keys - keys)
        gone = [f"{', '.join(missing)} missing"] if missing else []
        come = [f"{', '.join(extra)} too much"] if extra else []
        return f"{path or 'the whole'}: {' and '.join(gone + come)}"
    each = (difference(expected[key], found[key], _joined(path, key)) for key in expected)
    return next((told for told in each if told is not None), None)


def _sequence_difference(expected: Any, found: Any, path: str) -> str | None:
    if len(expected) != len(found):
        return _told(path, f"{len(expected)} items", f"{len(found)} items")
    each = (difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(expected, found, strict=True)))
    return next((told for told in each if told is not None), None)


def _array_difference(expected: Any, found: Any, path: str) -> str | None:
    if not isinstance(found, ARRAYS) or _kind(expected) != _kind(found):
        return _told(path, _array_shown(expected), _array_shown(found))
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return _told(path, _array_shown(expected), _array_shown(found))
    a, b = plain_array(expected), plain_array(found)
    if a.dtype.hasobject:
        return _sequence_difference(a.ravel().tolist(), b.ravel().tolist(), path)
    if a.tobytes() == b.tobytes():
        return None
    raw_a, raw_b = (np.frombuffer(each.tobytes(), np.uint8).reshape(a.size, -1) for each in (a, b))
    wrong = np.flatnonzero((raw_a != raw_b).any(axis=1))
    at = [int(i) for i in np.unravel_index(wrong[0], a.shape)]
    where = f"{path}{at}" if at else path
    values = (repr(each.reshape(-1)[wrong[0]].item()) for each in (a, b))
    count = f" ({len(wrong)} of {a.size} values differ)" if a.size > 1 else ""
    return _told(where, *values) + count


def _kind(array: Any) -> str:
    return "jax.Array" if isinstance(array, jax.Array) else type(array).__name__


def _array_shown(value: Any) -> str:
    if isinstance(value, ARRAYS):
        return f"{_kind(value)} of dtype {value.dtype} and shape {list(value.shape)}"
    return shown(value)


def _told(path: str, expected: str, found: str) -> str:
    return f"{path or 'the whole'}: expected {expected}, got {found}"


def _joined(path: str, key: Any) -> str:
    if not isinstance(key, str):
        return f"{path}[{key!r}]"
    return f"{path}.{key}" if path else key
