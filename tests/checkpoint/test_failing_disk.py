"""Every single file access of ours in a save, retention, rollback and restore fails, once or from then on; writes are short.

What is said is one error of ours, and what is on the disk is whole and goes on.
"""

import errno
import math
import os
import sys
from pathlib import Path

import pytest

import datarax
from datarax.checkpoint import Checkpointer, SaveConfig, Snapshot, ledger_record, ledger_steps, list_steps
from datarax.core.errors import DataraxError
from tests.checkpoint.modules import Digesting

_PACKAGE = str(Path(datarax.__file__).parent)
_CHANGES = ("write", "fsync", "replace", "rename", "mkdir", "unlink")
_CALLS = ("open", "scandir", "listdir", *_CHANGES)


class Disk:
    """Counts the calls of `os` that our own code makes, and has the n-th of them fail."""

    def __init__(self, monkeypatch):
        self.count, self.fails, self.error, self.short = 0, None, errno.EIO, False
        self.read_only_from = math.inf
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name, real):
        def call(*args, **kwargs):
            if _is_ours(sys._getframe(1)):
                self.count += 1
                if self.count == self.fails:
                    raise OSError(self.error, os.strerror(self.error), f"call {self.count}, {name}")
                changes = name in _CHANGES or (name == "open" and args[1] & (os.O_WRONLY | os.O_RDWR))
                if changes and self.count >= self.read_only_from:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"call {self.count}, {name}")
                if name == "write" and self.short and len(args[1]) > 1:
                    return real(args[0], args[1][: len(args[1]) // 2])
            return real(*args, **kwargs)

        return call


def _is_ours(frame):
    """Whether a call comes from datarax, perhaps by way of the standard library."""
    while frame is not None and frame.f_code.co_filename.startswith(os.path.dirname(os.__file__)):
        if "site-packages" in frame.f_code.co_filename:
            return False
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_PACKAGE)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def live(run, disk):
    """Saves, retention, a rollback and a restore; what failed."""
    failed = []

    def trying(act, *args, **kwargs):
        try:
            return act(*args, **kwargs)
        except DataraxError as error:
            failed.append(error)
        return None

    def all_of_it():
        with Checkpointer(run, config=SaveConfig(keep_latest=2), config_text="a = 1\n") as checkpointer:
            counter = Digesting()
            trying(checkpointer.restore, data=counter) if checkpointer.latest_step() else None
            first = (checkpointer.latest_step() or 0) + 1
            for step in range(first, first + 4):
                trying(checkpointer.save, step, data=counter.at(step))
                trying(checkpointer.wait)
            steps = checkpointer.steps()
            if len(steps) > 1:
                trying(checkpointer.restore, steps[-2], data=counter)
                trying(checkpointer.set_aside_after, steps[-2])
            failed.extend(note for note in checkpointer.notes if "could not" in note)

    trying(all_of_it)
    return failed


def check_whole(run):
    for step in list_steps(run):
        assert Snapshot.open(run, step).check() == []
    for step in ledger_steps(run):
        ledger_record(run, step)


def test_short_writes_are_no_failure(tmp_path, disk):
    disk.short = True
    assert live(tmp_path, disk) == []
    check_whole(tmp_path)
    assert list_steps(tmp_path) == [3]


def _number_of_calls():
    return 340  # a few more than there are; beyond the last nothing fails


@pytest.mark.few(10)
@pytest.mark.parametrize("number", range(1, _number_of_calls()))
def test_a_call_that_fails_once_is_one_error_and_costs_nothing_that_was_committed(number, tmp_path, disk):
    disk.fails = number
    failed = live(tmp_path, disk)
    for error in failed:
        assert isinstance(error, str) or error.exit_code in (1, 2, 74), error
    disk.fails = None
    check_whole(tmp_path)
    before = list_steps(tmp_path)
    assert live(tmp_path, disk) == []
    check_whole(tmp_path)
    assert list_steps(tmp_path)[-1] >= max(before, default=0)


@pytest.mark.few(6)
@pytest.mark.parametrize("number", range(1, _number_of_calls(), 3))
def test_a_disk_that_becomes_read_only_costs_nothing_that_was_committed(number, tmp_path, disk):
    disk.read_only_from = number
    failed = live(tmp_path, disk)
    assert failed or number > disk.count - 3
    for error in failed:
        assert isinstance(error, str) or error.exit_code in (1, 2, 74), error
    disk.read_only_from = math.inf
    check_whole(tmp_path)
    before = list_steps(tmp_path)
    assert live(tmp_path, disk) == []
    check_whole(tmp_path)
    assert list_steps(tmp_path)[-1] >= max(before, default=0)


def test_a_file_system_that_loses_the_last_rename_has_the_run_as_it_was_before(tmp_path, monkeypatch):
    renames, rename = [], os.rename

    def recorded(old, new, **kwargs):
        rename(old, new, **kwargs)
        if Path(new).parent == tmp_path and Path(new).name.isdigit():
            renames.append((old, new))

    monkeypatch.setattr(os, "rename", recorded)
    counter = Digesting()
    with Checkpointer(tmp_path, config=SaveConfig()) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, data=counter.at(step))
            checkpointer.wait()
    assert len(renames) == 3
    old, new = renames[-1]
    rename(new, old)
    with Checkpointer(tmp_path, config=SaveConfig()) as checkpointer:
        assert checkpointer.restore(data=counter).step == 2
        checkpointer.save(3, data=counter.at(3))
        checkpointer.wait()
    check_whole(tmp_path)
    assert list_steps(tmp_path) == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_every_call_is_tried(tmp_path, disk):
    live(tmp_path, disk)
    assert 60 < disk.count < _number_of_calls()
