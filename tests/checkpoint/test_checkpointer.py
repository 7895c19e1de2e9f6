import json
import os

import jax
import numpy as np
import pytest

from datarax.checkpoint import Checkpointer, SaveConfig, Snapshot, list_steps, read_config, restore_snapshot
from datarax.core.errors import (
    ConfigError,
    InputError,
    SaveError,
    SnapshotDamagedError,
    SnapshotNotFoundError,
)
from datarax.core.tree import digest
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource
from tests.checkpoint.modules import Counter, Digesting, Foreign, model, same


def test_model_and_data_come_back_from_one_step(tmp_path):
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(3, model=model(3), data=Counter().at(3))
        assert checkpointer.wait() == [3]
        other = Counter()
        restored = checkpointer.restore(model=model(0), data=other)
    assert (restored.step, other.position.get_value(), other.idx.get_value()) == (3, 24, 3)
    assert same(restored.model, model(3))


def test_leaving_the_block_waits_for_the_pending_save(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, model=model(1), data=Counter().at(1))
    assert list_steps(tmp_path) == [1]


def save_and_raise(directory):
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        raise KeyError("the loop")


def test_an_exception_in_the_block_still_waits_for_the_pending_save(tmp_path):
    with pytest.raises(KeyError, match="the loop"):
        save_and_raise(tmp_path)
    assert list_steps(tmp_path) == [1]


def test_saving_outside_the_block_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(InputError, match="outside the `with` block"):
        checkpointer.save(1, data=Counter())
    with checkpointer:
        checkpointer.save(1, data=Counter().at(1))
    with pytest.raises(InputError, match="outside the `with` block"):
        checkpointer.save(2, data=Counter())
    assert checkpointer.steps() == [1]


def test_a_checkpointer_can_be_entered_again_and_closed_twice(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for start in (1, 2):
        with checkpointer:
            assert checkpointer.start == start
            checkpointer.close()
            checkpointer.close()


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", None])
def test_a_step_that_is_no_step_is_refused(tmp_path, step):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError, match="a step must be an int"):
        checkpointer.save(step, data=Counter())


def test_a_step_at_or_below_the_latest_is_refused_also_while_that_is_pending(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, data=Counter().at(5))
        for step in (5, 4):
            with pytest.raises(InputError, match="step 5 is committed"):
                checkpointer.save(step, data=Counter())
        checkpointer.save(6, data=Counter().at(6))
    assert list_steps(tmp_path) == [5, 6]


def test_a_save_of_nothing_is_refused(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match="neither a model nor data"):
            checkpointer.save(1)
        with pytest.raises(InputError, match="empty mapping"):
            checkpointer.save(1, data={})
        with pytest.raises(InputError, match="not made of letters"):
            checkpointer.save(1, data={"a/b": Counter()})
        with pytest.raises(InputError, match="has no get_state"):
            checkpointer.save(1, data=object())


def test_step_zero_can_be_saved(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, data=Counter())
    assert Checkpointer(tmp_path).restore(data=Counter()).step == 0


def test_a_relative_directory_means_the_one_at_construction(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpointer("runs/a") as checkpointer:
        monkeypatch.chdir("/")
        checkpointer.save(1, data=Counter().at(1))
    assert list_steps(tmp_path / "runs" / "a") == [1]


@pytest.mark.parametrize(
    "directory", ["gs://bucket/run", "s3://b/r", "file:///tmp/x", "hdfs://n/p", "gs:/bucket/run"]
)
def test_a_directory_that_is_not_local_is_refused_in_one_sentence(directory):
    with pytest.raises(ConfigError, match="is not a local path") as caught:
        Checkpointer(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "run\\1"])
def test_a_directory_in_which_orbax_loses_models_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="wildcard"):
        Checkpointer(tmp_path / name)


def test_a_directory_with_other_odd_characters_works(tmp_path):
    with Checkpointer(tmp_path / "run ü %20 #x {0}") as checkpointer:
        checkpointer.save(1, model=model(1), data=Counter().at(1))
        checkpointer.wait()
        assert same(checkpointer.restore(model=model(0)).model, model(1))


def test_a_file_in_the_place_of_the_directory_is_one_clear_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot be used: File exists"), Checkpointer(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"every_steps": 0},
        {"keep_latest": 0},
        {"keep_every": -1},
        {"timeout_seconds": 0},
        {"every_steps": True},
    ],
)
def test_save_settings_out_of_range_are_refused(settings):
    with pytest.raises(
        ConfigError, match=rf"SaveConfig\.{next(iter(settings))} must be an integer of at least 1, got"
    ):
        SaveConfig(**settings)


def test_a_user_module_with_arrays_streams_and_nested_modules_round_trips(tmp_path):
    module = Foreign(seed=3)
    for _ in range(3):
        next(module)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, data={"mine": module})
    expected = [np.asarray(next(module)).tobytes() for _ in range(3)]
    other = Foreign(seed=3)
    Checkpointer(tmp_path).restore(data={"mine": other})
    assert [np.asarray(next(other)).tobytes() for _ in range(3)] == expected
    assert other.label.get_value() == module.label.get_value()
    assert other.scale.get_value() == module.scale.get_value()


def test_the_second_generation_continues_as_the_uninterrupted_run(tmp_path):
    straight, module = Foreign(), Foreign()
    tail = [np.asarray(next(straight)).tobytes() for _ in range(6)]
    for step in range(1, 7):
        with Checkpointer(tmp_path) as checkpointer:
            if step > 1:
                module = Foreign()
                checkpointer.restore(data=module)
            assert np.asarray(next(module)).tobytes() == tail[step - 1]
            checkpointer.save(step, data=module)


def test_state_of_single_processes_lies_apart_from_the_record(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data={"train": Counter().at(1), "mine": Foreign()})
    record = Snapshot.open(tmp_path).record
    assert record.loaders["train"].state["position"] == 8
    assert (record.loaders["mine"].scope, record.loaders["mine"].state) == ("process", None)
    parts = json.loads((tmp_path / "1/data/processes.json").read_bytes())
    assert parts["process_count"] == 1
    assert set(parts["parts"]) == {"0"}


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    """A live dict given to an asynchronous JSON save reached the disk changed in 23 of 24 tries."""
    counter, foreign = Counter(), Foreign()
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=None)) as checkpointer:
        for step in range(1, 25):
            next(counter)
            foreign.inner.table.get_value()[:] = step
            checkpointer.save(step, data={"train": counter, "mine": foreign})
            counter.at(999)
            foreign.inner.table.get_value()[:] = 999
            counter.at(step)
    for step in list_steps(tmp_path):
        states = Snapshot.open(tmp_path, step).states()
        assert (states["train"]["position"], states["mine"]["inner"]["table"][0, 0]) == (8 * step, step)


def test_a_record_above_its_limit_is_refused_naming_the_module(tmp_path):
    class Wide(Counter):
        def __init__(self):
            super().__init__()
            self.name = None
            self.extra = jax.tree.map(lambda x: x, None)

        def get_state(self):
            return {**super().get_state(), "seen": list(range(200_000))}

    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(
            SaveError, match=r"allowed are 1048576; the largest part is the state of 'wide' with \d+ bytes"
        ):
            checkpointer.save(1, data={"train": Counter(), "wide": Wide()})
        checkpointer.save(1, data=Counter().at(1))
    assert (tmp_path / "1/data/record.json").stat().st_size < 1024


def test_states_that_do_not_fit_into_the_record_have_a_file_of_their_own(tmp_path):
    statistics = {name: np.arange(100) / 7 + number for number, name in enumerate("abcd")}

    def loader():
        source = MemorySource(MemoryConfig(), {"x": np.arange(40)})
        return DataLoader(DataLoaderConfig(batch_size=4), source)

    with loader() as train, Checkpointer(tmp_path) as checkpointer:
        next(train)
        train.set_statistics(statistics)
        checkpointer.save(1, data={"train": train, "eval": Counter()})
        checkpointer.wait()
        before = train.get_state()
    data = tmp_path / "1" / "data"
    assert (data / "record.json").stat().st_size <= 4096 < (data / "state.json").stat().st_size
    assert Snapshot.open(tmp_path).check() == []
    with loader() as train, Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(data={"train": train, "eval": Counter()})
        assert train.get_state() == before
        assert same(train.get_statistics(), statistics)
    (data / "state.json").write_bytes((data / "state.json").read_bytes().replace(b"eval", b"evil"))
    with loader() as train, pytest.raises(SnapshotDamagedError, match=r"data/state\.json"):
        restore_snapshot(Snapshot.open(tmp_path), data={"train": train, "eval": Counter()})


def test_a_state_that_cannot_be_encoded_is_refused_by_path_before_anything_is_written(tmp_path):
    class Odd(Counter):
        def get_state(self):
            return {**super().get_state(), "seen": {1, 2}}

    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match=r"step 1 cannot be made: eval\.seen is a builtins\.set"):
            checkpointer.save(1, data={"train": Counter(), "eval": Odd()})
        checkpointer.save(1, data=Counter())
    assert list_steps(tmp_path) == [1]


def test_digests_of_steps_reach_back_to_the_last_committed_snapshot(tmp_path):
    train, evaluation = Digesting(), Digesting()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, data={"train": train.at(3), "eval": evaluation.at(1)})
        checkpointer.save(5, data={"train": train.at(5), "eval": evaluation.at(4)})
        checkpointer.wait()
    assert train.told == [3, 5]
    snapshot = Snapshot.open(tmp_path, 5)
    first, keys, values = snapshot.steps["train"]
    assert (first, keys.tolist(), values.tolist()) == (3, [9, 12], [3 + 2**63, 4 + 2**63])
    assert snapshot.steps["eval"][0] == 3
    assert snapshot.record.loaders["train"].digest == {
        "version": 1,
        "rows": 40,
        "keys": f"{280:016x}",
        "bytes": None,
    }
    assert snapshot.record.previous == 3
    raw = (tmp_path / "5/data/steps.bin").read_bytes()
    assert raw[:16] == (9).to_bytes(8, "little") + (3 + 2**63).to_bytes(8, "little")


def test_identity_and_config_are_stored_once_before_a_snapshot_names_them(tmp_path):
    identity = {"train": {"seed": 1}}
    for step in (1, 2):
        with Checkpointer(tmp_path, identity=identity, config_text="[run]\nsteps = 3\n") as checkpointer:
            if step == 2:
                checkpointer.restore(data=Counter())
            assert (tmp_path / "identity" / f"{digest(identity)}.json").exists()
            checkpointer.save(step, data=Counter().at(step))
    record = Snapshot.open(tmp_path).record
    assert record.identity == digest(identity)
    assert read_config(tmp_path, record.config) == "[run]\nsteps = 3\n"
    assert len(list((tmp_path / "identity").iterdir())) == len(list((tmp_path / "configs").iterdir())) == 1


def test_a_module_that_has_no_identity_was_given_for_is_refused(tmp_path):
    with (
        Checkpointer(tmp_path, identity={"train": {}}) as checkpointer,
        pytest.raises(InputError, match="'eval'"),
    ):
        checkpointer.save(1, data={"train": Counter(), "eval": Counter()})


def test_saves_fall_due_by_steps_and_by_seconds(tmp_path):
    with Checkpointer(tmp_path / "a", config=SaveConfig(every_steps=3)) as checkpointer:
        assert [step for step in range(8) if checkpointer.should_save(step)] == [0, 3, 6]
        checkpointer.save(3, data=Counter())
        assert [step for step in range(8) if checkpointer.should_save(step)] == [6]
    with Checkpointer(tmp_path / "b", config=SaveConfig(every_seconds=0)) as checkpointer:
        assert checkpointer.should_save(1)
    with Checkpointer(tmp_path / "c", config=SaveConfig(every_seconds=3600)) as checkpointer:
        assert not checkpointer.should_save(1)
    with Checkpointer(tmp_path / "d") as checkpointer:
        assert not checkpointer.should_save(1)


def test_an_unknown_step_is_an_error_that_lists_what_there_is(tmp_path):
    with pytest.raises(SnapshotNotFoundError, match="it has none"):
        Checkpointer(tmp_path / "no run").restore(data=Counter())
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        with pytest.raises(SnapshotNotFoundError, match=r"the snapshot of step 2 .* but it has 1"):
            checkpointer.restore(2, data=Counter())


def test_every_byte_that_counts_is_synced_before_the_step_gets_its_name(tmp_path, monkeypatch):
    """Orbax syncs nothing itself: after a power cut a listed step could hold empty files."""
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source, target, **kwargs):
        events.append(("rename", os.path.abspath(os.fspath(target))))
        real_rename(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, model=model(1), data=Counter().at(1))
        checkpointer.wait()
    commit = events.index(("rename", str(tmp_path / "1")))
    parts = [path.partition(".orbax-checkpoint-tmp") for kind, path in events[:commit] if kind == "sync"]
    synced = {below for _, temporary, below in parts if temporary}
    files = [path for item in ("data", "model") for path in (tmp_path / "1" / item).rglob("*")]
    wanted = {"/" + str(path.relative_to(tmp_path / "1")) for path in files} | {
        "/data",
        "/model",
        "/manifest.json",
        "",
    }
    assert wanted <= synced
    assert ("sync", str(tmp_path)) in events[commit:]
