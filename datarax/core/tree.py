"""Trees: dicts, lists and tuples of values. One walk, one spelling, one digest, and where two of them part.

Sources, orders and transforms describe themselves in trees, and a module's state is one. Here they are walked, spelled as
canonical JSON, hashed, compared, copied, and encoded without loss. Knows nothing of what a tree is about. Two other
kinds of walk live where their rules do: a state against a module in `state.py`, and cache keys, which see objects and
not their contents, in `module.py`.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import ml_dtypes  # comes with jax; registers bfloat16, float8, int4 and the like with NumPy
import numpy as np

from datarax.core.errors import MISSING, Difference, InputError

T = TypeVar("T")

ARRAYS = (jax.Array, np.ndarray, np.generic)
"""What counts as an array in a tree, NumPy's scalars too."""

PLAIN_ARRAYS = (np.ndarray, np.memmap, np.recarray)
"""Classes of arrays that are no more than their numbers."""
_TENSORS = frozenset({"jax", "tensorflow", "torch"})
"""Whose other classes that become arrays are no more than their numbers."""


def check_plain(kind: type, what: str) -> None:
    """Refuses arrays whose meaning gets lost where NumPy takes, joins or copies them: masks, units, the algebra of a matrix.

    Args:
        kind: the type of a leaf of any kind.
        what: what the leaf is called.

    Raises:
        InputError: if it is a subclass of `np.ndarray` that is more than its numbers, or becomes an array and may be more.
    """
    offers = (
        hasattr(kind, "__array__")
        or hasattr(kind, "__array_interface__")
        or hasattr(kind, "__array_struct__")
    )
    becomes_one = offers and not issubclass(kind, ARRAYS)
    is_foreign = becomes_one and kind.__module__.partition(".")[0] not in _TENSORS
    if is_foreign or (issubclass(kind, np.ndarray) and kind not in PLAIN_ARRAYS):
        raise InputError(
            f"{what} is a {kind.__module__}.{kind.__qualname__}, whose numbers would be taken without what it adds to them (a "
            f"mask, a unit, rules of its own); give plain arrays: np.asarray(…) of it if its numbers say all, and a mask as an "
            f"array of its own"
        )


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node of a tree and its dotted path, each before what lies in it.

    Args:
        tree: the tree; mappings, lists and tuples are its inner nodes.
        path: what paths begin with.
    """
    yield path, tree
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from walk(value, joined(path, key))
    elif isinstance(tree, (list, tuple)):
        for i, value in enumerate(tree):
            yield from walk(value, f"{path}[{i}]")


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The nodes of `walk` that nothing can lie in."""
    return (node for node in walk(tree, path) if not isinstance(node[1], (Mapping, list, tuple)))


def joined(path: str, key: Any) -> str:
    """The path of what lies under `key`."""
    return f"{path}.{key}" if path else str(key)


# One spelling, one digest


def canonical_json(tree: Any) -> bytes:
    """The one spelling of a tree of None, bool, int, finite float, str, list/tuple and str-keyed mappings.

    Keys are sorted, there is no white space, integers of any size are exact, and text is UTF-8.

    Raises:
        TypeError: if the tree holds anything else, naming the path.
        ValueError: if a float is not finite.
    """
    for path, node in () if _has_json(tree) else walk(tree):  # paths cost several times as much as the text
        for key in node if isinstance(node, Mapping) else ():
            if not isinstance(key, str):
                raise TypeError(
                    f"{path or 'the tree'} has the key {key!r}; only str keys have canonical JSON"
                )
        if type(node) is float and not math.isfinite(node):
            raise ValueError(f"{path or 'the value'} is {node}, which has no canonical JSON")
        if not isinstance(node, (Mapping, list, tuple)) and not _has_json(node):
            raise TypeError(f"{path or 'the value'} is a {type(node).__name__}, which has no canonical JSON")
    # What json calls `default` for can only be a mapping of another class than dict.
    return json.dumps(
        tree, default=dict, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _has_json(node: Any) -> bool:
    if type(node) in (
        str,
        int,
        bool,
        type(None),
    ):  # most nodes; asking for a Mapping costs more than all else
        return True
    if isinstance(node, Mapping):
        return all(isinstance(key, str) for key in node) and all(map(_has_json, node.values()))
    if isinstance(node, (list, tuple)):
        return all(map(_has_json, node))
    return type(node) is float and math.isfinite(node)


def digest(tree: Any) -> str:
    """SHA-256 of the canonical JSON of `tree`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def with_spelled_arrays(tree: Any) -> Any:
    """The tree with text for keys, and for each array its dtype, shape and bytes, so that it has canonical JSON."""
    if isinstance(tree, Mapping):
        return {str(key): with_spelled_arrays(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [with_spelled_arrays(value) for value in tree]
    if isinstance(tree, ARRAYS):
        array = plain_array(tree)
        return {"dtype": str(array.dtype), "shape": list(array.shape), "bytes": array.tobytes().hex()}
    return tree


# Two trees


def same(was: Any, now: Any) -> bool:
    """Whether two leaves have one canonical spelling: 1, 1.0 and True have three, and so have 0.0 and -0.0."""
    return was is now or (type(was) is type(now) and was == now and repr(was) == repr(now))


def differences(
    was: Any, now: Any, path: str = "", *, equal: Callable[[Any, Any], bool] = same
) -> list[Difference]:
    """Every leaf at which two trees differ, in path order. A field absent on one side differs.

    Args:
        was: One tree.
        now: The other.
        path: What paths begin with.
        equal: Whether two leaves are the same.
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        keys = sorted({*was, *now}, key=str)
        below = [(joined(path, key), was.get(key, MISSING), now.get(key, MISSING)) for key in keys]
    elif isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)):
        pairs = itertools.zip_longest(was, now, fillvalue=MISSING)
        below = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(pairs)]
    else:
        return [] if equal(was, now) else [Difference(path, was, now)]
    return [found for at, a, b in below for found in differences(a, b, at, equal=equal)]


def identical(a: Any, b: Any) -> bool:
    """Whether two values are equal in kind, dtype, shape and bytes; never raises for arrays, and NaN equals NaN in them."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, jax.core.Tracer):  # a tracer has no bytes to compare
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, ARRAYS):
        return (
            a.dtype == b.dtype and a.shape == b.shape and plain_array(a).tobytes() == plain_array(b).tobytes()
        )
    return bool(a == b)


def plain_array(array: Any) -> np.ndarray:
    """An array as one of NumPy; of typed PRNG keys their words. Refuses what `check_plain` does."""
    check_plain(type(array), "an array")
    return np.asarray(jax.random.key_data(array) if _is_key(array) else array)


def _is_key(array: Any) -> bool:
    return bool(jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key))


def detached(value: Any) -> Any:
    """A copy of `value` that shares no list, dict, NumPy array or other mutable object with it.

    `jax.Array`s do not change and are shared.
    """
    shared = {id(leaf): leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)}
    return copy.deepcopy(value, shared)


# One digest of trees that have no JSON


def hash_tree(hasher: hashlib._Hash, tree: Any, path: str) -> None:
    """Adds a tree of None, bool, int, float, str, bytes, arrays, lists, tuples and dicts to `hasher`.

    Every value is preceded by its kind and its length, so that no two different trees give the same bytes.

    Raises:
        TypeError: if the tree holds anything else, naming the path.
    """
    if isinstance(tree, Mapping):
        _add(hasher, b"d", struct.pack("<q", len(tree)))
        # Sorted by their encoding: insertion order is no content, and keys of two kinds cannot be compared.
        keys = ((_hashed(key, f"a key of {path}"), key) for key in tree)
        for encoded, key in sorted(keys, key=lambda pair: pair[0]):
            _add(hasher, *encoded)
            hash_tree(hasher, tree[key], f"{path}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        _add(hasher, b"l" if isinstance(tree, list) else b"t", struct.pack("<q", len(tree)))
        for i, value in enumerate(tree):
            hash_tree(hasher, value, f"{path}[{i}]")
    elif hasattr(tree, "__array__"):  # what NumPy, JAX, PyTorch and others offer; NumPy's scalars too
        check_plain(type(tree), path)
        array = np.asarray(tree)
        if array.dtype.hasobject:
            raise TypeError(f"{path} is an array of Python objects, which has no plain bytes to hash")
        # Little endian and C order: the same values give the same digest on every machine and in every layout.
        dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
        plain = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
        _add(hasher, b"a", f"{dtype_name(dtype)}{array.shape}".encode())
        # A memoryview of the bytes: hashing needs no copy, and releases the interpreter lock.
        hasher.update(plain.tobytes() if dtype.kind in "US" else plain.view(np.uint8).data)
    else:
        _add(hasher, *_hashed(tree, path))


_HASHED: list[tuple[Any, bytes, Callable[[Any], bytes]]] = [
    (type(None), b"n", lambda value: b""),
    (bool, b"b", lambda value: bytes([value])),
    (int, b"i", lambda value: str(int(value)).encode()),
    (float, b"f", lambda value: struct.pack("<d", value)),
    (str, b"s", lambda value: value.encode("utf-8", "surrogatepass")),
    ((bytes, bytearray, memoryview), b"y", bytes),
]
"""Kind, its mark, and the bytes of a value; the first that fits."""


def _hashed(value: Any, path: str) -> tuple[bytes, bytes]:
    for kind, mark, encoded in _HASHED:
        if isinstance(value, kind):
            return mark, encoded(value)
    raise TypeError(f"{path} is a {type(value).__name__}, which has no plain bytes to hash")


def dtype_name(dtype: np.dtype) -> str:
    """A name that tells any two dtypes apart, the machine-learning ones included (their `str` is a plain void)."""
    return str(dtype.descr) if dtype.names else f"{dtype.name}"


def _add(hasher: hashlib._Hash, kind: bytes, payload: bytes) -> None:
    hasher.update(kind + struct.pack("<q", len(payload)) + payload)


# Lossless JSON

# A state is a tree of None, bool, int of any size, float, str, bytes, list, tuple, dict with keys of any of the plain types,
# NumPy arrays and scalars, `jax.Array`s and typed PRNG keys. What JSON cannot say is an object with one key that starts with
# `$`; a dict of the state is written plainly only when no key of it could be mistaken for that.


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


def _encode_dict(value: dict[Any, Any], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") and _is_utf8(key) for key in value):
        return {key: encode(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    return {"$dict": [[encode(key, path), encode(item, f"{path}[{key!r}]")] for key, item in value.items()]}


def _encode_int(value: int, path: str) -> Any:
    # Far below the 4,300 decimal digits at which Python refuses to print or parse an int.
    if abs(value) < 1 << 1024:
        return value
    with contextlib.suppress(ValueError):
        str(value)
        return {"$int": hex(value)}
    raise EncodingError(f"{path or 'the state'} is an int of more digits than Python prints (4,300)")


def _encode_jax(value: jax.Array, path: str) -> Any:
    if value.is_deleted():
        raise EncodingError(f"{path or 'the state'} is a JAX array whose buffer was donated or deleted")
    if not value.is_fully_addressable:
        raise EncodingError(
            f"{path or 'the state'} is a JAX array that spans processes; keep it in the model item"
        )
    fields = _array_fields(plain_array(value), path)
    if _is_key(value):
        return {"$key": {"impl": str(jax.random.key_impl(value)), **fields}}
    return {"$jax": {**fields, "weak": True} if value.weak_type else fields}


def _array_fields(array: np.ndarray, path: str) -> dict[str, Any]:
    native = array.dtype.kind in "biufcSUmM"
    if not native and not hasattr(ml_dtypes, array.dtype.name):
        raise EncodingError(
            f"{path or 'the state'} is an array of dtype {array.dtype}, which a snapshot cannot hold"
        )
    name = array.dtype.str if native else array.dtype.name
    return {"dtype": name, "shape": list(array.shape), "data": _base64(array.tobytes())}


def _array(fields: dict[str, Any]) -> np.ndarray:
    name = fields["dtype"]
    dtype = np.dtype(name) if name[0] in "<>|=" else np.dtype(getattr(ml_dtypes, name))
    return np.frombuffer(bytearray(base64.b64decode(fields["data"])), dtype).reshape(fields["shape"])


def _decode_int(text: str) -> int:
    value = int(text, 16)
    str(value)  # a ValueError where it has more digits than Python prints: whoever shows a state would fail
    return value


def _decode_jax(fields: dict[str, Any]) -> jax.Array:
    array = _array(fields)
    value = jax.device_put(array)
    if value.dtype != array.dtype:
        raise ValueError(
            f"the snapshot holds a JAX array of {array.dtype}, which needs jax_enable_x64; it is off"
        )
    return with_weak_type(value) if fields.get("weak") else value


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
    type(None): lambda value, path: value,
    bool: lambda value, path: value,
    int: _encode_int,
    # float.hex drops the payload and the sign of NaN.
    float: lambda value, path: (
        {"$nan": struct.pack(">d", value).hex()} if math.isnan(value) else {"$float": value.hex()}
    ),
    # A lone surrogate, as os.fsdecode makes from undecodable file names, is no UTF-8.
    str: lambda value, path: (
        value if _is_utf8(value) else {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    ),
    bytes: lambda value, path: {"$bytes": _base64(value)},
    list: lambda value, path: [encode(item, f"{path}[{i}]") for i, item in enumerate(value)],
    tuple: lambda value, path: {"$tuple": [encode(item, f"{path}[{i}]") for i, item in enumerate(value)]},
    dict: _encode_dict,
    np.ndarray: lambda value, path: {"$array": _array_fields(value, path)},
}

_DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": _decode_int,
    "$float": float.fromhex,
    "$nan": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "$str": lambda text: base64.b64decode(text).decode("utf-8", "surrogatepass"),
    "$bytes": base64.b64decode,
    "$tuple": lambda items: tuple(decode(item) for item in items),
    "$dict": lambda pairs: {decode(key): decode(value) for key, value in pairs},
    "$array": _array,
    "$scalar": lambda fields: _array(fields)[()],
    "$jax": _decode_jax,
    "$key": lambda fields: jax.random.wrap_key_data(jax.device_put(_array(fields)), impl=fields["impl"]),
}


# Formats

# Each format has a table: version -> reader. Each reader gives today's form. A version that is no longer written keeps its
# reader: it puts its tree into the form of the next version and hands it to the reader of that.


class UnknownFormatError(ValueError):
    """A file is of a version that has no reader here."""


def reader_of(version: Any, readers: Mapping[int, T], what: str = "format") -> T:
    """The reader of a version.

    Args:
        version: what the file says of itself.
        readers: version -> reader, today's version and all before it.
        what: what the number is called in the file.

    Raises:
        ValueError: if it is no number.
        UnknownFormatError: if it is of a later version, or of none that ever was.
    """
    if type(version) is not int:
        raise ValueError(f"it holds no {what} number")
    if version in readers:
        return readers[version]
    if version > max(readers):
        raise UnknownFormatError(
            f"its {what} is {version}; this version of datarax reads up to {max(readers)}: use the version that wrote it, "
            "or a later one"
        )
    raise UnknownFormatError(f"its {what} is {version}, which no version of datarax has written")
