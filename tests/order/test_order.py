"""Laws of the order: every record once an epoch, any position alone, and the way back."""

import itertools
import json
import pickle
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datarax.core.errors import ConfigError, InputError
from datarax.order import MAX_POSITION, GrainStyle, Order, OrderConfig, OrderPolicy

CONFIGS = {
    "none": OrderConfig(policy=OrderPolicy.NONE),
    "global": OrderConfig(seed=11),
    "block": OrderConfig(policy=OrderPolicy.BLOCK, seed=11, block_size=8, window_blocks=4),
    "grain": OrderConfig(policy=OrderPolicy.GRAIN, seed=11, grain_style=GrainStyle.INDEX_SAMPLER),
    "grain pipeline": OrderConfig(policy=OrderPolicy.GRAIN, seed=11, grain_style=GrainStyle.MAP_DATASET),
}
configs = st.sampled_from(list(CONFIGS.values()))
any_policy = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

# Where integers of 31, 32, 53 and 62 bits end, and the last position of all.
BORDERS = np.array([2**31, 2**32, 2**53, 2**62, MAX_POSITION - 3]).repeat(5) + np.tile(np.arange(-1, 4), 5)


def order_of(config, n):
    return Order(config, {"books": n})


@given(config=configs, n=st.integers(1, 400), epoch=st.one_of(st.integers(0, 5), st.integers(0, 2**50)))
def test_each_epoch_delivers_every_record_once(config, n, epoch):
    keys = order_of(config, n).keys(np.arange(epoch * n, (epoch + 2) * n))
    for e in (0, 1):
        rows = keys[e * n : (e + 1) * n]
        assert sorted(rows.index.tolist()) == list(range(n))
        assert set(rows.epoch.tolist()) == {epoch + e}
        assert set(rows.source.tolist()) == {0}


@any_policy
@pytest.mark.parametrize("n", [65_536, 65_537, 100_003])
def test_an_epoch_of_many_records_delivers_every_record_once(config, n):
    index = order_of(config, n).keys(np.arange(n)).index
    missing = {n - 1} if config.policy is OrderPolicy.GRAIN and n == 65_537 else set()
    assert set(range(n)) - set(index.tolist()) == missing


@given(config=configs, n=st.integers(1, 300), cuts=st.lists(st.integers(0, 900), max_size=6))
def test_ranges_one_after_another_are_the_whole(config, n, cuts):
    order, cuts = order_of(config, n), sorted([0, *cuts, 900])
    parts = [order.keys(np.arange(a, b)).index for a, b in itertools.pairwise(cuts)]
    assert np.concatenate(parts).tolist() == order.keys(np.arange(900)).index.tolist()


@given(
    config=configs,
    n=st.one_of(st.integers(1, 300), st.integers(2**17, MAX_POSITION)),
    positions=st.lists(st.one_of(st.integers(-1, 1000), st.integers(0, MAX_POSITION)), max_size=20),
)
def test_a_key_depends_on_nothing_but_its_position(config, n, positions):
    together = order_of(config, n).keys(np.array(positions, np.int64))
    order = order_of(config, n)
    assert list(together.rows()) == [next(order.keys(np.array([p])).rows()) for p in positions]


@given(config=configs, n=st.integers(1, MAX_POSITION), position=st.integers(0, MAX_POSITION))
@example(config=CONFIGS["global"], n=1, position=MAX_POSITION)
@example(config=CONFIGS["global"], n=MAX_POSITION, position=MAX_POSITION)
def test_the_inverse_finds_the_position_of_any_record(config, n, position):
    order = order_of(config, n)
    ((_, index, epoch),) = order.keys(np.array([position])).rows()
    assert epoch == position // n
    assert position in order.positions("books", index, epoch)


@given(config=configs, n=st.integers(1, 400), epoch=st.integers(0, 3), data=st.data())
def test_the_inverse_of_many_records_is_that_of_each(config, n, epoch, data):
    order = order_of(config, n)
    indices = data.draw(st.lists(st.integers(0, n - 1), unique=True))
    each = [position for index in indices for position in order.positions("books", index, epoch)]
    assert order.positions_of("books", np.array(indices, np.int64), epoch).tolist() == sorted(each)


@any_policy
@pytest.mark.parametrize("n", [65_537, 2**20 + 1])
@pytest.mark.few(3)
def test_the_inverse_of_all_records_is_the_whole_epoch(config, n):
    """Also where Grain delivers a record twice and another one never."""
    order = order_of(config, n)
    found = order.positions_of("books", np.arange(n), 1)
    assert np.array_equal(found, np.arange(n, 2 * n))
    missing = np.setdiff1d(np.arange(n), order.keys(found).index)
    assert order.positions_of("books", missing, 1).tolist() == []
    assert len(missing) == (config.policy is OrderPolicy.GRAIN)


@any_policy
def test_an_order_is_made_again_from_its_recorded_identity(config):
    order = order_of(config, 1000)
    again = Order.from_identity(json.loads(json.dumps(order.identity())))
    assert again.identity() == order.identity()
    positions = np.arange(0, 5000, 7)
    assert again.keys(positions).index.tolist() == order.keys(positions).index.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "order.version is 99 .*; this version of datarax has"),
        ({"policy": "sorted"}, "cannot be computed: policy of the order must be one of"),
        ({"colour": "red"}, "cannot be computed: .*colour"),
        ({"sources": {}}, "cannot be computed: an order needs exactly one source"),
        ({"sources": {"books": "10"}}, "cannot be computed"),
        ({"policy": "none"}, "is not one that this datarax writes"),
    ],
)
def test_an_identity_of_no_order_of_ours_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Order.from_identity(order_of(OrderConfig(), 10).identity() | change)


@any_policy
@pytest.mark.parametrize("n", [7, 10**6, 2**40 + 3])
def test_keys_beyond_each_integer_width_are_exact(config, n):
    order = order_of(config, n)
    keys = order.keys(BORDERS)
    assert keys.epoch.tolist() == [int(p) // n for p in BORDERS]
    for position, (_, index, epoch) in zip(BORDERS.tolist(), keys.rows(), strict=True):
        assert order.positions("books", index, epoch) == [position]


def test_a_pad_slot_has_the_key_of_all_minus_ones():
    order = order_of(OrderConfig(), 10)
    keys = order.keys(np.array([3, -1, 17, -1]))
    assert (keys.source.dtype, keys.index.dtype, keys.epoch.dtype) == (np.int32, np.int64, np.int64)
    rows = list(keys.rows())
    assert rows[1] == rows[3] == (-1, -1, -1)
    assert rows[0] == next(order.keys(np.array([3])).rows())
    assert list(order.keys(np.array([-1])).rows()) == [(-1, -1, -1)]


def test_without_shuffle_a_key_is_quotient_and_remainder():
    order = order_of(OrderConfig(policy=OrderPolicy.NONE), 10)
    assert list(order.keys(np.array([0, 9, 10, 2**53 + 1])).rows()) == [
        (0, 0, 0),
        (0, 9, 0),
        (0, 0, 1),
        (0, (2**53 + 1) % 10, (2**53 + 1) // 10),
    ]


@pytest.mark.parametrize("n", [64, 5000])
def test_seeds_epochs_and_sources_share_no_order(n):
    """Adding a seed to an epoch would make (1, 1) and (2, 0) alike."""
    orders = {}
    for name in ("books", "web"):
        for seed in range(12):
            index = Order(OrderConfig(seed=seed), {name: n}).keys(np.arange(12 * n)).index
            for epoch, row in enumerate(index.reshape(12, n)):
                orders[row.tobytes()] = (name, seed, epoch)
    assert len(orders) == 2 * 12 * 12


@pytest.mark.parametrize("name", ["global", "block"])
def test_two_epochs_agree_in_no_more_places_than_chance(name):
    index = order_of(CONFIGS[name], 10_000).keys(np.arange(20_000)).index.reshape(2, 10_000)
    assert (index[0] == index[1]).sum() < 10  # one is expected


@any_policy
def test_threads_asking_at_once_get_what_one_gets(config):
    order, n = order_of(config, 500), 500
    expected = order_of(config, n).keys(np.arange(40 * n)).index
    wrong = []

    def ask(thread):
        for turn in range(40):
            first = (turn * 7 + thread * 13) % 38 * n + thread
            if not np.array_equal(order.keys(np.arange(first, first + n)).index, expected[first : first + n]):
                wrong.append((thread, turn))

    threads = [threading.Thread(target=ask, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@any_policy
def test_a_pickled_order_is_the_same_order(config):
    order = order_of(config, 1000)
    copy = pickle.loads(pickle.dumps(order))
    assert copy.identity() == order.identity()
    assert list(copy.keys(np.arange(50)).rows()) == list(order.keys(np.arange(50)).rows())


def test_one_record_is_delivered_for_ever():
    order = order_of(OrderConfig(), 1)
    assert list(order.keys(np.array([0, 1, MAX_POSITION])).rows()) == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, MAX_POSITION),
    ]


def test_keys_are_cut_by_slices_arrays_and_masks():
    keys = order_of(OrderConfig(), 10).keys(np.arange(6))
    assert list(keys[2:4].rows()) == list(keys.rows())[2:4]
    assert list(keys[np.array([5, 0])].rows()) == [list(keys.rows())[i] for i in (5, 0)]
    assert len(keys[np.arange(6) > 3]) == 2


def test_identity_holds_the_fields_that_matter_and_no_others():
    assert order_of(CONFIGS["none"], 5).identity() == {
        "version": 1,
        "policy": "none",
        "sources": {"books": 5},
    }
    assert order_of(CONFIGS["global"], 5).identity() == {
        "version": 1,
        "policy": "global",
        "sources": {"books": 5},
        "seed": 11,
    }
    assert order_of(CONFIGS["block"], 5).identity().keys() == {
        "version",
        "policy",
        "sources",
        "seed",
        "block_size",
        "window_blocks",
    }
    pipeline = order_of(CONFIGS["grain pipeline"], 5).identity()
    assert (pipeline["grain_style"], pipeline["grain_ops_between"]) == ("map_dataset", 0)
    assert "grain_ops_between" not in order_of(CONFIGS["grain"], 5).identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"policy": "random"},
            "policy of the order must be one of 'none', 'global', 'block', 'grain', got 'random'",
        ),
        ({"seed": -1}, "seed of the order must be an integer of at least 0, got -1"),
        ({"seed": 2**63}, "seed of the order must be .* got 9223372036854775808"),
        ({"seed": True}, "seed of the order must be .* got True"),
        ({"seed": 1.0}, "seed of the order must be .* got 1.0"),
        ({"policy": "block"}, "needs order.block_size"),
        ({"policy": "block", "block_size": 4}, "needs order.window_blocks"),
        (
            {"policy": "block", "block_size": 0, "window_blocks": 1},
            "block_size of the order must be an integer of at least 1, got 0",
        ),
        ({"block_size": 4}, "order.block_size is 4 but order.policy is 'global'"),
        ({"policy": "grain"}, "needs order.grain_style, one of: index_sampler, map_dataset"),
        ({"policy": "grain", "grain_style": "torch"}, "'torch'"),
        ({"policy": "grain", "grain_style": "index_sampler", "seed": 2**32}, "below 2\\^32"),
        ({"policy": "grain", "grain_style": "index_sampler", "grain_ops_between": 1}, "'map_dataset' only"),
        ({"grain_ops_between": 1}, "'map_dataset' only"),
    ],
)
def test_a_config_that_makes_no_order_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        OrderConfig(**fields)


def test_a_policy_may_be_given_by_its_name():
    assert OrderConfig(policy="none").policy is OrderPolicy.NONE


@pytest.mark.parametrize("sources", [{}, {"a": 1, "b": 2}])
def test_exactly_one_source_is_needed(sources):
    with pytest.raises(ConfigError, match="exactly one source"):
        Order(OrderConfig(), sources)


@pytest.mark.parametrize("n", [0, -1, 2**63])
def test_an_impossible_number_of_records_is_refused(n):
    with pytest.raises(InputError, match=f"'books' has {n} records"):
        order_of(OrderConfig(), n)


def test_a_number_of_records_that_is_no_integer_is_refused():
    with pytest.raises(TypeError):
        order_of(OrderConfig(), 10.0)
    assert type(order_of(OrderConfig(), np.int32(10)).num_records) is int


@pytest.mark.parametrize(
    ("positions", "error"),
    [
        (np.array([1.0]), TypeError),
        (np.array([True]), TypeError),
        (np.array([-2]), InputError),
        (np.array([2**63], np.uint64), InputError),
        (np.array([[1]]), InputError),
    ],
)
def test_positions_that_are_none_are_refused(positions, error):
    with pytest.raises(error, match="position"):
        order_of(OrderConfig(), 10).keys(positions)


def test_narrow_and_unsigned_positions_are_welcome():
    order = order_of(OrderConfig(), 10)
    expected = list(order.keys(np.array([3, 4])).rows())
    for dtype in (np.int8, np.uint32, np.uint64):
        assert list(order.keys(np.array([3, 4], dtype)).rows()) == expected
    assert len(order.keys(np.array([]))) == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (("web", 0, 0), "no source is called 'web'"),
        (("books", 10, 0), "records 0 to 9, not 10"),
        (("books", -1, 0), "not -1"),
        (("books", 0, -1), "epoch -1"),
        (("books", 0, MAX_POSITION // 10 + 1), "does not exist"),
    ],
)
def test_a_record_that_does_not_exist_has_no_position(record, message):
    with pytest.raises(InputError, match=message):
        order_of(OrderConfig(), 10).positions(*record)


def test_a_record_behind_the_last_position_is_refused():
    # 2^63 - 1 = 10 * 922337203685477580 + 7: the last epoch is cut after its eighth record.
    order, last = order_of(OrderConfig(policy=OrderPolicy.NONE), 10), MAX_POSITION // 10
    assert order.positions("books", 7, last) == [MAX_POSITION]
    with pytest.raises(InputError, match="beyond the last position"):
        order.positions("books", 8, last)


def test_numpy_integers_do_not_wrap_in_the_inverse():
    order = order_of(OrderConfig(), 2**40)
    assert order.positions("books", np.int32(5), np.int32(2**20)) == order.positions("books", 5, 2**20)
