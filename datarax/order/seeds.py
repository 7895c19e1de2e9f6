"""Seeds from names by hashing, never by adding: what keeps two seeds, epochs or transforms apart.

`derive_seed` is for the few seeds of a run (one SHA-256 each); `mix64` and `row_seeds` are for millions of
rows. Every value here is part of the order or of the randomness of a row: a change to any line needs a new
`ORDER_VERSION`.
"""

from __future__ import annotations

import hashlib

import numpy as np

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


def mix64(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer, a bijection of 64-bit words, on a new array: uint64[n, ...] to the same."""
    mixed = x >> _SHIFT_30
    mixed ^= x
    _finish_mix(mixed, np.empty_like(mixed))
    return mixed


def mix64_in_place(x: np.ndarray, spare: np.ndarray) -> None:
    """`mix64` of `x`, in `x`; `spare`, an array of the same shape, is written over."""
    np.right_shift(x, _SHIFT_30, out=spare)
    x ^= spare
    _finish_mix(x, spare)


def _finish_mix(x: np.ndarray, spare: np.ndarray) -> None:
    x *= _MIX_1
    np.right_shift(x, _SHIFT_27, out=spare)
    x ^= spare
    x *= _MIX_2
    np.right_shift(x, _SHIFT_31, out=spare)
    x ^= spare


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
