"""Other people's data sets: the protocol, batched reads, and an identity or none."""

from __future__ import annotations

from typing import Any

import grain
import numpy as np
import pytest

from datarax.core.errors import ConfigError, InputError
from datarax.sources import GrainConfig, GrainSource


class Batched:
    """Answers lists of indices; `answers` counts how often."""

    def __init__(self, short: bool = False) -> None:
        self.answers = 0
        self.short = short

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read one by one")

    def __getitems__(self, indices: list[int]) -> list[int]:
        assert all(type(index) is int for index in indices)
        self.answers += 1
        return [index * index for index in indices][self.short :]


class Unhashable:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return {"image": object()}


class Restless:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> float:
        return np.random.default_rng().random()


def source(data: Any, **settings: Any) -> GrainSource:
    return GrainSource(GrainConfig(name="g", **settings), data)


def test_a_batch_is_one_call_where_the_object_can():
    data = Batched()
    assert source(data).read([3, 1, 3]) == [9, 1, 9]
    assert data.answers == 1
    assert source(data).read([]) == []


def test_a_batch_that_comes_back_short_is_an_error():
    with pytest.raises(ValueError, match=r"Batched.__getitems__ gave 1 records for 2 indices"):
        source(Batched(short=True)).read([3, 1])


def test_grains_own_sources_and_pipelines_are_sources():
    assert source(grain.sources.RangeDataSource(0, 10, 2)).read([4, 0]) == [8, 0]
    doubled = source(grain.MapDataset.range(5).map(lambda x: 2 * x))
    assert list(doubled) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("data", [3, None, iter([1]), Batched, {1, 2}])
def test_what_does_not_meet_the_protocol_is_refused(data: Any):
    with pytest.raises(TypeError, match="give an object that meets Grain's RandomAccessDataSource protocol"):
        source(data)


def test_an_empty_object_is_refused():
    with pytest.raises(InputError, match="source 'g' is empty: its tuple has 0 records"):
        source(())


def test_records_that_cannot_be_hashed_need_a_version():
    with pytest.raises(
        InputError, match=r"cannot be fingerprinted: record 0\['image'\] is a object.*declare a version"
    ):
        source(Unhashable()).identity()
    first, second = (source(Unhashable(), version=version).identity() for version in ("1", "2"))
    assert first != second
    assert first["sample"] is None


def test_a_version_is_identity_beside_the_sample():
    plain, versioned = source([1, 2, 3]).identity(), source([1, 2, 3], version="a").identity()
    assert plain["sample"] == versioned["sample"]
    assert plain != versioned


def test_records_that_change_from_read_to_read_are_refused():
    with pytest.raises(InputError, match="gives other records when it is read again"):
        source(Restless()).identity()


def test_an_error_of_the_object_comes_through_as_it_is():
    class Broken(Unhashable):
        def __getitem__(self, index: int) -> Any:
            raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost"):
        source(Broken()).read([0])


def test_an_empty_version_is_refused():
    with pytest.raises(ConfigError, match="version must be a string that is not empty"):
        GrainConfig(version="")
