"""The grain policy is Grain's own order, bit for bit: every key is compared with the installed Grain's."""

import grain
import numpy as np
import pytest
from grain._src.python.experimental.index_shuffle.python import index_shuffle_module
from hypothesis import example, given
from hypothesis import strategies as st

from datarax.order import GrainStyle, Order, OrderConfig, OrderPolicy
from datarax.order.grain import GrainPermutations, derived_shuffle_seed, num_repeated
from tests.support.tiers import examples


def grain_index(index, n, seed):
    return index_shuffle_module.index_shuffle(index, max_index=n - 1, seed=seed, rounds=4)


def order_of(n, seed, style=GrainStyle.INDEX_SAMPLER, ops_between=None):
    config = OrderConfig(
        policy=OrderPolicy.GRAIN, seed=seed, grain_style=style, grain_ops_between=ops_between
    )
    return Order(config, {"books": n})


lengths = st.one_of(
    st.integers(1, 70_000),
    st.integers(1, 2**63 - 1),
    st.builds(lambda k, d: 2**k + d, st.integers(16, 62), st.integers(-3, 3)),
)


@examples(200)
@given(n=lengths, seed=st.integers(0, 2**32 - 1), data=st.data())
@example(n=65_536, seed=1, data=None)
@example(n=65_537, seed=1, data=None)
@example(n=262_145, seed=2**32 - 1, data=None)
@example(n=2**50 + 2, seed=1, data=None)  # beyond a double's 53 bits Grain's log2 rounds down
@example(n=2**63 - 1, seed=1, data=None)
def test_any_index_of_any_length_goes_where_grain_sends_it(n, seed, data):
    drawn = [] if data is None else data.draw(st.lists(st.integers(0, n - 1), max_size=10))
    index = [*drawn, 0, n // 2, n - 1]
    permutation = GrainPermutations(n, np.array([seed], np.uint32))
    assert permutation(np.array(index)).tolist() == [grain_index(i, n, seed) for i in index]


@pytest.mark.parametrize("n", [1, 2, 10, 257, 1000])
@pytest.mark.parametrize("ops_between", [0, 1, 3])
def test_a_map_dataset_gives_the_same_records_over_three_epochs(n, ops_between):
    dataset = grain.MapDataset.source(range(n)).seed(42)
    for _ in range(ops_between):
        dataset = dataset.map(lambda x: x)
    dataset = dataset.shuffle()
    order = order_of(n, 42, GrainStyle.MAP_DATASET, ops_between)
    assert order.keys(np.arange(3 * n)).index.tolist() == [dataset[i] for i in range(3 * n)]


@pytest.mark.parametrize("n", [7, 1000, 70_000])
def test_an_index_sampler_gives_the_same_records_over_three_epochs(n):
    # 2^32 - 2: the seed of the third epoch wraps to 0.
    sampler = grain.samplers.IndexSampler(n, shuffle=True, seed=2**32 - 2)
    positions = np.unique(np.linspace(0, 3 * n - 1, 600, dtype=np.int64))
    keys = order_of(n, 2**32 - 2).keys(positions)
    assert keys.index.tolist() == [sampler[i].record_key for i in positions.tolist()]
    assert keys.epoch.tolist() == [i // n for i in positions.tolist()]


def test_shuffle_with_a_seed_of_its_own_is_the_index_sampler_style():
    dataset = grain.MapDataset.source(range(100)).shuffle(seed=9)
    assert order_of(100, 9).keys(np.arange(200)).index.tolist() == [dataset[i] for i in range(200)]


@pytest.mark.parametrize("n", [65_537, 262_145])
def test_lengths_that_grain_does_not_permute_are_reproduced_inverted_and_reported(n):
    order = order_of(n, 5)
    records = order.keys(np.arange(n, 2 * n)).index
    first, last = int(records[0]), int(records[-1])
    assert first == last == grain_index(0, n, 6)
    assert len(np.unique(records)) == n - 1
    assert order.positions("books", first, 1) == [n, 2 * n - 1]
    assert order.positions("books", n - 1, 1) == []
    assert order.positions("books", int(records[1]), 1) == [n + 1]
    (warning,) = order.warnings()
    assert f"record {n - 1} is never delivered" in warning


def test_near_large_powers_several_records_are_repeated():
    n = 2**50 + 3
    assert num_repeated(n) == 3
    order = order_of(n, 5)
    (record,) = set(order.keys(np.array([2, 2**50 + 2])).index.tolist())
    assert order.positions("books", record, 0) == [2, 2**50 + 2]
    assert f"records {2**50} to {2**50 + 2} are never delivered" in order.warnings()[0]


@pytest.mark.parametrize("n", [1, 2, 1000, 65_536, 65_538, 131_073, 262_144, 262_146, 10**9])
def test_other_lengths_are_permuted_without_a_warning(n):
    assert num_repeated(n) == 0
    order = order_of(n, 5)
    assert order.warnings() == []
    positions = np.unique(np.array([0, n // 2, n - 1]) + n)
    for position, (_, index, epoch) in zip(positions.tolist(), order.keys(positions).rows(), strict=True):
        assert order.positions("books", index, epoch) == [position]


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
@examples(10)
def test_small_lengths_are_permuted_in_every_epoch(n, seed):
    keys = order_of(n, seed).keys(np.arange(6 * n))
    assert all(sorted(row) == list(range(n)) for row in keys.index.reshape(6, n).tolist())


def test_the_derived_seed_depends_on_the_distance():
    assert len({derived_shuffle_seed(1, ops) for ops in range(5)}) == 5


def test_epoch_one_of_a_seed_is_epoch_zero_of_the_next_as_in_grain():
    first, second = order_of(1000, 5), order_of(1000, 6)
    assert np.array_equal(first.keys(np.arange(1000, 2000)).index, second.keys(np.arange(1000)).index)
