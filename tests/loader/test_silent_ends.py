"""No exception of the user's code passes for the end of the data."""

import sys

import grain
import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainPipeline,
    GrainPipelineConfig,
    MemoryConfig,
    MemorySource,
    TrainingSession,
    map_batch,
    map_records,
)
from datarax.cli.main import main
from datarax.core.errors import ConfigError
from datarax.sources import GrainConfig, GrainSource
from datarax.trust import load_attribute

ENDS = [StopIteration, StopAsyncIteration, GeneratorExit]


class Frames:
    """Records of which one raises."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 41:
            raise self.error("a bug")
        return np.arange(3)


class FramesAtOnce(Frames):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


def loader(source=None, **config):
    transforms = config.pop("transforms", ())
    config = {"batch_size": 4, "num_epochs": 1, "order": "none"} | config
    source = MemorySource(MemoryConfig(), {"x": np.arange(64.0)}) if source is None else source
    return DataLoader(DataLoaderConfig(**config), source, transforms=transforms)


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.mark.parametrize("read_ahead", [0, 2])
@pytest.mark.parametrize("error", [*ENDS, IndexError])
@pytest.mark.parametrize("frames", [Frames, FramesAtOnce])
def test_out_of_a_source_it_is_an_error_that_names_step_and_record(frames, error, read_ahead):
    taken, stream = [], loader(GrainSource(GrainConfig(), frames(error)), read_ahead=read_ahead)
    with pytest.raises(RuntimeError) as found:
        taken.extend(stream)
    assert len(taken) == 10 == stream.idx.get_value()
    assert type(found.value.__cause__) is error
    assert error.__name__ in said(found.value)
    assert "data:41" in said(found.value)
    assert "step 10" in said(found.value)
    with pytest.raises(RuntimeError):
        stream.batch_at(10)
    stream.close()


@pytest.mark.parametrize("error", [*ENDS, IndexError])
def test_a_source_that_is_iterated_does_not_end_before_its_end(error):
    source = GrainSource(GrainConfig(), Frames(error))
    taken = []
    with pytest.raises(RuntimeError):
        taken.extend(source)
    assert len(taken) == 41 == source.position.get_value()
    for read in (lambda: source[41], lambda: source.__getitems__([40, 41]), lambda: source.read([41])):
        with pytest.raises(RuntimeError) as found:
            read()
        assert type(found.value.__cause__) is error
    with pytest.raises(IndexError):
        source[64]


@pytest.mark.parametrize("error", ENDS)
def test_out_of_batch_stats_fn_or_a_transform_it_names_the_step(error):
    def bad(_):
        raise error

    with pytest.raises(RuntimeError, match=r"in batch_stats_fn, on the batch of step 0"):
        list(loader(batch_stats_fn=bad))
    for make, where in ((map_batch, "on a batch of 4 rows"), (map_records, "at data:0")):
        with pytest.raises(RuntimeError, match=f"in transform 'bad', {where}") as found:
            list(loader(transforms=[make(bad, name="bad", version=1)]))
        assert type(found.value.__cause__) is error
        assert "step 0" in said(found.value)


def bad_map(x):
    return x if x != 21 else next(iter(()))


class BadRandomMap(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return bad_map(element)


class BadFlatMap(grain.experimental.FlatMapTransform):
    max_fan_out = 2

    def flat_map(self, element):
        return [bad_map(element)] * 2


def holes():
    """Iterators of one number each, of which the fourth is empty."""
    return grain.MapDataset.source([iter([i]) if i != 3 else iter(()) for i in range(8)])


def numbers():
    return grain.MapDataset.range(64)


PIPELINES = {
    "map": (lambda: numbers().map(bad_map), 21),
    "map, batched": (lambda: numbers().map(bad_map).batch(8), 2),
    "random map": (lambda: numbers().seed(1).random_map(BadRandomMap()), 21),
    "filter": (lambda: numbers().filter(lambda x: bad_map(x) is not None), 21),
    "map of a stream": (lambda: numbers().to_iter_dataset().map(bad_map), 21),
    "map below a stream's batches": (lambda: numbers().map(bad_map).to_iter_dataset().batch(8), 2),
    "map of a stream, batched": (lambda: numbers().to_iter_dataset().map(bad_map).batch(8), 2),
    "map of a stream, filtered": (
        lambda: numbers().to_iter_dataset().map(bad_map).filter(lambda x: x < 30).batch(2),
        10,
    ),
    "map of a shuffled stream": (
        lambda: grain.experimental.WindowShuffleIterDataset(
            numbers().to_iter_dataset().map(bad_map), window_size=8, seed=1
        ),
        16,
    ),
    "map in an interleave": (
        lambda: grain.experimental.InterleaveIterDataset(
            [numbers().to_iter_dataset().map(bad_map), numbers().to_iter_dataset()], cycle_length=2
        ),
        42,
    ),
    "builtin": (lambda: holes().map(next), 3),
    "builtin below a stream's batches": (lambda: holes().to_iter_dataset().map(next).batch(2), 1),
    "flat map": (lambda: numbers().to_iter_dataset().apply(BadFlatMap()), 42),
    "source": (lambda: grain.MapDataset.source(Frames(StopIteration)).to_iter_dataset().batch(8), 5),
    "data loader": (
        lambda: grain.DataLoader(
            data_source=Frames(StopIteration),
            sampler=grain.samplers.SequentialSampler(64),
            operations=[grain.transforms.Batch(8)],
        ),
        5,
    ),
    "map in a mixture of streams": (
        lambda: grain.IterDataset.mix(
            [numbers().to_iter_dataset().map(bad_map).batch(2), numbers().to_iter_dataset().batch(2)]
        ),
        20,
    ),
}


@pytest.mark.parametrize(("make", "step"), PIPELINES.values(), ids=PIPELINES)
def test_out_of_a_function_in_a_grain_pipeline_it_names_the_element(make, step):
    taken, stream = [], GrainPipeline(GrainPipelineConfig(name="p", version=1), make())
    with pytest.raises(RuntimeError, match="StopIteration was raised") as found:
        taken.extend(stream)
    assert f"in Grain pipeline 'p', element {step}" in said(found.value)
    assert type(found.value.__cause__) is StopIteration
    assert len(taken) == step == stream.idx.get_value()


@pytest.mark.full
def test_out_of_a_function_in_a_worker_process_it_is_an_error():
    options = grain.MultiprocessingOptions(num_workers=1)
    stream = GrainPipeline(
        GrainPipelineConfig(name="p", version=1),
        numbers().to_iter_dataset().map(bad_map).batch(8).mp_prefetch(options),
    )
    assert [rows.tolist() for rows in (next(stream), next(stream))] == [
        [*range(8)],
        [*range(8, 16)],
    ]
    with pytest.raises(RuntimeError, match="StopIteration was raised"):
        next(stream)
    stream.close()


class Own(grain.DatasetIterator):
    """An iterator of the user's, which says in the usual way that it is at its end."""

    def __init__(self):
        super().__init__()
        self.at = 0

    def __next__(self):
        return self._advance()

    def _advance(self):
        if self.at == 5:
            raise StopIteration
        self.at += 1
        return self.at

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


class OwnDataset(grain.IterDataset):
    def __iter__(self):
        return Own()


def test_an_iterator_of_the_users_ends_when_it_says_so():
    stream = GrainPipeline(GrainPipelineConfig(name="p", version=1), OwnDataset())
    assert list(stream) == [1, 2, 3, 4, 5]
    assert list(stream) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: loader(GrainSource(GrainConfig(), Frames(StopIteration))),
        lambda: GrainPipeline(GrainPipelineConfig(name="p"), numbers().map(bad_map).batch(8)),
    ],
)
def test_a_session_does_not_advise_to_stop_there(tmp_path, make):
    with pytest.raises(RuntimeError, match="StopIteration was raised"):
        TrainingSession(tmp_path / "r", loader=make(), stream=None).run()


class Stops:
    def init(self, parameters, mesh):
        return {"w": np.zeros(2, np.float32)}

    def step(self, state, batch):
        return next(iter(()))


def test_a_stop_of_the_tasks_own_is_no_end_of_the_data(tmp_path):
    session = TrainingSession(tmp_path / "r", loader=loader(), task=Stops(), stream=None)
    with pytest.raises(RuntimeError, match="raised by the task's step, at step 1") as found:
        session.run()
    assert type(found.value.__cause__) is StopIteration


LEAVING = """
import sys
import numpy as np

class Task:
    def init(self, parameters, mesh):
        return {{"n": 0}}

    def step(self, state, batch):
        if state["n"] == 3:
            {leave}
        return {{"n": state["n"] + 1}}, {{"loss": 1.0}}

def transform(batch):
    {leave}

def source():
    {leave}

task = Task()
"""
PLACES = {
    "step": (["task={use='mine:task'}"], "raised by the task's step, at step 4"),
    "transform": (
        ["transforms=[{use='mine:transform', level='batch', randomness='none', version=1}]"],
        "while preparing the batch of step 0",
    ),
    "source": (["source={kind='memory', use='mine:source'}"], "by code that is not datarax's"),
}


@pytest.mark.parametrize("leave", ["sys.exit(0)", "raise GeneratorExit"])
@pytest.mark.parametrize(("settings", "where"), PLACES.values(), ids=PLACES)
def test_no_code_of_the_users_decides_what_a_command_answers(
    settings, where, leave, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mine.py").write_text(LEAVING.format(leave=leave))
    config = tmp_path / "c.toml"
    config.write_text(
        "[run]\ndirectory = 'r'\nsteps = 9\n[source]\nkind = 'range'\nstop = 64\n[loader]\nbatch_size = 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert main(["run", str(config), *(word for each in settings for word in ("--set", each))]) == 70
    said = capsys.readouterr().err
    assert "it would have ended the loop in silence" in said
    assert where in said


def test_a_module_that_leaves_when_it_is_imported_is_refused_by_its_key(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"task\.use = 'leaving:task': importing 'leaving' raised SystemExit"
    ):
        load_attribute("leaving:task", "task.use")
