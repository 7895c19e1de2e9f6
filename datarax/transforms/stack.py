"""Records into columns and back. Knows nothing of transforms; `apply.py` is where it is used.

What a row becomes never depends on which rows it is stacked with: shapes and dtypes must agree, nothing is
promoted, padded or cut. All of it works on whole lists; there is no Python call per record.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import jax
import numpy as np

from datarax.core.tree import ARRAYS, check_plain, joined

_BUFFERS = (bytes, bytearray)
_SCALARS: dict[type, np.dtype[Any]] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
}


def stack(records: Sequence[Any]) -> Any:
    """Stacks n records into one PyTree of arrays with a leading axis of n.

    Byte strings of one length L become `uint8[n, L]`; Python `bool`, `int`, `float`, `complex` become `[n]`
    of bool, int64, float64, complex128; arrays of one shape and dtype become `[n, *shape]`; dicts, lists,
    tuples and other PyTree nodes are stacked leaf by leaf. The arrays are new and may be written to.

    Args:
        records: At least one; all of the same structure.

    Raises:
        ValueError: if records differ in structure, kind, shape or dtype, naming the leaf, the record and
            both; or if a leaf cannot become a row of an array (text, None, objects, arrays that are more than numbers).
    """
    if not len(records):
        raise ValueError("there are no records to stack, so neither shapes nor dtypes are known")
    return _stack(list(records), "")


def unstack(columns: Any) -> list[Any]:
    """The n records of a PyTree of arrays `[n, ...]`: the same structure, with row views as leaves.

    Raises:
        ValueError: if the leaves differ in their leading axis or have none.
    """
    leaves, structure = _flatten(columns)
    count_rows(columns)
    return list(map(structure.unflatten, zip(*leaves, strict=True)))


def count_rows(columns: Any) -> int:
    """The leading axis that all leaves of a PyTree of arrays share.

    Raises:
        ValueError: naming the leaf that has none or another one, or if there is no leaf.
    """
    rows, first = None, None
    for path, leaf in jax.tree_util.tree_flatten_with_path(columns)[0]:
        shape = getattr(leaf, "shape", None)
        if not isinstance(shape, tuple) or not shape:
            raise ValueError(
                f"{leaf_name(path)} is {_kind(leaf)}; every leaf of a batch is an array with a leading axis of rows"
            )
        if rows is None:
            rows, first = shape[0], path
        elif shape[0] != rows:
            raise ValueError(
                f"{leaf_name(path)} has {shape[0]} rows (shape {shape}), but {leaf_name(first)} has {rows}"
            )
    if rows is None:
        raise ValueError("the batch has no arrays at all")
    return int(rows)


def as_host_arrays(columns: Any) -> Any:
    """The same PyTree with every leaf a NumPy array.

    Raises:
        ValueError: if a leaf holds objects or JAX PRNG keys, or is more than its numbers (masked arrays), naming it.
    """
    return jax.tree_util.tree_map_with_path(_host_array, columns)


def leaf_name(path: Any) -> str:
    """How a leaf is called in errors: `a.b.0`, or `the batch` if the batch is itself a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "the batch"


def _host_array(path: Any, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{leaf_name(path)} holds JAX PRNG keys; return jax.random.key_data of them")
    if type(leaf) is not np.ndarray:  # to spell a path costs more than all else here
        check_plain(type(leaf), leaf_name(path))
    array = np.asarray(leaf)
    if array.dtype.hasobject or array.dtype.kind == "T":
        raise ValueError(
            f"{leaf_name(path)} has dtype {array.dtype}; a batch holds numbers, not Python objects"
        )
    return array


def _stack(values: list[Any], path: str) -> Any:
    first = values[0]
    kinds = set(map(type, values))
    for kind in kinds - {np.ndarray}:
        check_plain(kind, f"leaf {path!r}" if path else "the record")
    if isinstance(first, _BUFFERS) and all(issubclass(kind, _BUFFERS) for kind in kinds):
        return _stack_bytes(values, path)
    if isinstance(first, ARRAYS) and all(issubclass(kind, ARRAYS) for kind in kinds):
        return _stack_arrays(values, path)
    if len(kinds) > 1:
        i = next(i for i, value in enumerate(values) if type(value) is not type(first))
        raise ValueError(f"{_at(path)}record {i} is {_kind(values[i])}, but record 0 is {_kind(first)}")
    if type(first) in _SCALARS:
        return _stack_scalars(values, path)
    if isinstance(first, dict):
        return _stack_dicts(values, path)
    if isinstance(first, (list, tuple)):
        return _stack_sequences(values, path)
    return _stack_nodes(values, path)


def _stack_bytes(values: list[Any], path: str) -> np.ndarray:
    length = len(values[0])
    if len(set(map(len, values))) > 1:
        i = next(i for i, value in enumerate(values) if len(value) != length)
        raise ValueError(
            f"{_at(path)}record {i} has {len(values[i])} bytes, but record 0 has {length}; cut, pad or"
            " tokenise them to one length in a transform"
        )
    # Into a bytearray, so that the batch may be written to without one more copy.
    joined = bytearray().join(values)
    return np.frombuffer(joined, np.uint8).reshape(len(values), length)


def _stack_arrays(values: list[Any], path: str) -> np.ndarray:
    values = [np.asarray(value) for value in values] if not isinstance(values[0], np.ndarray) else values
    first = values[0]
    if len(set(map(attrgetter("dtype", "shape"), values))) > 1:
        i = next(i for i, v in enumerate(values) if (v.dtype, v.shape) != (first.dtype, first.shape))
        raise ValueError(
            f"{_at(path)}record {i} is {_kind(values[i])}, but record 0 is {_kind(first)}; bring them to one"
            " shape and dtype in a transform"
        )
    if first.dtype.hasobject or first.dtype.kind in "UST":
        raise _unstackable(path, first)
    if first.ndim == 0:
        return np.array(values, first.dtype)
    return np.concatenate(values).reshape(len(values), *first.shape)


def _stack_scalars(values: list[Any], path: str) -> np.ndarray:
    try:
        return np.array(values, _SCALARS[type(values[0])])
    except OverflowError:
        i = next(i for i, value in enumerate(values) if not -(2**63) <= value < 2**63)
        raise ValueError(f"{_at(path)}record {i} is {values[i]}, which int64 cannot hold") from None


def _stack_dicts(values: list[Any], path: str) -> dict[Any, Any]:
    keys = values[0].keys()
    for i in [i for i, value in enumerate(values) if value.keys() != keys]:
        missing, extra = sorted(map(str, keys - values[i].keys())), sorted(map(str, values[i].keys() - keys))
        raise ValueError(
            f"{_at(path)}record {i} has other keys than record 0: missing {missing}, extra {extra}; give"
            " every record the same keys"
        )
    return {key: _stack([value[key] for value in values], joined(path, key)) for key in values[0]}


def _stack_sequences(values: list[Any], path: str) -> Any:
    first = values[0]
    for i in [i for i, value in enumerate(values) if len(value) != len(first)]:
        raise ValueError(
            f"{_at(path)}record {i} is a {type(first).__name__} of {len(values[i])}, but record 0 one of"
            f" {len(first)}; a list is a structure of leaves: use np.asarray for a row of numbers"
        )
    columns = [_stack(list(column), joined(path, i)) for i, column in enumerate(zip(*values, strict=True))]
    return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)


def _stack_nodes(values: list[Any], path: str) -> Any:
    if values[0] is None or jax.tree_util.all_leaves([values[0]]):
        raise _unstackable(path, values[0])
    flat = [_flatten(value) for value in values]
    structure = flat[0][1]
    for i in [i for i, (_, other) in enumerate(flat) if other != structure]:
        raise ValueError(f"{_at(path)}record {i} is {flat[i][1]}, but record 0 is {structure}")
    names = [leaf_name(below) for below, _ in jax.tree_util.tree_flatten_with_path(values[0])[0]]
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return structure.unflatten(
        _stack(list(column), joined(path, name)) for name, column in zip(names, columns, strict=True)
    )


def _flatten(tree: Any) -> tuple[list[Any], Any]:
    # Any: the stub of PyTreeDef lacks its methods.
    return jax.tree_util.tree_flatten(tree)


def _unstackable(path: str, value: Any) -> ValueError:
    return ValueError(
        f"{_at(path)}the records hold {_kind(value)}, which cannot become rows of an array; encode it as"
        " numbers of one shape in a transform, or leave it out"
    )


def _kind(value: Any) -> str:
    if isinstance(value, ARRAYS):
        return f"{value.dtype}{list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _at(path: str) -> str:
    return f"leaf {path!r}: " if path else ""
