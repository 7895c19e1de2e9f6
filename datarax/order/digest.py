"""The digest of what was delivered: sums over rows of a hash of the key and a hash of the bytes.

Sums modulo 2^64 add up across steps and processes and do not change under re-sharding. A fingerprint says
*same recipe*; a digest says *same deliveries*. `DIGEST_VERSION` names the hashes; golden files pin them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.core.errors import InputError
from datarax.order.seeds import GOLDEN, checked_positions, constant_word, derive_seed, mix64

DIGEST_VERSION = 1
"""Raise this when any hash changes, and add a golden file."""

SEGMENT_WORDS = 1024
"""Words of 8 bytes of a row that share one set of coefficients; 8 KiB, so that these stay in the cache."""

# Rows are hashed in chunks so that the shifted copy of a chunk stays in the second-level cache.
_CHUNK_BYTES = 1 << 18
# Rows per pass over the key hash's work vectors: as many as the second-level cache holds, because with fewer the calls
# cost more than the work.
_KEY_CHUNK = 1 << 14

_SHIFT_32 = constant_word(32)
_WRAP = (1 << 64) - 1
_POSITION_SALT = np.uint64(derive_seed("digest", DIGEST_VERSION, "position"))

# Odd multipliers of the key hash and the coefficients of the row hash, all from one splitmix64 stream.
_WORDS = mix64(
    np.uint64(derive_seed("digest", DIGEST_VERSION, "coefficients"))
    + np.arange(1, 2 * SEGMENT_WORDS + 5, dtype=np.uint64) * np.uint64(GOLDEN)
)
_BY_POSITION, _BY_EPOCH, _BY_INDEX, _BY_SUM = (constant_word(int(word) | 1) for word in _WORDS[:4])
_WHOLE, _UPPER = _WORDS[4 : 4 + SEGMENT_WORDS], _WORDS[4 + SEGMENT_WORDS :]


def key_hashes(
    position: np.ndarray,
    source_id: np.ndarray,
    index: np.ndarray,
    epoch: np.ndarray,
    *,
    part: np.ndarray | int = 0,
    start: np.ndarray | int = 0,
    length: np.ndarray | int = -1,
) -> np.ndarray:
    """One hash per delivered part of a record; a few ns per row in blocks of thousands.

    With odd 64-bit constants P, E, I, M and rest = mix64(mix64(mix64(part) ^ start) ^ length), modulo 2^64:
    x = P * position + E * epoch + source_id; x ^= x >> 32; hash = mix64(M * x + I * index + rest).

    Args:
        position: int64[n]; -1 is a pad slot, whose hash is 0.
        source_id: uint64[n] or scalar, `id64` of the source's name.
        index: int64[n], the record in its source.
        epoch: int64[n], the pass over the source.
        part: Which part of the record, int64[n] or scalar.
        start: Where the part starts in the record, int64[n] or scalar.
        length: Its length; -1 is the whole record.

    Returns:
        uint64[n].
    """
    position, lowest = checked_positions(position)
    num_rows = len(position)
    record = _words("index", index, num_rows)
    of_pass = _words("epoch", epoch, num_rows) * _BY_EPOCH + _words("source_id", source_id, num_rows)
    rest = (
        _rest_of_all(part, start, length)
        if type(part) is int and type(start) is int and type(length) is int
        else _rest(part, start, length, num_rows)
    )
    hashes = np.empty(num_rows, np.uint64)
    spare = np.empty(min(_KEY_CHUNK, num_rows), np.uint64)
    for first in range(0, num_rows, _KEY_CHUNK):
        chunk = slice(first, first + _KEY_CHUNK)
        _hash_keys(
            hashes[chunk],
            spare[: num_rows - first],
            position[chunk].view(np.uint64),
            *(field[chunk] if len(field) > 1 else field for field in (of_pass, record, rest)),
        )
    if lowest < 0:
        hashes[position < 0] = 0
    return hashes


def key_hashes_of_pass(position: np.ndarray, source_id: int, index: np.ndarray, epoch: int) -> np.ndarray:
    """`key_hashes` of whole records of one source and one pass, without its checks, which cost an eighth of it.

    Args:
        position: int64[n], none of them a pad slot.
        source_id: `id64` of the source's name.
        index: int64[n], the records in the source.
        epoch: the pass over the source.

    Returns:
        uint64[n].
    """
    hashes, spare = np.empty(len(position), np.uint64), np.empty(len(position), np.uint64)
    of_pass = constant_word((epoch * int(_BY_EPOCH) + source_id) & _WRAP)
    rest_of_whole = _rest_of_all(0, 0, -1)
    _hash_keys(hashes, spare, position.view(np.uint64), of_pass, index.view(np.uint64), rest_of_whole)
    return hashes


def _rest(
    part: np.ndarray | int, start: np.ndarray | int, length: np.ndarray | int, num_rows: int = 0
) -> np.ndarray:
    mixed = mix64(_words("part", part, num_rows))
    mixed = mix64(mixed ^ _words("start", start, num_rows))
    return mix64(mixed ^ _words("length", length, num_rows))


# Where all rows are the same part it is kept: small vector calls cost as much as a thousand rows.
_rest_of_all = functools.lru_cache(maxsize=256)(_rest)


def _hash_keys(
    x: np.ndarray,
    spare: np.ndarray,
    position: np.ndarray,
    of_pass: np.ndarray,
    record: np.ndarray,
    rest: np.ndarray,
) -> None:
    """The hashes of some rows into `x`, in place: every pass over memory counts in what a digest costs."""
    np.multiply(position, _BY_POSITION, out=x)
    x += of_pass
    np.right_shift(x, _SHIFT_32, out=spare)
    x ^= spare
    x *= _BY_SUM
    np.multiply(record, _BY_INDEX, out=spare)
    x += spare
    x += rest
    mix64(x, out=x, spare=spare)


def row_hashes(position: np.ndarray, leaves: Iterable[tuple[str, np.ndarray]]) -> np.ndarray:
    """One hash per delivered row: a sum over its leaves of a hash of position, path, dtype, shape, bytes.

    A leaf's row is its bytes, little-endian, filled with zeros to words w of 64 bits and cut into segments of
    `SEGMENT_WORDS`. With fixed random 64-bit coefficients c and d, modulo 2^64:

        sum = Σ_j c[j] * w[j] + d[j] * (w[j] >> 32)          per segment s
        key = seed(path, dtype, row shape) + s * GOLDEN
        row hash = Σ_leaf Σ_s mix64((sum + key) ^ mix64(position ^ salt))

    The sum is a multilinear hash of the 32-bit halves with independent 64-bit coefficients (Carter and
    Wegman), so any two different segments have different sums but for at most one choice of coefficients in
    2^33. Without the second term two flips of top bits would cancel: negating two float64 of a row would
    pass unseen.

    Args:
        position: int64[n]; -1 is a pad slot, whose hash is 0.
        leaves: (path, array[n, ...]) of a batch, each path once, in any order and memory layout.

    Returns:
        uint64[n], the same on every machine.

    Raises:
        InputError: if a leaf has another number of rows, a path comes twice, or a dtype has no bytes that are
            the same everywhere (objects, variable-width strings, records with fields, long double).
    """
    position, _ = checked_positions(position)
    hashes = np.zeros(len(position), np.uint64)
    by_position = mix64(position.view(np.uint64) ^ _POSITION_SALT)
    paths = set()
    for path, leaf in leaves:
        if path in paths:
            raise InputError(f"two leaves of the batch have the path {path!r}")
        paths.add(path)
        array = np.asarray(leaf)
        if array.ndim == 0 or len(array) != len(position):
            raise InputError(f"leaf {path!r} has the shape {array.shape}; {len(position)} rows were expected")
        hashes += _leaf_hashes(path, array, by_position)
    hashes[position < 0] = 0
    return hashes


def _leaf_hashes(path: str, array: np.ndarray, by_position: np.ndarray) -> np.ndarray:
    seed = _leaf_seed(path, array.dtype, array.shape[1:])
    words_of_rows = _as_words(array)  # uint64[n, words]
    num_words = words_of_rows.shape[1]
    hashes = np.zeros(len(array), np.uint64)
    whole = num_words // SEGMENT_WORDS
    if whole:
        keys = np.uint64(seed) + np.arange(whole, dtype=np.uint64) * np.uint64(GOLDEN)
        sums = _segment_sums(
            words_of_rows[:, : whole * SEGMENT_WORDS].reshape(len(array), whole, SEGMENT_WORDS)
        )
        hashes += mix64((sums + keys) ^ by_position[:, np.newaxis]).sum(axis=1, dtype=np.uint64)
    if num_words % SEGMENT_WORDS or not num_words:
        key = np.uint64((seed + whole * GOLDEN) & _WRAP)
        sums = _segment_sums(words_of_rows[:, np.newaxis, whole * SEGMENT_WORDS :])[:, 0]
        sums += key
        sums ^= by_position
        hashes += mix64(sums)
    return hashes


def _segment_sums(segments: np.ndarray) -> np.ndarray:
    """uint64[n, segments, words] -> uint64[n, segments]."""
    num_rows, num_segments, num_words = segments.shape
    sums = np.empty((num_rows, num_segments), np.uint64)
    rows = max(1, _CHUNK_BYTES // max(1, 8 * num_segments * num_words))
    for first in range(0, num_rows, rows):
        chunk = segments[first : first + rows]
        np.einsum("nsw,w->ns", chunk, _WHOLE[:num_words], out=sums[first : first + rows])
        sums[first : first + rows] += np.einsum("nsw,w->ns", chunk >> _SHIFT_32, _UPPER[:num_words])
    return sums


def _as_words(array: np.ndarray) -> np.ndarray:
    """The rows' bytes as words, filled with zeros: uint64[n, words]. Little-endian, as is every machine that runs JAX."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    values_of_row = int(np.prod(array.shape[1:], dtype=np.int64))
    as_bytes = np.ascontiguousarray(array).reshape(len(array), values_of_row).view(np.uint8)
    row_bytes = as_bytes.shape[1]
    if row_bytes % 8:
        filled = np.zeros((len(array), -(-row_bytes // 8) * 8), np.uint8)
        filled[:, :row_bytes] = as_bytes
        as_bytes = filled
    return as_bytes.view(np.uint64)


def has_fixed_bytes(dtype: np.dtype) -> bool:
    """Whether the bytes of such values are the same everywhere: no objects, fields, texts of any width, long doubles."""
    is_fixed = dtype.kind in "biufcmMSU" or (dtype.kind == "V" and dtype.names is None)
    return is_fixed and not dtype.hasobject and dtype.char not in "gG" and dtype.subdtype is None


@functools.lru_cache(maxsize=256)
def _leaf_seed(path: str, dtype: np.dtype, row_shape: tuple[int, ...]) -> int:
    if not has_fixed_bytes(dtype):
        raise InputError(
            f"leaf {path!r} has the dtype {dtype}, whose bytes are not the same everywhere; deliver "
            "numbers or fixed-width strings (one leaf per field), or switch the bytes digest off (loader.byte_digest = false)"
        )
    # The name, because bfloat16 and its kin all spell their `str` as raw bytes of a width.
    return derive_seed(
        "digest", DIGEST_VERSION, "leaf", path, dtype.name, len(row_shape), *map(int, row_shape)
    )


def _words(name: str, field: np.ndarray | int, num_rows: int) -> np.ndarray:
    """An integer field as words (two's complement): uint64[n], or uint64[1] for a scalar."""
    array = np.asarray(field)
    if array.dtype.kind not in "iu" or array.ndim > 1 or (array.ndim == 1 and len(array) != num_rows):
        raise InputError(f"{name} must be int[{num_rows}] or one int, got {array.dtype}{list(array.shape)}")
    wide = np.uint64 if array.dtype.kind == "u" else np.int64
    return np.atleast_1d(array).astype(wide, copy=False).view(np.uint64)


@dataclass(frozen=True)
class Digest:
    """The digest of a run so far: plain Python ints, exact at any size."""

    rows: int
    """Rows delivered, pads not counted."""
    keys: int
    """Sum of the key hashes modulo 2^64."""
    bytes: int | None
    """Sum of the row hashes modulo 2^64; None if bytes are not hashed."""

    @classmethod
    def zero(cls, with_bytes: bool) -> Digest:
        """The digest of nothing delivered yet."""
        return cls(0, 0, 0 if with_bytes else None)

    def add(self, keys_sum: int, bytes_sum: int | None, rows: int) -> Digest:
        """With more rows, or another process's share, added.

        Raises:
            ValueError: if one side has hashed bytes and the other has not.
        """
        if (self.bytes is None) != (bytes_sum is None):
            raise ValueError("a digest with hashed bytes and one without do not add up")
        keys = (self.keys + int(keys_sum)) & _WRAP
        hashed = None if self.bytes is None or bytes_sum is None else (self.bytes + int(bytes_sum)) & _WRAP
        return Digest(self.rows + int(rows), keys, hashed)

    def to_state(self) -> dict[str, Any]:
        """{"version", "rows", "keys": 16 hex digits, "bytes": 16 hex digits or None}."""
        hashed = None if self.bytes is None else f"{self.bytes:016x}"
        return {"version": DIGEST_VERSION, "rows": self.rows, "keys": f"{self.keys:016x}", "bytes": hashed}
