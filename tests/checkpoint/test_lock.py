import json
import os
import signal

import pytest

from datarax.checkpoint import Checkpointer, Snapshot, list_steps
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.lock import RunLock, is_held_on_this_machine
from datarax.core.errors import RunLockedError
from tests.checkpoint.modules import Counter, start_process
from tests.support.processes import fork_server


def hold(directory, ready, release):
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        ready.set()
        release.wait(60)


def events():
    context = fork_server()
    return context.Event(), context.Event()


def test_a_second_process_is_told_who_holds_the_run_and_readers_are_not_stopped(tmp_path):
    ready, release = events()
    holder = start_process(hold, tmp_path, ready, release)
    assert ready.wait(60)
    with (
        pytest.raises(RunLockedError, match=rf"process {holder.pid} on host .* \(start 1\)"),
        Checkpointer(tmp_path),
    ):
        pass
    assert Snapshot.open(tmp_path).check() == []
    assert Checkpointer(tmp_path).restore(data=Counter()).step == 1
    release.set()
    holder.join(60)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.start == 2


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    ready, release = events()
    holder = start_process(hold, tmp_path, ready, release)
    assert ready.wait(60)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == holder.pid
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.start == 2
        assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()


def test_two_checkpointers_in_one_process_exclude_each_other(tmp_path):
    with (
        Checkpointer(tmp_path),
        pytest.raises(RunLockedError, match=f"process {os.getpid()}"),
        Checkpointer(tmp_path),
    ):
        pass


forks = pytest.mark.filterwarnings("ignore:.*fork.*")  # JAX and Python warn of the threads that a child lacks


@forks
def test_a_child_does_not_keep_the_lock_after_its_parent_let_go(tmp_path):
    """A forked worker that outlives the job would otherwise block the next start."""
    lock = RunLock(RunLayout(tmp_path))
    (begun, tell_begun), (end, tell_end) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell_begun, b"x")
        os.read(end, 1)
        os._exit(0)
    os.read(begun, 1)
    lock.release()
    try:
        RunLock(RunLayout(tmp_path)).release()
    finally:
        os.write(tell_end, b"x")
        os.waitpid(child, 0)
        for descriptor in (begun, tell_begun, end, tell_end):
            os.close(descriptor)


@forks
def test_a_child_that_ends_does_not_free_its_parents_lock(tmp_path):
    lock = RunLock(RunLayout(tmp_path))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(RunLockedError):
        RunLock(RunLayout(tmp_path))
    lock.release()


def test_a_deleted_lock_file_lets_the_next_in_and_stops_the_first(tmp_path):
    with Checkpointer(tmp_path) as first:
        (tmp_path / "lock").unlink()
        with Checkpointer(tmp_path) as second:
            assert (first.start, second.start) == (1, 2)
            first.save(1, data=Counter().at(1))
            with pytest.raises(RunLockedError, match="start 2 has taken over"):
                first.wait()
            second.save(1, data=Counter(seed=5).at(1))
    assert list_steps(tmp_path) == [1]
    assert Snapshot.open(tmp_path).record.start == 2


def test_each_start_leaves_what_it_ran_with(tmp_path):
    for _ in range(3):
        with Checkpointer(tmp_path, provenance={"jax": "0.0"}):
            pass
    starts = [json.loads((tmp_path / f"starts/{n}.json").read_bytes()) for n in (1, 2, 3)]
    assert [start["start"] for start in starts] == [1, 2, 3]
    assert starts[0]["provenance"] == {"jax": "0.0"}
    assert starts[0]["pid"] == os.getpid()


def test_an_unreadable_lock_file_still_locks(tmp_path):
    with Checkpointer(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff")
        with pytest.raises(RunLockedError, match="another process"), Checkpointer(tmp_path):
            pass


def test_who_only_looks_sees_a_live_holder_and_no_dead_one_and_takes_nothing(tmp_path):
    lock = RunLayout(tmp_path).lock
    assert is_held_on_this_machine(lock) is False
    ready, release = events()
    holder = start_process(hold, tmp_path, ready, release)
    assert ready.wait(60)
    before = lock.read_bytes(), lock.stat().st_mtime_ns
    assert is_held_on_this_machine(lock) is True
    assert (lock.read_bytes(), lock.stat().st_mtime_ns) == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    assert is_held_on_this_machine(lock) is False


def test_a_copy_by_links_has_a_lock_of_its_own(tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    run.mkdir()
    RunLock(RunLayout(run)).release()
    copy.mkdir()
    os.link(run / "lock", copy / "lock")
    before = (run / "lock").read_bytes()
    with Checkpointer(copy), Checkpointer(run):  # each is the one writer of its directory
        assert json.loads((copy / "lock").read_bytes())["start"] == 1
    assert json.loads((run / "lock").read_bytes())["start"] == 2
    assert before != (run / "lock").read_bytes()
    assert not (copy / "lock").samefile(run / "lock")
