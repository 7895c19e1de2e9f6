"""Grain's global shuffle, bit for bit, on whole vectors: so that a Grain run can move over in mid-epoch.

Grain 0.2 permutes the indices of an epoch with a cipher of Simon's round function, four rounds, round keys
from C++'s `std::seed_seq`, cycle walking, under the seed (seed + epoch) mod 2^32. Written from these facts
and held to Grain's own `index_shuffle` by tests. Two of its properties are kept because they are what a
Grain run had: epoch 1 of seed 5 is epoch 0 of seed 6, and at some lengths it is not a permutation
(`num_repeated`).
"""

import functools
import math

import numpy as np

from datarax.order.permutation import Permutations, walk_below

ROUNDS = 4
"""Of the cipher."""
MIN_BLOCK_BITS = 16
"""Bits of the least domain that it permutes."""


def derived_shuffle_seed(pipeline_seed: int, ops_between: int) -> int:
    """The seed that `shuffle()` gets from an earlier `seed(pipeline_seed)`.

    Args:
        pipeline_seed: The argument of `MapDataset.seed`.
        ops_between: Number of operations between `seed` and `shuffle`; Grain hashes the distance.
    """
    return int(np.random.SeedSequence([pipeline_seed, ops_between + 1]).generate_state(1, np.uint32)[0])


def num_repeated(n: int) -> int:
    """Number of records of range(n) that Grain delivers twice an epoch; as many others never come."""
    return max(0, n - (1 << _block_bits(n)))


class GrainPermutations(Permutations):
    """What Grain's shuffle makes of range(n), under each of k seeds.

    Args:
        n: Number of records, 1 <= n < 2^63.
        seeds: uint32[k]; Grain's seed of an epoch is (seed + epoch) mod 2^32.
    """

    def __init__(self, n: int, seeds: np.ndarray) -> None:
        self._n = n
        self._bits = _block_bits(n)
        self._keys = _round_keys(np.asarray(seeds, np.uint32)) & np.uint32((1 << self._bits // 2) - 1)
        # In the least domain up to 65 walks a record are usual: there, one table of the epoch is cheaper.
        small = self._bits == MIN_BLOCK_BITS and n <= 1 << MIN_BLOCK_BITS
        self._table = np.stack([self._build_table(k) for k in range(len(seeds))]) if small else None

    def __call__(
        self, index: np.ndarray, member: np.ndarray | None = None, inverse: bool = False
    ) -> np.ndarray:
        """Where each index goes; with `inverse` which index below the block's size goes to each value."""
        if self._table is not None and not inverse:
            return self._table[0 if member is None else member, index].astype(np.int64)
        # Grain's words drop the bits above the block, so a position beyond it repeats an earlier one.
        start = np.asarray(index, np.int64).view(np.uint64) & np.uint64((1 << self._bits) - 1)
        return walk_below(self._n, start, member, inverse, self._cipher).view(np.int64)

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """Every index that the first map sends to one of `values`: none or two each at lengths with `num_repeated`."""
        if self._table is not None:
            return np.flatnonzero(np.isin(self._table[0], values))
        first = self(values[values >> self._bits == 0], inverse=True)
        # An index beyond the block repeats the one below it: see the call.
        again = np.arange(0, self._n, 1 << self._bits)
        found = (first[:, np.newaxis] + again).reshape(-1)
        return found[found < self._n]

    def _cipher(self, x: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        """The rounds, each of which undoes itself: uint64[m] -> uint64[m]."""
        half_bits = self._bits // 2
        mask = np.uint64((1 << half_bits) - 1)
        halves = [(x >> np.uint64(half_bits)).astype(np.uint32), (x & mask).astype(np.uint32)]  # left, right
        for r in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
            changed, other = halves[r % 2], halves[1 - r % 2]
            changed ^= _simon_table(half_bits).take(other) if half_bits <= 16 else _simon(other, half_bits)
            changed ^= self._keys[r, 0] if member is None else self._keys[r].take(member)
        result = halves[0].astype(np.uint64)
        result <<= np.uint64(half_bits)
        result |= halves[1]
        return result

    def _build_table(self, k: int) -> np.ndarray:
        """All records of one epoch, uint16[n]: every walk at once, by following two steps as one."""
        onward = _cipher_table(self._keys[:, k])
        reached = onward[: self._n].copy()
        onward[: self._n] = np.arange(self._n)
        while (reached >= self._n).any():
            reached = onward.take(reached)
            onward = onward.take(onward)
        return reached.astype(np.uint16)


def _cipher_table(keys: np.ndarray) -> np.ndarray:
    """The cipher on all 16-bit blocks, for one seed: uint32[ROUNDS] -> intp[65536]."""
    simon = _simon_table(8).astype(np.uint8)
    right, left = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for r, key in enumerate(keys.astype(np.uint8)):
        changed, other = (right, left) if r % 2 else (left, right)
        changed ^= simon.take(other)
        changed ^= key
    return (left.astype(np.intp) << 8 | right).reshape(-1)


def _block_bits(n: int) -> int:
    # Grain takes the log2 of n - 1, not n, and as a double: too few bits at 2^(2k) + 1 and near large powers.
    bits = math.ceil(math.log2(n - 1)) if n > 2 else 0
    return max(MIN_BLOCK_BITS, bits + bits % 2)


def _simon(x: np.ndarray, half_bits: int) -> np.ndarray:
    """Simon's round function, (x <<< 1 & x <<< 8) ^ x <<< 2, on words of half_bits: uint32[m]."""
    return (_rotated(x, 1, half_bits) & _rotated(x, 8, half_bits)) ^ _rotated(x, 2, half_bits)


@functools.lru_cache(maxsize=16)
def _simon_table(half_bits: int) -> np.ndarray:
    return _simon(np.arange(1 << half_bits, dtype=np.uint32), half_bits)


def _rotated(x: np.ndarray, by: int, half_bits: int) -> np.ndarray:
    mask = np.uint32((1 << half_bits) - 1)
    return ((x << np.uint32(by)) | (x >> np.uint32(half_bits - by))) & mask


def _round_keys(seeds: np.ndarray) -> np.ndarray:
    """`std::seed_seq{seed}.generate` of ROUNDS words for each seed: uint32[k] -> uint32[ROUNDS, k].

    The algorithm of [rand.util.seedseq] with one seed word, on vectors of k seeds.
    """
    # The standard's offsets p = 1 and q = 2 are those for four words.
    b = np.full((ROUNDS, len(seeds)), 0x8B8B8B8B, np.uint32)
    for k in range(ROUNDS):
        x = b[k] ^ b[(k + 1) % ROUNDS] ^ b[k - 1]
        r1 = (x ^ (x >> np.uint32(27))) * np.uint32(1664525)
        # The one word that is given comes second, after how many are given.
        r2 = r1 + np.uint32(max(k, 1)) + (seeds if k == 1 else np.uint32(0))
        b[(k + 1) % ROUNDS] += r1
        b[(k + 2) % ROUNDS] += r2
        b[k] = r2
    for k in range(ROUNDS):
        x = b[k] + b[(k + 1) % ROUNDS] + b[k - 1]
        r3 = (x ^ (x >> np.uint32(27))) * np.uint32(1566083941)
        r4 = r3 - np.uint32(k)
        b[(k + 1) % ROUNDS] ^= r3
        b[(k + 2) % ROUNDS] ^= r4
        b[k] = r4
    return b
