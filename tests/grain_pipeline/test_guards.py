"""What functions and sources of the user's let out: no silent end, and no array that Grain would take without its mask."""

import sys

import grain
import jax
import numpy as np
import pytest

from datarax.core.errors import InputError
from datarax.grain_pipeline.iterators import opened
from datarax.sources.records import sample_positions
from tests.support.grain_pipelines import stream, wrap

experimental = grain.experimental


# Datasets that a function makes


def bad(x):
    if x == 3:
        raise StopIteration
    return x


def interleaved(datasets):
    return experimental.InterleaveIterDataset(datasets, cycle_length=2)


MADE = {
    "streams of maps": lambda i: grain.MapDataset.range(5).map(bad).to_iter_dataset(),
    "maps of streams": lambda i: stream(5).map(bad),
    "random access": lambda i: grain.MapDataset.range(5).map(bad),
    "made in what is made": lambda i: interleaved(grain.MapDataset.range(1).map(MADE["maps of streams"])),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_stop_iteration_in_a_dataset_that_a_function_makes_is_no_end(make):
    module = wrap(interleaved(grain.MapDataset.range(3).map(make)), version=1)
    with pytest.raises(RuntimeError, match="StopIteration was raised by a function"):
        list(module)


class SourceOfStreams:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return stream(5).map(bad)


def test_a_stop_iteration_in_a_dataset_that_a_source_gives_is_no_end():
    module = wrap(interleaved(grain.MapDataset.source(SourceOfStreams())), version=1)
    with pytest.raises(RuntimeError, match="StopIteration was raised by a function"):
        list(module)


def test_guards_are_put_around_a_function_once_however_many_functions_its_dataset_comes_through():
    guards = []

    def function(x):
        frame = sys._getframe(1)
        while frame.f_code.co_name == "called":
            guards.append(x)
            frame = frame.f_back
        return x

    made = stream(2).map(function)
    datasets = grain.MapDataset.source([made]).map(lambda dataset: dataset).map(lambda dataset: dataset)
    assert list(wrap(interleaved(datasets), version=1)) == guards == [0, 1]
    assert made._map_fn is function  # the user's own stays as it is


# Arrays that are more than their numbers

ROWS = np.ma.array(np.arange(8.0).reshape(4, 2), mask=[[0, 1]] * 4)


def masked(i):
    return {"x": ROWS[i]}


class Masked(grain.transforms.Map):
    def map(self, i):
        return masked(i)


class MaskedHalves(grain.experimental.FlatMapTransform):
    max_fan_out = 2

    def flat_map(self, i):
        yield masked(i)


class MaskedSource:
    """Masked where the identity, which samples 16 records, does not look."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return {"x": np.zeros(2)} if i in sample_positions(64, 16) else masked(i % 4)


class MaskedBlocks(MaskedSource):
    def _getitems(self, indices):
        return [self[i] for i in indices]


def packed(dataset):
    return experimental.FirstFitPackIterDataset(dataset, length_struct={"x": 4}, num_packing_bins=2)


def loader(source, operations):
    shards = grain.sharding.NoSharding()
    return grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.SequentialSampler(num_records=4, shard_options=shards),
        operations=[*operations, grain.transforms.Batch(2, batch_fn=lambda rows: rows[0]["x"].sum())],
        worker_count=0,
        shard_options=shards,
    )


LOST = {
    "first fit": lambda: packed(stream(4).map(masked)),
    "best fit": lambda: experimental.BestFitPackIterDataset(
        stream(4).map(masked), length_struct={"x": 4}, num_packing_bins=2
    ),
    "concat": lambda: experimental.ConcatThenSplitIterDataset(stream(4).map(masked), length_struct={"x": 4}),
    "map": lambda: packed(grain.MapDataset.range(4).map(masked).to_iter_dataset()),
    "random map": lambda: packed(stream(4).random_map(lambda i, rng: masked(i), seed=1)),
    "flat map of a stream": lambda: packed(stream(4).apply(MaskedHalves())),
    "flat map": lambda: packed(grain.MapDataset.range(4).apply(MaskedHalves()).to_iter_dataset()),
    "source": lambda: packed(grain.MapDataset.source(MaskedSource()).to_iter_dataset()),
    "source of blocks": lambda: (
        grain.MapDataset.source(MaskedBlocks()).batch(2, batch_fn=lambda rows: len(rows)).to_iter_dataset()
    ),
    "in a dataset that is made": lambda: packed(
        interleaved(grain.MapDataset.range(2).map(lambda i: stream(4).map(masked)))
    ),
    "batch function": lambda: packed(stream(4).batch(2, batch_fn=lambda rows: masked(rows[0]))),
    "source of a loader": lambda: loader(MaskedSource(), []),
    "map of a loader": lambda: loader(range(4), [Masked()]),
    "flat map of a loader": lambda: loader(range(4), [MaskedHalves()]),
}


@pytest.mark.parametrize("make", LOST.values(), ids=LOST)
def test_a_mask_is_not_lost_between_a_function_and_the_element(make):
    with pytest.raises(
        InputError, match=r"the pipeline gave, at (\[[01]\])?\['x'\], is a numpy\.ma\.MaskedArray"
    ):
        next(wrap(make(), version=1))


@pytest.mark.full
def test_a_mask_is_not_lost_on_the_way_from_a_worker_process():
    pipeline = stream(4).map(masked).mp_prefetch(grain.MultiprocessingOptions(num_workers=1))
    with wrap(pipeline, version=1) as module, pytest.raises(InputError, match=r"at \['x'\], is a numpy\.ma"):
        next(module)


@pytest.mark.parametrize(
    "leaf",
    [
        np.float32(1),
        np.zeros(2),
        np.recarray((1,), dtype=[("a", "i4")]),
        jax.numpy.ones(2),
        "text",
        None,
        [1, (2.0,)],
    ],
)
def test_what_is_plain_comes_through_as_it_is(leaf):
    given = {"x": leaf, "y": [1]}
    pipeline = stream(1).map(lambda i: given)
    assert next(iter(pipeline)) is next(opened(pipeline, wrap(pipeline, version=1)._feed.node)) is given


def test_keys_that_cannot_be_sorted_may_live_between_two_functions():
    pipeline = stream(2).map(lambda i: {1: i, "a": i}).map(lambda tree: tree["a"])
    assert list(wrap(pipeline, version=1)) == [0, 1]


# States that contradict themselves


@pytest.mark.parametrize("settings", [{}, {"num_steps": 20}])
def test_a_place_beyond_the_last_element_is_refused(settings):
    module = wrap(stream(20), **settings)
    next(module)
    state = module.get_state()
    with pytest.raises(ValueError, match="idx: 100 elements were handed over, but this pipeline has 20"):
        module.set_state(state | {"idx": 100, "position": 100})
    assert list(module) == [*range(1, 20)]


def test_the_place_after_the_last_element_is_taken():
    module = wrap(stream(3))
    assert len(list(module)) == 3
    other = wrap(stream(3))
    other.set_state(module.get_state())
    assert list(other) == []


def test_fewer_indices_than_elements_are_refused_and_more_are_not():
    def odd(x):
        return x if x % 2 else None

    module = wrap(grain.MapDataset.range(20).map(odd), version=1)
    assert [next(module) for _ in range(5)] == [1, 3, 5, 7, 9]
    state = module.get_state()
    assert state["grain_state"] == {"next_index": 10}
    module.set_state(state)
    with pytest.raises(
        ValueError, match=r"next_index: 4, but 5 elements \(idx\) take as many indices or more"
    ):
        module.set_state(state | {"grain_state": {"next_index": 4}})
    assert next(module) == 11


@pytest.mark.parametrize("index", [0, 3, 4])
def test_a_state_of_batches_of_a_stream_is_not_behind_what_they_took(index):
    dataset = grain.MapDataset.range(20).to_iter_dataset().map(int).batch(2)
    module = wrap(dataset, version=1)
    for _ in range(3):
        next(module)
    state = module.get_state()
    assert state["grain_state"] == {"next_index": 6}
    with pytest.raises(
        ValueError, match=rf"next_index: {index}, but 3 elements \(idx\) take 5 indices or more"
    ):
        module.set_state(state | {"grain_state": {"next_index": index}})
    assert next(module).tolist() == [6, 7]
    module.set_state(state)
    assert next(module).tolist() == [6, 7]
