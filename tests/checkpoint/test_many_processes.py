"""Snapshots of many processes: one for all, agreed on before, committed or given up by all, restored by all or by none.

Real processes joined by `jax.distributed`, real Orbax, a real shared directory.
"""

import asyncio
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax import Checkpointer, SaveConfig
from datarax.checkpoint import Snapshot, list_steps, make_global
from tests.checkpoint.modules import Counter, Foreign
from tests.support.joined import Failed, joined

BY_HAND = SaveConfig(every_seconds=None, keep_latest=None)


def mesh():
    return Mesh(np.array(jax.devices()), ("data",))


def model(step):
    """One leaf of every kind: split over the processes, on all of them, a key, a weak type, and what each has for itself."""
    values = np.arange(24, dtype=np.float32).reshape(12, 2) + step
    split = NamedSharding(mesh(), PartitionSpec("data"))
    return {
        "split": jax.make_array_from_callback(values.shape, split, lambda index: values[index]),
        **make_global(
            {
                "half": jnp.arange(5, dtype=jnp.bfloat16) * step,
                "keys": jax.random.split(jax.random.key(step), 3),
                "weak": jnp.asarray(1.5),
            },
            mesh(),
        ),
        "numpy": np.arange(4) + step,
        "count": step,
        "nothing": None,
    }


def plain(tree):
    """The values of this process's shards, as bytes with what they are."""

    def value(leaf):
        if isinstance(leaf, jax.Array):
            weak = getattr(leaf, "weak_type", None)  # keys have none
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            shards = sorted(
                (str(shard.index), np.asarray(shard.data).tobytes()) for shard in leaf.addressable_shards
            )
            return str(leaf.dtype), leaf.shape, weak, shards
        return type(leaf).__name__, np.asarray(leaf).tobytes()

    return {name: value(leaf) for name, leaf in tree.items()}


def save_steps(processes, run, steps):
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        if checkpointer.latest_step() is not None:
            checkpointer.restore(model=model(0), data={"c": Counter()})
        for step in steps:
            checkpointer.save(step, model=model(step), data={"c": Counter().at(step)})
        checkpointer.wait()
        return checkpointer.start, checkpointer.steps()


def restore_newest(processes, run):
    counter = Counter()
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        restored = checkpointer.restore(model=model(0), data={"c": counter})
    wanted = plain(model(restored.step))
    got = plain(restored.model)
    wrong = [name for name in wanted if wanted[name] != got[name]]
    return restored.step, counter.idx.get_value(), wrong


SAVE, RESTORE = "save", "restore"


@pytest.mark.parametrize(
    "legs",
    [
        [(SAVE, 2), (RESTORE, 1)],
        pytest.param(
            [(SAVE, 2), (RESTORE, 3), (SAVE, 4), (RESTORE, 1), (RESTORE, 2)], marks=pytest.mark.full
        ),
    ],
    ids=len,
)
def test_what_one_number_of_processes_saved_another_restores_bit_for_bit(legs, tmp_path):
    run, saved = tmp_path / "run", []
    for start, (what, count) in enumerate(legs, start=1):
        if what == SAVE:
            steps = [saved[-1] + 1] if saved else [1, 2]
            saved += steps
            assert joined(save_steps, run, steps, count=count) == [(start, saved)] * count
        else:
            assert joined(restore_newest, run, count=count) == [(saved[-1], saved[-1], [])] * count
    assert Snapshot.open(run).check() == []


def save_otherwise(processes, run, what):
    odd = processes.index == 1
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        checkpointer.save(1, model=model(1), data={"c": Counter().at(1)})
        checkpointer.wait()
        tree, counter, step = model(2), Counter().at(2), 2
        if odd and what == "step":
            step = 3
        elif odd and what == "state":
            counter = Counter().at(5)
        elif odd and what == "number":
            tree["count"] = 7
        elif odd and what == "leaf":
            tree["more"] = 1
        elif odd and what == "encoding":
            counter.set_statistics({"x": object()})
        checkpointer.save(step, model=tree, data={"c": counter})


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("step", "DisagreementError", "the step is 2 on processes 0, 2, 3 on process 1"),
        ("state", "DisagreementError", "the state of 'c' is"),
        ("number", "DisagreementError", "what each process holds of the model for itself is"),
        ("leaf", "DisagreementError", "the leaves of the model is"),
        ("encoding", "PeerError", "it failed on process 1"),
    ],
)
@pytest.mark.few(1)
def test_processes_that_would_save_different_things_save_nothing_and_all_say_the_same(
    tmp_path, what, kind, said
):
    run = tmp_path / "run"
    results = joined(save_otherwise, run, what, count=3)
    assert all(isinstance(result, Failed) for result in results), results
    assert {result.kind for result in results} == {kind}
    assert len({result.text for result in results}) == 1
    assert said in results[0].text
    assert "process 1" in results[0].text
    assert list_steps(run) == [1]
    assert restored_by_one(run) == 1


def restored_by_one(run):
    with Checkpointer(run, config=BY_HAND) as checkpointer:
        return checkpointer.restore(data={"c": Counter()}).step


def open_another(processes, run, what):
    settings = {"config": BY_HAND, "config_text": "x = 1\n", "identity": {"c": {"seed": 1}}}
    if processes.index == 1:
        settings |= {
            "identity": {"identity": {"c": {"seed": 2}}},
            "config": {"config_text": "x = 2\n"},
            "directory": {},
        }[what]
        if what == "directory":
            run = f"{run}-of-another-disk"
            os.mkdir(run)
    with Checkpointer(run, processes=processes, **settings) as checkpointer:
        return checkpointer.start


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("identity", "identity.c.seed is 1 on process 0, 2 on process 1"),
        ("config", "config.x is 1 on process 0, 2 on process 1"),
        ("directory", "need one shared directory"),
    ],
)
@pytest.mark.few(1)
def test_processes_that_are_not_of_one_run_stop_before_it_begins(tmp_path, what, said):
    from datarax.checkpoint import checkpointer

    results = joined(open_another, tmp_path / "run", what, count=2, settings={"exchange_timeout_seconds": 40})
    assert checkpointer._SHARED_SECONDS < 40
    assert all(isinstance(result, Failed) for result in results), results
    assert said in results[0].text
    assert "process 1" in results[0].text
    assert results[0].text == results[1].text


def save_and_note_what_is_hashed(processes, run):
    from datarax.store import LocalStore

    hashed = []

    def noting(sha256):
        def noted(store, key):
            hashed.append(key.partition("/model")[2].partition("/")[2])
            return sha256(store, key)

        return noted

    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        with Breaks(LocalStore, "sha256", noting):
            checkpointer.save(1, model=model(1), data={"c": Counter().at(1)})
            checkpointer.wait()
        return [name for name in hashed if name]


def test_each_process_hashes_what_it_has_written_of_the_model(tmp_path):
    run = tmp_path / "run"
    first, *others = joined(save_and_note_what_is_hashed, run, count=3)
    for index, hashed in enumerate(others, start=1):
        assert any("/d/" in name for name in hashed)  # the values themselves
        assert not [name for name in first if name.startswith(f"ocdbt.process_{index}/")]
        listed = Snapshot.open(run).manifest.items["model"]
        own = [name for name in listed if name.startswith(f"ocdbt.process_{index}/")]
        assert sorted(own) == sorted(hashed)
        assert all(listed[name].sha256 for name in own)
    assert Snapshot.open(run).check() == []
    assert list((run / "parts").iterdir()) == []


class Breaks:
    """Makes one process fail at one moment of one save."""

    def __init__(self, monkeypatched, name, replacement):
        self.place, self.name, self.replacement = monkeypatched, name, replacement

    def __enter__(self):
        self.before = getattr(self.place, self.name)
        setattr(self.place, self.name, self.replacement(self.before))

    def __exit__(self, *exc):
        setattr(self.place, self.name, self.before)


def failing_part(before):
    """The model handler's background work fails, as on a full local disk."""

    async def async_save(self, directory, args):
        from orbax.checkpoint import future

        async def fail():
            await asyncio.sleep(0.05)
            raise OSError(28, "No space left on device", "somewhere")

        await before(self, directory, args=args)
        return [future.CommitFutureAwaitingContractedSignals(fail(), name="broken")]

    return async_save


def failing_seal(before):
    def seal_item(store, item, **options):
        raise OSError(28, "No space left on device", "manifest.json")

    return seal_item


def failing_sync(before):
    def sync(store, key):
        if not key:  # the run itself, after the rename
            raise OSError(5, "Input/output error", "run")
        before(store, key)

    return sync


def save_with_a_failure(processes, run, where):
    import orbax.checkpoint as ocp

    from datarax.checkpoint import saver
    from datarax.store import LocalStore

    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        checkpointer.save(1, model=model(1), data={"c": Counter().at(1)})
        checkpointer.wait()
        place, name, replacement, victim = {
            "writing": (ocp.PyTreeCheckpointHandler, "async_save", failing_part, 1),
            "sealing": (saver, "seal_item", failing_seal, 0),
            "renaming": (LocalStore, "sync", failing_sync, 0),
        }[where]
        begun = time.monotonic()
        if processes.index == victim:
            with Breaks(place, name, replacement):
                text = failed_save(checkpointer)
        else:
            text = failed_save(checkpointer)
        seconds = time.monotonic() - begun
        steps = checkpointer.steps()
        checkpointer.save(3, model=model(3), data={"c": Counter().at(3)})
        checkpointer.wait()
        return text, steps, checkpointer.steps(), seconds < 30


def failed_save(checkpointer):
    checkpointer.save(2, model=model(2), data={"c": Counter().at(2)})
    try:
        checkpointer.wait()
    except OSError as error:
        return str(error)
    return "nothing failed"


@pytest.mark.parametrize("where", ["writing", "sealing", "renaming"])
@pytest.mark.few(1)
def test_a_save_that_fails_on_one_process_fails_on_all_at_once_and_the_next_one_works(tmp_path, where):
    run = tmp_path / "run"
    results = joined(save_with_a_failure, run, where, count=3)
    for result in results:
        assert not isinstance(result, (Failed, int)), result
        text, steps, later, soon = result
        assert "step 2 could not be written" in text
        assert ("No space left" if where != "renaming" else "Input/output error") in text
        assert steps == [1]
        assert later == [1, 3]
        assert soon, "the others waited for the deadline"
    assert joined(restore_newest, run, count=2) == [(3, 3, [])] * 2
    assert not list(run.glob("*tmp*"))


class Picky(Counter):
    """Refuses any state on process 1."""

    refuses = False

    def set_state(self, state):
        if self.refuses and state["idx"] == 1:
            raise ValueError("not this one")
        super().set_state(state)


def restore_where_one_cannot(processes, run):
    first, picky = Counter().at(8), Picky().at(9)
    picky.refuses = processes.index == 1
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        try:
            checkpointer.restore(data={"a": first, "b": picky})
        except Exception as error:
            picky.refuses = False
            return type(error).__name__, str(error), first.idx.get_value(), picky.idx.get_value()
    return None


def save_two(processes, run):
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        checkpointer.save(1, data={"a": Counter().at(1), "b": Picky().at(1)})


@pytest.mark.full
def test_a_restore_that_one_process_cannot_do_changes_nothing_on_any(tmp_path):
    joined(save_two, tmp_path / "run", count=1)
    results = joined(restore_where_one_cannot, tmp_path / "run", count=3)
    assert {(kind, first, second) for kind, _, first, second in results} == {("PeerError", 8, 9)}
    assert len({text for _, text, _, _ in results}) == 1
    assert "failed on process 1" in results[0][1]


def restore_damaged(processes, run):
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        checkpointer.restore(model=model(0), data={"c": Counter()})


@pytest.mark.full
def test_a_damaged_file_is_found_by_whoever_checks_it_and_named_by_all(tmp_path):
    run = tmp_path / "run"
    joined(save_steps, run, [1, 2], count=2)
    files = sorted(
        path for path in (run / "2" / "model").rglob("*") if path.is_file() and path.stat().st_size
    )
    for path in (files[0], files[-1]):
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        results = joined(restore_damaged, run, count=3)
        assert {result.kind for result in results} == {"SnapshotDamagedError"}
        assert all(str(path.relative_to(run / "2")) in result.text for result in results)
        assert all("the one before it is of step 1" in result.text for result in results)
        path.write_bytes(before)


def own_state(processes, run, save):
    mine = Foreign()
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        if save:
            mine.position.set_value(10 + processes.index)
            checkpointer.save(1, data={"mine": mine})
            return None
        checkpointer.restore(data={"mine": mine})
    return mine.position.get_value()


@pytest.mark.full
def test_state_of_single_processes_comes_back_to_each_and_on_their_number_only(tmp_path):
    joined(own_state, tmp_path / "run", True, count=3)
    assert joined(own_state, tmp_path / "run", False, count=3) == [10, 11, 12]
    for result in joined(own_state, tmp_path / "run", False, count=2):
        assert result.kind == "MismatchError"
        assert "was saved by 3 and can be restored by 3, not by 2" in result.text


def save_by_time(processes, run):
    config = SaveConfig(every_seconds=0.3, keep_latest=None)
    with Checkpointer(run, config=config, processes=processes) as checkpointer:
        for step in range(1, 200):
            time.sleep(0.005 * (1 + processes.index))
            if checkpointer.should_save(step):
                checkpointer.save(step, data={"c": Counter().at(step)})
        checkpointer.wait()
        return checkpointer.steps()


@pytest.mark.full
def test_a_save_that_is_due_by_time_is_due_at_one_step_for_all(tmp_path):
    results = joined(save_by_time, tmp_path / "run", count=2)
    assert results[0] == results[1]
    assert len(results[0]) >= 2


def stop_after_a_late_step(processes, run):
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        before = [checkpointer.agreed_to_stop() for _ in range(3)]
        checkpointer.save(
            10**6, data={"c": Counter().at(1)}
        )  # Orbax asks for this step, and once more in the background
        checkpointer.wait()
        if processes.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)  # a long step: JAX looks for signals once a second and makes the agreement meanwhile
        answers = []
        while not any(answers) and len(answers) < 400:
            time.sleep(0.02)
            answers.append(checkpointer.agreed_to_stop())
        after = [checkpointer.agreed_to_stop() for _ in range(3)]
        return before, len(answers), answers[-1], after


@pytest.mark.full
def test_a_notice_is_heard_at_one_question_of_all_whatever_step_was_saved_before(tmp_path):
    results = joined(stop_after_a_late_step, tmp_path / "run", count=3)
    assert len({str(result) for result in results}) == 1, results
    before, asked, answer, after = results[0]
    assert before == after == [False] * 3
    assert answer, f"not heard in {asked} questions"


def save_two_runs(processes, first, second):
    with (
        Checkpointer(first, config=BY_HAND, processes=processes) as one,
        Checkpointer(second, config=BY_HAND, processes=processes) as two,
    ):
        for step in range(1, 6):
            one.save(step, model=model(step), data={"c": Counter().at(step)})
            two.save(step, model=model(step + 100), data={"c": Counter().at(step)})
        # Whichever each process waits for first.
        for each in (one, two) if processes.index else (two, one):
            each.wait()
        return one.steps(), two.steps()


@pytest.mark.full
def test_two_runs_are_saved_at_the_same_time_without_being_mixed(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert joined(save_two_runs, first, second, count=2) == [([1, 2, 3, 4, 5],) * 2] * 2
    for run, offset in ((first, 0), (second, 100)):
        assert Snapshot.open(run).check() == []
        assert Snapshot.open(run).model()["count"] == 5 + offset
        np.testing.assert_array_equal(Snapshot.open(run).model()["numpy"], np.arange(4) + 5 + offset)
