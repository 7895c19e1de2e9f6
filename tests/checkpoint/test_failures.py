"""Saves that fail: reported once, never in place of another save, and the same step can be saved again."""

import contextlib
import errno
import os
import subprocess
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from datarax.checkpoint import Checkpointer, SaveConfig, Snapshot, list_steps, saver
from datarax.core.errors import InputError, RunLockedError, SaveError
from datarax.store import LocalStore
from tests.checkpoint.modules import Counter, Digesting, model
from tests.checkpoint.test_checkpointer import save_and_raise


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be told to be full; only the write of our own files in a snapshot sees it."""

    class Disk:
        full = False
        error = errno.ENOSPC

    real = LocalStore.write

    def write(self, key, data, **options):
        if Disk.full and ".orbax-checkpoint-tmp" in key:
            raise OSError(Disk.error, os.strerror(Disk.error), self.path(key))
        real(self, key, data, **options)

    monkeypatch.setattr(LocalStore, "write", write)
    return Disk


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("with_model", [False, True])
def test_a_failed_save_is_reported_by_poll_and_is_no_step(tmp_path, disk, with_model):
    tree = model(1) if with_model else None
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, model=tree, data=Counter().at(1))
        checkpointer.wait()
        disk.full = True
        checkpointer.save(2, model=tree, data=Counter().at(2))
        with pytest.raises(
            SaveError, match=r"step 2 could not be written to .*: No space left on device \(.*\)"
        ) as caught:
            checkpointer.wait()
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert caught.value.exit_code == 74
        assert (checkpointer.steps(), checkpointer.latest_step()) == ([1], 1)
        assert not list(tmp_path.glob("*tmp*"))  # it would keep a full disk full
        assert checkpointer.poll() == []  # reported once
        disk.full = False
        checkpointer.save(2, model=tree, data=Counter().at(2))  # the same step, as the last one of a run must
        assert checkpointer.wait() == [2]
        checkpointer.save(3, model=tree, data=Counter().at(3))
    assert list_steps(tmp_path) == [1, 2, 3]
    assert Snapshot.open(tmp_path, 3).check() == []


@pytest.mark.parametrize("with_model", [False, True])
def test_a_directory_that_cannot_be_made_leaves_no_thread_that_waits_for_it(
    tmp_path, monkeypatch, with_model
):
    """Orbax's threads would wait five minutes for it, and the exit of the interpreter for them."""

    def refuse(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    tree = model(1) if with_model else None
    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", refuse)
            with pytest.raises(SaveError, match="No space left on device"):
                save_and_wait(checkpointer, 1, tree)
        assert not [t for t in threading.enumerate() if type(t).__module__.startswith("orbax.")]
        checkpointer.save(1, model=tree, data=Counter().at(1))
        assert checkpointer.wait() == [1]


def test_a_disk_that_turns_read_only_is_named_as_such(tmp_path, disk):
    disk.full, disk.error = True, errno.EROFS
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        with pytest.raises(SaveError, match="Read-only file system"):
            checkpointer.wait()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_never_cancels_the_next_save(tmp_path, disk):
    counter = Digesting()
    with Checkpointer(tmp_path) as checkpointer:
        disk.full = True
        checkpointer.save(1, model=model(1), data=counter.at(1))
        while checkpointer._saver._job is not None and not checkpointer._saver._job.done.wait(10):
            pass
        disk.full = False
        with pytest.raises(SaveError, match="step 1 could not be written"):
            checkpointer.save(2, model=model(2), data=counter.at(2))
        assert checkpointer.wait() == [2]
        checkpointer.save(3, data=counter.at(3))
    assert list_steps(tmp_path) == [2, 3]
    assert counter.told == [2, 3]
    assert Snapshot.open(tmp_path, 2).steps["train"][0] == 0  # the digests of the failed save were kept


def test_a_failure_is_reported_by_close_if_nobody_asked_before(tmp_path, disk):
    disk.full = True
    with (
        pytest.raises(SaveError, match="step 1 could not be written"),
        Checkpointer(tmp_path) as checkpointer,
    ):
        checkpointer.save(1, data=Counter().at(1))
    assert list_steps(tmp_path) == []
    with Checkpointer(tmp_path):  # the lock is free again
        pass


def test_a_failure_does_not_hide_the_error_of_the_loop(tmp_path, disk):
    disk.full = True
    with pytest.raises(KeyError) as caught:
        save_and_raise(tmp_path)
    assert "step 1 could not be written" in caught.value.__notes__[0]


def test_a_failure_to_seal_keeps_the_step_from_being_committed(tmp_path, monkeypatch):
    def broken(self, key):
        raise OSError(errno.EIO, os.strerror(errno.EIO), self.path(key))

    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "sha256", broken)
            checkpointer.save(1, data=Counter().at(1))
            with pytest.raises(SaveError, match="Input/output error"):
                checkpointer.wait()
        assert list(tmp_path.glob("1*")) == []
        checkpointer.save(1, data=Counter().at(1))
    assert list_steps(tmp_path) == [1]


def test_a_model_that_orbax_finishes_without_content_is_a_failed_save(tmp_path, monkeypatch):
    """What happened in a run directory named `run[1]`: the merge found no parts, and the save succeeded."""
    from orbax.checkpoint._src.serialization import ocdbt_utils

    async def skip(*args, **kwargs):
        return None

    monkeypatch.setattr(ocdbt_utils, "merge_ocdbt_per_process_files", skip)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, model=model(1), data=Counter().at(1))
        with pytest.raises(SaveError, match="without content"):
            checkpointer.wait()
    assert list_steps(tmp_path) == []


def test_a_failure_that_orbax_raises_at_once_leaves_the_writer_usable(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:

            def refuse(*args, **kwargs):
                raise ValueError("not today\nand more")

            patch.setattr(checkpointer._saver._writer._manager, "save", refuse)
            with pytest.raises(SaveError, match="ValueError: not today"):
                checkpointer.save(1, model=model(1), data=Counter().at(1))
            checkpointer.save(1, data=Counter().at(1))
            with pytest.raises(SaveError, match="ValueError: not today"):
                checkpointer.wait()
        checkpointer.save(1, model=model(1), data=Counter().at(1))
        assert checkpointer.wait() == [1]


def test_an_interrupt_before_orbax_has_begun_leaves_no_step_and_a_usable_writer(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with Checkpointer(tmp_path) as checkpointer:
        with monkeypatch.context() as patch:
            patch.setattr(checkpointer._saver._writer._manager, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                checkpointer.save(1, model=model(1), data=Counter().at(1))
        assert checkpointer.steps() == []
        checkpointer.save(1, model=model(1), data=Counter().at(1))
        assert checkpointer.wait() == [1]


def test_an_interrupt_after_orbax_has_begun_still_counts_the_step_that_it_commits(tmp_path, monkeypatch):
    with Checkpointer(tmp_path) as checkpointer:
        real = checkpointer._saver._writer._manager.save

        def interrupted(*args, **kwargs):
            real(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpointer._saver._writer._manager, "save", interrupted)
            with pytest.raises(KeyboardInterrupt):
                checkpointer.save(1, model=model(1), data=Counter().at(1))
        assert checkpointer.wait() == [1]
        checkpointer.save(2, data=Counter().at(2))
    assert list_steps(tmp_path) == [1, 2]


def test_the_list_that_orbax_keeps_does_not_grow_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "_RELOAD_EVERY", 4)
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=2)) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, data=Counter().at(step))
        checkpointer.wait()
        assert len(checkpointer._saver._writer._manager.all_steps()) <= 2


def test_a_superseded_writer_commits_nothing_more(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        (tmp_path / "starts/2.json").write_text("{}")
        checkpointer.save(2, data=Counter().at(2))
        with pytest.raises(
            RunLockedError, match=r"start 2 has taken over .* \(start 1\); .* step 2 was not committed"
        ):
            checkpointer.wait()
        assert checkpointer.steps() == [1]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.start == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte that really fills up."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.strip()}")
    yield place
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    subprocess.run(["umount", place], check=True)


def fill(place):
    descriptor = os.open(place / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)
    return place / "ballast"


def save_and_wait(checkpointer, step, weights):
    checkpointer.save(step, model=weights, data=Counter().at(step))  # where Orbax notices is its business
    checkpointer.wait()


# TensorStore may answer after Orbax has given up and closed its event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_fails_the_save_and_room_made_later_lets_it_succeed(small_disk):
    weights = {"w": jnp.asarray(np.random.default_rng(0).random((128, 128), np.float32))}
    with Checkpointer(small_disk / "run", config=SaveConfig(keep_latest=1)) as checkpointer:
        checkpointer.save(1, model=weights, data=Counter().at(1))
        checkpointer.wait()
        ballast = fill(small_disk)
        for step in (2, 3):
            with pytest.raises(SaveError, match=f"step {step} could not be written"):
                save_and_wait(checkpointer, step, weights)
        assert checkpointer.steps() == [1]
        ballast.unlink()
        checkpointer.save(3, model=weights, data=Counter().at(3))
        assert checkpointer.wait() == [3]
    assert Snapshot.open(small_disk / "run").check() == []


def test_a_full_disk_at_the_start_is_one_clear_error(small_disk):
    fill(small_disk)
    with (
        pytest.raises(InputError, match="cannot be used: No space left on device"),
        Checkpointer(small_disk / "run"),
    ):
        pass


def test_a_read_only_disk_is_one_clear_error_and_can_still_be_read(small_disk):
    with Checkpointer(small_disk / "run") as checkpointer:
        checkpointer.save(1, model=model(1), data=Counter().at(1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match="Read-only file system"), Checkpointer(small_disk / "run"):
        pass
    assert Checkpointer(small_disk / "run").restore(data=Counter(), model=model(0)).step == 1
    assert Snapshot.open(small_disk / "run").check() == []
