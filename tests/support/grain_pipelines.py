"""Grain pipelines of each kind, small and over integers, as functions that build them anew."""

import grain
import numpy as np

from datarax.grain_pipeline import GrainPipeline, GrainPipelineConfig

experimental = grain.experimental


def wrap(pipeline, **settings):
    return GrainPipeline(GrainPipelineConfig(**settings), pipeline)


def double(x):
    return x * 2


def is_odd(x):
    return x % 2 == 1


def add_noise(x, rng):
    return x + int(rng.integers(1000))


def with_length(x):
    return {"tokens": np.arange(x % 5 + 1, dtype=np.int32) + x}


class Halves(grain.experimental.FlatMapTransform):
    max_fan_out = 2

    def flat_map(self, element):
        return [element, element + 1000]


class AddOne(grain.transforms.Map):
    def map(self, element):
        return element + 1


class AddNoise(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return element + int(rng.integers(1000))


def stream(n=24):
    return grain.MapDataset.range(n).to_iter_dataset()


def streams(count=4, each=5):
    return [grain.MapDataset.range(100 * i, 100 * i + each).to_iter_dataset() for i in range(count)]


def map_and_batch():
    return grain.MapDataset.range(26).map(double).batch(4)


def shuffle_and_repeat():
    return grain.MapDataset.range(9).shuffle(seed=3).repeat(2)


def filter_in_map():
    return grain.MapDataset.range(30).filter(is_odd)


def filter_in_stream():
    return stream(40).filter(is_odd).batch(3)


def window_shuffle():
    return experimental.WindowShuffleIterDataset(stream(13), window_size=5, seed=1)


def mix_list():
    return grain.IterDataset.mix([stream(6), stream(13).map(double)], weights=[1, 2])


def mix_dict():
    return grain.IterDataset.mix({"b": stream(6), "a": stream(13).map(double)}, weights={"a": 2, "b": 1})


def mix_maps():
    return grain.MapDataset.mix([grain.MapDataset.range(5), grain.MapDataset.range(100, 115)], weights=[1, 3])


def interleave():
    return experimental.InterleaveIterDataset(streams(), cycle_length=2)


def lazy_interleave():
    datasets = grain.MapDataset.source([4, 7, 5]).map(stream)
    return experimental.InterleaveIterDataset(datasets, cycle_length=2)


def thread_workers():
    return experimental.multithread_prefetch(stream(17).map(double), num_threads=3, buffer_size=1)


def concat_then_split():
    return experimental.ConcatThenSplitIterDataset(stream(14).map(with_length), length_struct={"tokens": 5})


def first_fit():
    return experimental.FirstFitPackIterDataset(
        stream(20).map(with_length), length_struct={"tokens": 8}, num_packing_bins=3, seed=5
    )


def random_map_in_map():
    return grain.MapDataset.range(15).random_map(add_noise, seed=4)


def random_map_in_stream():
    return stream(15).random_map(add_noise, seed=4)


def seeded():
    return grain.MapDataset.range(15).seed(7).shuffle().random_map(add_noise)


def thread_prefetch():
    return experimental.ThreadPrefetchIterDataset(
        stream(20).filter(is_odd).map(double), prefetch_buffer_size=4
    )


def zipped():
    return experimental.ZipIterDataset([stream(9), stream(9).map(str)])


def limited():
    return experimental.LimitIterDataset(stream(), 11)


def flat_map():
    return experimental.FlatMapIterDataset(stream(8), Halves())


def rebatched():
    return experimental.RebatchIterDataset(stream(26).map(np.int64).batch(4), batch_size=3)


def repeated_stream():
    return experimental.RepeatIterDataset(stream(5).filter(is_odd), num_epochs=3)


def with_index():
    return stream(9).map_with_index(lambda i, x: (i, x))


def loader(operations=(), n=20, **settings):
    given = {"shuffle": True, "seed": 5, "num_epochs": 1} | settings.pop("sampler", {})
    return grain.DataLoader(
        data_source=settings.pop("data_source", grain.sources.RangeDataSource(0, n, 1)),
        sampler=grain.samplers.IndexSampler(num_records=n, **given),
        operations=list(operations),
        shard_options=settings.pop("shard_options", grain.sharding.NoSharding()),
        **settings,
    )


def data_loader():
    return loader([AddOne(), AddNoise(), grain.transforms.Batch(3)])


def data_loader_with_flat_map():
    return loader([Halves(), grain.transforms.Batch(3)])


ALL = [
    *(map_and_batch, shuffle_and_repeat, filter_in_map, filter_in_stream, window_shuffle, mix_list, mix_dict),
    *(mix_maps, interleave, lazy_interleave, thread_workers, concat_then_split, first_fit, random_map_in_map),
    *(random_map_in_stream, seeded, thread_prefetch, zipped, limited, flat_map, rebatched, repeated_stream),
    *(with_index, data_loader, data_loader_with_flat_map),
]
