"""What does not belong in a run is named, and left alone or set aside; it blocks nothing."""

import json
import os

import pytest

from datarax.checkpoint import Checkpointer, Snapshot, ledger_steps, list_steps
from datarax.checkpoint.file_stamps import newest_file_stamps
from datarax.checkpoint.layout import RunLayout, is_step_name
from datarax.checkpoint.lock import RunLock
from datarax.checkpoint.retention import set_aside
from datarax.core.errors import InputError
from tests.checkpoint.modules import Counter

LAST = 10**15 - 1
FAR = [10**15, 2**63 - 1, 2**63, 10**19 - 1, 10**30]


def save(run, *steps):
    """One start that saves these steps; what it notes."""
    with Checkpointer(run, config_text="x = 1\n") as checkpointer:
        if checkpointer.latest_step() is not None:
            checkpointer.restore(data=Counter())
        for step in steps:
            checkpointer.save(step, data=Counter().at(step))
        checkpointer.wait()
        return list(checkpointer.notes)


def test_a_start_that_no_run_has_counted_to_is_none(tmp_path):
    save(tmp_path, 1)
    for number in FAR:
        (tmp_path / f"starts/{number}.json").write_text("x")
        (tmp_path / f"starts/{number}.files.json").write_text("x")
    assert save(tmp_path, 2) == []
    snapshot = Snapshot.open(tmp_path)
    assert (snapshot.step, snapshot.record.start, snapshot.check()) == (2, 2, [])
    assert newest_file_stamps(RunLayout(tmp_path)) is None
    assert (tmp_path / f"starts/{FAR[0]}.json").read_text() == "x"


def test_after_the_last_number_the_file_that_has_it_is_named_and_how_to_go_on(tmp_path):
    (tmp_path / "starts").mkdir()
    last = tmp_path / f"starts/{LAST}.json"
    last.write_text("x")
    with pytest.raises(InputError, match=rf"{last} has the last number .* move it out of"):
        RunLock(RunLayout(tmp_path))
    last.unlink()
    (tmp_path / f"starts/{LAST - 1}.json").write_text("x")
    lock = RunLock(RunLayout(tmp_path))
    assert lock.start == LAST
    lock.release()


def test_places_of_what_is_set_aside_are_counted_likewise(tmp_path):
    layout = RunLayout(tmp_path)
    for name in ("x", *map(str, FAR)):
        (tmp_path / "set_aside" / name).mkdir(parents=True)
    (tmp_path / "7").mkdir()
    assert set_aside(layout, ["7"], start=1, reason="") == "set_aside/1"
    (tmp_path / f"set_aside/{LAST}").mkdir()
    (tmp_path / "8").mkdir()
    with pytest.raises(InputError, match=f"set_aside/{LAST} has the last number"):
        set_aside(layout, ["8"], start=1, reason="")
    assert (tmp_path / "8").is_dir()


def test_a_step_that_no_record_can_hold_is_none_and_cannot_be_saved(tmp_path):
    save(tmp_path, 1)
    for number in (2**63, 10**19 - 1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / f"{number}/manifest.json").write_text("x")
    assert list_steps(tmp_path) == [1]
    assert (is_step_name(str(2**63 - 1)), is_step_name("5\n")) == (True, False)
    with pytest.raises(InputError, match=r"below 2\*\*63, not 9223372036854775808"):
        save(tmp_path, 2**63)
    save(tmp_path, 2)
    assert list_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["identity", "configs", "history"])
@pytest.mark.parametrize("entry", [".x.json.1.tmp", "mine"])
def test_a_directory_among_the_texts_is_set_aside(tmp_path, name, entry):
    save(tmp_path, 1)
    odd = tmp_path / name / entry
    odd.mkdir(parents=True)
    (odd / "kept").write_text("mine")
    (said,) = save(tmp_path, 2)
    place = tmp_path / "set_aside/1"
    assert said == f"{odd} was a directory, where the run has files only; it is now in {place}"
    assert (place / name / entry / "kept").read_text() == "mine"
    assert save(tmp_path, 3) == []


def test_a_directory_in_the_place_of_a_text_is_set_aside_and_the_text_written_again(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / f"configs/{Snapshot.open(tmp_path).record.config}.toml"
    path.unlink()
    path.mkdir()
    (said,) = save(tmp_path, 2)
    assert "was a directory" in said
    assert path.read_text() == "x = 1\n"


def test_a_dropped_step_with_a_directory_for_its_commit_mark_gets_into_the_ledger(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "trash").mkdir()
    (tmp_path / "1").rename(tmp_path / "trash/dropped-1")
    mark = tmp_path / "trash/dropped-1/data/commit_success.txt"
    mark.unlink(missing_ok=True)
    mark.mkdir()
    assert save(tmp_path, 3) == []
    assert ledger_steps(tmp_path) == [1]
    assert not list((tmp_path / "trash").iterdir())


def test_what_is_named_in_the_trash_like_no_step_is_left_alone(tmp_path):
    for name in ("dropped-x", f"dropped-{2**63}", "5"):
        (tmp_path / "trash" / name).mkdir(parents=True)
    assert [said.split("/trash/")[1].split(" ")[0] for said in save(tmp_path, 1)] == [
        "5",
        f"dropped-{2**63}",
        "dropped-x",
    ]
    assert len(list((tmp_path / "trash").iterdir())) == 3


def _link(path, outside):
    path.symlink_to(outside)


FORMS = {"file": lambda path, _: path.write_text("x"), "link": _link, "pipe": lambda path, _: os.mkfifo(path)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ledger", "set_aside", "trash", "parts", "identity", "configs", "history"])
def test_what_is_no_directory_leaves_the_place_of_one(tmp_path, name, form):
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    run.mkdir()
    FORMS[form](run / name, outside)
    (said,) = save(run, 1, 2)
    assert said.startswith(f"{run / name} was a link or a file, not a directory of the run; it is now ")
    found = [path for path in run.rglob(f"{name}*") if not path.is_dir() or path.is_symlink()]
    assert len(found) == 1
    assert str(found[0]).startswith(said.rpartition(" ")[2])
    with Checkpointer(run) as checkpointer:
        assert checkpointer.set_aside_after(1) == [2]
        assert checkpointer.notes == []
    assert list_steps(run) == [1]
    assert [path.name for path in outside.iterdir()] == ["kept"]


def test_with_files_in_the_places_of_all_directories_a_run_goes_on(tmp_path):
    for name in ("ledger", "set_aside", "trash", "parts"):
        (tmp_path / name).write_text(name)
    assert len(save(tmp_path, 1)) == 4
    assert save(tmp_path, 2) == []
    assert sorted(p.read_text() for p in tmp_path.glob("set_aside/*/*") if p.name != "note.json") == [
        "ledger",
        "parts",
        "trash",
    ]


def test_a_link_in_the_place_of_the_starts_is_refused_with_a_way_out(tmp_path):
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
    (tmp_path / "run" / "starts").rename(tmp_path / "moved")
    (tmp_path / "run" / "starts").symlink_to(tmp_path / "moved")
    with (
        pytest.raises(InputError, match=r"put that back, or move this away \(.*/run/starts\)"),
        Checkpointer(tmp_path / "run"),
    ):
        pass
    (tmp_path / "run" / "starts").unlink()
    (tmp_path / "moved").rename(tmp_path / "run" / "starts")
    with Checkpointer(tmp_path / "run") as checkpointer:
        assert checkpointer.start == 2


@pytest.mark.parametrize("harm", [b"", b"{}", None])
def test_a_damaged_identity_or_config_is_written_again_and_that_is_said_once(tmp_path, harm):
    identity = {"train": {"seed": 5}}

    def start():
        with Checkpointer(tmp_path, identity=identity, config_text="x = 1\n") as checkpointer:
            return checkpointer.notes

    assert start() == []
    paths = [next((tmp_path / "configs").iterdir()), next((tmp_path / "identity").iterdir())]
    for path in paths:
        path.unlink()
        if harm is None:
            path.symlink_to(tmp_path / "lock")
        else:
            path.write_bytes(harm)
    assert start() == [
        f"{path} was damaged and has been written again: what a snapshot names must be there"
        for path in paths
    ]
    assert json.loads(paths[1].read_bytes()) == identity
    assert start() == []


def test_a_text_that_goes_while_the_run_goes_on_is_said_to_be_gone(tmp_path):
    with Checkpointer(tmp_path, config_text="x = 1\n") as checkpointer:
        next((tmp_path / "configs").iterdir()).unlink()
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        assert ["was gone and has been written again" in said for said in checkpointer.notes] == [True]
