"""Lossless JSON for the state tree of any module.

A state is a tree of None, bool, int of any size, float, str, bytes, list, tuple, dict with keys of any of the plain
types, NumPy arrays and scalars, `jax.Array`s and typed PRNG keys. `encode` gives a tree with canonical JSON (None, bool,
int, str, list, str-keyed dict), `decode` gives back an equal tree of the same types. What JSON cannot say is an object
with one key that starts with `$`; a dict of the state is written plainly only when no key of it could be mistaken for
that. Knows nothing of modules and of files.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes  # comes with jax; registers bfloat16, float8, int4 and the like with NumPy
import numpy as np

_NATIVE_KINDS = "biufc"
_TEXT_KINDS = "SUmM"
_LARGE_INT = 1 << 1024  # far below the 4,300 decimal digits at which Python refuses to print or parse an int


class EncodingError(TypeError):
    """A value of a state tree has a type that is not encoded; the message names its path."""


def encode(tree: Any, path: str = "") -> Any:
    """The JSON form of a state tree.

    Args:
        tree: the state.
        path: what messages put before the path of a value.

    Raises:
        EncodingError: if a value or a key has another type (subclasses count as other types), naming its path.
    """
    encoder = _ENCODERS.get(type(tree))
    if encoder is not None:
        return encoder(tree, path)
    if isinstance(tree, jax.Array):
        return _encode_jax(tree, path)
    if isinstance(tree, np.generic):
        return {"$scalar": _array_fields(np.asarray(tree), path)}
    raise EncodingError(
        f"{path or 'the state'} is a {type(tree).__module__}.{type(tree).__qualname__}, which a snapshot cannot hold; "
        "keep None, bool, int, float, str, bytes, list, tuple, dict, NumPy or JAX arrays, or PRNG keys there"
    )


def decode(tree: Any) -> Any:
    """The state tree whose `encode` gave `tree`.

    Raises:
        ValueError: if `tree` was not made by `encode`, or holds a 64-bit JAX array while `jax_enable_x64` is off.
    """
    if isinstance(tree, list):
        return [decode(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tags = [key for key in tree if key.startswith("$")]
    if not tags:
        return {key: decode(value) for key, value in tree.items()}
    if len(tree) != 1 or tags[0] not in _DECODERS:
        raise ValueError(f"unknown mark {tags[0]!r} in an encoded state; it was written by another version")
    try:
        return _DECODERS[tags[0]](tree[tags[0]])
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, struct.error) as error:
        raise ValueError(f"what is marked {tags[0]!r} in an encoded state was not made by encode") from error


def _encode_plain(value: Any, path: str) -> Any:
    return value


def _encode_float(value: float, path: str) -> Any:
    if math.isnan(value):  # float.hex drops the payload and the sign
        return {"$nan": struct.pack(">d", value).hex()}
    return {"$float": value.hex()}


def _encode_str(value: str, path: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, as os.fsdecode makes from undecodable file names
        return {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    return value


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    plain = all(type(key) is str and not key.startswith("$") and _is_utf8(key) for key in value)
    if plain:
        return {key: encode(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    return {
        "$dict": [[_encode_key(key, path), encode(item, f"{path}[{key!r}]")] for key, item in value.items()]
    }


def _encode_key(key: Any, path: str) -> Any:
    if type(key) is tuple:
        return {"$tuple": [_encode_key(item, path) for item in key]}
    if type(key) not in (type(None), bool, int, float, str, bytes):
        raise EncodingError(
            f"{path or 'the state'} has the key {key!r} of type {type(key).__name__}, which a snapshot cannot hold"
        )
    return encode(key, path)


def _encode_jax(value: jax.Array, path: str) -> Any:
    if value.is_deleted():
        raise EncodingError(f"{path or 'the state'} is a JAX array whose buffer was donated or deleted")
    if not value.is_fully_addressable:
        raise EncodingError(
            f"{path or 'the state'} is a JAX array that spans processes; keep it in the model item"
        )
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        fields = _array_fields(np.asarray(jax.random.key_data(value)), path)
        return {"$key": {"impl": str(jax.random.key_impl(value)), **fields}}
    fields = _array_fields(np.asarray(value), path)
    return {"$jax": {**fields, "weak": True} if value.weak_type else fields}


def _array_fields(array: np.ndarray, path: str) -> dict[str, Any]:
    dtype = array.dtype
    if dtype.kind in _NATIVE_KINDS + _TEXT_KINDS:
        name = dtype.str
    elif getattr(ml_dtypes, dtype.name, None) is not None:
        name = dtype.name
    else:
        raise EncodingError(
            f"{path or 'the state'} is an array of dtype {dtype}, which a snapshot cannot hold"
        )
    return {"dtype": name, "shape": list(array.shape), "data": _base64(array.tobytes())}


def _array(fields: dict[str, Any]) -> np.ndarray:
    name = fields["dtype"]
    dtype = np.dtype(name) if name[0] in "<>|=" else np.dtype(getattr(ml_dtypes, name))
    return np.frombuffer(bytearray(base64.b64decode(fields["data"])), dtype).reshape(fields["shape"])


def _decode_jax(fields: dict[str, Any]) -> jax.Array:
    array = _array(fields)
    value = jax.device_put(array)
    if value.dtype != array.dtype:
        raise ValueError(
            f"the snapshot holds a JAX array of {array.dtype}, which needs jax_enable_x64; it is off"
        )
    return with_weak_type(value) if fields.get("weak") else value


def _decode_key(fields: dict[str, Any]) -> jax.Array:
    return jax.random.wrap_key_data(jax.device_put(_array(fields)), impl=fields["impl"])


def with_weak_type(array: jax.Array) -> jax.Array:
    """The same array in the same place, weakly typed, as `jnp.asarray(1.0)` is.

    No public function makes a weakly typed array from given bytes. The copy and pickle protocol of `jax.Array` carries
    the mark, so it is set there: without it `weak * bfloat16` would change its dtype after a restore.

    Raises:
        RuntimeError: if this version of JAX does not carry the mark in that protocol.
    """
    rebuild, arguments = cast(tuple[Callable[..., jax.Array], tuple[Any, ...]], array.__reduce__())
    value = rebuild(*arguments[:-1], {**arguments[-1], "weak_type": True})
    if not value.weak_type:
        raise RuntimeError(
            f"jax {jax.__version__} cannot rebuild a weakly typed array; store a typed one instead"
        )
    return jax.device_put(value, array.sharding) if array.committed else value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_ENCODERS: dict[type, Callable[[Any, str], Any]] = {
    type(None): _encode_plain,
    bool: _encode_plain,
    int: lambda value, path: value if abs(value) < _LARGE_INT else {"$int": hex(value)},
    float: _encode_float,
    str: _encode_str,
    bytes: lambda value, path: {"$bytes": _base64(value)},
    list: lambda value, path: [encode(item, f"{path}[{i}]") for i, item in enumerate(value)],
    tuple: lambda value, path: {"$tuple": [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]},
    dict: _encode_dict,
    np.ndarray: lambda value, path: {"$array": _array_fields(value, path)},
}

_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": lambda text: int(text, 16),
    "$float": float.fromhex,
    "$nan": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "$str": lambda text: base64.b64decode(text).decode("utf-8", "surrogatepass"),
    "$bytes": base64.b64decode,
    "$tuple": lambda items: tuple(decode(item) for item in items),
    "$dict": lambda pairs: {decode(key): decode(value) for key, value in pairs},
    "$array": _array,
    "$scalar": lambda fields: _array(fields)[()],
    "$jax": _decode_jax,
    "$key": _decode_key,
}
