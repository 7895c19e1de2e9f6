"""A wrapped pipeline keeps the contract of all modules: strict states, copies, reset, transforms."""

import dataclasses
import itertools
import sys

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax.checkpoint.protocols import Identified, KeepsDigest, KeepsStepDigests, Stateful
from datarax.core.errors import ConfigError
from datarax.core.tree import encode
from datarax.grain_pipeline import (
    GrainPipeline,
    GrainPipelineConfig,
    GrainPipelineTable,
    load_grain_pipeline,
)
from datarax.loader.tally import StepLog
from tests.support.grain_pipelines import (
    concat_then_split,
    data_loader,
    filter_in_stream,
    interleave,
    is_odd,
    limited,
    shuffle_and_repeat,
    stream,
    wrap,
)


def test_it_offers_what_a_snapshot_asks_for():
    module = wrap(stream())
    for protocol in (Stateful, Identified, KeepsDigest, KeepsStepDigests):
        assert isinstance(module, protocol)
    assert module.state_scope == "process"


@pytest.mark.parametrize("make", [lambda: iter(stream()), lambda: iter(data_loader())])
def test_an_iterator_is_refused_for_it_cannot_be_made_afresh(make):
    with pytest.raises(TypeError, match="is an iterator, which cannot be made afresh"):
        wrap(make())


@pytest.mark.parametrize("thing", [[1, 2, 3], None, grain.sources.RangeDataSource(0, 3, 1)])
def test_something_else_is_refused(thing):
    with pytest.raises(TypeError, match=r"a Grain pipeline is a grain\.MapDataset"):
        wrap(thing)


def test_a_module_starts_at_the_beginning_and_says_so():
    state = wrap(stream()).get_state()
    assert (state["idx"], state["position"], state["epoch"], state["current"]) == (0, 0, None, None)
    assert state["grain_state"] is None


def test_the_place_moves_when_an_element_is_handed_over():
    module = wrap(shuffle_and_repeat())
    element = next(module)
    assert module.idx[...] == module.position[...] == 1
    assert module.current[...] is element
    assert module.get_operation_stats() == {"applied_count": 1, "skipped_count": 0}
    assert module.metrics.batches == 1


def test_rows_are_counted_from_the_leading_axis():
    module = wrap(stream(7).map(np.int64).batch(3))
    list(module)
    assert (module.metrics.batches, module.metrics.rows) == (3, 7)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"idx": None}, "idx: expected an int"),
        ({"idx": 2}, r"position: 1 is not idx \(2\)"),
        ({"epoch": 0}, "epoch: a Grain pipeline has none"),
        ({"digest_bytes": 1 << 63}, "structurally incompatible"),
        ({"grain_state": None}, "grain_state: after 1 elements it must be a dict"),
        ({"grain_state": [1]}, r"grain_state: after 1 elements it must be a dict, got \[1\]"),
        ({"grain_state": {}}, r"grain_state has other keys: missing=\['next_index'\]"),
        ({"grain_state": {"next_index": "1"}}, r"grain_state.next_index is of another kind: expected int"),
        ({"grain_state": {"next_index": True}}, r"grain_state.next_index is of another kind: expected int"),
        ({"grain_state": {"next_index": 99}}, "Grain cannot restore it: IndexError"),
        ({"shards": {"pipeline.01_SliceMapDataset": encode((0, 2))}}, "shards: this pipeline is sharded at"),
        ({"shards": None}, "shards: this pipeline is sharded at"),
    ],
)
def test_a_wrong_state_is_refused_by_name_and_leaves_the_module_as_it_was(change, told):
    module = wrap(stream(6))
    next(module)
    before = module.get_state()
    with pytest.raises(ValueError, match=told):
        module.set_state(before | change)
    assert module.get_state() == before
    assert list(module) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [{"current": 3}, {"idx": "1"}, {"more": 1}, {"digest_rows": 1.0}])
def test_a_state_of_another_structure_is_refused(change):
    module = wrap(stream(6))
    next(module)
    with pytest.raises(ValueError, match="structurally incompatible"):
        module.set_state(module.get_state() | change)
    with pytest.raises(TypeError, match="State must be a dict"):
        module.set_state([])
    assert next(module) == 1


def test_a_state_that_is_no_beginning_may_not_say_so():
    module = wrap(stream(6))
    start = module.get_state()
    with pytest.raises(ValueError, match="grain_state: after 0 elements it must be None"):
        module.set_state(start | {"grain_state": {"next_index": 0}})


def test_the_state_of_another_shard_is_refused_by_name():
    parts = [wrap(grain.MapDataset.range(12)[i::2]) for i in range(2)]
    next(parts[0])
    with pytest.raises(ValueError, match=r"state of shard \(0, 2\) .* but this process reads shard \(1, 2\)"):
        parts[1].set_state(parts[0].get_state())


def test_all_shards_have_one_identity():
    parts = [wrap(grain.MapDataset.range(11)[i::3].shuffle(seed=1).batch(2)) for i in range(3)]
    assert parts[0].identity() == parts[1].identity() == parts[2].identity()


def test_the_state_shares_nothing_with_the_module():
    module = wrap(interleave())
    next(module)
    state = module.get_state()
    state["grain_state"]["iterators_in_use_indices"][0] = 99
    assert module.get_state()["grain_state"]["iterators_in_use_indices"][0] == 0


def test_reset_goes_back_to_the_first_element_and_keeps_what_was_counted():
    module = wrap(filter_in_stream())
    first = next(module)
    list(module)
    digest = module.digest
    module.reset()
    assert module.idx[...] == 0
    assert module.digest == digest
    assert np.array_equal(next(module), first)


def test_a_clone_goes_on_by_itself_from_the_same_place():
    module = wrap(concat_then_split())
    next(module)
    clone = module.clone()
    assert clone.get_state() == module.get_state()
    rest = list(module)
    assert str(list(clone)) == str(rest)
    assert clone.digest == module.digest


def test_a_copy_starts_at_the_beginning():
    module = wrap(stream(5), name="one")
    next(module)
    copy = module.copy(name="two")
    assert (copy.idx[...], copy.name, copy.dataset) == (0, "two", module.dataset)
    assert list(copy) == [0, 1, 2, 3, 4]


def test_a_closed_pipeline_takes_up_where_it_was():
    module = wrap(interleave())
    next(module)
    module.close()
    assert list(module) == list(interleave())[1:]


def test_the_end_stays_the_end_and_nothing_is_read_again():
    read = []
    module = wrap(stream(5).filter(lambda x: read.append(x) or x < 2), version=1)
    assert list(module) == [0, 1]
    assert read == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(module)
    assert module.idx[...] == 2
    assert read == [0, 1, 2, 3, 4]


def test_a_module_inside_another_is_restored_with_it():
    class Trainer(nnx.Module):
        def __init__(self):
            self.data = wrap(interleave())

    trainer = Trainer()
    next(trainer.data)
    graph, state = nnx.split(trainer)
    merged = nnx.merge(graph, state)
    assert merged.data.get_state() == trainer.data.get_state()


def test_it_passes_through_a_transform_with_its_state():
    module = wrap(data_loader())
    next(module)
    before = module.get_state()
    nnx.jit(lambda m, x: x + 1)(module, jnp.ones(()))
    assert module.get_state() == before
    assert len(list(module)) == 6


# Lengths


def test_the_number_of_elements_is_told_where_it_is_known():
    assert len(wrap(grain.MapDataset.range(10).batch(3))) == 4
    assert len(wrap(stream(10).batch(3, drop_remainder=True))) == 3
    assert len(wrap(limited())) == 11
    assert wrap(grain.MapDataset.range(10).repeat()).num_steps is None
    assert wrap(grain.MapDataset.range(10).repeat().batch(4)).num_steps is None
    assert wrap(grain.MapDataset.range(10).repeat()[1::3].batch(4).to_iter_dataset()).num_steps is None
    assert wrap(grain.MapDataset.range(10).repeat()[:100].batch(4)).num_steps == 25
    assert wrap(grain.MapDataset.range(10).filter(is_odd)).num_steps is None
    with pytest.raises(TypeError, match="say num_steps in its config"):
        len(wrap(filter_in_stream()))
    assert bool(wrap(filter_in_stream()))


def test_a_number_of_steps_ends_the_run_and_is_no_identity():
    endless = grain.MapDataset.range(3).repeat()
    module = wrap(endless, num_steps=5)
    assert list(module) == [0, 1, 2, 0, 1]
    assert len(module) == 5
    assert module.identity() == wrap(endless).identity()


# Configs and tables


@pytest.mark.parametrize(
    "settings", [{"name": ""}, {"name": 3}, {"version": ""}, {"version": True}, {"num_steps": 0}]
)
def test_a_wrong_setting_is_refused(settings):
    with pytest.raises(ConfigError):
        GrainPipelineConfig(**settings)


def build_for_test(n, process_index, process_count):
    return grain.MapDataset.range(n)[process_index::process_count]


def build_alone(n=4):
    return stream(n)


def build_iterator():
    return iter(stream())


HERE = __name__


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "pipelines_of_a_user", sys.modules[HERE])


def test_a_table_names_the_function_and_its_parameters():
    module = load_grain_pipeline("pipelines_of_a_user:build_for_test", {"n": 9}, "text", 3, 1, 2)
    assert isinstance(module, GrainPipeline)
    assert list(module) == [1, 3, 5, 7]
    assert (module.name, module.identity()["version"]) == ("text", 3)


def test_the_topology_is_given_only_to_a_function_that_asks():
    assert list(load_grain_pipeline("pipelines_of_a_user:build_alone", process_index=1, process_count=2)) == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("use", "parameters", "told"),
    [
        ("pipelines_of_a_user:nothing", {}, "has no attribute 'nothing'"),
        ("pipelines_of_a_user:HERE", {}, "not a function"),
        ("pipelines_of_a_user:build_alone", {"m": 1}, r"\['m'\] do not fit build_alone\(n=4\)"),
        ("pipelines_of_a_user:build_for_test", {"n": 1, "process_index": 1}, "which the run itself gives"),
        ("pipelines_of_a_user:build_iterator", {}, "is an iterator"),
    ],
)
def test_a_wrong_table_is_refused_with_what_there_is(use, parameters, told):
    with pytest.raises(ConfigError, match=told):
        load_grain_pipeline(use, parameters)


def test_a_table_checks_itself():
    table = GrainPipelineTable(use="module:function", parameters={"n": 1}, name="a", version="2")
    assert dataclasses.asdict(table) == {
        "use": "module:function",
        "parameters": {"n": 1},
        "name": "a",
        "version": "2",
        "impure": False,
    }
    for wrong in ({"use": "module"}, {"use": "a:b", "parameters": [1]}, {"use": "a:b", "name": ""}):
        with pytest.raises(ConfigError):
            GrainPipelineTable(**wrong)


# Identity


def test_a_function_without_source_text_needs_a_declared_version():
    made = eval("lambda x: x + 1")
    with pytest.raises(ConfigError, match=r"map of 02_MapIterDataset.*Give the pipeline a version"):
        wrap(stream().map(made))
    assert next(wrap(stream().map(made), version=1)) == 1


class Countdown(grain.IterDataset):
    """A stage that is none of Grain's own."""

    def __iter__(self):
        return iter(stream(3))


def test_an_unknown_stage_needs_a_declared_version():
    with pytest.raises(ConfigError, match=r"00_Countdown that is not known.*declare a version"):
        wrap(Countdown())
    module = wrap(Countdown(), version="a")
    next(module)
    other = wrap(Countdown(), version="a")
    other.set_state(module.get_state())
    assert list(other) == [1, 2]


def test_another_declared_version_is_another_identity():
    one, two = (wrap(stream().map(is_odd), version=v).identity() for v in (1, 2))
    assert one != two
    assert one["pipeline"] == two["pipeline"]


class Plain:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def test_records_without_bytes_need_a_declared_version():
    dataset = grain.MapDataset.source(Plain([object()] * 3)).map(lambda _: 1)
    with pytest.raises(ConfigError, match=r"the source of .*00_SourceMapDataset, cannot be fingerprinted"):
        wrap(dataset)
    assert list(wrap(dataset, version=1)) == [1, 1, 1]


def test_a_source_that_changes_between_reads_is_refused():
    counter = itertools.count()

    class Restless(Plain):
        def __getitem__(self, index):
            return next(counter)

    with pytest.raises(ConfigError, match="gives other records when it is read again"):
        wrap(grain.MapDataset.source(Restless([0] * 3)))


def test_a_parameter_that_grain_has_moved_is_an_error_that_says_so():
    dataset = grain.MapDataset.range(4).shuffle(seed=1)
    vars(dataset)["seed_now"] = vars(dataset).pop("_seed")
    with pytest.raises(ConfigError, match="keeps '_seed' of a ShuffleMapDataset somewhere else"):
        wrap(dataset)


def test_the_identity_is_the_callers_own():
    module = wrap(stream())
    module.identity()["pipeline"].clear()
    assert module.identity()["pipeline"]


def offset_by(count):
    return lambda x: x + count


def test_a_value_in_a_closure_is_part_of_the_identity_by_its_name():
    one, two = (wrap(stream().map(offset_by(n))).identity()["pipeline"]["02_MapIterDataset"] for n in (1, 2))
    assert (one["map"]["closure"], two["map"]["closure"]) == ({"count": 1}, {"count": 2})
    assert one["map"]["source_sha256"] == two["map"]["source_sha256"]


def test_functions_of_libraries_count_by_name():
    stage = wrap(stream().map(np.square)).identity()["pipeline"]["02_MapIterDataset"]
    assert stage["map"] == {"library": {"$function": "numpy:square"}, "helpers": {}}


class EveryThird:
    """A sampler of the user's own."""

    def __init__(self, seed):
        self.seed = seed

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= 6:
            raise IndexError
        return grain.python.RecordMetadata(index=index, record_key=(3 * index + self.seed) % 20)


def test_a_sampler_of_the_users_own_counts_by_its_code_and_its_values():
    import grain.python

    def of(seed):
        return grain.DataLoader(
            data_source=grain.sources.RangeDataSource(0, 20, 1),
            sampler=EveryThird(seed),
            shard_options=grain.sharding.NoSharding(),
        )

    one, two = wrap(of(1)), wrap(of(2))
    assert one.identity() == wrap(of(1)).identity()
    assert one.identity() != two.identity()
    first = next(one)
    again = wrap(of(1))
    again.set_state(one.get_state())
    assert [first, *again] == [1, 4, 7, 10, 13, 16]


def write_tf_record(path, records):
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        for record in records:
            file.write(len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4))


def test_a_stream_of_a_file_counts_by_name_size_and_ends(tmp_path):
    def of(path):
        return wrap(grain.experimental.TFRecordIterDataset(str(path)))

    write_tf_record(tmp_path / "a" / "text.tfrecord", [b"one", b"two", b"three"])
    write_tf_record(tmp_path / "b" / "text.tfrecord", [b"one", b"two", b"three"])
    write_tf_record(tmp_path / "c" / "text.tfrecord", [b"one", b"two", b"THREE"])
    module = of(tmp_path / "a" / "text.tfrecord")
    assert module.identity() == of(tmp_path / "b" / "text.tfrecord").identity()
    assert module.identity() != of(tmp_path / "c" / "text.tfrecord").identity()
    next(module)
    moved = of(tmp_path / "b" / "text.tfrecord")
    moved.set_state(module.get_state())
    assert list(moved) == [b"two", b"three"]
    with pytest.raises(ConfigError, match=r"gone\.tfrecord of a Grain pipeline cannot be read"):
        of(tmp_path / "gone.tfrecord")


def test_an_elastic_iterator_is_no_stage_that_is_known():
    elastic = grain.experimental.ElasticIterator(grain.MapDataset.range(16), 4, grain.sharding.NoSharding())
    with pytest.raises(ConfigError, match="00_ElasticIterator that is not known"):
        wrap(elastic)


def test_an_element_that_ctrl_c_kept_from_the_loop_comes_again(monkeypatch):
    module = wrap(interleave())
    first = next(module)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StepLog, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(module)
    assert [first, *module] == list(interleave())


def processes(count, **settings):
    return stream(30).mp_prefetch(grain.MultiprocessingOptions(num_workers=count), **settings)


def test_worker_processes_count_by_their_number_and_by_how_they_slice():
    stages = wrap(processes(2).batch(3)).identity()["pipeline"]
    assert list(stages) == [
        *("00_RangeMapDataset", "01_PrefetchIterDataset", "02_mp_prefetch", "03_BatchIterDataset"),
    ]
    assert stages["02_mp_prefetch"] == {"num_workers": 2, "sequential_slice": False}
    assert wrap(processes(3)).identity() != wrap(processes(2)).identity()
    assert wrap(processes(2, sequential_slice=True)).identity() != wrap(processes(2)).identity()


def test_a_dataset_as_the_source_of_a_loader_is_described_stage_by_stage():
    def of(seed):
        return grain.DataLoader(
            data_source=grain.MapDataset.range(9).shuffle(seed=seed),
            sampler=grain.samplers.SequentialSampler(9),
            shard_options=grain.sharding.NoSharding(),
        )

    assert wrap(of(4)).identity()["pipeline"]["01_ShuffleMapDataset"] == {"seed": 4}
    assert sorted(wrap(of(4))) == list(range(9))
