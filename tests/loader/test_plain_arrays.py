"""Arrays that are more than their numbers (masks, units, rules of their own) are refused wherever NumPy would forget that."""

import hashlib

import grain
import jax
import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainPipeline,
    GrainPipelineConfig,
    MemoryConfig,
    MemorySource,
    map_batch,
    map_records,
)
from datarax.checkpoint.model_item import describe
from datarax.core.errors import InputError
from datarax.core.tree import digest, hash_tree, with_spelled_arrays
from datarax.sources import GrainConfig, GrainSource


class Metres(np.ndarray):
    """An array with a unit."""


class Quantity:
    """No array, but becomes one, and then has lost its unit."""

    def __init__(self, array):
        self.array, self.shape, self.units = array, array.shape, "m"

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __len__(self):
        return len(self.array)


class OlderQuantity:
    """The same by NumPy's older protocol."""

    def __init__(self, array):
        self.array, self.shape, self.units = array, array.shape, "m"

    @property
    def __array_interface__(self):
        return self.array.__array_interface__


def masked(array):
    return np.ma.masked_less(array, 1)


KINDS = {
    "masked": masked,
    "matrix": lambda array: np.atleast_2d(array).view(np.matrix),
    "unit": lambda array: array.view(Metres),
    "quantity": Quantity,
}
NUMBERS = np.arange(8.0).reshape(8, 1)


def first(source, *transforms):
    config = DataLoaderConfig(batch_size=4, num_epochs=1, order="none", byte_digest=True, read_ahead=0)
    return next(DataLoader(config, source, transforms=transforms))


class Records:
    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": self.kind(NUMBERS[index])}


def memory(data):
    return MemorySource(MemoryConfig(), data)


WAYS = {
    "column": lambda kind: memory({"x": kind(NUMBERS)}),
    "list": lambda kind: first(memory([{"x": kind(row)} for row in NUMBERS])),
    "record": lambda kind: first(GrainSource(GrainConfig(version="1"), Records(kind))),
    "identity of a list": lambda kind: memory([{"x": kind(row)} for row in NUMBERS]).identity(),
    "identity of records": lambda kind: GrainSource(GrainConfig(version="1"), Records(kind)).identity(),
    "batch transform": lambda kind: first(
        memory({"x": NUMBERS}), map_batch(lambda b: {"x": kind(b["x"])}, name="t", version=1)
    ),
    "record transform": lambda kind: first(
        memory({"x": NUMBERS}), map_records(lambda r: {"x": kind(r["x"])}, name="t", version=1)
    ),
    "Grain": lambda kind: next(
        GrainPipeline(
            GrainPipelineConfig(name="p", version=1),
            grain.MapDataset.range(8).map(lambda i: {"x": kind(NUMBERS[i])}),
        )
    ),
    "model": lambda kind: describe("x", kind(NUMBERS)),
    "hash": lambda kind: hash_tree(hashlib.sha256(), {"x": kind(NUMBERS)}, "x"),
    "spelling": lambda kind: digest(with_spelled_arrays({"x": kind(NUMBERS)})),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_it_is_refused_by_its_kind(way, kind):
    with pytest.raises(
        (InputError, TypeError), match=r"(x|an array)\b.* is a .*(MaskedArray|matrix|Metres|Quantity)"
    ):
        way(kind)


@pytest.mark.parametrize("way", ["list", "record", "batch transform", "record transform"])
def test_what_becomes_an_array_by_the_older_protocol_is_refused_too(way):
    with pytest.raises(InputError, match=r"x\b.* is a .*OlderQuantity"):
        WAYS[way](OlderQuantity)


@pytest.mark.parametrize("wrap", [lambda mean: mean, lambda mean: (mean,), lambda mean: [0.0, mean]])
def test_a_mean_that_is_masked_is_no_zero(wrap):
    config = DataLoaderConfig(
        batch_size=4,
        read_ahead=0,
        batch_stats_fn=lambda batch: {"m": wrap(np.ma.masked_less(batch["x"], 99).mean())},
    )
    with pytest.raises(InputError, match="'m' is a"):
        next(DataLoader(config, memory({"x": NUMBERS})))


def test_a_mean_with_a_unit_is_no_number():
    config = DataLoaderConfig(
        batch_size=4, read_ahead=0, batch_stats_fn=lambda batch: {"m": Quantity(batch["x"])}
    )
    with pytest.raises(InputError, match="'m' is a"):
        next(DataLoader(config, memory({"x": NUMBERS})))


def test_a_count_that_is_masked_is_no_state():
    for module in (
        memory({"x": NUMBERS}),
        DataLoader(DataLoaderConfig(batch_size=4), memory({"x": NUMBERS})),
    ):
        state = module.get_state()
        count = np.ma.array(2, mask=True, dtype=np.asarray(state["_applied_count"]).dtype)
        with pytest.raises(ValueError, match="incompatible") as found:
            module.set_state({**state, "_applied_count": count})
        assert "_applied_count is a numpy.ma.MaskedArray" in str(found.value.__cause__)
        assert repr(module.get_state()) == repr(state)


def test_plain_kinds_are_taken(tmp_path):
    NUMBERS.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float64, "r", shape=(8, 1))
    for column in (mapped, jax.numpy.asarray(NUMBERS)):
        assert np.array_equal(first(memory({"x": column}))["x"], NUMBERS[:4])
    record = np.rec.array([(i, i / 2) for i in range(8)], dtype=[("a", "<i4"), ("b", "<f4")])
    assert memory({"x": record}).read([3])["x"]["a"].tolist() == [3]


def test_a_transform_may_fill_what_is_masked():
    filled = first(
        GrainSource(GrainConfig(version="1"), Filled()),
        map_records(lambda r: r["x"].filled(-1), name="f", version=1),
    )
    assert filled.tolist() == [[-1.0], [1.0], [2.0], [3.0]]


class Filled(Records):
    def __init__(self):
        super().__init__(masked)
