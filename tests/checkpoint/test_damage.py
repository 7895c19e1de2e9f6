"""Flipped, truncated, missing, foreign: each is named, nothing damaged is ever used."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from datarax.checkpoint import (
    Checkpointer,
    SaveConfig,
    Snapshot,
    ledger_record,
    list_steps,
    newest_good_step,
    read_config,
)
from datarax.checkpoint.manifest import Manifest
from datarax.checkpoint.record import Record
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from tests.checkpoint.modules import Counter, Digesting, Foreign, flip_byte
from tests.support.tiers import is_whole


def modules():
    return {"train": Digesting(), "mine": Foreign()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three steps whose model has values in bulk files, where Orbax sees no flipped bit."""
    run = tmp_path_factory.mktemp("made")
    with Checkpointer(run, config_text="x = 1\n") as checkpointer:
        for step in (1, 2, 3):
            data = modules()
            data["train"].at(step)
            weights = jnp.asarray(np.random.default_rng(step).random((64, 64), np.float32))
            checkpointer.save(step, model={"w": weights, "n": step}, data=data)
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def template():
    return {"w": jnp.zeros((64, 64)), "n": 0}


def refused(run, **kwargs):
    with pytest.raises(SnapshotDamagedError) as caught:
        Checkpointer(run).restore(**({"model": template(), "data": modules()} | kwargs))
    return caught.value


def test_a_flipped_bit_in_any_file_of_any_item_is_refused_by_name(run):
    files = [
        path for item in ("data", "model") for path in sorted((run / "3" / item).rglob("*")) if path.is_file()
    ]
    assert {"record.json", "steps.bin", "processes.json", "_METADATA", "manifest.ocdbt"} <= {
        f.name for f in files
    }
    for path in files:
        if path.stat().st_size == 0:
            continue
        before = flip_byte(path)
        error = refused(run)
        shown = str(path.relative_to(run / "3"))
        assert [problem.partition(":")[0] for problem in error.problems] == [shown]
        assert (error.step, error.earlier_step) == (3, 2)
        assert "the one before it is of step 2" in str(error)
        path.write_bytes(before)
    assert Snapshot.open(run).check() == []


def test_every_single_byte_of_the_record_and_of_the_manifest_counts(run):
    for path in (run / "3/data/record.json", run / "3/manifest.json"):
        data = path.read_bytes()
        for at in range(0, len(data), 3 if is_whole() else 41):
            flip_byte(path, at)
            with pytest.raises(SnapshotDamagedError, match=path.name):
                assert Snapshot.open(run).record
            path.write_bytes(data)


def test_a_manifest_of_the_same_values_in_other_bytes_is_damage(run):
    path = run / "3/manifest.json"
    data = path.read_bytes()
    assert json.loads(data.replace(b":", b": ", 1)) == json.loads(data)
    path.write_bytes(data.replace(b":", b": ", 1))
    assert refused(run).problems[0].startswith("manifest.json:")


@pytest.mark.parametrize("item", ["data", "model"])
@pytest.mark.parametrize("harm", ["truncate", "empty", "delete", "add"])
def test_truncated_empty_missing_and_added_files_are_refused_by_name(run, item, harm):
    path = max((p for p in (run / "3" / item).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "delete":
        path.unlink()
    else:
        path = path.with_name("extra")
        path.write_text("")
    error = refused(run)
    assert str(path.relative_to(run / "3")) in error.problems[0]


@pytest.mark.parametrize("item", ["data", "model"])
def test_a_missing_item_is_damage(run, item):
    shutil.rmtree(run / "3" / item)
    assert f"{item}/" in refused(run).problems[0]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"checksum":"0"}'])
def test_a_manifest_that_is_no_manifest_is_damage_and_not_an_uncommitted_step(run, content):
    (run / "3/manifest.json").write_bytes(content)
    assert list_steps(run) == [1, 2, 3]
    assert refused(run).problems[0].startswith("manifest.json:")


def test_there_is_no_fall_back_unless_a_step_is_named(run):
    flip_byte(run / "3/data/record.json")
    flip_byte(run / "2/model/manifest.ocdbt")
    assert refused(run).earlier_step == 2, "which nobody has looked at"
    assert newest_good_step(run) == Checkpointer(run).newest_good_step() == 1
    assert newest_good_step(run, below=1) is None
    data = modules()
    assert Checkpointer(run).restore(1, model=template(), data=data).step == 1
    assert data["train"].idx.get_value() == 1


def test_a_refused_restore_leaves_the_modules_as_they_were(run):
    flip_byte(run / "3/model/manifest.ocdbt")
    data = modules()
    data["train"].at(7)
    before = data["train"].get_state()["position"]
    refused(run, data=data)
    assert data["train"].get_state()["position"] == before


def test_damage_of_an_item_that_is_not_asked_for_does_not_matter_to_a_restore(run):
    flip_byte(run / "3/model/manifest.ocdbt")
    assert Checkpointer(run).restore(data=modules()).step == 3
    assert Snapshot.open(run).check() != []


def test_a_step_directory_under_another_number_is_damage(run):
    (run / "3").rename(run / "4")
    assert "manifest.json: it is of step 3" in str(refused(run))


def test_the_record_of_another_step_is_damage(run):
    shutil.copy(run / "2/data/record.json", run / "3/data/record.json")
    assert "data/record.json" in str(refused(run))


def test_a_changed_identity_or_config_file_is_damage(run):
    record = Snapshot.open(run).record
    before = flip_byte(run / "identity" / f"{record.identity}.json")
    assert f"identity/{record.identity}.json" in str(refused(run))
    (run / "identity" / f"{record.identity}.json").write_bytes(before)
    (run / "configs" / f"{record.config}.toml").unlink()
    assert f"configs/{record.config}.toml" in str(refused(run))
    with pytest.raises(SnapshotDamagedError, match="configs/"):
        read_config(run, record.config)


def test_a_step_that_goes_while_it_is_read_is_not_called_damaged(run):
    snapshot = Snapshot.open(run)
    (run / "3").rename(run / "gone")
    with pytest.raises(SnapshotNotFoundError, match=r"step 3 .* was removed while it was being read"):
        assert snapshot.record


def test_what_orbax_keeps_for_itself_at_the_step_is_not_needed(run):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (run / "3" / name).unlink()
    assert Checkpointer(run).restore(model=template(), data=modules()).step == 3


def test_numbered_directories_without_a_manifest_are_skipped_with_a_note_and_do_not_block(run):
    (run / "7").mkdir()
    (run / "9").mkdir()
    (run / "9" / "mine.txt").write_text("keep me")
    for junk in ("0007", "5abc", "foo"):
        (run / junk).mkdir()
    (run / "11").write_text("a file")
    with Checkpointer(run) as checkpointer:
        assert checkpointer.skipped_directories == ["7", "9"]
        assert "never was a snapshot" in checkpointer.notes[0]
        assert checkpointer.latest_step() == 3
        data = modules()
        assert checkpointer.restore(data=data).step == 3
        for step in (7, 9):
            checkpointer.save(step, data=data)
        checkpointer.wait()
        assert checkpointer.steps()[-2:] == [7, 9]
    assert (run / "set_aside/2/9/mine.txt").read_text() == "keep me"


def test_leftover_temporary_directories_are_removed_by_the_writer_only(run):
    left = run / "8.orbax-checkpoint-tmp"
    (left / "data.orbax-checkpoint-tmp").mkdir(parents=True)
    (run / "notes.orbax-checkpoint-tmp").mkdir()
    assert Snapshot.open(run).step == 3
    assert left.exists()
    with Checkpointer(run) as checkpointer:
        assert not left.exists()
        assert "left by a save that was killed" in checkpointer.notes[0]
    assert (run / "notes.orbax-checkpoint-tmp").exists()


def test_a_model_above_the_digest_limit_is_recorded_by_size_and_that_is_said(tmp_path):
    config = SaveConfig(model_digest_limit_bytes=100)
    with Checkpointer(tmp_path, config=config) as checkpointer:
        checkpointer.save(1, model={"w": jnp.ones((64, 64))}, data=Counter().at(1))
        checkpointer.wait()
        assert "its files are recorded by size only" in checkpointer.notes[0]
    snapshot = Snapshot.open(tmp_path)
    assert snapshot.manifest.unhashed_items == ["model"]
    assert snapshot.check() == []
    path = tmp_path / "1/model/manifest.ocdbt"
    path.write_bytes(path.read_bytes() + b"x")
    assert "manifest.ocdbt" in snapshot.check()[0]


def test_a_format_of_a_later_version_is_refused_in_words(run):
    snapshot = Snapshot.open(run)
    record = json.loads((run / "3/data/record.json").read_bytes())
    with pytest.raises(ValueError, match="its format is 3; this version of datarax reads up to 2"):
        Record.from_bytes(json.dumps(record | {"format": 3}).encode())
    with pytest.raises(ValueError, match="other fields than format 2"):
        Record.from_bytes(json.dumps(record | {"surprise": 2}).encode())
    assert Record.from_bytes(snapshot.record.to_files()["record.json"]) == snapshot.record
    assert Manifest.from_bytes(snapshot.manifest.to_bytes()) == snapshot.manifest


def test_a_changed_ledger_is_noticed(tmp_path):
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=1)) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, data=Digesting().at(step))
    record, steps = ledger_record(tmp_path, 1)
    assert (record.step, len(steps)) == (1, 16)
    flip_byte(tmp_path / "ledger/1/steps.bin")
    with pytest.raises(SnapshotDamagedError, match=r"ledger/1/steps.bin"):
        ledger_record(tmp_path, 1)


def test_the_layout_page_names_every_field_and_file(run):
    page = (Path(__file__).parents[2] / "checkpoints" / "README.md").read_text()
    trees = [json.loads((run / "3" / name).read_bytes()) for name in ("manifest.json", "data/record.json")]
    trees.append(json.loads((run / "3/data/processes.json").read_bytes()))
    names = {key for tree in trees for key in tree}
    names |= {key for leaf in trees[0]["leaves"] for key in leaf}
    names |= {key for loader in trees[1]["loaders"].values() for key in loader}
    names |= {*trees[1]["loaders"]["train"]["steps"], *trees[1]["history"][0]}
    names |= {path.name for path in run.iterdir() if not path.name.isdigit()}
    assert [name for name in sorted(names) if f"`{name}" not in page] == []
