"""Data in memory: what is refused, and what its fingerprints see."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from datarax.core.errors import InputError
from datarax.sources import MemoryConfig, MemorySource


def source(data: object) -> MemorySource:
    return MemorySource(MemoryConfig(name="m"), data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "source 'm' is empty: it has 0 records"),
        ({"x": np.zeros((0, 3))}, "source 'm' is empty"),
        ({}, "the data holds no arrays"),
        ({"x": np.zeros(3), "y": {"z": np.zeros(4)}}, "different numbers of records: x: 3, y.z: 4"),
        ({"x": np.zeros(())}, "x of the data is a single number"),
        ({"x": 3}, "x of the data is a int, not an array"),
        ({"x": [1, 2]}, r"x.0 of the data is a int, not an array"),
        (np.array(["a", None], dtype=object), "data of the data is an array of Python objects"),
    ],
)
def test_data_without_one_axis_of_records_is_refused(data: object, message: str):
    with pytest.raises(InputError, match=message):
        source(data)


def test_a_list_holds_records_and_a_tuple_holds_arrays():
    pairs = [(1, "a"), (2, "b"), (3, "c")]
    assert not source(pairs).columnar
    assert source(pairs).read([2, 0]) == [(3, "c"), (1, "a")]
    arrays = source((np.arange(3), np.arange(3) * 10))
    assert arrays.columnar
    assert [column.tolist() for column in arrays.read([2, 0])] == [[2, 0], [20, 0]]


def test_device_arrays_are_read_on_the_host():
    read = source(jnp.arange(4)).read([1, 3])
    assert type(read) is np.ndarray
    assert read.tolist() == [1, 3]


def test_a_batch_is_a_copy():
    data = np.arange(4)
    columns = source(data)
    batch = columns.read(np.arange(4))
    data[0] = 9
    assert batch.tolist() == [0, 1, 2, 3]


def test_records_that_cannot_be_hashed_have_no_identity():
    with pytest.raises(InputError, match="source 'm' cannot be fingerprinted: record 1 is a object"):
        source([1, object()]).identity()


def test_small_data_is_fingerprinted_whole():
    data = np.zeros((5000, 10), np.uint8)
    before = source(data).identity()
    data[1234, 5] = 1  # in no sample of 1,024 records
    assert source(data).identity() != before


def test_large_data_is_sampled_and_its_full_fingerprint_sees_every_byte():
    data = np.zeros(((64 << 20) + 1, 1), np.uint8)
    columns = source(data)
    quick, full = columns.identity(), columns.content_fingerprint()
    data[12345] = 1
    assert columns.identity() == quick
    assert columns.content_fingerprint() != full
    data[-1] = 1  # the last record is always in the sample
    assert columns.identity() != quick


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((4, 2), np.float32)},
        {"y": np.zeros((4, 2))},
        {"x": np.zeros((4, 1, 2))},
        (np.zeros((4, 2)),),
        [np.zeros(2)] * 4,
    ],
)
def test_another_layout_is_another_identity(other: object):
    assert source(other).identity() != source({"x": np.zeros((4, 2))}).identity()


def test_the_full_fingerprint_of_a_list_sees_every_record():
    records = [0] * 10_000
    quick, full = source(records).identity(), source(records).content_fingerprint()
    records[1] = 1  # not among the 4,096 that are sampled
    assert source(records).identity() == quick
    assert source(records).content_fingerprint() != full
