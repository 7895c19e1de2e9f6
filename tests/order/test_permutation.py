"""Keyed permutations: bijections of any range, their own inverses' inverse, and random enough to train on."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datarax.order.permutation import (
    FeistelPermutations,
    Identity,
    SortedPermutations,
    keyed_permutations,
)
from datarax.order.seeds import derive_seed, splitmix_stream

seeds = st.integers(0, 2**64 - 1)


def one(n, seed):
    return keyed_permutations(n, np.array([seed], np.uint64))


@given(n=st.integers(1, 3000), seed=seeds)
@example(n=256, seed=0)
@example(n=257, seed=0)
@example(n=65_537, seed=3)
@example(n=2**16, seed=3)
@example(n=262_145, seed=3)
def test_every_index_goes_somewhere_else_and_back(n, seed):
    permutation, index = one(n, seed), np.arange(n)
    value = permutation(index)
    assert value.dtype == np.int64
    assert np.array_equal(np.sort(value), index)
    assert np.array_equal(permutation(value, inverse=True), index)


@given(n=st.integers(1, 2**63 - 1), seed=seeds, data=st.data())
def test_huge_ranges_are_inverted_exactly(n, seed, data):
    index = np.array([*data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)), 0, n - 1])
    permutation = one(n, seed)
    value = permutation(index)
    assert value.min() >= 0
    assert value.max() < n
    assert np.array_equal(permutation(value, inverse=True), index)
    assert permutation.preimages(value).tolist() == index.tolist()


@given(n=st.integers(1, 10**6), keys=st.lists(seeds, min_size=1, max_size=5), data=st.data())
def test_many_permutations_at_once_are_each_alone(n, keys, data):
    lanes = st.tuples(st.integers(0, n - 1), st.integers(0, len(keys) - 1))
    index, member = np.array(data.draw(st.lists(lanes, min_size=1, max_size=40))).T
    together = keyed_permutations(n, np.array(keys, np.uint64))
    alone = [one(n, keys[k])(index[i : i + 1])[0] for i, k in enumerate(member)]
    assert together(index, member).tolist() == alone
    assert np.array_equal(together(together(index, member), member, inverse=True), index)


def test_no_lanes_give_no_values():
    for n in (5, 10**6):
        assert len(one(n, 1)(np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize("n", [257, 1000, 65_537, 10**12, 2**62 + 1])
def test_the_network_is_the_one_of_its_docstring(n):
    """The definition once more, in Python ints."""
    seed, mask = derive_seed("reference"), 2**32 - 1
    words = [int(word) for word in splitmix_stream(np.array([seed], np.uint64), 8)[:, 0]]
    bits = (n - 1).bit_length()
    c = bits - bits // 2
    size = -(-n // 2**c)

    def network(x):
        left, right = x >> c, x & (2**c - 1)
        for r, word in enumerate(words):
            t = ((left if r % 2 else right) + (word & mask)) * 0x7FEB352D & mask
            t ^= t >> 15
            t = (t + (word >> 32)) * 0x846CA68B & mask
            t ^= t >> 16
            if r % 2:
                right ^= t & (2**c - 1)
            else:
                left = (left + (t * size >> 32)) % size
        return left << c | right

    for index in (0, 1, n // 3, n - 2, n - 1):
        value = network(index)
        while value >= n:
            value = network(value)
        assert one(n, seed)(np.array([index])).tolist() == [value]


def test_a_small_range_is_sorted_by_the_words_of_its_stream():
    words = splitmix_stream(np.array([9], np.uint64), 100)[:, 0].tolist()
    assert one(100, 9)(np.arange(100)).tolist() == sorted(range(100), key=words.__getitem__)


def test_small_and_large_ranges_take_their_own_way():
    assert isinstance(one(256, 1), SortedPermutations)
    assert isinstance(one(257, 1), FeistelPermutations)


def test_identity_moves_nothing_and_shares_nothing():
    index = np.arange(5)
    value = Identity()(index)
    value[0] = 9
    assert index[0] == 0
    assert Identity().preimages(np.array([3])).tolist() == [3]


def _sigmas(counts, expected):
    """How many standard deviations a chi-square statistic lies from its mean."""
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_permutation_of_few_records_is_equally_likely(n):
    num_seeds = 60_000
    keys = np.array([derive_seed(i, "uniform") for i in range(num_seeds)], np.uint64)
    lanes = np.tile(np.arange(n), num_seeds), np.repeat(np.arange(num_seeds), n)
    values = keyed_permutations(n, keys)(*lanes).reshape(num_seeds, n)
    _, counts = np.unique(values @ n ** np.arange(n), return_counts=True)
    assert len(counts) == math.factorial(n)
    assert abs(_sigmas(counts, num_seeds / len(counts))) < 5


@pytest.mark.parametrize("n", [257, 300, 1000])
def test_neighbours_land_independently(n):
    num_seeds = 4000
    keys = np.array([derive_seed(i, "pairs") for i in range(num_seeds)], np.uint64)
    lanes = np.tile(np.arange(n), num_seeds), np.repeat(np.arange(num_seeds), n)
    values = keyed_permutations(n, keys)(*lanes).reshape(num_seeds, n)
    steps = (values[:, 1:] - values[:, :-1]) % n
    assert abs(_sigmas(np.bincount(steps.ravel(), minlength=n)[1:], num_seeds)) < 5
    assert abs(_sigmas(np.bincount(values[:, 0], minlength=n), num_seeds / n)) < 5


@pytest.mark.parametrize("n", [1000, 65_536, 100_000])
def test_batches_of_sorted_data_look_like_random_samples(n):
    batch, num_seeds, ratios, correlations = 100, 30, [], []
    for seed in range(num_seeds):
        values = one(n, derive_seed(seed, "batches"))(np.arange(n)).astype(float)
        means = values[: n // batch * batch].reshape(-1, batch).mean(axis=1)
        ratios.append(means.var() / ((n * n - 1) / 12 / batch * (n - batch) / (n - 1)))
        correlations.append(np.corrcoef(values[:-1], values[1:])[0, 1] * math.sqrt(n))
    # Each ratio has a standard deviation of about sqrt(2 / batches); each scaled correlation of about 1.
    assert abs(np.mean(ratios) - 1) < 5 * math.sqrt(2 / (n // batch) / num_seeds) + 0.01
    assert abs(np.mean(correlations)) < 5 / math.sqrt(num_seeds)
    assert 0.5 < np.std(correlations) < 1.6
