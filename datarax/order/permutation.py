"""Keyed pseudo-random permutations of range(n), evaluated at any index on whole vectors, in constant memory.

Small ranges are sorted by random words; large ones go through a Feistel network, which permutes a grid hardly
larger than n, and cycle walking (apply it again until the value is below n). Knows nothing of epochs, sources
or policies; see `order.py`. A change to what any index maps to needs a new `ORDER_VERSION`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from datarax.order.seeds import splitmix_stream

LARGEST_SORTED = 256
"""Up to this n a permutation is sorted: networks of fewer bits are measurably not uniform."""

ROUNDS = 8

# Constants of the 32-bit mixer "lowbias32" (found by search for low bias by Chris Wellons).
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)
_SHIFT_15, _SHIFT_16, _SHIFT_32 = np.uint32(15), np.uint32(16), np.uint64(32)

_CHUNK = 16384  # lanes per pass: the work vectors stay in a core's second-level cache
_TABLES_AT_ONCE = 4096  # sorted together; bounds the work space at 16 MiB


class Permutations(Protocol):
    """k maps of range(n) to itself; a permutation each, except where the Grain policy is not."""

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Where each index goes: int64[m] in range(n) -> int64[m].

        `member`, int[m], says which of the k maps each lane takes; None where k is 1.
        """
        ...

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """Every index that the first map sends to one of `values`, in no order: int64[m] -> int64[...]."""
        ...


class KeyedPermutations(Permutations, Protocol):
    """k permutations of range(n) with their inverses."""

    def inverse(self, value: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Which index goes to each value: the inverse of calling, same shapes."""
        ...


def keyed_permutations(n: int, seeds: np.ndarray) -> KeyedPermutations:
    """A permutation of range(n) for each seed: `SortedPermutations` to n = 256, then `FeistelPermutations`.

    Args:
        n: Number of values, 1 <= n < 2^63.
        seeds: uint64[k].
    """
    return SortedPermutations(n, seeds) if n <= LARGEST_SORTED else FeistelPermutations(n, seeds)


class Identity:
    """The map that leaves every index where it is."""

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """A copy of the index."""
        return np.array(index, np.int64)

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """The values themselves."""
        return np.array(values, np.int64)


class SortedPermutations:
    """Permutations of range(n), n <= 256, one for each of k seeds: exactly uniform over random words.

    Index i goes to j where word j + 1 of the seed's splitmix64 stream is the i-th smallest (from 0) of its
    first n words, which are all different.

    Args:
        n: Number of values, 1 <= n <= 256.
        seeds: uint64[k], one per permutation.
    """

    def __init__(self, n: int, seeds: np.ndarray) -> None:
        assert 1 <= n <= LARGEST_SORTED, n
        seeds = np.asarray(seeds, np.uint64)
        self._table = np.empty((len(seeds), n), np.uint8)
        for first in range(0, len(seeds), _TABLES_AT_ONCE):
            words = splitmix_stream(seeds[first : first + _TABLES_AT_ONCE], n)
            self._table[first : first + _TABLES_AT_ONCE] = words.argsort(axis=0).T

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Where each index goes: int64[m] -> int64[m]; `member` says which of the k permutations."""
        return self._table[0 if member is None else member, index].astype(np.int64)

    def inverse(self, value: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Which index goes to each value: the inverse of calling, same shapes."""
        return self._inverse_table[0 if member is None else member, value].astype(np.int64)

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """The one index that the first permutation sends to each of `values`."""
        return self.inverse(values)

    @functools.cached_property
    def _inverse_table(self) -> np.ndarray:
        return self._table.argsort(axis=1).astype(np.uint8)


def walk_below(
    n: int,
    x: np.ndarray,
    member: np.ndarray | None,
    evaluate: Callable[[np.ndarray, np.ndarray | None], np.ndarray],
) -> np.ndarray:
    """Cycle walking, uint64[m] -> uint64[m]: apply `evaluate`, then again to the lanes that are not below n.

    Args:
        n: The limit that each lane has to come below.
        x: uint64[m], where each lane starts.
        member: int[m] or None, handed to `evaluate` with the lanes that remain.
        evaluate: A permutation of a domain that holds x; every cycle through x goes below n.
    """
    limit = np.uint64(n)
    value = evaluate(x, member)
    outside = np.flatnonzero(value >= limit)
    again = value[outside]
    while len(outside):
        again = evaluate(again, None if member is None else member[outside])
        value[outside] = again
        left_over = again >= limit
        outside, again = outside[left_over], again[left_over]
    return value


class FeistelPermutations:
    """Permutations of range(n), one for each of k seeds.

    With b = bits of n - 1, an index is right + 2^c * left: the right half has c = b - b // 2 bits, the left
    half is in range(A) with A = ceil(n / 2^c), so the grid of 2^c * A values exceeds n by less than one
    part in 2^(b // 2 - 1) and hardly any lane is evaluated twice. Round r of 8 changes the left half if r
    is even, else the right half:

        t = (other half + k1[r]) * 0x7FEB352D mod 2^32;  t ^= t >> 15
        t = (t + k2[r]) * 0x846CA68B mod 2^32;           t ^= t >> 16
        left = (left + floor(t * A / 2^32)) mod A    or    right ^= t mod 2^c

    k1[r] and k2[r] are the lower and the upper 32 bits of word r + 1 of the seed's splitmix64 stream.

    Args:
        n: Number of values, 256 < n < 2^63.
        seeds: uint64[k], one per permutation.
    """

    def __init__(self, n: int, seeds: np.ndarray) -> None:
        assert LARGEST_SORTED < n < 2**63, n
        bits = (n - 1).bit_length()
        right_bits = bits - bits // 2
        self._n = n
        self._right_bits = np.uint64(right_bits)
        self._right_mask = np.uint32((1 << right_bits) - 1)
        self._left_size = -(-n >> right_bits)  # at most 2^31: a sum of two stays in 32 bits
        words = splitmix_stream(np.asarray(seeds, np.uint64), ROUNDS)
        lower, upper = words.astype(np.uint32), (words >> _SHIFT_32).astype(np.uint32)
        self._keys = np.stack([lower, upper], axis=1)  # uint32[ROUNDS, 2, k]

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Where each index goes.

        Args:
            index: int64[m], each in range(n).
            member: int[m], which of the k permutations each lane takes; None where k is 1.

        Returns:
            int64[m].
        """
        return self._walk(index, member, False)

    def inverse(self, value: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Which index goes to each value: the inverse of calling, same shapes."""
        return self._walk(value, member, True)

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """The one index that the first permutation sends to each of `values`."""
        return self.inverse(values)

    def _walk(self, index: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        start = np.asarray(index, np.int64).view(np.uint64)
        return walk_below(self._n, start, member, lambda x, of: self._network(x, of, inverse)).view(np.int64)

    def _network(self, x: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        """One pass over the power-of-two domain: uint64[m] -> uint64[m]."""
        result = np.empty_like(x)
        for start in range(0, len(x), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            lanes = None if member is None else member[chunk]
            self._network_chunk(x[chunk], lanes, inverse, result[chunk])
        return result

    def _network_chunk(
        self, x: np.ndarray, member: np.ndarray | None, inverse: bool, result: np.ndarray
    ) -> None:
        right = x.astype(np.uint32)
        right &= self._right_mask
        left = (x >> self._right_bits).astype(np.uint32)
        work = _Work(len(x))
        per_lane = None if member is None else _per_lane(member)
        for r in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            k1, k2 = self._keys[r, 0], self._keys[r, 1]
            if per_lane is not None:
                k1, k2 = per_lane(k1), per_lane(k2)
            if r % 2:
                mixed = work.mix(left, k1, k2)
                mixed &= self._right_mask
                right ^= mixed
            else:
                self._add_to_left(left, work.scaled(work.mix(right, k1, k2), self._left_size), inverse)
        np.left_shift(left, self._right_bits, out=result, dtype=np.uint64)
        np.bitwise_or(result, right, out=result)

    def _add_to_left(self, left: np.ndarray, amount: np.ndarray, inverse: bool) -> None:
        """Add or subtract modulo left_size without dividing: of two candidates the wrong one has wrapped."""
        modulus = np.uint32(self._left_size)
        if inverse:
            left -= amount
            np.add(left, modulus, out=amount)
        else:
            left += amount
            np.subtract(left, modulus, out=amount)
        np.minimum(left, amount, out=left)


def _per_lane(member: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives each lane the word of its permutation: uint32[k] -> uint32[m].

    Where positions ascend, lanes of one permutation stand together; a run is filled several times faster than looked up.
    """
    ends = np.flatnonzero(member[1:] != member[:-1])
    if 16 * len(ends) >= len(member):
        return lambda words: words.take(member)
    first = np.concatenate(([0], ends + 1))
    of, lengths = member[first], np.diff(first, append=len(member))
    return lambda words: words.take(of).repeat(lengths)


class _Work:
    """The work vectors of one chunk, and the round function that needs them."""

    def __init__(self, num_lanes: int) -> None:
        self._mixed = np.empty(num_lanes, np.uint32)
        self._shifted = np.empty(num_lanes, np.uint32)
        self._wide = np.empty(num_lanes, np.uint64)

    def mix(self, x: np.ndarray, k1: np.ndarray, k2: np.ndarray) -> np.ndarray:
        mixed, shifted = self._mixed, self._shifted
        np.add(x, k1, out=mixed)
        np.multiply(mixed, _MULTIPLY_1, out=mixed)
        np.right_shift(mixed, _SHIFT_15, out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        np.add(mixed, k2, out=mixed)
        np.multiply(mixed, _MULTIPLY_2, out=mixed)
        np.right_shift(mixed, _SHIFT_16, out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        return mixed

    def scaled(self, mixed: np.ndarray, size: int) -> np.ndarray:
        """floor(mixed * size / 2^32): a 32-bit value carried to range(size) without a division."""
        np.copyto(self._wide, mixed)
        self._wide *= np.uint64(size)
        self._wide >>= _SHIFT_32
        np.copyto(mixed, self._wide, casting="unsafe")
        return mixed
