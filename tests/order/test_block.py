"""The block policy: a bijection whose windows are whole blocks, so that a window is read in few long runs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.order import Order, OrderConfig, OrderPolicy
from datarax.order.permutation import BlockPermutations


def one(n, block_size, window_blocks, seed=1):
    return BlockPermutations(
        n, block_size, window_blocks, np.array([seed], np.uint64), np.array([seed + 1], np.uint64)
    )


@given(n=st.integers(1, 2000), block_size=st.integers(1, 100), window_blocks=st.integers(1, 40))
def test_every_record_comes_once_and_is_found_again(n, block_size, window_blocks):
    permutation, index = one(n, block_size, window_blocks), np.arange(n)
    value = permutation(index)
    assert np.array_equal(np.sort(value), index)
    assert np.array_equal(permutation(value, inverse=True), index)
    assert permutation.preimages(value[-1:]).tolist() == [n - 1]


@given(
    n=st.integers(1, 2**62),
    block_size=st.integers(1, 2**40),
    window_blocks=st.integers(1, 2**40),
    data=st.data(),
)
def test_huge_ranges_are_inverted_exactly(n, block_size, window_blocks, data):
    index = np.array([*data.draw(st.lists(st.integers(0, n - 1), max_size=8)), 0, n - 1])
    permutation = one(n, block_size, window_blocks)
    value = permutation(index)
    assert value.min() >= 0
    assert value.max() < n
    assert np.array_equal(permutation(value, inverse=True), index)


@given(
    n=st.integers(50, 500),
    block_size=st.integers(2, 20),
    window_blocks=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_a_window_is_made_of_whole_blocks(n, block_size, window_blocks, seed):
    value = one(n, block_size, window_blocks, seed)(np.arange(n))
    window = block_size * window_blocks
    for first in range(0, n, window):
        blocks, sizes = np.unique(value[first : first + window] // block_size, return_counts=True)
        assert all(
            size == min(block_size, n - block * block_size) for block, size in zip(blocks, sizes, strict=True)
        )


def test_the_short_last_block_stays_in_the_last_window():
    # 23 records in blocks of 5: block 4 has 3 records; windows of 2 blocks: the last one holds only block 4.
    value = one(23, 5, 2)(np.arange(23))
    assert sorted(value[20:].tolist()) == [20, 21, 22]
    # Windows of 3 blocks: the last one holds one full block and the short one, mixed.
    for seed in range(20):
        tail = one(23, 5, 3, seed)(np.arange(23))[15:].tolist()
        assert {20, 21, 22} < set(tail)
    assert any(set(one(23, 5, 3, seed)(np.arange(20, 23)).tolist()) != {20, 21, 22} for seed in range(20))


def test_no_full_block_at_all_is_one_window():
    assert sorted(one(4, 10, 3)(np.arange(4)).tolist()) == [0, 1, 2, 3]


def test_windows_are_mixed_differently():
    # With one block a window, a record's place in its block is the window's own permutation and nothing else.
    places = one(4000, 100, 1)(np.arange(4000)).reshape(40, 100) % 100
    assert len({tuple(row) for row in places.tolist()}) == 40


def test_blocks_move_and_records_move_inside_windows():
    value = one(100_000, 100, 10)(np.arange(100_000))
    blocks = value // 100
    assert abs(np.corrcoef(np.arange(100_000), blocks)[0, 1]) < 0.2
    assert np.mean(np.diff(value) == 1) < 0.01


@given(st.lists(st.integers(0, 3 * 70 - 1), min_size=1, max_size=60))
def test_any_lanes_in_any_order_get_what_the_whole_gives(positions):
    config = OrderConfig(policy=OrderPolicy.BLOCK, block_size=8, window_blocks=3, seed=5)
    order = Order(config, {"books": 70})
    whole = order.keys(np.arange(3 * 70))
    assert order.keys(np.array(positions)).index.tolist() == whole.index[positions].tolist()


@pytest.mark.parametrize("window_blocks", [1, 4, 2**62])
def test_sequences_and_scattered_lanes_agree(window_blocks):
    # A sequence takes the way with one evaluation per block; scattered lanes the way with one per record.
    permutation = one(10**12, 16, window_blocks)
    first = 10**11 + 3
    together = permutation(np.arange(first, first + 2000))
    alone = [permutation(np.array([first + i, 0]))[0] for i in range(0, 2000, 97)]
    assert together[::97].tolist() == alone
