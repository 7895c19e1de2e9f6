import jax
import jax.numpy as jnp
import pytest

from datarax.checkpoint import Checkpointer, SaveConfig, Snapshot, ledger_steps, list_steps, restore_snapshot
from datarax.core.errors import InputError, MismatchError, PeerError, SaveError, SnapshotNotFoundError
from tests.checkpoint.modules import Counter, Foreign, model, same
from tests.support.coordination import Coordinator, together

KEEP_ALL = SaveConfig(keep_latest=None)


def run(directory, steps, **kwargs):
    with Checkpointer(directory, config=kwargs.pop("config", KEEP_ALL), **kwargs) as checkpointer:
        if checkpointer.latest_step() is not None:
            checkpointer.restore(data=Counter())
        for step in steps:
            checkpointer.save(step, model=model(step), data=Counter().at(step))


def test_another_identity_is_refused_naming_every_field_and_nothing_changes(tmp_path):
    run(tmp_path, [4])
    other = Counter(seed=7).at(2)
    with pytest.raises(MismatchError) as caught:
        Checkpointer(tmp_path).restore(data=other, model={"params": jnp.ones(1)})
    fields = [difference.path for difference in caught.value.differences]
    assert fields[0] == "train.seed"
    assert "train.seed: was 0, is 7" in str(caught.value)
    assert "model.params" in fields
    assert len(fields) > 5
    assert "resume.allow_changed" in str(caught.value)
    assert other.position.get_value() == 16


def test_an_allowed_change_enters_the_history_of_later_snapshots(tmp_path):
    run(tmp_path, [4])
    other = Counter(seed=7)
    with Checkpointer(tmp_path, allow_changed=["train.seed"]) as checkpointer:
        restored = checkpointer.restore(data=other)
        assert [d.path for d in restored.identity_changed] == ["train.seed"]
        checkpointer.save(5, data=other.at(5))
        checkpointer.save(6, data=other.at(6))
    first, second = Snapshot.open(tmp_path).history
    assert (first.from_step, dict(first.positions)) == (0, {"train": 0})
    assert (second.from_step, dict(second.positions)) == (4, {"train": 32})
    assert second.identity == Snapshot.open(tmp_path).record.identity != first.identity
    # From here on the new identity is the recorded one: no permission is needed any more.
    assert Checkpointer(tmp_path).restore(data=Counter(seed=7)).identity_changed == ()


def test_a_history_of_many_changes_stays_within_the_record(tmp_path):
    run(tmp_path, [0], identity={"train": {"seed": 0}})
    for change in range(1, 12):
        with Checkpointer(
            tmp_path, identity={"train": {"seed": change}}, allow_changed=["train"]
        ) as checkpointer:
            checkpointer.restore(data=Counter())
            checkpointer.save(change, data=Counter().at(change))
    snapshot = Snapshot.open(tmp_path)
    assert [entry.from_step for entry in snapshot.history] == [0, *range(11)]
    assert len(snapshot.record.history) == 4
    assert snapshot.check() == []


def test_a_permission_given_as_one_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a list"):
        Checkpointer(tmp_path, allow_changed="train.seed")


def test_forgetting_a_data_module_is_a_mismatch_and_not_a_silent_skip(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data={"train": Counter(), "eval": Counter()})
    with pytest.raises(MismatchError, match=r"eval: was a data module, is \(absent\)"):
        Checkpointer(tmp_path).restore(data=Counter())
    with pytest.raises(MismatchError, match=r"more: was \(absent\), is a data module"):
        Checkpointer(tmp_path).restore(data={"train": Counter(), "eval": Counter(), "more": Counter()})


def test_a_model_that_was_never_saved_cannot_be_restored(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data=Counter())
    with pytest.raises(MismatchError, match=r"model: was \(absent\), is a model"):
        Checkpointer(tmp_path).restore(data=Counter(), model=model(0))


def test_a_restore_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither a model nor data"):
        restore_snapshot(None)


def test_model_and_data_can_be_restored_apart(tmp_path):
    run(tmp_path, [4])
    counter = Counter()
    assert Checkpointer(tmp_path).restore(data=counter).model is None
    assert counter.idx.get_value() == 4
    assert same(Checkpointer(tmp_path).restore(model=model(0)).model, model(4))


class Refusing(Counter):
    """Refuses each state; the second in a mapping."""

    def set_state(self, state):
        if state["idx"] == 4:
            raise ValueError("state is structurally incompatible") from ValueError("idx: 4 is unlucky")
        super().set_state(state)


def test_if_the_second_module_refuses_the_first_is_as_it_was(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, model=model(4), data={"a": Counter().at(4), "b": Counter().at(4)})
    first, second = Counter().at(1), Refusing().at(2)
    with pytest.raises(
        MismatchError, match=r"the state of 'b' .* does not fit the module: idx: 4 is unlucky"
    ):
        Checkpointer(tmp_path).restore(model=model(0), data={"a": first, "b": second})
    assert (first.idx.get_value(), second.idx.get_value()) == (1, 2)


def test_an_exception_of_the_users_own_passes_through_after_the_roll_back(tmp_path):
    class Broken(Counter):
        def set_state(self, state):
            if state["idx"] == 4:
                raise KeyError("mine")
            super().set_state(state)

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, data={"a": Counter().at(4), "b": Counter().at(4)})
    first = Counter().at(1)
    with pytest.raises(KeyError, match="mine"):
        Checkpointer(tmp_path).restore(data={"a": first, "b": Broken().at(2)})
    assert first.idx.get_value() == 1


def test_a_module_that_refuses_halfway_is_as_it_was(tmp_path):
    class Halfway(Counter):
        def set_state(self, state):
            super().set_state(state)
            if state["idx"] == 4:
                raise ValueError("too late")

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, data={"a": Counter().at(4)})
    halfway = Halfway().at(2)
    identity = Snapshot.open(tmp_path).identity
    with pytest.raises(MismatchError, match="too late"):
        Checkpointer(tmp_path, identity=identity).restore(data={"a": halfway})
    assert halfway.idx.get_value() == 2


def test_a_restore_that_one_of_many_cannot_do_changes_nothing_on_any(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, data={"a": Counter().at(4), "b": Counter().at(4)})
    snapshot, identity = Snapshot.open(tmp_path), Snapshot.open(tmp_path).identity
    everyone = Coordinator(3).processes()
    modules = [
        {"a": Counter().at(1), "b": (Refusing if index == 1 else Counter)().at(2)} for index in range(3)
    ]

    def act(index):
        restore_snapshot(snapshot, data=modules[index], identity=identity, processes=everyone[index])

    assert {type(result) for result in together(3, act)} == {PeerError}
    assert [[each[name].idx.get_value() for name in "ab"] for each in modules] == [[1, 2]] * 3


def test_after_a_refused_restore_the_run_is_not_continued(tmp_path):
    run(tmp_path, [4])
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(MismatchError):
            checkpointer.restore(data=Counter(seed=7))
        with pytest.raises(InputError, match="would not continue them"):
            checkpointer.save(5, data=Counter(seed=7).at(5))
    assert list_steps(tmp_path) == [4]


def test_process_state_of_another_number_of_processes_says_so(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data={"mine": Foreign()})
    with pytest.raises(ValueError, match="the state of mine belongs to single processes: it was saved by 1"):
        Snapshot.open(tmp_path).states(process_index=1, process_count=2)


def test_rolling_back_sets_newer_steps_aside_and_saves_again(tmp_path):
    run(tmp_path, range(1, 7))
    with Checkpointer(tmp_path, config=KEEP_ALL) as checkpointer:
        counter = Counter()
        assert checkpointer.restore(3, data=counter).step == 3
        with pytest.raises(InputError, match="step 6 is committed"):
            checkpointer.save(4, data=counter)
        with pytest.raises(InputError, match="would not continue them"):
            checkpointer.save(7, data=counter)
        assert checkpointer.set_aside_after(3) == [4, 5, 6]
        checkpointer.save(4, model=model(40), data=counter.at(4))
    assert list_steps(tmp_path) == [1, 2, 3, 4]
    assert list_steps(tmp_path / "set_aside/1") == [4, 5, 6]
    assert Snapshot.open(tmp_path / "set_aside/1", 5).manifest.step == 5
    assert Snapshot.open(tmp_path, 4).model()["count"] == 40
    assert Snapshot.open(tmp_path, 4).record.previous == 3


def test_rolling_back_takes_the_ledger_of_the_abandoned_steps_along(tmp_path):
    run(tmp_path, range(1, 8), config=SaveConfig(keep_latest=1, keep_every=3))
    assert (list_steps(tmp_path), ledger_steps(tmp_path)) == ([3, 6, 7], [1, 2, 4, 5])
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(3, data=Counter())
        checkpointer.set_aside_after(3)
    assert (list_steps(tmp_path), ledger_steps(tmp_path)) == ([3], [1, 2])
    assert ledger_steps(tmp_path / "set_aside/1") == [4, 5]


def test_everything_can_be_set_aside_to_begin_anew(tmp_path):
    run(tmp_path, [1, 2])
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match="would not continue them"):
            checkpointer.save(3, data=Counter())
        assert checkpointer.set_aside_after(None) == [1, 2]
        checkpointer.save(1, data=Counter(seed=5).at(1))
    snapshot = Snapshot.open(tmp_path)
    assert (snapshot.record.previous, len(snapshot.history)) == (None, 1)


def test_setting_aside_after_a_step_that_is_none_changes_nothing(tmp_path):
    run(tmp_path, [1, 5])
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(SnapshotNotFoundError):
        checkpointer.set_aside_after(3)
    assert list_steps(tmp_path) == [1, 5]


def test_retention_keeps_the_newest_and_the_multiples_and_the_ledger_the_rest(tmp_path):
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=2, keep_every=4)) as checkpointer:
        for step in range(1, 10):
            checkpointer.save(step, model=model(step) if step % 2 else None, data=Counter().at(step))
        checkpointer.wait()
        assert checkpointer.steps() == [4, 8, 9]
        assert checkpointer.notes == []
    assert ledger_steps(tmp_path) == [1, 2, 3, 5, 6, 7]
    assert sorted(path.name for path in (tmp_path / "ledger/3").iterdir()) == ["manifest.json", "record.json"]
    assert not list((tmp_path / "trash").iterdir())


def test_a_step_that_cannot_be_dropped_is_noted_and_does_not_fail_the_save(tmp_path):
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=1)) as checkpointer:
        checkpointer.save(1, data=Counter().at(1))
        checkpointer.wait()
        (tmp_path / "trash").write_text("in the way")
        checkpointer.save(2, data=Counter().at(2))
        assert checkpointer.wait() == [2]
        assert "an old step could not be removed" in checkpointer.notes[0]
        (tmp_path / "trash").unlink()
        checkpointer.save(3, data=Counter().at(3))
        checkpointer.wait()
        assert checkpointer.steps() == [3]


def test_a_killed_retention_is_finished_by_the_next_writer(tmp_path):
    run(tmp_path, [1, 2, 3])
    (tmp_path / "trash").mkdir()
    (tmp_path / "1").rename(tmp_path / "trash/dropped-1")
    (tmp_path / "2").rename(tmp_path / "trash" / f"2-{0:032x}")
    with Checkpointer(tmp_path):
        pass
    assert (list_steps(tmp_path), ledger_steps(tmp_path)) == ([3], [1])
    assert not list((tmp_path / "trash").iterdir())


def test_restore_goes_to_the_sharding_of_the_template(tmp_path):
    run(tmp_path, [1])
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) if isinstance(x, jax.Array) else x
        ),
        model(0),
    )
    back = Checkpointer(tmp_path).restore(model=template).model
    assert same(back, model(1))
    assert back["params"]["w"].committed
    assert back["params"]["w"].sharding == sharding


def test_the_error_of_an_impossible_set_aside_says_why(tmp_path):
    run(tmp_path, [1, 2])
    with Checkpointer(tmp_path) as checkpointer:
        (tmp_path / "set_aside").write_text("in the way")
        with pytest.raises(SaveError, match="could not be set aside"):
            checkpointer.set_aside_after(1)
    assert list_steps(tmp_path) == [1, 2]
