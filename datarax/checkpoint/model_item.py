"""The trainer's PyTree as a flat table of named arrays, and the strict comparison of a template with it.

Orbax compares structure and sharded shapes only: it casts dtypes, returns other NumPy shapes, swallows None and lets
`{"a.b": 1, "a": {"b": 2}}` collide. So the tree is flattened here, Orbax gets one flat dict of arrays, and everything else
(kinds, None, empty arrays, PRNG implementations) is in the leaf specs. Knows nothing of files and of Orbax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.checkpoint.global_arrays import digest_alone, global_array, weakly_typed
from datarax.core.config import Natural
from datarax.core.errors import MISSING, Difference, InputError
from datarax.core.tree import check_plain, with_weak_type

STORED_DTYPES = frozenset(
    {"bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"}
    | {"int2", "int4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float4_e2m1fn", "float8_e3m4", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"}
    | {"float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"}
)
"""Dtypes that Orbax and TensorStore return bit for bit; each is tested. Others are refused by path before a save."""

_INT64 = range(-(1 << 63), 1 << 63)


class LeafKind(StrEnum):
    """What kind of value a leaf is; a restore gives the same kind back."""

    JAX = "jax"
    """A `jax.Array`."""
    KEY = "key"
    """A `jax.Array` of typed PRNG keys; its key data are stored."""
    NUMPY = "numpy"
    """A `numpy.ndarray`."""
    NUMPY_SCALAR = "numpy_scalar"
    """A NumPy scalar such as `np.float32(1)`."""
    BOOL = "bool"
    """A Python bool."""
    INT = "int"
    """A Python int of at most 64 bits."""
    FLOAT = "float"
    """A Python float."""
    COMPLEX = "complex"
    """A Python complex."""
    NONE = "none"
    """None."""
    ABSTRACT = "abstract"
    """Only in templates: a `jax.ShapeDtypeStruct`, which stands for any array of that dtype and shape."""


@dataclass(frozen=True, kw_only=True)
class LeafSpec:
    """What is recorded of one leaf."""

    path: str
    """Keys from the root, joined with `.`; `.`, `/` and `%` in a key are written `%2E`, `%2F` and `%25`."""
    kind: LeafKind
    """What kind of value it is: `jax`, `key`, `numpy`, `numpy_scalar`, `bool`, `int`, `float`, `complex` or `none`."""
    dtype: str | None = None
    """Name of the dtype; for keys with the implementation, such as `key<fry>`."""
    shape: tuple[Natural, ...] | None = None
    """Of the array; None where it has none."""
    stored: bool = False
    """Whether Orbax holds the value; None and arrays without elements are fully described here."""
    weak_type: bool = False
    """Whether a JAX array was weakly typed."""
    impl: str | None = None
    """PRNG implementation of keys, such as `threefry2x32`."""

    def __str__(self) -> str:
        if self.kind is LeafKind.NONE:
            return "None"
        if self.shape is None:
            return f"a Python {self.kind}"
        kind = "array" if self.kind is LeafKind.ABSTRACT else self.kind.replace("_", " ")
        return f"{kind} {self.dtype}[{','.join(map(str, self.shape))}]"

    def to_tree(self) -> dict[str, Any]:
        """With canonical JSON."""
        return {
            **vars(self),
            "kind": self.kind.value,
            "shape": None if self.shape is None else list(self.shape),
        }


def named_leaves(model: Any) -> tuple[list[tuple[str, Any]], Any]:
    """All leaves with their paths, None included, and the tree definition that puts them together again.

    The path of a leaf inside an `nnx.Variable` is the Variable's: a State, its pure dict and its abstract twin agree.

    Raises:
        InputError: if two leaves have the same path, or the tree cannot be flattened.
    """
    try:
        outer = jax.tree_util.tree_flatten_with_path(
            model, is_leaf=lambda node: node is None or isinstance(node, nnx.Variable)
        )[0]
        leaves: list[tuple[str, Any]] = []
        for path, node in outer:
            if isinstance(node, nnx.Variable):
                inner = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda leaf: leaf is None)[0]
                leaves += [(_spell((*path, *below[1:])), leaf) for below, leaf in inner]
            else:
                leaves.append((_spell(path), node))
        definition = jax.tree_util.tree_structure(model, is_leaf=lambda node: node is None)
    except (TypeError, ValueError) as error:
        raise InputError(f"the model is not a PyTree that can be flattened: {error}") from error
    seen: set[str] = set()
    for name, _ in leaves:
        if name in seen:
            raise InputError(
                f"two leaves of the model have the path {name!r}; keys that print alike cannot be told apart"
            )
        seen.add(name)
    return leaves, definition


def _spell(path: Sequence[Any]) -> str:
    return ".".join(_component(entry) for entry in path)


def _component(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            text = str(getattr(entry, attribute))
            return text.replace("%", "%25").replace(".", "%2E").replace("/", "%2F") or "%"
    return str(entry)


def describe(path: str, leaf: Any) -> LeafSpec:
    """The spec of a leaf of a model or of a template.

    Raises:
        InputError: if leaves of this type cannot be saved.
    """
    if leaf is None:
        return LeafSpec(path=path, kind=LeafKind.NONE)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return LeafSpec(path=path, kind=LeafKind.ABSTRACT, dtype=str(leaf.dtype), shape=tuple(leaf.shape))
    if isinstance(leaf, jax.Array):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return LeafSpec(
            path=path,
            kind=LeafKind.KEY if is_key else LeafKind.JAX,
            dtype=leaf.dtype.name,
            shape=tuple(leaf.shape),
            stored=leaf.size > 0,
            weak_type=not is_key and bool(leaf.weak_type),
            impl=str(jax.random.key_impl(leaf)) if is_key else None,
        )
    if isinstance(leaf, (np.ndarray, np.generic)):
        check_plain(type(leaf), f"model leaf {path!r}")
        kind = LeafKind.NUMPY if isinstance(leaf, np.ndarray) else LeafKind.NUMPY_SCALAR
        return LeafSpec(path=path, kind=kind, dtype=leaf.dtype.name, shape=leaf.shape, stored=leaf.size > 0)
    kinds = {bool: LeafKind.BOOL, int: LeafKind.INT, float: LeafKind.FLOAT, complex: LeafKind.COMPLEX}
    if type(leaf) in kinds:
        return LeafSpec(path=path, kind=kinds[type(leaf)], stored=True)
    raise InputError(
        f"model leaf {path!r} is a {type(leaf).__module__}.{type(leaf).__qualname__}; a snapshot holds JAX and NumPy arrays, "
        "PRNG keys, Python numbers, bools and None. Keep texts and other objects in the config"
    )


def flatten_model(model: Any) -> tuple[list[LeafSpec], dict[str, jax.Array | np.ndarray]]:
    """The specs of all leaves and the arrays to store.

    JAX arrays that live in host memory are copied: Orbax writes from a view of that memory in the background. JAX does
    not donate a buffer in place while the view lives, but an array made from a NumPy array may share its memory with it.
    Arrays on accelerators are copied to the host by Orbax, and NumPy arrays by Orbax too, before its `save` returns.

    Raises:
        InputError: if a leaf cannot be stored exactly, naming its path.
    """
    leaves, _ = named_leaves(model)
    specs = _specs(leaves)
    return specs, {
        s.path: _stored_form(s, leaf) for s, (_, leaf) in zip(specs, leaves, strict=True) if s.stored
    }


def describe_model(model: Any) -> list[LeafSpec]:
    """The specs of all leaves of a model that is to be saved; nothing is copied.

    Raises:
        InputError: if a leaf cannot be stored exactly, naming its path.
    """
    return _specs(named_leaves(model)[0])


def held_alone(model: Any) -> str | None:
    """SHA-256 over everything of a model that this process holds alone; None if it holds nothing so. See `global_arrays`.

    Raises:
        InputError: if the model is not a PyTree whose leaves have names.
    """
    return digest_alone(named_leaves(model)[0])


def _specs(leaves: Sequence[tuple[str, Any]]) -> list[LeafSpec]:
    specs = [describe(path, leaf) for path, leaf in leaves]
    for spec, (_, leaf) in zip(specs, leaves, strict=True):
        _refuse_inexact(spec, leaf)
    return specs


def _refuse_inexact(spec: LeafSpec, leaf: Any) -> None:
    problem = None
    if spec.kind is LeafKind.ABSTRACT:
        problem = "is a jax.ShapeDtypeStruct, which has no values"
    elif spec.kind is LeafKind.INT and leaf not in _INT64:
        problem = f"is the int {leaf:#x}, which needs more than 64 bits"
    elif spec.dtype is not None and spec.kind is not LeafKind.KEY and spec.dtype not in STORED_DTYPES:
        problem = f"has the dtype {spec.dtype}, which cannot be stored exactly"
    elif isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        problem = "is an array of foreign byte order, which would come back native"
    elif isinstance(leaf, jax.Array) and leaf.is_deleted():
        problem = "was donated to a jitted function or deleted; save the state that the function returned"
    if problem:
        raise InputError(f"model leaf {spec.path!r} {problem}")


def _stored_form(spec: LeafSpec, leaf: Any) -> jax.Array | np.ndarray:
    if spec.kind is LeafKind.KEY:
        return jnp.array(jax.random.key_data(leaf), copy=True)
    if spec.kind is LeafKind.JAX:
        on_host = any(device.platform == "cpu" for device in leaf.devices())
        return jnp.array(leaf, copy=True) if on_host else leaf
    if spec.kind is LeafKind.INT:
        return np.asarray(leaf, np.int64)
    return np.asarray(leaf)


def compare_template(specs: Sequence[LeafSpec], template: Any) -> list[Difference]:
    """Every leaf at which a template differs from what is recorded: missing, extra, kind, dtype, shape, None.

    Raises:
        InputError: if the template holds something that is no leaf of a model.
    """
    recorded = {spec.path: spec for spec in specs}
    present = {path: describe(path, leaf) for path, leaf in named_leaves(template)[0]}
    found = []
    for path in sorted({*recorded, *present}):
        was, now = recorded.get(path), present.get(path)
        if was is None or now is None or not _fits(was, now):
            shown = (MISSING if spec is None else _Shown(str(spec)) for spec in (was, now))
            found.append(Difference(f"model.{path}" if path else "model", *shown))
    return found + [d for spec in specs if (d := _needs_x64(spec)) is not None]


class _Shown(str):
    """A description in a `Difference`, printed without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _fits(was: LeafSpec, now: LeafSpec) -> bool:
    arrays = (LeafKind.JAX, LeafKind.KEY, LeafKind.NUMPY)
    same_kind = was.kind is now.kind or (now.kind is LeafKind.ABSTRACT and was.kind in arrays)
    return same_kind and was.dtype == now.dtype and was.shape == now.shape


def _needs_x64(spec: LeafSpec) -> Difference | None:
    if spec.kind is not LeafKind.JAX or jax.config.read("jax_enable_x64") or spec.dtype is None:
        return None
    if spec.dtype not in ("int64", "uint64", "float64", "complex128"):
        return None
    path = f"model.{spec.path}" if spec.path else "model"
    return Difference(path, _Shown(f"{spec} under jax_enable_x64"), _Shown("jax_enable_x64 is off"))


def wanted_shardings(specs: Sequence[LeafSpec], template: Any) -> dict[str, jax.sharding.Sharding | None]:
    """For each stored leaf the sharding to read it with; None to read it as a NumPy array."""
    leaves = dict(named_leaves(template)[0])
    return {
        spec.path: _sharding(leaves[spec.path]) if spec.kind is LeafKind.JAX else None
        for spec in specs
        if spec.stored
    }


def _sharding(leaf: Any) -> jax.sharding.Sharding | None:
    # An uncommitted array may follow the others to their devices; it must come back uncommitted.
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def rebuild_model(
    specs: Sequence[LeafSpec], arrays: Mapping[str, jax.Array | np.ndarray], template: Any
) -> Any:
    """The model in the structure, kinds and shardings of the template.

    Args:
        specs: all recorded leaves.
        arrays: path -> value for each stored leaf, read with `wanted_shardings`.
        template: a tree that `compare_template` accepted.

    Raises:
        ValueError: if an array is not what its spec says.
    """
    recorded = {spec.path: spec for spec in specs}
    leaves, definition = named_leaves(template)
    values = [_value(recorded[path], arrays.get(path), leaf) for path, leaf in leaves]
    return jax.tree_util.tree_unflatten(definition, values)


def _value(spec: LeafSpec, stored: Any, leaf: Any) -> Any:
    if spec.kind is LeafKind.NONE:
        return None
    if spec.kind is LeafKind.KEY:
        return _key(spec, stored, leaf)
    if spec.shape is None:
        return stored.item()
    if stored is None:
        stored = np.zeros(spec.shape, jnp.dtype(spec.dtype))
    if stored.dtype.name != spec.dtype or tuple(stored.shape) != spec.shape:
        raise ValueError(f"{spec.path}: read {stored.dtype}{list(stored.shape)}, recorded is {spec}")
    if spec.kind is LeafKind.NUMPY_SCALAR:
        return stored[()]
    if spec.kind is LeafKind.NUMPY:
        return stored
    value = stored if isinstance(stored, jax.Array) else _put(stored, _sharding(leaf))
    if not spec.weak_type:
        return value
    return with_weak_type(value) if value.is_fully_addressable else weakly_typed(value)


def _key(spec: LeafSpec, stored: Any, leaf: Any) -> jax.Array:
    assert spec.shape is not None
    if stored is None:
        return jax.random.split(jax.random.key(0, impl=spec.impl), 1)[:0].reshape(spec.shape)
    sharding = _sharding(leaf)
    if sharding is not None and not sharding.is_fully_addressable:
        return jax.random.wrap_key_data(_put(stored, sharding), impl=spec.impl)
    keys = jax.random.wrap_key_data(jax.device_put(stored), impl=spec.impl)
    return keys if sharding is None else jax.device_put(keys, sharding)


def _put(value: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return global_array(
        value, sharding
    )  # device_put would compare the value over all processes, on their devices
