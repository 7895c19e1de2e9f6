"""A module's state as a plain tree, and the strict check of such a tree against a module.

`read_state` takes the Variables of a module out as values; `match_state` checks a tree wholly and says what
would be written where; nothing here changes a module. Knows nothing of disks or encodings. Read next:
`datarax.core.module`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.core.variables import HostFlag, HostInt, IterationCount

Path = tuple[Any, ...]

_SCALARS = (bool, int, float, complex, str, bytes)
_ARRAYS = (jax.Array, np.ndarray, np.generic)


def variable_tree(module: nnx.Module) -> dict[Any, Any]:
    """The Variables below `module` in nested dicts, keys in order; `nnx.List` children have int keys.

    A Variable that is reachable on several paths stands at the first. Plain array attributes are data, not
    state.
    """
    tree: dict[Any, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Variable, graph=True)):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = variable
    return tree


def read_state(module: nnx.Module) -> dict[Any, Any]:
    """The values of the Variables below `module`, sharing nothing that anyone could change later.

    Raises:
        TypeError: if a Variable holds something that cannot be copied (a lock, a generator), naming its path.
    """
    return _read(variable_tree(module), ())


def _read(node: Any, path: Path) -> Any:
    if isinstance(node, dict):
        return {key: _read(child, (*path, key)) for key, child in node.items()}
    try:
        return detached(payload(node))
    except TypeError as error:
        raise TypeError(
            f"the Variable at {spell(path)} holds a value that cannot be saved: {error}"
        ) from error


def payload(variable: nnx.Variable[Any]) -> Any:
    """What a Variable holds, as it stands in a state: a Python value for `HostInt` and `HostFlag`, else raw."""
    if isinstance(variable, (HostInt, HostFlag)):
        return variable.get_value()
    raw = variable.get_raw_value()
    return raw[...] if variable.ref else raw


def write(variable: nnx.Variable[Any], value: Any) -> None:
    """Put a value that `match_state` has approved into a Variable."""
    if variable.ref:
        variable.get_raw_value()[...] = value
    else:
        variable.set_raw_value(value)


def detached(value: Any) -> Any:
    """A copy of `value` that shares no list, dict, NumPy array or other mutable object with it.

    `jax.Array`s do not change and are shared.
    """
    if value is None or isinstance(value, (*_SCALARS, jax.Array)):
        return value
    shared = {id(leaf): leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)}
    return copy.deepcopy(value, shared)


def match_state(
    module: nnx.Module, state: Mapping[Any, Any], *, free: Iterable[nnx.Variable[Any]] = ()
) -> list[tuple[nnx.Variable[Any], Any]]:
    """Every Variable below `module` with the value it would get from `state`; changes nothing.

    Keys must be the same at every depth. A value must be of the kind that its Variable holds now: the same
    Python type; for arrays the same shape and dtype (NumPy or jax); for containers the same keys or length. A
    Variable that holds None, or an empty container, takes any content, and one that holds a Python value
    takes None. Variables in `free` take anything.

    Raises:
        ValueError: at the first difference in key order, naming the path and both sides.
    """
    changes: list[tuple[nnx.Variable[Any], Any]] = []
    _match(variable_tree(module), state, (), {id(variable) for variable in free}, changes)
    return changes


def _match(
    node: Any, state: Any, path: Path, free: set[int], changes: list[tuple[nnx.Variable[Any], Any]]
) -> None:
    if isinstance(node, dict):
        if not isinstance(state, dict):
            raise ValueError(
                f"State node type mismatch at {spell(path)}: expected dict, got {_described(state)}"
            )
        _check_keys(node, state, path)
        for key, child in node.items():
            _match(child, state[key], (*path, key), free, changes)
    elif id(node) in free:
        changes.append((node, detached(state)))
    else:
        changes.append((node, _conformed(node, state, path)))


def _conformed(variable: nnx.Variable[Any], value: Any, path: Path) -> Any:
    if isinstance(variable, HostInt):
        return _host_int(value, path)
    if isinstance(variable, HostFlag):
        return _scalar(False, value, path)
    held = payload(variable)
    if isinstance(variable, IterationCount) and held is not None:
        if value is None:
            raise ValueError(f"State kind mismatch at {spell(path)}: expected a count, got None")
        found = _conform(held, value, path)
        if np.any(np.asarray(value) < 0):
            raise ValueError(f"State value out of range at {spell(path)}: expected a count >= 0, got {value}")
        return found
    return _conform(held, value, path)


def _host_int(value: Any, path: Path) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError(
            f"State kind mismatch at {spell(path)}: expected int or None, got {_described(value)}"
        )
    if value is not None and value < 0:
        raise ValueError(
            f"State value out of range at {spell(path)}: expected an int >= 0 or None, got {value}"
        )
    return value


def _conform(held: Any, value: Any, path: Path) -> Any:
    """`value` as the new content of a slot that holds `held`."""
    if held is None:
        return detached(value)
    if isinstance(held, (*_ARRAYS, jax.ShapeDtypeStruct)):
        return _array(held, value, path)
    if value is None:
        return None
    if isinstance(held, _SCALARS):
        return _scalar(held, value, path)
    if isinstance(held, dict):
        return _dict(held, value, path)
    if type(held) is not type(value):
        raise ValueError(
            f"State kind mismatch at {spell(path)}: expected {type(held).__name__}, got {_described(value)}"
        )
    if isinstance(held, (list, tuple)):
        return _sequence(held, value, path)
    return _node(held, value, path)


def _scalar(held: Any, value: Any, path: Path) -> Any:
    if type(value) is not type(held):
        raise ValueError(
            f"State kind mismatch at {spell(path)}: expected {type(held).__name__}, got {_described(value)}"
        )
    return value


def _array(held: Any, value: Any, path: Path) -> Any:
    if not isinstance(value, _ARRAYS):
        raise ValueError(
            f"State kind mismatch at {spell(path)}: expected {held.dtype} array of shape {held.shape}, "
            f"got {_described(value)}"
        )
    if value.shape != held.shape:
        raise ValueError(f"Array shape mismatch at {spell(path)}: expected {held.shape}, got {value.shape}")
    if value.dtype != held.dtype:
        raise ValueError(f"Array dtype mismatch at {spell(path)}: expected {held.dtype}, got {value.dtype}")
    if isinstance(held, np.generic):
        return held.dtype.type(value)
    if isinstance(held, np.ndarray):
        return np.array(value)
    return _jax_array(held, value)


def _jax_array(held: Any, value: Any) -> jax.Array:
    """`value` as a jax array that stands for `held` without a new trace: same weak type, same place."""
    found = (
        value if isinstance(value, jax.Array) else jnp.array(value)
    )  # jnp.asarray could share NumPy's memory
    if not isinstance(held, jax.Array) or isinstance(held, jax.core.Tracer):
        return found
    is_key = jax.dtypes.issubdtype(held.dtype, jax.dtypes.prng_key)
    if not is_key and found.weak_type and not held.weak_type:
        found = jnp.asarray(found, held.dtype)
    if held.committed and found.sharding != held.sharding:
        found = jax.device_put(found, held.sharding)
    return found


def _dict(held: dict[Any, Any], value: Any, path: Path) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"State node type mismatch at {spell(path)}: expected dict, got {_described(value)}")
    if held:
        _check_keys(held, value, path)
        content = {key: _conform(held[key], value[key], (*path, key)) for key in value}
    else:
        content = detached(dict(value))
    found = copy.copy(held)  # keeps the type of an OrderedDict or defaultdict
    found.clear()
    found.update(content)
    return found


def _sequence(held: Any, value: Any, path: Path) -> Any:
    if not held and isinstance(held, list):
        return detached(value)
    if len(held) != len(value):
        raise ValueError(
            f"State length mismatch at {spell(path)}: expected {len(held)} items, got {len(value)}"
        )
    items = [_conform(h, v, (*path, i)) for i, (h, v) in enumerate(zip(held, value, strict=True))]
    if isinstance(held, tuple) and hasattr(held, "_fields"):  # a named tuple takes its items one by one
        return type(held)(*items)
    return type(held)(items)


def _node(held: Any, value: Any, path: Path) -> Any:
    """A registered PyTree class leaf by leaf; any other object as it is."""
    leaves, structure = jax.tree.flatten(held)
    if len(leaves) == 1 and leaves[0] is held:
        return detached(value)
    found, found_structure = jax.tree.flatten(value)
    if not bool(structure == found_structure):
        raise ValueError(
            f"State node type mismatch at {spell(path)}: expected {structure}, got {found_structure}"
        )
    items = [_conform(h, v, (*path, i)) for i, (h, v) in enumerate(zip(leaves, found, strict=True))]
    return jax.tree.unflatten(structure, items)


def _check_keys(expected: dict[Any, Any], found: dict[Any, Any], path: Path) -> None:
    typed_expected = {(type(key), key) for key in expected}  # 1, True and 1.0 are one key to a dict
    typed_found = {(type(key), key) for key in found}
    if typed_expected != typed_found:
        missing = sorted((key for _, key in typed_expected - typed_found), key=repr)
        extra = sorted((key for _, key in typed_found - typed_expected), key=repr)
        raise ValueError(f"State keys mismatch at {spell(path)}: missing={missing}, extra={extra}")


def spell(path: Path) -> str:
    """A path as it stands in messages."""
    return ".".join(map(str, path)) or "<root>"


def _described(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"{value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
