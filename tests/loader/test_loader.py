"""Where a loader is, and that nothing but the position decides what it delivers."""

import gc
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from flax import nnx

from datarax.core.errors import ConfigError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.order import OrderPolicy, Remainder
from datarax.sources import MemoryConfig, MemorySource, RangeConfig, RangeSource
from datarax.transforms import map_batch, map_records, random_map_batch, random_map_records


def numbers(count=100):
    return RangeSource(RangeConfig(start=0, stop=count))


def make(count=100, *, transforms=(), rows=None, sharding=None, **config):
    settings = {"batch_size": 8, "seed": 3, "num_epochs": 2, **config}
    return DataLoader(
        DataLoaderConfig(**settings), numbers(count), transforms=transforms, rows=rows, sharding=sharding
    )


def delivered(loader):
    return [np.asarray(batch) for batch in loader]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_two_epochs_deliver_every_record_twice():
    rows = np.concatenate(delivered(make(96)))
    assert np.array_equal(np.bincount(rows, minlength=96), np.full(96, 2))


def test_a_batch_may_span_two_epochs():
    loader = make(100)
    keys = loader.record_keys(12)  # positions 96 … 103 of 100 records
    assert keys.epoch.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 7])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_read_ahead_and_threads_change_nothing(read_ahead, num_threads):
    expected = delivered(make(read_ahead=0))
    assert same(delivered(make(read_ahead=read_ahead, num_threads=num_threads)), expected)


def test_state_counts_what_was_handed_over_not_what_was_read_ahead():
    loader = make(read_ahead=6)
    for _ in range(3):
        next(loader)
    state = loader.get_state()
    assert (state["idx"], state["position"], state["epoch"], state["current"]) == (3, 24, 0, None)
    assert loader.get_operation_stats() == {"applied_count": 24, "skipped_count": 0}


@pytest.mark.parametrize("reused", [False, True])
def test_resume_after_every_batch_continues_exactly(reused):
    whole = make()
    expected = delivered(whole)
    target = make(read_ahead=3)
    states = []
    source = make()
    states.append(source.get_state())
    for _ in source:
        states.append(source.get_state())
    for taken, state in enumerate(states):
        loader = target if reused else make(read_ahead=3)
        loader.set_state(state)
        assert same(delivered(loader), expected[taken:])
        # The second generation: what was resumed and finished ends like what never stopped.
        assert loader.get_state() == states[-1]


def test_restored_states_are_not_touched_by_going_on():
    loader = make()
    next(loader)
    state = loader.get_state()
    copy = dict(state)
    delivered(loader)
    assert state == copy


def test_epoch_budget_is_global_at_the_exact_end():
    loader = make(96)
    expected_steps = len(delivered(loader))
    again = make(96)
    again.set_state(loader.get_state())
    assert delivered(again) == []
    assert expected_steps == len(loader) == 24


def test_rows_of_all_processes_make_the_global_batch():
    whole = make()
    parts = [make(rows=np.arange(start, 8, 3)) for start in range(3)]
    for step in range(len(whole)):
        batch = np.empty(8, np.int64)
        for start, part in enumerate(parts):
            batch[start::3] = part.batch_at(step)
        assert np.array_equal(batch, whole.batch_at(step))


def test_digests_of_all_processes_add_up():
    whole = make(byte_digest=True)
    parts = [make(rows=rows, byte_digest=True) for rows in ([0, 5], [1, 2, 3, 4, 6, 7])]
    for loader in (whole, *parts):
        delivered(loader)
    assert sum(part.digest.keys for part in parts) % (1 << 64) == whole.digest.keys
    assert sum(part.digest.bytes for part in parts) % (1 << 64) == whole.digest.bytes


def test_digest_survives_a_restore_and_tells_orders_apart():
    straight, other = make(byte_digest=True), make(byte_digest=True, seed=4)
    resumed = make(byte_digest=True)
    for _ in range(5):
        next(resumed)
    second = make(byte_digest=True)
    second.set_state(resumed.get_state())
    for loader in (straight, other, second):
        delivered(loader)
    assert second.digest == straight.digest
    assert other.digest.keys != straight.digest.keys
    assert other.digest.bytes != straight.digest.bytes


def test_a_stretch_without_byte_digest_leaves_none_rather_than_a_partial_sum():
    first = make()
    next(first)
    second = make(byte_digest=True)
    second.set_state(first.get_state())
    next(second)
    assert second.digest.bytes is None


def test_position_beyond_two_to_the_forty_is_exact():
    loader = make(num_epochs=None)
    step = 2**40 + 3
    loader.seek(step)
    next(loader)
    state = loader.get_state()
    assert state["position"] == (step + 1) * 8
    assert state["epoch"] == state["position"] // 100
    other = make(num_epochs=None)
    other.set_state(state)
    assert np.array_equal(next(other), loader.batch_at(step + 1))


def test_nnx_transforms_leave_a_loader_exact():
    loader = make(num_epochs=None)
    loader.seek(2**40 + 3)
    next(loader)
    before = loader.get_state()
    nnx.jit(lambda module: None)(loader)
    assert loader.get_state() == before
    graph, state = nnx.split(loader)
    assert nnx.merge(graph, state).get_state() == before


def test_variables_written_from_outside_are_noticed():
    loader = make()
    next(loader)
    loader.idx.set_value(0)
    with pytest.raises(RuntimeError, match="written from outside"):
        next(loader)


def test_clone_continues_here_and_copy_starts_over():
    loader = make()
    first = next(loader)
    clone, copy = loader.clone(), loader.copy()
    expected = next(loader)
    assert np.array_equal(next(clone), expected)
    assert np.array_equal(next(copy), first)
    clone.close()
    assert loader.get_state()["idx"] == 2
    next(loader)


def test_reset_starts_over_and_keeps_the_counters():
    loader = make()
    first = next(loader)
    loader.reset()
    assert loader.get_state()["idx"] == 0
    assert loader.current.get_value() is None
    assert np.array_equal(next(loader), first)
    assert loader.get_operation_stats()["applied_count"] == 16


def test_current_is_the_last_host_batch():
    loader = make(sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    batch = next(loader)
    assert isinstance(batch, jax.Array)
    assert isinstance(loader.current.get_value(), np.ndarray)
    assert np.array_equal(loader.current.get_value(), np.asarray(batch))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position", -1),
        ("position", "seven"),
        ("position", 7.5),
        ("position", True),
        ("position", None),
        ("idx", None),
        ("epoch", 1),
        ("current", [1]),
        ("position", 10**6),
        ("digest_keys", 1 << 63),
        ("digest_keys", f"{1 << 64:x}"),
        ("digest_keys", "F" * 16),
        ("_applied_count", np.asarray(24)),
        ("format", 1),
        ("format", 3),
        ("format", "2"),
        ("identity", {}),
        ("identity", None),
        ("part", "0" * 16),
    ],
)
def test_wrong_states_are_refused_and_change_nothing(field, value):
    loader = make()
    for _ in range(3):
        next(loader)
    before = loader.get_state()
    with pytest.raises(ValueError):  # noqa: PT011  each kind has its own text; the law is refusal
        loader.set_state({**before, field: value})
    assert loader.get_state() == before
    assert np.array_equal(next(loader), make().batch_at(3))


def test_padding_is_masked_and_does_not_count():
    loader = make(
        20, remainder=Remainder.PAD, num_epochs=1, transforms=[map_batch(lambda x: {"x": x}, name="d")]
    )
    batches = list(loader)
    assert len(batches) == 3
    assert batches[-1]["row_mask"].tolist() == [True] * 4 + [False] * 4
    assert batches[0]["row_mask"].all()
    assert np.array_equal(np.sort(np.concatenate([b["x"][b["row_mask"]] for b in batches])), np.arange(20))
    state = loader.get_state()
    assert (state["position"], state["idx"], loader.digest.rows) == (20, 3, 20)
    assert loader.get_operation_stats()["applied_count"] == 20
    assert loader.record_keys(2).index[4:].tolist() == [-1] * 4


def test_a_process_whose_last_rows_are_all_padding_gets_zeros_of_the_right_shape():
    loader = make(
        20,
        rows=[6, 7],
        remainder=Remainder.PAD,
        num_epochs=1,
        transforms=[map_batch(lambda x: {"x": x}, name="d")],
    )
    last = loader.batch_at(2)
    assert last["x"].tolist() == [0, 0]
    assert last["row_mask"].tolist() == [False, False]


def test_drop_leaves_the_tail_out_and_error_refuses_it():
    assert sum(len(batch) for batch in delivered(make(20, num_epochs=1))) == 16
    with pytest.raises(ConfigError, match="left over"):
        make(20, num_epochs=1, remainder="error")


def test_a_batch_larger_than_the_source_spans_epochs():
    loader = make(3, num_epochs=5, remainder="pad")
    assert len(loader) == 2
    assert loader.record_keys(0).epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    rows = np.concatenate([batch["x"][batch["row_mask"]] for batch in make_dicts(3, num_epochs=5)])
    assert np.bincount(rows).tolist() == [5, 5, 5]


def make_dicts(count, **config):
    columns = map_batch(lambda numbers: {"x": numbers}, name="columns")
    return make(count, transforms=[columns], remainder="pad", **config)


@pytest.mark.parametrize("rows", [[], [3, 1], [1, 1], [-1], [8], [[0]], [0.5]])
def test_wrong_rows_are_refused(rows):
    with pytest.raises(ConfigError, match="rows must be"):
        make(rows=rows)


def test_random_transforms_depend_on_the_record_alone():
    stage = random_map_batch(lambda x, seeds: {"x": x, "seed": seeds}, name="seeds")
    whole = make(transforms=[stage])
    part = make(transforms=[stage], rows=[5, 6], read_ahead=0)
    step = 7
    assert np.array_equal(whole.batch_at(step)["seed"][5:7], part.batch_at(step)["seed"])
    first, second = whole.batch_at(0), whole.batch_at(12)
    assert len(set(first["seed"].tolist()) & set(second["seed"].tolist())) == 0


def test_record_transforms_get_one_generator_per_record():
    stage = random_map_records(lambda x, rng: rng.integers(1 << 62), name="draw")
    a, b = make(transforms=[stage]), make(transforms=[stage], batch_size=4)
    assert np.array_equal(a.batch_at(3), np.concatenate([b.batch_at(6), b.batch_at(7)]))


def test_an_error_reaches_the_loop_as_itself_with_step_and_record():
    def fail_on_17(record):
        if record == 17:
            raise KeyError("seventeen")
        return record

    loader = make(transforms=[map_records(fail_on_17, name="picky")])
    taken = next(step for step in range(len(loader)) if 17 in loader.record_keys(step).index)
    for _ in range(taken):
        next(loader)
    with pytest.raises(KeyError) as caught:
        next(loader)
    notes = "\n".join(caught.value.__notes__)
    assert f"step {taken}" in notes
    assert "data:17" in notes
    assert loader.get_state()["idx"] == taken
    with pytest.raises(KeyError):
        next(loader)


def test_seek_goes_anywhere_and_nowhere_else():
    loader = make()
    loader.seek(5)
    assert np.array_equal(next(loader), make().batch_at(5))
    loader.seek(len(loader))
    with pytest.raises(StopIteration):
        next(loader)
    with pytest.raises(IndexError):
        loader.seek(len(loader) + 1)
    with pytest.raises(IndexError):
        loader.batch_at(-1)
    with pytest.raises(IndexError):
        loader.batch_at(len(loader))


@pytest.mark.parametrize("leave", ["seek", "set_state"])
def test_what_was_read_ahead_is_forgotten_wherever_the_stream_is_put(leave):
    """An error too, and also where it stands already: what could not be read may have been put right since."""
    lost, tried = set(make().batch_at(1).tolist()), threading.Event()

    def read(x):
        if lost & set(x.tolist()):
            tried.set()
            raise OSError("the disk is away")
        return x

    with make(transforms=[map_batch(read, name="read", version=1)], read_ahead=1) as loader:
        next(loader)
        assert tried.wait(60)
        lost.clear()
        loader.seek(1) if leave == "seek" else loader.set_state(loader.get_state())
        assert np.array_equal(next(loader), make().batch_at(1))


def test_length_of_an_endless_loader_is_refused():
    with pytest.raises(TypeError, match="num_epochs is None"):
        len(make(num_epochs=None))


def test_close_ends_all_threads():
    before = set(threading.enumerate())
    with make(read_ahead=4, num_threads=3) as loader:
        next(loader)
        mine = set(threading.enumerate()) - before
        assert mine
    assert not any(thread.is_alive() for thread in mine)


def test_a_dropped_loader_ends_its_threads():
    before = set(threading.enumerate())
    loader = make(read_ahead=4)
    next(loader)
    mine = set(threading.enumerate()) - before
    del loader
    gc.collect()
    for thread in mine:
        thread.join(30)
        assert not thread.is_alive()


def test_leaving_the_interpreter_with_an_open_loader_is_silent():
    script = (
        "from datarax import DataLoader, DataLoaderConfig, RangeSource, RangeConfig\n"
        "loader = DataLoader(DataLoaderConfig(batch_size=4, read_ahead=3, num_threads=2),"
        " RangeSource(RangeConfig(start=0, stop=1000)))\n"
        "next(loader)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_batch_statistics_are_row_weighted_means_and_resume():
    config = {
        "remainder": "pad",
        "num_epochs": 1,
        "batch_stats_fn": lambda batch: {"mean": batch["x"].sum() / 8},
    }
    stage = [map_batch(lambda x: {"x": x.astype(np.float64)}, name="d")]
    straight = make(20, transforms=stage, **config)
    list(straight)
    resumed = make(20, transforms=stage, **config)
    next(resumed)
    second = make(20, transforms=stage, **config)
    second.set_state(resumed.get_state())
    list(second)
    assert second.get_statistics() == straight.get_statistics()
    assert set(straight.get_statistics()) == {"mean"}
    plain = make(20, transforms=stage, remainder="pad", num_epochs=1)
    assert plain.identity()["sources"] == straight.identity()["sources"]


def test_identity_names_what_can_change_a_batch_and_nothing_else():
    base = make().identity()
    assert make(read_ahead=9, num_threads=4, num_epochs=7, byte_digest=True, rows=[0]).identity() == base
    changed = [
        make(seed=4),
        make(batch_size=4),
        make(101),
        make(order=OrderPolicy.NONE),
        make(transforms=[map_records(lambda x: x, name="same")]),
        make(remainder="pad"),
        make(precomputed_stats={"mean": np.ones(3)}),
    ]
    assert all(loader.identity() != base for loader in changed)


def test_step_digests_cover_the_steps_since_the_last_commit():
    loader = make(byte_digest=True)
    for _ in range(6):
        next(loader)
    loader.committed(4)
    first, keys, row_bytes, has_bytes = loader.take_step_digests()
    assert (first, len(keys), len(row_bytes), has_bytes) == (4, 2, 2, True)
    assert [int(k) for k in keys] == [loader.step_digest(s)[0] for s in (4, 5)]
    assert [int(b) for b in row_bytes] == [loader.step_digest(s, with_bytes=True)[1] for s in (4, 5)]


def test_memory_rows_are_gathered_in_order():
    data = {"x": np.arange(40).reshape(20, 2), "y": np.arange(20)}
    loader = DataLoader(DataLoaderConfig(batch_size=5, order="none"), MemorySource(MemoryConfig(), data))
    batch = loader.batch_at(1)
    assert np.array_equal(batch["x"], data["x"][5:10])
    assert np.array_equal(batch["y"], data["y"][5:10])


def test_without_byte_digests_the_step_log_says_so():
    loader = make()
    next(loader)
    assert loader.take_step_digests()[3] is False


def test_another_batch_size_continues_at_the_same_row_and_keeps_counting_steps():
    loader = make()
    for _ in range(3):
        next(loader)
    other = make(batch_size=5, read_ahead=2)
    other.adopt(loader.get_state(), allow_changed=["batch_size"])
    rows = np.concatenate(delivered(make(order="global")))
    assert np.array_equal(next(other), rows[24:29])
    assert np.array_equal(other.batch_at(4), rows[29:34])
    assert other.record_keys(3).index.tolist() == [int(row) for row in rows[24:29]]
    state = other.get_state()
    assert (state["idx"], state["position"]) == (4, 29)
    with pytest.raises(IndexError):
        other.batch_at(2)
    back = make(batch_size=5)
    back.set_state(state)
    assert np.array_equal(next(back), rows[29:34])


def test_an_endless_loader_is_true():
    assert make(num_epochs=None)


def test_more_epochs_than_can_be_counted_are_refused_by_the_name_of_the_key():
    config = DataLoaderConfig(batch_size=4, num_epochs=2**62)
    with pytest.raises(ConfigError, match=r"loader\.num_epochs is 4611686018427387904"):
        DataLoader(config, MemorySource(MemoryConfig(), {"x": np.arange(8)}))
