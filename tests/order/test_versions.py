"""Every version of the order stays callable, beside a newer one and whatever the default is."""

import dataclasses
import pickle

import numpy as np
import pytest

from datarax.core.errors import ConfigError
from datarax.loader import DataLoaderConfig
from datarax.order import ORDER_VERSION, Order, OrderConfig
from datarax.order.versions import ALGORITHMS
from tests.support.second_order import second_version


def keys(version, **fields):
    return Order(OrderConfig(seed=3, version=version, **fields), {"books": 1000}).keys(np.arange(2500))


def test_every_version_from_the_first_to_the_newest_has_its_algorithms():
    assert list(ALGORITHMS) == list(range(1, ORDER_VERSION + 1))


@pytest.mark.parametrize("version", [0, ORDER_VERSION + 1, -1, True, "1", None])
def test_a_version_that_is_not_known_is_refused_by_its_number(version):
    with pytest.raises(ConfigError, match=rf"order.version is {version!r} .*1 to {ORDER_VERSION}"):
        OrderConfig(version=version)


def test_the_first_version_gives_the_same_keys_when_there_is_a_second():
    before = keys(1)
    with second_version():
        assert np.array_equal(keys(1).index, before.index)
        assert not np.array_equal(keys(2).index, before.index)
        assert OrderConfig(version=1) != OrderConfig(version=2)


def test_an_order_of_an_old_version_survives_pickling_and_says_its_version():
    with second_version():
        for version in (1, 2):
            order = pickle.loads(pickle.dumps(Order(OrderConfig(version=version), {"books": 300})))
            assert order.identity()["version"] == version
            place = order.positions("books", 17, 4)
            assert order.keys(np.array(place)).index.tolist() == [17]


def test_row_seeds_belong_to_the_version_too():
    rows = keys(1)[:5]
    with second_version():
        first, second = (
            Order(OrderConfig(seed=3, version=version), {"books": 1000}).row_seeds("crop", rows)
            for version in (1, 2)
        )
    assert not np.any(first == second)


def test_a_loader_config_holds_the_version_that_was_the_newest_when_it_was_made():
    config = DataLoaderConfig(batch_size=4)
    assert config.order_version == ORDER_VERSION
    with second_version():
        assert dataclasses.replace(config, batch_size=8).order_config().version == 1
        assert DataLoaderConfig(batch_size=4).order_config().version == 2
