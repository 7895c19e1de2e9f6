"""Keyed pseudo-random permutations of range(n), evaluated at any index on whole vectors, in constant memory.

Small ranges are sorted by random words; large ones go through a Feistel network, which permutes a grid hardly
larger than n, and cycle walking (apply it again until the value is below n). Knows nothing of epochs, sources
or policies; see `order.py`. A change to what any index maps to needs a new `ORDER_VERSION`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from datarax.order.seeds import GOLDEN, mix64, splitmix_stream

LARGEST_SORTED = 256
"""Up to this n a permutation is sorted: networks of fewer bits are measurably not uniform."""

ROUNDS = 8
"""Of the network."""

# Constants of the 32-bit mixer "lowbias32" (found by search for low bias by Chris Wellons).
_MULTIPLY_1 = np.uint32(0x7FEB352D)
_MULTIPLY_2 = np.uint32(0x846CA68B)
_SHIFT_15, _SHIFT_16, _SHIFT_32 = np.uint32(15), np.uint32(16), np.uint64(32)

_CHUNK = 16384  # lanes per pass: the work vectors stay in a core's second-level cache
_TABLES_AT_ONCE = 4096  # sorted together; bounds the work space at 16 MiB


class Permutations(ABC):
    """k maps of range(n) to itself; a permutation each, except where the Grain policy is not."""

    @abstractmethod
    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """Where each index goes.

        Args:
            index: int64[m], each in range(n).
            member: int[m], which of the k maps each lane takes; None where k is 1.
            inverse: which index goes to each value instead.

        Returns:
            int64[m].
        """

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """Every index that the first map sends to one of `values`, in no order: int64[m] -> int64[...]."""
        return self(values, inverse=True)


def keyed_permutations(n: int, seeds: np.ndarray) -> Permutations:
    """A permutation of range(n) for each seed: `SortedPermutations` to n = 256, then `FeistelPermutations`.

    Args:
        n: Number of values, 1 <= n < 2^63.
        seeds: uint64[k].
    """
    return SortedPermutations(n, seeds) if n <= LARGEST_SORTED else FeistelPermutations(n, seeds)


class Identity(Permutations):
    """The map that leaves every index where it is."""

    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """See `Permutations`."""
        return np.array(index, np.int64)


class SortedPermutations(Permutations):
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

    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """See `Permutations`."""
        table = self._inverse_table if inverse else self._table
        return table[0 if member is None else member, index].astype(np.int64)

    @functools.cached_property
    def _inverse_table(self) -> np.ndarray:
        return self._table.argsort(axis=1).astype(np.uint8)


def walk_below(
    n: int,
    x: np.ndarray,
    member: np.ndarray | None,
    inverse: bool,
    evaluate: Callable[[np.ndarray, np.ndarray | None, bool], np.ndarray],
) -> np.ndarray:
    """Cycle walking, uint64[m] -> uint64[m]: apply `evaluate`, then again to the lanes that are not below n.

    Args:
        n: The limit that each lane has to come below.
        x: uint64[m], where each lane starts.
        member: int[m] or None, handed to `evaluate` with the lanes that remain.
        inverse: Handed to `evaluate`.
        evaluate: (lanes uint64[m], member, inverse) -> uint64[m]: permutations of a domain that holds x; every cycle through
            x goes below n.
    """
    limit = np.uint64(n)
    value = evaluate(x, member, inverse)
    outside = np.flatnonzero(value >= limit)
    again = value[outside]
    while len(outside):
        again = evaluate(again, None if member is None else member[outside], inverse)
        value[outside] = again
        left_over = again >= limit
        outside, again = outside[left_over], again[left_over]
    return value


class FeistelPermutations(Permutations):
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
        left_size = -(-n >> right_bits)  # at most 2^31: a sum of two stays in 32 bits
        self._left_size, self._modulus = np.uint64(left_size), np.uint32(left_size)
        words = splitmix_stream(np.asarray(seeds, np.uint64), ROUNDS)
        lower, upper = words.astype(np.uint32), (words >> _SHIFT_32).astype(np.uint32)
        self._keys = np.stack([lower, upper], axis=1)  # uint32[ROUNDS, 2, k]

    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """See `Permutations`."""
        start = np.asarray(index, np.int64).view(np.uint64)
        return walk_below(self._n, start, member, inverse, self._network).view(np.int64)

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
        mixed, shifted, wide = np.empty_like(right), np.empty_like(right), np.empty_like(x)
        per_lane = None if member is None else _per_lane(member)
        for r in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            k1, k2 = self._keys[r, 0], self._keys[r, 1]
            if per_lane is not None:
                k1, k2 = per_lane(k1), per_lane(k2)
            np.add(left if r % 2 else right, k1, out=mixed)
            mixed *= _MULTIPLY_1
            np.right_shift(mixed, _SHIFT_15, out=shifted)
            mixed ^= shifted
            mixed += k2
            mixed *= _MULTIPLY_2
            np.right_shift(mixed, _SHIFT_16, out=shifted)
            mixed ^= shifted
            if r % 2:
                mixed &= self._right_mask
                right ^= mixed
                continue
            # To range(left_size) without a division; and of two candidates for the sum the wrong one has wrapped.
            np.multiply(mixed, self._left_size, out=wide, dtype=np.uint64)
            wide >>= _SHIFT_32
            np.copyto(mixed, wide, casting="unsafe")
            (np.subtract if inverse else np.add)(left, mixed, out=left)
            (np.add if inverse else np.subtract)(left, self._modulus, out=mixed)
            np.minimum(left, mixed, out=left)
        np.left_shift(left, self._right_bits, out=result, dtype=np.uint64)
        np.bitwise_or(result, right, out=result)


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


# The block policy: permute storage blocks, then the records inside a window of blocks, for long reads. A window of W blocks is
# read as W runs of consecutive records, while every record may stand at any place of its window.


class BlockPermutations(Permutations):
    """Permutations of range(n) that keep blocks of consecutive records together in windows, one a seed.

    Record i is in block i // block_size. The full blocks are permuted by `keyed_permutations` under the
    block seed; a short last block stays last. The resulting sequence of records is cut into windows of
    window_blocks * block_size, the last one maybe shorter, and window w is permuted by `keyed_permutations`
    of its length under the seed mix64(window seed + (w + 1) * GOLDEN).

    Args:
        n: Number of records, 1 <= n < 2^63.
        block_size: Records per block, >= 1.
        window_blocks: Blocks per window, >= 1.
        block_seeds: uint64[k], the key of the blocks' permutation.
        window_seeds: uint64[k], the key of the permutations inside windows.
    """

    def __init__(
        self, n: int, block_size: int, window_blocks: int, block_seeds: np.ndarray, window_seeds: np.ndarray
    ) -> None:
        self._block_size = min(block_size, n)
        self._num_full = n // self._block_size
        self._blocks = keyed_permutations(self._num_full, block_seeds)
        self._window_seeds = np.asarray(window_seeds, np.uint64)
        self._window_size = min(window_blocks * block_size, n)
        self._last_window = (n - 1) // self._window_size
        self._last_window_size = n - self._last_window * self._window_size

    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """See `Permutations`."""
        if inverse:
            return self._move_in_windows(self._move_blocks(index, member, inverse), member, inverse)
        return self._move_blocks(self._move_in_windows(index, member, inverse), member, inverse)

    def _move_blocks(self, record: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        block = record // self._block_size
        moved = record - block * self._block_size
        moved += self._block_moves(block, member, inverse) * self._block_size
        return moved

    def _block_moves(self, block: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        if member is None and len(block):
            # A sequence of positions names few blocks many times: one evaluation each, not one a record.
            first = int(block.min())
            span = int(block.max()) - first + 1
            if span < len(block):
                return self._permute_blocks(np.arange(first, first + span), None, inverse).take(block - first)
        return self._permute_blocks(block, member, inverse)

    def _permute_blocks(self, block: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        full = block < self._num_full
        if full.all():
            return self._blocks(block, member, inverse)
        moved = block.copy()  # the short last block stays where it is
        moved[full] = self._blocks(block[full], None if member is None else member[full], inverse)
        return moved

    def _move_in_windows(self, record: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        window = record // self._window_size
        first = window * self._window_size
        offset = record - first
        in_last = window == self._last_window
        if self._last_window_size == self._window_size or not in_last.any():
            return first + self._permuted(self._window_size, offset, window, member, inverse)
        moved = np.empty_like(record)
        for lanes, size in ((~in_last, self._window_size), (in_last, self._last_window_size)):
            members = None if member is None else member[lanes]
            moved[lanes] = self._permuted(size, offset[lanes], window[lanes], members, inverse)
        return first + moved

    def _permuted(
        self, size: int, offset: np.ndarray, window: np.ndarray, member: np.ndarray | None, inverse: bool
    ) -> np.ndarray:
        starts, run = _runs(window, member)
        seeds = self._window_seeds[0 if member is None else member[starts]]
        steps = (window[starts].view(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        windows = keyed_permutations(size, mix64(seeds + steps))
        return windows(offset, None if len(starts) == 1 else run, inverse)


def _runs(value: np.ndarray, member: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The first lane of each run of equal (value, member), and the run of each lane: int[runs], int[m]."""
    changes = np.empty(len(value), bool)
    changes[:1] = True
    np.not_equal(value[1:], value[:-1], out=changes[1:])
    if member is not None:
        changes[1:] |= member[1:] != member[:-1]
    return np.flatnonzero(changes), np.cumsum(changes) - 1
