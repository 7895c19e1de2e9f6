"""The 32 deliberate mismatches that bare Grain takes in, and those of its DataLoader: each is refused by name."""

import os
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from datarax import Checkpointer
from datarax.core.errors import MismatchError
from tests.support.grain_pipelines import (
    AddNoise,
    AddOne,
    Halves,
    add_noise,
    double,
    is_odd,
    loader,
    stream,
    wrap,
)

experimental = grain.experimental


@dataclass(frozen=True)
class Case:
    """A snapshot is taken of `was` after two elements, and `now` is asked to restore it."""

    name: str
    was: Any
    now: Any
    field: str
    """A field that the refusal names, below the pipeline."""


def shuffled(seed=1, n=50):
    return grain.MapDataset.range(n).shuffle(seed=seed)


def noisy_map(seed):
    return grain.MapDataset.range(50).random_map(add_noise, seed=seed)


def noisy_stream(seed):
    return stream(50).random_map(add_noise, seed=seed)


def seeded(extra):
    dataset = grain.MapDataset.range(50).seed(3)
    return (dataset.map(double) if extra else dataset).shuffle()


def mapped_batches(size):
    return grain.MapDataset.range(50).batch(size)


def streamed_batches(size):
    return stream(50).batch(size)


def is_large(x):
    return x > 3


def windowed(size):
    return experimental.WindowShuffleIterDataset(stream(50), window_size=size, seed=1)


def mixed(count, weights=None):
    return grain.IterDataset.mix([stream(30 + i) for i in range(count)], weights=weights)


def sliced(index, count):
    return grain.MapDataset.range(60)[index::count]


def workers(count):
    return experimental.multithread_prefetch(stream(60), num_threads=count, buffer_size=1)


def interleaved(cycle, datasets=4):
    return experimental.InterleaveIterDataset(
        [grain.MapDataset.range(100 * i, 100 * i + 9).to_iter_dataset() for i in range(datasets)],
        cycle_length=cycle,
    )


def batches_in_workers(size):
    return experimental.multithread_prefetch(stream(60).batch(size), num_threads=2, buffer_size=1)


DATASET = [
    Case("shuffle seed", shuffled(1), shuffled(2), "01_ShuffleMapDataset.seed"),
    Case("random_map seed in a map", noisy_map(1), noisy_map(2), "01_RandomMapMapDataset.seed"),
    Case("random_map seed in a stream", noisy_stream(1), noisy_stream(2), "02_RandomMapIterDataset.seed"),
    Case("smaller source, index in range", shuffled(n=50), shuffled(n=20), "00_RangeMapDataset.stop"),
    Case("smaller source, index out of range", shuffled(n=50), shuffled(n=1), "00_RangeMapDataset.stop"),
    Case("larger source", shuffled(n=50), shuffled(n=100), "00_RangeMapDataset.stop"),
    Case("batch size in a map", mapped_batches(4), mapped_batches(5), "01_BatchMapDataset.batch_size"),
    Case(
        "batch size in a stream", streamed_batches(4), streamed_batches(5), "02_BatchIterDataset.batch_size"
    ),
    Case("map batch to stream batch", mapped_batches(4), streamed_batches(4), "01_BatchMapDataset"),
    Case("stream batch to map batch", streamed_batches(4), mapped_batches(4), "02_BatchIterDataset"),
    Case(
        "filter",
        stream(50).filter(is_odd),
        stream(50).filter(is_large),
        "02_FilterIterDataset.filter.source_sha256",
    ),
    Case("a map before a seeded shuffle", seeded(False), seeded(True), "01_MapMapDataset"),
    Case("window size", windowed(4), windowed(5), "02_WindowShuffleIterDataset.window_size"),
    Case("mix of 2 to 3", mixed(2), mixed(3), "00_MixedIterDataset.parents.2"),
    Case("mix of 3 to 2", mixed(3), mixed(2), "00_MixedIterDataset.parents.2"),
    Case("mix weights", mixed(2, [1, 1]), mixed(2, [1, 2]), "00_MixedIterDataset.proportions.1"),
    Case("shard 0 of 2 to 0 of 4", sliced(0, 2), sliced(0, 4), "01_SliceMapDataset.shard_count"),
    Case("shard 0 of 2 to 1 of 2", sliced(0, 2), sliced(1, 2), "shards.pipeline.01_SliceMapDataset"),
    Case("window shuffle to none", windowed(4), stream(50), "02_WindowShuffleIterDataset"),
    Case("no window shuffle to one", stream(50), windowed(4), "02_WindowShuffleIterDataset"),
    Case("workers 2 to 3", workers(2), workers(3), "00_multithread_prefetch.num_workers"),
    Case("workers 2 to 4", workers(2), workers(4), "00_multithread_prefetch.num_workers"),
    Case("workers 1 to 2", workers(1), workers(2), "00_multithread_prefetch.num_workers"),
    Case("workers 4 to 2", workers(4), workers(2), "00_multithread_prefetch.num_workers"),
    Case("workers 2 to 1", workers(2), workers(1), "00_multithread_prefetch.num_workers"),
    Case("cycle 3 to 2", interleaved(3), interleaved(2), "00_InterleaveIterDataset.cycle_length"),
    Case("fewer datasets", interleaved(2, 6), interleaved(2, 4), "00_InterleaveIterDataset.num_datasets"),
    Case("workers 2 to none", workers(2), workers(0), "00_multithread_prefetch"),
    Case("no workers to 2", workers(0), workers(2), "00_multithread_prefetch"),
    Case("cycle 2 to 3", interleaved(2), interleaved(3), "00_InterleaveIterDataset.cycle_length"),
    Case("datasets appended", interleaved(2, 4), interleaved(2, 6), "00_InterleaveIterDataset.num_datasets"),
    Case(
        "batch size inside workers",
        batches_in_workers(4),
        batches_in_workers(5),
        "00_multithread_prefetch.parents.0.02_BatchIterDataset.batch_size",
    ),
]


def sharded_sampler(index, count):
    return {"shard_options": grain.sharding.ShardOptions(index, count)}


def shard(index, count):
    return grain.sharding.ShardOptions(index, count)


def sequential(seed):
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, 20, 1),
        sampler=grain.samplers.SequentialSampler(20, seed=seed),
        operations=[AddNoise()],
        shard_options=grain.sharding.NoSharding(),
    )


class AddMany(grain.transforms.Map):
    def __init__(self, count):
        self.count = count

    def map(self, element):
        return element + self.count


class Thirds(grain.experimental.FlatMapTransform):
    max_fan_out = 3

    def flat_map(self, element):
        return [element, element + 1000, element + 2000]


class Words:
    """A source of the user's own, with a repr that tells its content to Grain's check."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return np.int64(index)

    def __repr__(self):
        return "Words()"


LOADER = [
    Case("seed", loader(), loader(sampler={"seed": 6}), "01_IndexSampler.seed"),
    Case("epochs", loader(), loader(sampler={"num_epochs": 2}), "01_IndexSampler.num_epochs"),
    Case("number of records", loader(n=20), loader(n=19), "01_IndexSampler.num_records"),
    Case(
        "shards of the sampler",
        loader(sampler=sharded_sampler(0, 2)),
        loader(sampler=sharded_sampler(0, 4)),
        "01_IndexSampler.shard_count",
    ),
    Case("workers", loader(), loader(worker_count=2), "02_DataLoader.worker_count"),
    Case("another kind of source", loader(), loader(data_source=Words()), "00_DataSource.type"),
    Case(
        "another content of a list",
        loader(data_source=list(range(20))),
        loader(data_source=[*range(19), 99]),
        "00_DataSource.sample",
    ),
    Case(
        "batch size",
        loader([grain.transforms.Batch(2)]),
        loader([grain.transforms.Batch(3)]),
        "02_Batch.batch_size",
    ),
    Case("an operation more", loader(), loader([AddOne()]), "02_Map"),
    Case(
        "parameter of an operation",
        loader([AddMany(1)]),
        loader([AddMany(2)]),
        "02_Map.map.bound[0].method_of.state.count",
    ),
    Case(
        "shard 0 of 2 to 0 of 4",
        loader(shard_options=shard(0, 2)),
        loader(shard_options=shard(0, 4)),
        "02_DataLoader.shard_count",
    ),
    Case(
        "shard 0 of 2 to 1 of 2",
        loader(shard_options=shard(0, 2)),
        loader(shard_options=shard(1, 2)),
        "shards.pipeline.02_DataLoader",
    ),
    Case(
        "shard 0 of 4 to 0 of 1",
        loader(shard_options=shard(0, 4)),
        loader(shard_options=shard(0, 1)),
        "02_DataLoader.shard_count",
    ),
    Case("seed of a sequential sampler", sequential(1), sequential(2), "01_SequentialSampler.seed"),
    Case(
        "seed under a flat map",
        loader([Halves()]),
        loader([Halves()], sampler={"seed": 6}),
        "01_IndexSampler.seed",
    ),
    Case("fan-out of a flat map", loader([Halves()]), loader([Thirds()]), "02_FlatMap.max_fan_out"),
]


def save(directory, pipeline, elements=2):
    """The elements that follow those that a snapshot of `pipeline` has counted."""
    with wrap(pipeline) as module, Checkpointer(directory) as checkpointer:
        for _ in range(elements):
            next(module)
        checkpointer.save(elements, data=module)
        checkpointer.wait()
        return list(module)


def assert_refused(directory, pipeline, field):
    with wrap(pipeline) as module, Checkpointer(directory) as checkpointer:
        before = module.get_state()
        with pytest.raises(MismatchError) as refusal:
            checkpointer.restore(data=module)
        assert field in str(refusal.value)
        assert module.get_state() == before
        assert next(module) is not None


def test_there_are_32_of_them():
    assert len(DATASET) == 32
    assert len({case.name for case in DATASET}) == 32


@pytest.mark.parametrize("case", DATASET, ids=lambda case: case.name)
def test_a_changed_dataset_pipeline_is_refused_by_name(case, tmp_path):
    save(tmp_path, case.was)
    assert_refused(tmp_path, case.now, case.field)


@pytest.mark.parametrize("case", LOADER, ids=lambda case: case.name)
@pytest.mark.few(6)
def test_a_changed_data_loader_is_refused_by_name(case, tmp_path):
    save(tmp_path, case.was)
    assert_refused(tmp_path, case.now, case.field)


def write(path, records):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def array_record(path):
    return grain.MapDataset.source(grain.sources.ArrayRecordDataSource([str(path)])).shuffle(seed=1)


RECORDS = [b"record %d" % i for i in range(20)]


def test_an_array_record_file_that_was_rewritten_is_refused(tmp_path):
    file = tmp_path / "data" / "a.array_record"
    write(file, RECORDS)
    save(tmp_path / "run", array_record(file))
    write(file, [record.upper() for record in RECORDS])
    assert_refused(tmp_path / "run", array_record(file), "00_SourceMapDataset.sample")


def test_a_range_of_an_array_record_file_in_place_of_the_whole_is_refused(tmp_path):
    file = tmp_path / "data" / "a.array_record"
    write(file, RECORDS)
    save(tmp_path / "run", array_record(file))
    assert_refused(tmp_path / "run", array_record(f"{file}[5:20]"), "00_SourceMapDataset.files[0].start")


# What must be accepted.


def assert_continues(directory, pipeline, expected):
    with wrap(pipeline) as module, Checkpointer(directory) as checkpointer:
        checkpointer.restore(data=module)
        assert list(map(str, module)) == list(map(str, expected))


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (shuffled(), shuffled()),
        (windowed(4), windowed(4)),
        (interleaved(2), interleaved(2)),
        (loader([AddMany(1)]), loader([AddMany(1)])),
        (
            grain.MapDataset.range(30).to_iter_dataset(grain.ReadOptions(num_threads=0)),
            grain.MapDataset.range(30).to_iter_dataset(
                grain.ReadOptions(num_threads=3, prefetch_buffer_size=7)
            ),
        ),
        (mapped_batches(4), mapped_batches(4).to_iter_dataset(grain.ReadOptions(num_threads=0))),
        (stream(30), experimental.ThreadPrefetchIterDataset(stream(30), prefetch_buffer_size=3)),
        (
            stream(30),
            experimental.WithOptionsIterDataset(
                stream(30), experimental.DatasetOptions(filter_warn_threshold_ratio=0.5)
            ),
        ),
        (loader(), loader(read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))),
        (loader(), loader(worker_buffer_size=4)),
    ],
    ids=[
        *("dataset rebuilt", "stream rebuilt", "interleave rebuilt", "loader rebuilt", "read options"),
        "made a stream by hand",
        *("prefetch added", "options added", "read options of a loader", "worker buffer"),
    ],
)
def test_what_changes_no_element_is_accepted(was, now, tmp_path):
    assert_continues(tmp_path, now, save(tmp_path, was))


def test_a_moved_data_directory_is_accepted(tmp_path):
    write(tmp_path / "here" / "a.array_record", RECORDS)
    expected = save(tmp_path / "run", array_record(tmp_path / "here" / "a.array_record"))
    os.rename(tmp_path / "here", tmp_path / "there")
    assert_continues(tmp_path / "run", array_record(tmp_path / "there" / "a.array_record"), expected)


def test_a_change_can_be_allowed_field_by_field(tmp_path):
    rest = save(tmp_path, loader())
    field = "train.pipeline.01_IndexSampler.num_epochs"
    with (
        wrap(loader(sampler={"num_epochs": 2})) as module,
        Checkpointer(tmp_path, allow_changed=[field]) as checkpointer,
    ):
        checkpointer.restore(data=module)
        assert [next(module) for _ in rest] == rest
        assert len(list(module)) == 20
