"""Seeds from names by hashing, never by adding: what keeps two seeds, epochs or transforms apart. And what a position is.

`derive_seed` is for the few seeds of a run (one SHA-256 each); `mix64` and `row_seeds` are for millions of
rows. Every value here is part of the order or of the randomness of a row: a change to any line needs a new
`ORDER_VERSION`.
"""

import hashlib

import numpy as np

from datarax.core.errors import InputError

MAX_POSITION = 2**63 - 1
"""A position is an int64 from 0 to this, or -1 for a pad slot."""

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, odd: the step between the words of a splitmix64 stream."""


def constant_word(value: int) -> np.ndarray:
    """A number for arithmetic with whole vectors: uint64[], for NumPy takes 0.3 us longer over a scalar of its own."""
    word = np.array(value, np.uint64)
    word.flags.writeable = False
    return word


_MIX_1 = constant_word(0xBF58476D1CE4E5B9)
_MIX_2 = constant_word(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = constant_word(30), constant_word(27), constant_word(31)


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed from a path of names and numbers, such as `derive_seed(seed, "shuffle", source, epoch)`.

    Each part is written as a type byte, its length in 8 bytes and its bytes (an int as big-endian two's
    complement of the least width, a str as UTF-8), so no two paths have one spelling; the seed is the first
    8 bytes, big-endian, of the SHA-256 of all that.

    Raises:
        TypeError: if a part is neither int nor str (a bool is neither here).
    """
    encoded = bytearray()
    for part in parts:
        if type(part) is int:
            kind, payload = b"i", part.to_bytes(part.bit_length() // 8 + 1, "big", signed=True)
        elif type(part) is str:
            kind, payload = b"s", part.encode()
        else:
            raise TypeError(
                f"a seed is derived from int and str parts, not from {part!r} ({type(part).__name__})"
            )
        encoded += kind + len(payload).to_bytes(8, "big") + payload
    return int.from_bytes(hashlib.sha256(encoded).digest()[:8], "big")


def id64(name: str) -> int:
    """The first 8 bytes, big-endian, of the SHA-256 of the UTF-8 name: a source's id in hashes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def mix64(x: np.ndarray, out: np.ndarray | None = None, spare: np.ndarray | None = None) -> np.ndarray:
    """The splitmix64 finalizer, a bijection of 64-bit words: uint64[n, ...] to the same.

    Args:
        x: the words.
        out: an array for the result, which may be `x`; None: a new one.
        spare: an array of the same shape that is written over; None: a new one.
    """
    spare = np.right_shift(x, _SHIFT_30, out=spare)
    mixed = np.bitwise_xor(x, spare, out=out)
    mixed *= _MIX_1
    np.right_shift(mixed, _SHIFT_27, out=spare)
    mixed ^= spare
    mixed *= _MIX_2
    np.right_shift(mixed, _SHIFT_31, out=spare)
    mixed ^= spare
    return mixed


def splitmix_stream(seeds: np.ndarray, num_words: int) -> np.ndarray:
    """Words 1..num_words of the splitmix64 stream of each seed: uint64[k] -> uint64[num_words, k]."""
    steps = np.arange(1, num_words + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return mix64(steps[:, np.newaxis] + seeds[np.newaxis, :])


def row_seeds(
    seed: int, transform: str, source_ids: np.ndarray, index: np.ndarray, epoch: np.ndarray
) -> np.ndarray:
    """One seed per row for one transform, a pure function of the record's key.

    mix64(mix64(mix64(derive_seed(seed, "row", transform) ^ source id) ^ index) ^ epoch): within one source
    and epoch no two records share a seed, whatever the number of records.

    Args:
        seed: The run's seed.
        transform: The transform's name, unique in its pipeline.
        source_ids: uint64[n], `id64` of each row's source name.
        index: int64[n], the record's index in its source.
        epoch: int64[n], the pass over that source.

    Returns:
        uint64[n].
    """
    base = np.uint64(derive_seed(seed, "row", transform))
    of_source = mix64(np.asarray(source_ids, np.uint64) ^ base)
    of_record = mix64(of_source ^ np.asarray(index, np.int64).view(np.uint64))
    return mix64(of_record ^ np.asarray(epoch, np.int64).view(np.uint64))


def checked_positions(positions: np.ndarray) -> tuple[np.ndarray, int]:
    """The positions as int64[n], and the lowest of them, 0 if there are none: below 0 there are pads among them.

    Raises:
        TypeError: if they are not integers.
        InputError: if one is below -1 or beyond 2^63 - 1.
    """
    array = np.asarray(positions)
    if array.size == 0:
        return np.zeros(0, np.int64), 0
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions are int64[n], got {array.dtype}{list(array.shape)}")
    if array.ndim != 1:
        raise InputError(f"positions are int64[n], got the shape {array.shape}")
    if array.dtype == np.uint64 and array.max() > MAX_POSITION:
        raise InputError(f"position {array.max()} is beyond the last one, 2^63 - 1")
    array = array.astype(np.int64, copy=False)
    lowest = int(array.min())
    if lowest < -1:
        raise InputError(f"position {lowest} is negative; only -1, a pad slot, may be")
    return array, lowest
