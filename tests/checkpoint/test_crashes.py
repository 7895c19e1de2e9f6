"""Every change that a save, a retention, a rollback and a start make on the disk is the last one once.

After each a new writer opens the run, restores the right step, and goes on. Twice: with all that was written when the process
died, the change that it had begun included, and with what a power cut leaves of it, which is what was synced.
"""

import contextlib
import itertools
import shutil

import pytest

from datarax.checkpoint import (
    Checkpointer,
    SaveConfig,
    Snapshot,
    layout,
    ledger_record,
    ledger_steps,
    list_steps,
)
from datarax.core.errors import DataraxError
from tests.checkpoint.modules import Digesting, model, same
from tests.support.crashing import CrashingStore, Stopped

CONFIG = SaveConfig(keep_latest=2, every_seconds=None)


def opened(run):
    return Checkpointer(run, config=CONFIG, config_text="a = 1\n")


def save(checkpointer, counter, step, with_model=False):
    checkpointer.save(step, model=model(step) if with_model else None, data=counter.at(step))
    checkpointer.wait()


def a_first_save(run, told):
    with opened(run) as checkpointer:
        save(checkpointer, Digesting(), 1)
        told.append(1)


def a_save_with_a_model_and_retention(run, told):
    with opened(run) as checkpointer:
        counter = Digesting()
        checkpointer.restore(data=counter)
        counter.kept_from = 3
        save(checkpointer, counter, 4, with_model=True)
        told.append(4)


def a_rollback(run, told):
    with opened(run) as checkpointer:
        counter = Digesting()
        checkpointer.restore(2, data=counter)
        told[:] = [2]  # from here on no later step is promised
        checkpointer.set_aside_after(2)
        counter.kept_from = 2
        save(checkpointer, counter, 3)
        told.append(3)


def everything_anew(run, told):
    with opened(run) as checkpointer:
        told[:] = []
        checkpointer.set_aside_after(None)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run with the steps 2 and 3, and 1 in the ledger."""
    run = tmp_path_factory.mktemp("before") / "run"
    with opened(run) as checkpointer:
        counter = Digesting()
        for step in (1, 2, 3):
            save(checkpointer, counter, step)
    return run


def goes_on(run, told):
    """A new writer of a run that crashed: what it finds is whole, what was promised is there, and it can be continued."""
    for step in ledger_steps(run):
        ledger_record(run, step)
    with opened(run) as checkpointer:
        steps = checkpointer.steps()
        newest = checkpointer.latest_step()
        assert (newest or 0) >= max(told, default=0)
        assert [Snapshot.open(run, step).check() for step in steps] == [[]] * len(steps)
        assert not [path for path in run.rglob("*") if "tmp" in path.name]
        assert not list(run.glob("trash/*"))
        counter = Digesting()
        if newest is not None:
            has_model = Snapshot.open(run, newest).leaves is not None
            restored = checkpointer.restore(model=model(0) if has_model else None, data=counter)
            assert (restored.step, counter.idx.get_value()) == (newest, newest)
            assert not has_model or same(restored.model, model(newest))
        counter.kept_from = newest or 0
        save(checkpointer, counter, (newest or 0) + 1)
        assert Snapshot.open(run).record.previous == newest
    # No step between is lost to whoever proves the history.
    assert sorted({*ledger_steps(run), *list_steps(run)}) == [*range(1, (newest or 0) + 2)]


@pytest.mark.parametrize(
    ("act", "least"),
    [(a_first_save, 14), (a_save_with_a_model_and_retention, 25), (a_rollback, 12), (everything_anew, 5)],
)
def test_a_crash_at_any_change_leaves_a_run_that_goes_on(act, least, before, tmp_path, monkeypatch):
    for changes in itertools.count():
        run, cut = tmp_path / f"{changes}" / "run", tmp_path / f"{changes}" / "cut"
        run.mkdir(parents=True)
        if act is not a_first_save:
            shutil.copytree(before, run, dirs_exist_ok=True)
        store, told = CrashingStore(run, changes), list_steps(run)
        with monkeypatch.context() as patch, contextlib.suppress(DataraxError, Stopped):
            patch.setattr(layout, "LocalStore", lambda directory, store=store: store)
            act(run, told)
        store.disk.after_power_cut(cut)
        store.end()
        if store.stopped_at is None:
            break
        for image in (run, cut):
            try:
                goes_on(image, told)
            except BaseException as error:
                error.add_note(f"{image.name} after {changes} changes, died in: {store.stopped_at}")
                raise
        shutil.rmtree(run.parent)
    goes_on(run, told)  # nothing stopped it
    assert changes >= least
