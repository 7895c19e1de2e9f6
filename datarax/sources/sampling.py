"""Which records a quick fingerprint samples, and one unambiguous SHA-256 over records of any plain kind.

Knows nothing of where records come from. A change in either function changes every identity that holds a sample:
raise `SAMPLE_VERSION` then.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

SAMPLE_VERSION = 1
"""Names the choice of samples and the encoding of records. Part of every identity that holds a sample."""


_SCALARS = frozenset({type(None), bool, int, float, str, bytes})


class Hasher(Protocol):
    """What `hashlib` objects offer."""

    def update(self, data: Any, /) -> None:
        """Adds bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes added so far."""


@runtime_checkable
class SupportsArray(Protocol):
    """What JAX, PyTorch and other arrays offer to NumPy."""

    def __array__(self) -> np.ndarray: ...


def sample_positions(length: int, count: int) -> list[int]:
    """At most `count` (>= 2) different positions in range(length), evenly spread, the first and the last among them."""
    if length <= count:
        return list(range(length))
    return [i * (length - 1) // (count - 1) for i in range(count)]


def records_digest(records: Iterable[Any]) -> str:
    """SHA-256 over a sequence of records, as hex.

    Raises:
        TypeError: if a record holds something that has no plain bytes, naming the place and the type.
    """
    hasher = hashlib.sha256()
    for i, record in enumerate(records):
        hash_tree(hasher, record, f"record {i} of the sample")
    return hasher.hexdigest()


def hash_tree(hasher: Hasher, tree: Any, path: str) -> None:
    """Adds a tree of None, bool, int, float, str, bytes, arrays, lists, tuples and dicts to `hasher`.

    Every value is preceded by its kind and its length, so that no two different trees give the same bytes.

    Raises:
        TypeError: if the tree holds anything else, naming the path.
    """
    if type(tree) in _SCALARS:  # asking for a protocol costs 40 µs
        _add(hasher, *_scalar(tree, path))
    elif isinstance(tree, Mapping):
        _hash_mapping(hasher, tree, path)
    elif isinstance(tree, (list, tuple)):
        _add(hasher, b"l" if isinstance(tree, list) else b"t", struct.pack("<q", len(tree)))
        for i, value in enumerate(tree):
            hash_tree(hasher, value, f"{path}[{i}]")
    elif isinstance(tree, SupportsArray):
        _hash_array(hasher, np.asarray(tree), path)
    else:
        _add(hasher, *_scalar(tree, path))


def _scalar(value: Any, path: str) -> tuple[bytes, bytes]:
    if value is None:
        return b"n", b""
    if isinstance(value, bool):
        return b"b", bytes([value])
    if isinstance(value, int):
        return b"i", str(int(value)).encode()
    if isinstance(value, float):
        return b"f", struct.pack("<d", value)
    if isinstance(value, str):
        return b"s", value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"y", bytes(value)
    raise TypeError(f"{path} is a {type(value).__name__}, which has no plain bytes to hash")


def _hash_mapping(hasher: Hasher, tree: Mapping[Any, Any], path: str) -> None:
    _add(hasher, b"d", struct.pack("<q", len(tree)))
    # Sorted by their encoding: insertion order is no content, and keys of two kinds cannot be compared.
    for encoded, key in sorted(((_scalar(k, f"a key of {path}"), k) for k in tree), key=lambda pair: pair[0]):
        _add(hasher, *encoded)
        hash_tree(hasher, tree[key], f"{path}[{key!r}]")


def _hash_array(hasher: Hasher, array: np.ndarray, path: str) -> None:
    if array.dtype.hasobject:
        raise TypeError(f"{path} is an array of Python objects, which has no plain bytes to hash")
    # Little endian and C order: the same values give the same digest on every machine and in every layout.
    dtype = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
    plain = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
    _add(hasher, b"a", f"{dtype_name(dtype)}{array.shape}".encode())
    # A memoryview of the bytes: hashing needs no copy, and releases the interpreter lock.
    hasher.update(plain.tobytes() if dtype.kind in "US" else plain.view(np.uint8).data)


def dtype_name(dtype: np.dtype) -> str:
    """A name that tells any two dtypes apart, the machine-learning ones included (their `str` is a plain void)."""
    return str(dtype.descr) if dtype.names else f"{dtype.name}"


def _add(hasher: Hasher, kind: bytes, payload: bytes) -> None:
    hasher.update(kind + struct.pack("<q", len(payload)) + payload)
