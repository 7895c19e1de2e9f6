"""A module's state as a plain tree, and the strict check of such a tree against a module.

`variables_below` finds the Variables of a module, `read_state` takes them out as values, `match_state` checks
a tree wholly and says what would be written where; nothing here changes a module. Knows nothing of
disks or encodings. Read next: `datarax.core.module`.
"""

import copy
from collections.abc import Container, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from datarax.core.tree import ARRAYS, check_plain, detached
from datarax.core.variables import HostFlag, HostInt, IterationCount, PackedVariable

Path = tuple[Any, ...]
"""The keys that lead to a Variable, from the module down."""
Variables = list[tuple[Path, nnx.Variable[Any]]]
"""Those of a module, in order."""


def variables_below(module: nnx.Module) -> Variables:
    """The Variables below `module` with their paths, in order; `nnx.List` children have int keys.

    A Variable that is reachable on several paths stands at the first. Plain array attributes are data, not
    state.
    """
    return list(nnx.to_flat_state(nnx.state(module, nnx.Variable, graph=True)))


def read_state(variables: Variables, *, unsaved: Container[int] = ()) -> dict[Any, Any]:
    """The values of the Variables in nested dicts, sharing nothing that anyone could change later.

    Variables whose `id` is in `unsaved` read as None.

    Raises:
        TypeError: if a Variable holds something that cannot be copied (a lock, a generator), naming its path.
    """
    values = {}
    for path, variable in variables:
        try:
            values[path] = None if id(variable) in unsaved else detached(payload(variable))
        except TypeError as error:
            raise TypeError(
                f"the Variable at {spell(path)} holds a value that cannot be saved: {error}"
            ) from error
    return unflatten_dict(values)


def payload(variable: nnx.Variable[Any]) -> Any:
    """What a Variable holds, as it stands in a state: our own kinds as their values, all others raw."""
    if variable.ref or isinstance(variable, PackedVariable):
        return variable.get_value()
    return variable.get_raw_value()


def match_state(
    variables: Variables,
    state: Any,
    *,
    free: Container[int] = (),
    unsaved: Container[int] = (),
) -> list[tuple[nnx.Variable[Any], Any]]:
    """Every Variable with the value it would get from `state`; changes nothing.

    Keys must be the same at every depth. A value must be of the kind that its Variable holds now: the same
    Python type; for arrays the same shape and dtype (NumPy or jax); for containers the same keys or length. A
    Variable that holds None, or an empty container, takes any content, and one that holds a Python value
    takes None. A Python number and the 0-d array that a transform makes of it are one kind. Variables whose `id` is in
    `free` take anything, those in `unsaved` None only.

    Raises:
        ValueError: at the first difference in key order, naming the path and both sides.
    """
    changes = []
    for variable, value, path in _paired(unflatten_dict(dict(variables)), state, ()):
        if id(variable) in unsaved and value is not None:
            raise _kind_mismatch(path, "None, because it is never saved", value)
        unchecked = id(variable) in free or id(variable) in unsaved
        changes.append((variable, detached(value) if unchecked else _taken(variable, value, path)))
    return changes


def _paired(node: Any, state: Any, path: Path) -> Iterator[tuple[nnx.Variable[Any], Any, Path]]:
    """Each Variable with its part of the state."""
    if isinstance(node, dict):
        _check_dict(node, state, path)
        for key, child in node.items():
            yield from _paired(child, state[key], (*path, key))
    else:
        yield node, state, path


def _taken(variable: nnx.Variable[Any], value: Any, path: Path) -> Any:
    """`value` as the new content of a Variable."""
    held = payload(variable)
    if isinstance(variable, HostFlag) and type(value) is not bool:
        raise _kind_mismatch(path, "bool", value)
    if isinstance(variable, HostInt) and value is not None and type(value) is not int:
        raise _kind_mismatch(path, "int or None", value)
    is_count = isinstance(variable, IterationCount)
    if is_count and (value is None or isinstance(held, ARRAYS) != isinstance(value, ARRAYS)):
        raise _kind_mismatch(path, f"a count like {held!r}", value)
    found = _conform(held, value, path)
    if (
        isinstance(variable, (HostInt, IterationCount))
        and found is not None
        and np.any(np.asarray(found) < 0)
    ):
        raise ValueError(
            f"State value out of range at {spell(path)}: "
            f"expected {'a count >= 0' if is_count else 'an int >= 0 or None'}, got {value}"
        )
    return found


def _conform(held: Any, value: Any, path: Path) -> Any:
    """`value` as the new content of a slot that holds `held`."""
    if held is None:
        return detached(value)
    if isinstance(held, jax.Array) and _is_traced_number(held, type(value)):
        try:
            return jnp.asarray(value)
        except OverflowError as error:
            raise ValueError(f"State value out of range at {spell(path)}: {error}") from error
    if isinstance(held, (*ARRAYS, jax.ShapeDtypeStruct)):
        return _array(held, value, path)
    if value is None:
        return None
    if isinstance(value, (jax.Array, np.ndarray)) and _is_traced_number(value, type(held)):
        return value.item()
    if isinstance(held, dict):
        return _dict(held, value, path)
    if type(held) is not type(value):
        raise _kind_mismatch(path, type(held).__name__, value)
    if isinstance(held, list) and not held:
        return detached(value)
    if isinstance(held, (list, tuple)):
        return getattr(type(held), "_make", type(held))(_items(held, value, path))  # _make of named tuples
    # A registered PyTree class leaf by leaf; any other object as it is.
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(held))
    if len(leaves) == 1 and leaves[0] is held:
        return detached(value)
    found, found_structure = jax.tree.flatten(value)
    if structure != found_structure:
        raise ValueError(
            f"State node type mismatch at {spell(path)}: expected {structure}, got {found_structure}"
        )
    return jax.tree.unflatten(structure, _items(leaves, found, path))


def _is_traced_number(array: Any, kind: type) -> bool:
    """Whether `nnx.jit` could have made this array of a Python number of this kind that a Variable held."""
    return (
        kind in (bool, int, float)
        and array.shape == ()
        and array.dtype == jax.dtypes.canonicalize_dtype(kind)
        and (kind is bool or not isinstance(array, jax.Array) or array.weak_type)  # NumPy has no weak types
    )


def _array(held: Any, value: Any, path: Path) -> Any:
    """`value` as an array that stands for `held` without a new trace: same weak type, same place."""
    if not isinstance(value, ARRAYS):
        raise _kind_mismatch(path, f"{held.dtype} array of shape {held.shape}", value)
    check_plain(type(value), f"the state at {spell(path)}")
    for what in ("shape", "dtype"):
        if getattr(held, what) != getattr(value, what):
            raise ValueError(
                f"Array {what} mismatch at {spell(path)}: expected {getattr(held, what)}, got {getattr(value, what)}"
            )
    if isinstance(held, (np.ndarray, np.generic)):
        return np.array(value) if isinstance(held, np.ndarray) else np.asarray(value)[()]
    # A copy: jnp.asarray may share NumPy's memory.
    found = value if isinstance(value, jax.Array) else jnp.array(value)
    if not isinstance(held, jax.Array) or isinstance(held, jax.core.Tracer):
        return found
    if getattr(found, "weak_type", False) and not held.weak_type:  # typed keys have none
        found = jnp.asarray(found, held.dtype)
    if held.committed and found.sharding != held.sharding:
        found = jax.device_put(found, held.sharding)
    return found


def _dict(held: dict[Any, Any], value: Any, path: Path) -> Any:
    if held or not isinstance(value, dict):
        _check_dict(held, value, path)
    found = copy.copy(held)  # keeps the type of an OrderedDict or defaultdict
    found.clear()
    found.update({key: _conform(held.get(key), value[key], (*path, key)) for key in value})
    return found


def _items(held: Any, value: Any, path: Path) -> list[Any]:
    if len(held) != len(value):
        raise ValueError(
            f"State length mismatch at {spell(path)}: expected {len(held)} items, got {len(value)}"
        )
    return [_conform(h, v, (*path, i)) for i, (h, v) in enumerate(zip(held, value, strict=True))]


def _check_dict(expected: dict[Any, Any], found: Any, path: Path) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"State node type mismatch at {spell(path)}: expected dict, got {_described(found)}")
    typed_expected = {(type(key), key) for key in expected}  # 1, True and 1.0 are one key to a dict
    typed_found = {(type(key), key) for key in found}
    if typed_expected != typed_found:
        missing = sorted((key for _, key in typed_expected - typed_found), key=repr)
        extra = sorted((key for _, key in typed_found - typed_expected), key=repr)
        raise ValueError(f"State keys mismatch at {spell(path)}: missing={missing}, extra={extra}")


def _kind_mismatch(path: Path, expected: str, value: Any) -> ValueError:
    return ValueError(f"State kind mismatch at {spell(path)}: expected {expected}, got {_described(value)}")


def spell(path: Path) -> str:
    """A path as it stands in messages."""
    return ".".join(map(str, path)) or "<root>"


def _described(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"{value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
