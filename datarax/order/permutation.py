"""Keyed pseudo-random permutations of range(n), evaluated at any index on whole vectors: nothing is stored.

A Feistel network permutes a grid that is hardly larger than n; cycle walking (apply it again until the
value is below n) makes that a permutation of range(n). Knows nothing of epochs, sources or policies; see
`order.py`. A change to what any index maps to needs a new `ORDER_VERSION`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from datarax.order.seeds import splitmix_stream

ROUNDS = 8
MIN_LEFT, MIN_RIGHT_BITS = 4, 2  # a 4 x 4 grid for tiny n: smaller halves have too few round functions

# Constants of the 32-bit mixer "lowbias32" (found by search for low bias by Chris Wellons).
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)
_SHIFT_15, _SHIFT_16, _SHIFT_32 = np.uint32(15), np.uint32(16), np.uint64(32)

_CHUNK = 16384  # lanes per pass: the work vectors stay in a core's second-level cache


class Permutations(Protocol):
    """k maps of range(n) to itself; a permutation each, except where the Grain policy is not."""

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Where each index goes: int64[m] in range(n) -> int64[m].

        `member`, int[m], says which of the k maps each lane takes; None where k is 1.
        """
        ...

    def preimages(self, value: int) -> list[int]:
        """Every index that the first map sends to `value`, ascending."""
        ...


class Identity:
    """The map that leaves every index where it is."""

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """A copy of the index."""
        return np.array(index, np.int64)

    def preimages(self, value: int) -> list[int]:
        """The value itself."""
        return [value]


class FeistelPermutations:
    """Permutations of range(n), one for each of k seeds.

    With b = max(4, bits of n - 1), an index is right + 2^c * left: the right half has c = b - b // 2 bits,
    the left half is in range(A) with A = max(4, ceil(n / 2^c)), so the grid of 2^c * A values exceeds n by
    less than one part in 2^(b // 2 - 1) and hardly any lane is ever evaluated twice. Round r of 8 changes
    the left half if r is even, else the right half:

        t = (other half + k1[r]) * 0x7FEB352D mod 2^32;  t ^= t >> 15
        t = (t + k2[r]) * 0x846CA68B mod 2^32;           t ^= t >> 16
        left = (left + floor(t * A / 2^32)) mod A    or    right ^= t mod 2^c

    k1[r] and k2[r] are the lower and the upper 32 bits of word r + 1 of the seed's splitmix64 stream.

    Args:
        n: Number of values, 1 <= n < 2^63.
        seeds: uint64[k], one per permutation.
    """

    def __init__(self, n: int, seeds: np.ndarray) -> None:
        assert 1 <= n < 2**63, n
        bits = (n - 1).bit_length()
        right_bits = max(MIN_RIGHT_BITS, bits - bits // 2)
        self.n = n
        self._right_bits = np.uint64(right_bits)
        self._right_mask = np.uint32((1 << right_bits) - 1)
        self._left_size = max(MIN_LEFT, -(-n >> right_bits))
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

    def preimages(self, value: int) -> list[int]:
        """The one index that the first permutation sends to `value`."""
        return self.inverse(np.array([value], np.int64), np.zeros(1, np.intp)).tolist()

    def _walk(self, index: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        if self.n == 1:
            return np.zeros(len(index), np.int64)
        limit = np.uint64(self.n)
        value = self._network(np.asarray(index, np.int64).view(np.uint64), member, inverse)
        # Only lanes that are still outside go through the network again.
        outside = np.flatnonzero(value >= limit)
        again = value[outside]
        while len(outside):
            lanes = None if member is None else member[outside]
            again = self._network(again, lanes, inverse)
            value[outside] = again
            left_over = again >= limit
            outside, again = outside[left_over], again[left_over]
        return value.view(np.int64)

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
        for r in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            k1, k2 = self._keys[r, 0], self._keys[r, 1]
            if member is not None:
                k1, k2 = k1.take(member), k2.take(member)
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
