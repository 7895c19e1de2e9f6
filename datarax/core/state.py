"""A module's state as a plain tree, and the strict check of such a tree against a module.

`variables_below` finds the Variables of a module, `read_state` takes them out as values, `match_state` checks
a tree wholly and says what would be written where; nothing here changes a module but `write`. Knows nothing of
disks or encodings. Read next: `datarax.core.module`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.core.tree import ARRAYS, detached
from datarax.core.variables import Held, HostFlag, HostInt, IterationCount, PackedVariable

Path = tuple[Any, ...]
Variables = list[tuple[Path, nnx.Variable[Any]]]
Change = tuple[nnx.Variable[Any], Any]
Rule = Callable[[nnx.Variable[Any], Any, Path], Any]
"""How a Variable takes a value: gives the value to write, or raises ValueError."""

_SCALARS = (bool, int, float, complex, str, bytes)
_NUMBERS = (bool, int, float)


def variables_below(module: nnx.Module) -> Variables:
    """The Variables below `module` with their paths, in order; `nnx.List` children have int keys.

    A Variable that is reachable on several paths stands at the first. Plain array attributes are data, not
    state.
    """
    return list(nnx.to_flat_state(nnx.state(module, nnx.Variable, graph=True)))


def _nested(variables: Variables, of: Callable[[Path, nnx.Variable[Any]], Any]) -> dict[Any, Any]:
    """What `of` gives for each Variable, in nested dicts."""
    tree: dict[Any, Any] = {}
    for path, variable in variables:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = of(path, variable)
    return tree


def read_state(variables: Variables, *, unsaved: Iterable[nnx.Variable[Any]] = ()) -> dict[Any, Any]:
    """The values of the Variables in nested dicts, sharing nothing that anyone could change later.

    Variables in `unsaved` read as None.

    Raises:
        TypeError: if a Variable holds something that cannot be copied (a lock, a generator), naming its path.
    """
    left_out = {id(variable) for variable in unsaved}

    def read(path: Path, variable: nnx.Variable[Any]) -> Any:
        try:
            return None if id(variable) in left_out else detached(payload(variable))
        except TypeError as error:
            raise TypeError(
                f"the Variable at {spell(path)} holds a value that cannot be saved: {error}"
            ) from error

    return _nested(variables, read)


def payload(variable: nnx.Variable[Any]) -> Any:
    """What a Variable holds, as it stands in a state: our own kinds as their values, all others raw."""
    if variable.ref or isinstance(variable, PackedVariable):
        return variable.get_value()
    return variable.get_raw_value()


def write(variable: nnx.Variable[Any], value: Any) -> None:
    """Put a value that `match_state` has approved into a Variable."""
    if variable.ref or isinstance(variable, Held):
        variable.set_value(value)
    else:
        variable.set_raw_value(value)


def match_state(
    variables: Variables,
    state: Any,
    *,
    free: Iterable[nnx.Variable[Any]] = (),
    unsaved: Iterable[nnx.Variable[Any]] = (),
) -> list[Change]:
    """Every Variable with the value it would get from `state`; changes nothing.

    Keys must be the same at every depth. A value must be of the kind that its Variable holds now: the same
    Python type; for arrays the same shape and dtype (NumPy or jax); for containers the same keys or length. A
    Variable that holds None, or an empty container, takes any content, and one that holds a Python value
    takes None. A Python number and the 0-d array that a transform makes of it are one kind. Variables in
    `free` take anything, those in `unsaved` None only.

    Raises:
        ValueError: at the first difference in key order, naming the path and both sides.
    """
    rules: dict[int, Rule] = {id(variable): _anything for variable in free}
    rules |= {id(variable): _nothing for variable in unsaved}
    changes: list[Change] = []
    _match(_nested(variables, lambda _, variable: variable), state, (), rules, changes)
    return changes


def _match(node: Any, state: Any, path: Path, rules: dict[int, Rule], changes: list[Change]) -> None:
    if isinstance(node, dict):
        _check_dict(node, state, path)
        for key, child in node.items():
            _match(child, state[key], (*path, key), rules, changes)
    else:
        changes.append((node, rules.get(id(node), _same_kind)(node, state, path)))


def _anything(_: nnx.Variable[Any], value: Any, __: Path) -> Any:
    return detached(value)


def _nothing(_: nnx.Variable[Any], value: Any, path: Path) -> None:
    if value is not None:
        raise _kind_mismatch(path, "None, because it is never saved", value)


def _same_kind(variable: nnx.Variable[Any], value: Any, path: Path) -> Any:
    if isinstance(variable, HostInt):
        return _host_int(value, path)
    if isinstance(variable, HostFlag):
        return _scalar(False, value, path)
    held = payload(variable)
    if isinstance(variable, IterationCount) and held is not None:
        return _count(held, value, path)
    return _conform(held, value, path)


def _host_int(value: Any, path: Path) -> int | None:
    if value is not None and type(value) is not int:
        raise _kind_mismatch(path, "int or None", value)
    if value is not None and value < 0:
        raise ValueError(
            f"State value out of range at {spell(path)}: expected an int >= 0 or None, got {value}"
        )
    return value


def _count(held: Any, value: Any, path: Path) -> Any:
    if value is None or isinstance(held, ARRAYS) != isinstance(value, ARRAYS):
        raise _kind_mismatch(path, f"a count like {held!r}", value)
    found = _conform(held, value, path)
    if np.any(np.asarray(found) < 0):
        raise ValueError(f"State value out of range at {spell(path)}: expected a count >= 0, got {value}")
    return found


def _conform(held: Any, value: Any, path: Path) -> Any:
    """`value` as the new content of a slot that holds `held`."""
    if held is None:
        return detached(value)
    if isinstance(held, (*ARRAYS, jax.ShapeDtypeStruct)):
        if isinstance(held, jax.Array) and _is_traced_number(held, type(value)):
            return _number_as_array(value, path)
        return _array(held, value, path)
    if value is None:
        return None
    if isinstance(held, _SCALARS):
        if isinstance(value, (jax.Array, np.ndarray)) and _is_traced_number(value, type(held)):
            return value.item()
        return _scalar(held, value, path)
    if isinstance(held, dict):
        return _dict(held, value, path)
    if type(held) is not type(value):
        raise _kind_mismatch(path, type(held).__name__, value)
    if isinstance(held, (list, tuple)):
        return _sequence(held, value, path)
    return _node(held, value, path)


def _is_traced_number(array: Any, kind: type) -> bool:
    """Whether `nnx.jit` could have made this array of a Python number of this kind that a Variable held."""
    if kind not in _NUMBERS or array.shape != () or array.dtype != jax.dtypes.canonicalize_dtype(kind):
        return False
    return kind is bool or not isinstance(array, jax.Array) or array.weak_type  # NumPy has no weak types


def _number_as_array(value: Any, path: Path) -> jax.Array:
    try:
        return jnp.asarray(value)
    except OverflowError as error:
        raise ValueError(f"State value out of range at {spell(path)}: {error}") from error


def _scalar(held: Any, value: Any, path: Path) -> Any:
    if type(value) is not type(held):
        raise _kind_mismatch(path, type(held).__name__, value)
    return value


def _array(held: Any, value: Any, path: Path) -> Any:
    if not isinstance(value, ARRAYS):
        raise _kind_mismatch(path, f"{held.dtype} array of shape {held.shape}", value)
    if value.shape != held.shape:
        raise ValueError(f"Array shape mismatch at {spell(path)}: expected {held.shape}, got {value.shape}")
    if value.dtype != held.dtype:
        raise ValueError(f"Array dtype mismatch at {spell(path)}: expected {held.dtype}, got {value.dtype}")
    if isinstance(held, np.generic):
        return np.asarray(value)[()]
    if isinstance(held, np.ndarray):
        return np.array(value)
    return _jax_array(held, value)


def _jax_array(held: Any, value: Any) -> jax.Array:
    """`value` as a jax array that stands for `held` without a new trace: same weak type, same place."""
    found = (
        value if isinstance(value, jax.Array) else jnp.array(value)
    )  # jnp.asarray may share NumPy's memory
    if not isinstance(held, jax.Array) or isinstance(held, jax.core.Tracer):
        return found
    is_key = jax.dtypes.issubdtype(held.dtype, jax.dtypes.prng_key)
    if not is_key and found.weak_type and not held.weak_type:
        found = jnp.asarray(found, held.dtype)
    if held.committed and found.sharding != held.sharding:
        found = jax.device_put(found, held.sharding)
    return found


def _dict(held: dict[Any, Any], value: Any, path: Path) -> Any:
    if held:
        _check_dict(held, value, path)
        content = {key: _conform(held[key], value[key], (*path, key)) for key in value}
    elif isinstance(value, dict):
        content = detached(dict(value))
    else:
        raise _kind_mismatch(path, "dict", value)
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
    return getattr(type(held), "_make", type(held))(items)  # named tuples are made by _make


def _node(held: Any, value: Any, path: Path) -> Any:
    """A registered PyTree class leaf by leaf; any other object as it is."""
    leaves, structure = cast(tuple[list[Any], Any], jax.tree.flatten(held))
    if len(leaves) == 1 and leaves[0] is held:
        return detached(value)
    found, found_structure = jax.tree.flatten(value)
    if structure != found_structure:
        raise ValueError(
            f"State node type mismatch at {spell(path)}: expected {structure}, got {found_structure}"
        )
    items = [_conform(h, v, (*path, i)) for i, (h, v) in enumerate(zip(leaves, found, strict=True))]
    return jax.tree.unflatten(structure, items)


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
