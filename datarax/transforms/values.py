"""Values as trees for canonical JSON, so that two of them are the same exactly if their trees are.

Plain data stands for itself; everything else becomes a mapping with one key that begins with `$`. Functions
and classes are named here and read by a `Reader` (`identity.py`).
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import inspect
import logging
import math
import random
import re
import sys
import types
import typing
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from datarax.core.errors import ConfigError
from datarax.core.tree import ARRAYS, PLAIN_ARRAYS, canonical_json

if TYPE_CHECKING:
    from datarax.transforms.identity import Reader

_LONGEST = 1000  # bytes of one described value in an identity; beyond that its digest says enough
_TEXTUAL = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID)
_NUMBERS_AND_TEXT = (int, float, complex, str, bytes, bytearray)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_EXACT = {bool, *_NUMBERS_AND_TEXT, *_CONTAINERS}
_STREAMS = (np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random)


def described(
    value: Any, what: str, read: Reader, *, opaque: bool = False, above: tuple[int, ...] = ()
) -> Any:
    """The tree of a value.

    Args:
        value: Anything.
        what: What it is called in an error.
        read: Reads the functions and classes that it holds.
        opaque: Whether an object that cannot be described may stand as its class alone.
        above: Ids of the containers it lies in.

    Raises:
        ConfigError: if it cannot be described.
    """
    below = functools.partial(described, read=read, opaque=opaque, above=(*above, id(value)))
    kind = type(value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    if id(value) in above:
        return {"$cycle": len(above) - above.index(id(value))}
    if isinstance(value, enum.Enum):
        tree = {"$enum": f"{kind.__qualname__}.{value.name}", "value": below(value.value, what)}
        return {**tree, "class": read.define(kind, what)} if read.extends(kind) else tree
    for kinds, tree_of in _DATA:
        if isinstance(value, kinds):
            return _of_its_class(value, tree_of(value, what, below), what, read, below)
    if kind.__module__ == "typing":
        return {"$typing": True}
    if isinstance(value, ModuleType):
        return read.module(value)
    if isinstance(value, _STREAMS):
        raise ConfigError(
            f"{what} is a stream of random numbers ({kind.__name__}), so a row would depend on those"
            " before it; draw from the row's own seed (random_map_records, random_map_batch)"
        )
    tree = _definition(value, what, read, below)
    if tree:
        return tree
    state = state_of(value)
    if state is not None:
        tree = {"$object": _class(kind, what, read), "state": below(state, f"the state of {what}")}
        return {**tree, "value": _plain_value(value)} if isinstance(value, _NUMBERS_AND_TEXT) else tree
    if opaque:
        return {"$opaque": reference(kind)}
    raise read.refused(what, f"a {kind.__module__}.{kind.__qualname__} shows no content")


def shortened(tree: Any) -> Any:
    """The tree, or its digest if it is long; a mapping keeps its keys."""
    text = canonical_json(tree)
    if len(text) <= _LONGEST:
        return tree
    if isinstance(tree, dict) and len(tree) <= 20 and max(map(len, tree)) <= 50:
        return {key: shortened(value) for key, value in tree.items()}
    return {"$sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}


def is_plain(value: Any) -> bool:
    """Whether a value is data through and through: numbers, text, arrays and containers of them."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.keys())) and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain, value))
    kinds = (type(None), bool, int, float, complex, str, bytes, bytearray, np.generic, np.ndarray, enum.Enum)
    return isinstance(value, kinds)


def state_of(value: Any) -> Any:
    """What an object holds, as pickle would ask for it; None if it holds nothing that can be seen."""
    kind = type(value)
    has_slots = any("__slots__" in vars(each) for each in kind.__mro__)
    if kind.__getstate__ is object.__getstate__ and not (hasattr(value, "__dict__") or has_slots):
        return None
    state = value.__getstate__()
    return {} if state is None else state


def is_users_wrapper(value: Any, read: Reader) -> bool:
    """Whether a value is called in a function's place and of a class of the user's, which decides what that does."""
    kind = type(value)
    return (
        not isinstance(value, (type, FunctionType))
        and isinstance(kind.__call__, FunctionType)
        and not read.by_name(kind)
    )


def wrapper_state(value: Any) -> Any:
    """What a wrapper holds, without what `functools.update_wrapper` copies from the function inside."""
    state = state_of(value)
    parts = state if isinstance(state, tuple) else (state,)
    kept = [
        {key: part[key] for key in part if not key.startswith("__")} if isinstance(part, dict) else part
        for part in parts
    ]
    return kept if isinstance(state, tuple) else kept[0]


def registered(value: Any, what: str, read: Reader, below: Any) -> dict[str, Any]:
    """What the user registered with a function of `functools.singledispatch`; empty if nothing."""
    if not (isinstance(value, FunctionType) and value.__globals__ is vars(functools)):
        return {}
    found = {kind: fn for kind, fn in vars(value).get("registry", {}).items() if kind is not object}
    inner = {kind: inspect.unwrap(fn) for kind, fn in found.items()}
    users = [kind for kind, fn in inner.items() if isinstance(fn, FunctionType) and not read.by_name(fn)]
    each = [
        [below(kind, what), below(found[kind], f"{what}, for {kind.__qualname__}")]
        for kind in sorted(users, key=lambda kind: str(kind.__qualname__))
    ]
    return {"registered": each} if each else {}


def reference(value: Any) -> str:
    """A library's function or class by package and name; the module within the package may move."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__)
    return f"{package_of(value)}:{name}"


def package_of(value: Any) -> str:
    """The top-level package of a function, class or object."""
    return module_of(value).split(".")[0]


def is_installed(module: str) -> bool:
    """Whether a module is Python's own, or of a package that was installed as a copy.

    What is nobody's own is not read: its text changes with its version, which is provenance.
    """
    package = module.split(".")[0]
    if package in sys.stdlib_module_names and package != "__main__":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def module_of(value: Any) -> str:
    """The module of a function, class or object, by name."""
    if isinstance(value, FunctionType):  # functools.wraps copies __module__ onto wrappers, but not this
        return str(value.__globals__.get("__name__", "__main__"))
    named = value if isinstance(getattr(value, "__module__", None), str) else type(value)
    return str(named.__module__)


def cell_value(cell: types.CellType) -> Any:
    """What a closure's cell holds; `...` while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _plain_value(value: Any) -> Any:
    """The tree of the number or text that an instance of a subclass is, whatever the subclass makes of it."""
    kind: Any = next(each for each in _NUMBERS_AND_TEXT if isinstance(value, each))
    return _SCALARS[kind](bytes(memoryview(value)) if kind is bytearray else kind.__getnewargs__(value)[0])


def _of_its_class(value: Any, tree: Any, what: str, read: Reader, below: Any) -> Any:
    """The tree of data, and what its class adds to the data: a mask, a factory, the user's methods, attributes."""
    kind = type(value)
    if kind in _EXACT:
        return tree
    if isinstance(value, np.ndarray):
        return _of_its_array_class(value, tree, what, read, below)
    if isinstance(value, defaultdict) and value.default_factory is not None:
        tree = {"$default": below(value.default_factory, f"the default factory of {what}"), "content": tree}
    if not isinstance(value, (*_CONTAINERS, Mapping)):
        return tree
    # What another mapping holds is what it gives; how it keeps that is its own affair.
    state = (state_of(value) or {}) if isinstance(value, _CONTAINERS) else {}
    if not (read.extends(kind) or (state and not read.by_name(kind))):
        return tree
    return {
        "$object": read.define(kind, what),
        "state": below(state, f"the state of {what}"),
        "content": tree,
    }


def _of_its_array_class(value: np.ndarray, tree: Any, what: str, read: Reader, below: Any) -> Any:
    kind = type(value)
    if kind in PLAIN_ARRAYS:
        return tree
    if isinstance(value, np.ma.MaskedArray):
        mask = None if value.mask is np.ma.nomask else np.asarray(value.mask)
        tree = {**tree, "mask": below(mask, f"the mask of {what}")}
        if value.fill_value != np.ma.default_fill_value(value):
            tree["fill_value"] = below(value.fill_value, f"the fill value of {what}")
    if kind is np.ma.MaskedArray:
        return tree
    own = {} if isinstance(value, np.ma.MaskedArray) else getattr(value, "__dict__", {})
    name = f"{kind.__module__}.{kind.__qualname__}" if read.by_name(kind) else read.define(kind, what)
    return {
        "$object": name,
        "state": below(own, f"the state of {what}"),
        "content": tree,
    }


def _array(value: Any, what: str, below: Any) -> Any:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"$key": str(jax.random.key_impl(value)), "data": below(jax.random.key_data(value), what)}
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.kind == "T":
        return {"$array": "object", "shape": list(array.shape), "values": below(array.ravel().tolist(), what)}
    # Little-endian, so that one array has one digest everywhere; by name, since bfloat16 has no str.
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    dtype = str(array.dtype.descr) if array.dtype.names else array.dtype.name
    tree = {"$array": dtype, "shape": list(array.shape)}
    if array.ndim == 0 and array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        return {**tree, "value": below(array.item(), what)}
    return {**tree, "sha256": hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()}


def _mapping(value: Any, what: str, below: Any) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: below(value[key], f"{what}, at {key!r}") for key in sorted(value)}
    items = [[below(key, what), below(value[key], f"{what}, at {key!r}")] for key in value]
    return {"$mapping": sorted(items, key=canonical_json)}


def _bytes(value: Any) -> Any:
    return {"$bytes": hashlib.sha256(value).hexdigest(), "length": len(value)}


_SCALARS: Mapping[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: lambda value: value,
    float: lambda value: value if math.isfinite(value) else {"$float": repr(value)},
    complex: lambda value: {"$complex": repr(value)},
    str: lambda value: {"$text": ascii(value)} if re.search("[\ud800-\udfff]", value) else value,
    bytes: _bytes,
    bytearray: _bytes,
}
"""What has exactly this type."""

_DATA: Sequence[tuple[Any, Callable[[Any, str, Any], Any]]] = (
    (ARRAYS, _array),
    (Mapping, _mapping),
    (
        (list, tuple, deque),
        lambda value, what, below: [below(each, f"{what}, at {i}") for i, each in enumerate(value)],
    ),
    (
        (set, frozenset),
        lambda value, what, below: {
            "$set": sorted((below(each, what) for each in value), key=canonical_json)
        },
    ),
    (PurePath, lambda value, what, below: {"$path": str(value)}),
    (_TEXTUAL, lambda value, what, below: {f"${type(value).__name__}": str(value)}),
    (
        re.Pattern,
        lambda value, what, below: {"$pattern": below(value.pattern, what), "flags": int(value.flags)},
    ),
    (np.dtype, lambda value, what, below: {"$dtype": str(value)}),
    ((range, slice), lambda value, what, below: {f"${type(value).__name__}": str(value)}),
    (type(...), lambda value, what, below: {"$ellipsis": True}),
    (logging.Logger, lambda value, what, below: {"$logger": True}),
    # Says nothing at run time.
    ((typing.TypeVar, types.GenericAlias, types.UnionType), lambda value, what, below: {"$typing": True}),
)
"""What is data, of these types or of a subclass: the first that fits."""


def _definition(value: Any, what: str, read: Reader, below: Any) -> Any:
    if isinstance(value, functools.partial):
        held = {"args": list(value.args), "keywords": dict(value.keywords)}
        return {"$partial": below(value.func, what), "held": below(held, f"what the partial {what} holds")}
    if isinstance(value, MethodType):
        return {
            "$method": below(value.__func__, what),
            "self": below(value.__self__, f"the object of {what}"),
        }
    if isinstance(value, type):
        return {"$class": _class(value, what, read)}
    value = read.unhooked(value)
    if isinstance(value, FunctionType):
        by_name = read.by_name(value)
        if by_name and hasattr(value, "__wrapped__"):
            tree = {"$wrapper": package_of(value), "wrapped": below(value.__wrapped__, what)}
            return {**tree, **registered(value, what, read, below)}
        return {"$function": reference(value) if by_name else read.define(value, what)}
    if hasattr(value, "__wrapped__") and is_users_wrapper(value, read):
        return {
            "$object": read.define(type(value), what),
            "state": below(wrapper_state(value), f"the state of {what}"),
            "wrapped": below(value.__wrapped__, what),
        }
    if hasattr(value, "__wrapped__"):
        return {"$wrapper": package_of(type(value)), "wrapped": below(value.__wrapped__, what)}
    if isinstance(value, types.BuiltinMethodType) and not isinstance(
        value.__self__, (ModuleType, type(None))
    ):
        return {"$method": value.__name__, "self": below(value.__self__, f"the object of {what}")}
    if isinstance(value, (types.BuiltinFunctionType, np.ufunc, types.MethodDescriptorType)):
        if read.is_opaque(value):
            raise read.refused(f"{what}, {value!r},", "it is not written in Python")
        return {"$function": reference(value)}
    return None


def _class(cls: type, what: str, read: Reader) -> str:
    return reference(cls) if read.by_name(cls) else read.define(cls, what)
