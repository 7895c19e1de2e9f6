"""A run directory that is deleted, moved or replaced while its writer goes on: nothing is made there, and the writer stops."""

import os
import shutil

import numpy as np
import pytest

from datarax import DataLoader, DataLoaderConfig, MemoryConfig, MemorySource, TrainingSession
from datarax.checkpoint import Checkpointer, SaveConfig, list_steps
from datarax.core.errors import RunLostError, SaveError
from datarax.store.files import MOST_DEPTH, parse_json, read_file
from tests.checkpoint.modules import Counter


def _deleted(run, moved):
    shutil.rmtree(run)


def _moved(run, moved):
    run.rename(moved)


def _replaced(run, moved):
    run.rename(moved)
    run.mkdir()


def _copied_in_its_place(run, moved):
    run.rename(moved)
    shutil.copytree(moved, run)


def _without_lock(run, moved):
    (run / "lock").unlink()


def _without_starts(run, moved):
    (run / "starts").rename(moved)


def _a_pipe_in_its_place(run, moved):
    run.rename(moved)
    os.mkfifo(run)


def _starts_that_are_a_link(run, moved):
    _without_starts(run, moved)
    (run / "starts").symlink_to(moved)


def _starts_that_are_a_pipe(run, moved):
    _without_starts(run, moved)
    os.mkfifo(run / "starts")


IN_STARTS = [_without_starts, _starts_that_are_a_link, _starts_that_are_a_pipe]
LOST = [
    _deleted,
    _moved,
    _replaced,
    _copied_in_its_place,
    _without_lock,
    *IN_STARTS,
]


@pytest.mark.parametrize("lose", [*LOST, _a_pipe_in_its_place])
def test_a_writer_whose_run_is_gone_makes_nothing_and_stops_with_74(lose, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    with Checkpointer(run) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        lose(run, moved)
        before = sorted(run.rglob("*")) if run.exists() else None
        if lose is _a_pipe_in_its_place:
            with pytest.raises(RunLostError, match=r"deleted, moved or replaced"):
                checkpointer.latest_step()
        with pytest.raises(RunLostError, match=r"deleted, moved or replaced") as caught:
            checkpointer.save(2, data=Counter().at(2))
        assert caught.value.exit_code == 74
        assert (sorted(run.rglob("*")) if run.exists() else None) == before
    if moved.exists() and lose not in IN_STARTS:
        assert list_steps(moved) == [1]


@pytest.mark.parametrize("lose", LOST)
def test_a_run_that_goes_while_a_save_is_on_its_way_is_not_committed(lose, tmp_path, monkeypatch):
    run, moved = tmp_path / "run", tmp_path / "moved"
    with Checkpointer(run) as checkpointer:
        seal = checkpointer._saver._seal

        def lose_and_seal(temporary, parts):
            if lose in (_without_lock, *IN_STARTS):  # else Orbax itself has nowhere to go on
                lose(run, moved)
                seal(temporary, parts)
            else:
                lose(run, moved)
                checkpointer._lock.superseded_by()

        monkeypatch.setattr(checkpointer._saver._writer, "_before_commit", lose_and_seal)
        checkpointer.save(1, data=Counter().at(1))
        # Orbax, on threads of its own, may be the first to find nothing there.
        with pytest.raises((RunLostError, SaveError)) as caught:
            checkpointer.wait()
        assert caught.value.exit_code == 74
    assert list_steps(run) == [] if run.exists() else True


@pytest.mark.parametrize("is_taken", [False, True])
def test_what_is_made_again_below_a_lost_run_goes_again_unless_a_later_start_has_it(
    is_taken, tmp_path, monkeypatch
):
    run, moved = tmp_path / "run", tmp_path / "moved"
    with Checkpointer(run) as checkpointer:

        def lose_and_go_on(temporary, parts):
            _moved(run, moved)
            run.joinpath(temporary, "model").mkdir(
                parents=True
            )  # as TensorStore does, which still writes there
            if is_taken:
                (run / "lock").touch()
            checkpointer._lock.superseded_by()

        monkeypatch.setattr(checkpointer._saver._writer, "_before_commit", lose_and_go_on)
        checkpointer.save(1, data=Counter().at(1))
        with pytest.raises((RunLostError, SaveError)):
            checkpointer.wait()
    assert run.exists() == is_taken
    assert len(list(tmp_path.glob("run/1.*/model"))) == is_taken


def test_a_session_ends_with_its_run_and_leaves_the_snapshots_where_they_are(tmp_path):
    class Mover:
        def init(self, parameters, mesh):
            return {"w": np.zeros(2)}

        def step(self, state, batch):
            if batch["x"][0] == 20.0:
                (tmp_path / "run").rename(tmp_path / "moved")
            return state, {}

    loader = DataLoader(
        DataLoaderConfig(batch_size=4, num_epochs=1, order="none"),
        MemorySource(MemoryConfig(), {"x": np.arange(64.0)}),
    )
    session = TrainingSession(
        tmp_path / "run", loader=loader, task=Mover(), save=SaveConfig(every_steps=2), stream=None
    )
    with pytest.raises(RunLostError):
        session.run()
    assert not (tmp_path / "run").exists()
    assert set(list_steps(tmp_path / "moved")) <= {2, 4}  # the save of step 4 may have been on its way


@pytest.mark.parametrize("kind", ["identity", "configs"])
def test_texts_that_snapshots_name_are_written_again_once_they_are_gone_and_that_is_said_once(kind, tmp_path):
    with Checkpointer(tmp_path, config_text="a = 1\n", identity={"train": {"seed": 1}}) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        (gone,) = (tmp_path / kind).iterdir()
        content = gone.read_bytes()
        shutil.rmtree(tmp_path / kind)
        for step in (2, 3):
            checkpointer.save(step, data=Counter().at(step))
            checkpointer.wait()
        assert gone.read_bytes() == content
        assert [str(gone) in note for note in checkpointer.notes] == [True]
    assert Checkpointer(tmp_path).newest_good_step() == 3


def test_texts_behind_a_link_are_not_in_the_run(tmp_path):
    run = tmp_path / "run"
    with Checkpointer(run, identity={"train": {"seed": 1}}) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        (run / "identity").rename(tmp_path / "moved")
        (run / "identity").symlink_to(tmp_path / "moved")
        with pytest.raises(SaveError, match="identity"):
            checkpointer.save(2, data=Counter().at(2))


@pytest.mark.parametrize("is_link", [False, True])
def test_a_snapshot_that_goes_while_the_run_goes_on_is_said_once(is_link, tmp_path):
    run = tmp_path / "run"
    with Checkpointer(run) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, data=Counter().at(step))
            checkpointer.wait()
            if step == 1:
                (run / "1").rename(tmp_path / "moved")
                if is_link:
                    (run / "1").symlink_to(tmp_path / "moved")
        assert [f"{run / '1'} was committed and is gone" in note for note in checkpointer.notes] == [True]


def test_json_is_read_up_to_a_depth_that_every_walk_can_go():
    nested = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse_json(nested)
    for deeper in (f"[{nested}]", "[" * 10**5 + "]" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5):
        with pytest.raises(ValueError, match="deep"):
            parse_json(deeper)


def test_a_file_is_read_below_its_root_only(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a/file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "a/link").symlink_to(tmp_path / "secret")
    (root / "b").symlink_to(root / "a")
    os.mkfifo(root / "a/fifo")
    assert read_file(root / "a/file", 5, root=root) == b"12345"
    assert read_file(root / "b/file", 5) == b"12345"
    for path, most in [
        ("a/file", 4),
        ("a/link", 9),
        ("b/file", 9),
        ("a/fifo", 9),
        ("a", 9),
        ("../secret", 9),
    ]:
        with pytest.raises(OSError, match=r".") as caught:
            read_file(root / path, most, root=root)
        assert caught.value.filename == str(root / path)
        assert caught.value.strerror
