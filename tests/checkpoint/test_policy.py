"""What is done about a field that differs: refuse, warn, accept; and what a restore makes of it."""

import pytest

from datarax.checkpoint import Change, ChangePolicy, Checkpointer, Snapshot
from datarax.checkpoint.policy import identity_differences
from datarax.core.errors import ConfigError, Difference, MismatchError
from tests.checkpoint.modules import Counter


@pytest.mark.parametrize(
    ("path", "accepted", "answer"),
    [
        ("a.b", ["a.b"], Change.ACCEPT),
        ("a.b.c", ["a.b"], Change.ACCEPT),
        ("a.b[0].c", ["a.b"], Change.ACCEPT),
        ("a.b[0].c", ["a.b[0]"], Change.ACCEPT),
        ("a.bc", ["a.b"], Change.REFUSE),
        ("a.b[01]", ["a.b[0"], Change.REFUSE),
        ("a", ["a.b"], Change.REFUSE),
        ("a.b", [], Change.REFUSE),
    ],
)
def test_a_permission_covers_a_field_and_what_is_below_it(path, accepted, answer):
    assert ChangePolicy(accepted=accepted).of(path) is answer


def test_one_entry_with_either_name_of_a_seed_allows_its_change():
    for name in ("train.seed", "train.order.seed"):
        for path in ("train.seed", "train.order.seed"):
            assert ChangePolicy(accepted=[name]).of(path) is Change.ACCEPT
            assert ChangePolicy(warned=[name]).of(path) is Change.WARN
            assert ChangePolicy(accepted=[name]).of("eval.seed") is Change.REFUSE
    both = ChangePolicy(accepted=["train.seed", "train.order.seed"])
    assert both.of("train.seed") is both.of("train.order.seed") is Change.ACCEPT


def test_what_allows_the_seed_in_one_place_only_by_a_wider_field_does_not_allow_it():
    assert ChangePolicy(accepted=["train.order"]).of("train.seed") is Change.REFUSE
    assert ChangePolicy(accepted=["train.order"]).of("train.order.seed") is Change.ACCEPT
    assert ChangePolicy(accepted=["train"]).of("train.seed") is Change.ACCEPT


@pytest.mark.parametrize(
    ("accepted", "warned"),
    [
        (["train.seed"], ["train.order.seed"]),
        (["train.order.seed"], ["train.seed"]),
        (["train.seed"], ["train.order"]),
    ],
)
def test_a_seed_whose_change_is_warned_of_in_one_of_its_places_is_warned_of(accepted, warned):
    assert ChangePolicy(accepted=accepted, warned=warned).of("train.seed") is Change.WARN


def test_a_seed_that_changed_in_both_its_places_is_one_difference():
    def identity(seed, order_seed, policy="global"):
        return {"train": {"seed": seed, "order": {"seed": order_seed, "policy": policy}}}

    assert identity_differences(identity(5, 5), identity(6, 6)) == [Difference("train.seed", 5, 6)]
    assert identity_differences(identity(5, 5), identity(6, 6, "none")) == [
        Difference("train.order.policy", "global", "none"),
        Difference("train.seed", 5, 6),
    ]
    assert identity_differences(identity(5, 5), identity(6, 7)) == [
        Difference("train.order.seed", 5, 7),
        Difference("train.seed", 5, 6),
    ]
    assert identity_differences(identity(5, 5), identity(5, 7)) == [Difference("train.order.seed", 5, 7)]
    eval_too = {"eval": {"order": {"seed": 5}}}
    assert (
        len(
            identity_differences(identity(5, 5) | eval_too, identity(6, 6) | {"eval": {"order": {"seed": 6}}})
        )
        == 2
    )


def test_the_longest_path_that_fits_decides_between_a_warning_and_silence():
    policy = ChangePolicy(accepted=["a", "a.b.c.d"], warned=["a.b", "x"])
    changes = {path: policy.of(path) for path in ("a", "a.c", "a.b", "a.b.c", "a.b.c.d[1]", "x.y", "z")}
    assert changes == {
        "a": Change.ACCEPT,
        "a.c": Change.ACCEPT,
        "a.b": Change.WARN,
        "a.b.c": Change.WARN,
        "a.b.c.d[1]": Change.ACCEPT,
        "x.y": Change.WARN,
        "z": Change.REFUSE,
    }


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"accepted": "train.seed"}, "allow_changed must be a list of fields, not the text 'train.seed'"),
        ({"warned": "train.seed"}, "warn_changed must be a list of fields"),
        ({"accepted": ["a", "train.seed"], "warned": ["train.seed"]}, "both hold 'train.seed'"),
        ({"warned": [""]}, "warn_changed must hold paths of identity fields, got ''"),
        ({"accepted": [3]}, "allow_changed must hold paths of identity fields, got 3"),
    ],
)
def test_a_policy_that_says_nothing_clear_is_refused(lists, message):
    with pytest.raises(ConfigError, match=message):
        ChangePolicy(**lists)


def test_a_field_that_neither_identity_has_is_named_with_the_nearest_that_is_there():
    policy = ChangePolicy(accepted=["train.sed", "train.old", "train.stages[1].name"], warned=["train.new"])
    was = {"train": {"seed": 1, "old": 2}}
    now = {"train": {"seed": 1, "new": 2, "stages": [{"name": "a"}]}}
    first, second = policy.unknown_fields(was, now)
    assert first.startswith(
        "resume.allow_changed names 'train.sed', which is no field of this identity; did you mean"
    )
    assert "'train.seed'" in first
    assert "'train.stages[0].name'" in second


def saved(directory, **arguments):
    with Checkpointer(directory, **arguments) as checkpointer:
        checkpointer.save(4, data=Counter().at(4))


def test_a_warned_change_is_accepted_recorded_and_said_at_the_start_where_it_differs(tmp_path):
    saved(tmp_path)
    other = Counter(seed=7)
    with Checkpointer(tmp_path, warn_changed=["train.seed"]) as checkpointer:
        restored = checkpointer.restore(data=other)
        assert [d.path for d in restored.identity_changed] == ["train.seed"]
        assert restored.identity_warned == restored.identity_changed
        assert checkpointer.notes == [
            "WARNING: the identity has changed and resume.warn_changed accepts it: train.seed: was 0, is 7"
        ]
        checkpointer.save(5, data=other.at(5))
    assert len(Snapshot.open(tmp_path).history) == 2
    with Checkpointer(tmp_path, warn_changed=["train.seed"]) as checkpointer:
        assert checkpointer.restore(data=Counter(seed=7)).identity_warned == ()
        assert checkpointer.notes == []


def test_an_accepted_change_is_no_warning(tmp_path):
    saved(tmp_path)
    with Checkpointer(tmp_path, allow_changed=["train"], warn_changed=["train.other"]) as checkpointer:
        restored = checkpointer.restore(data=Counter(seed=7))
        assert len(restored.identity_changed) == 1
        assert restored.identity_warned == ()
        assert checkpointer.notes == list(restored.unknown_fields)
        assert "resume.warn_changed names 'train.other'" in checkpointer.notes[0]


def test_a_slip_in_a_permission_permits_nothing_and_is_named_beside_the_refusal(tmp_path):
    saved(tmp_path)
    with pytest.raises(MismatchError, match=r"train\.seed: was 0, is 7") as caught:
        Checkpointer(tmp_path, allow_changed=["train.sed"]).restore(data=Counter(seed=7))
    assert "did you mean 'train.seed'?" in caught.value.__notes__[0]


def test_a_slip_in_a_permission_is_named_at_the_first_start_already(tmp_path):
    with Checkpointer(tmp_path, identity={"train": {"seed": 1}}, allow_changed=["train.sed"]) as checkpointer:
        assert len(checkpointer.notes) == 1
        assert "did you mean 'train.seed'?" in checkpointer.notes[0]


def test_a_refused_field_is_followed_by_what_to_do_and_its_own_line_stays(tmp_path):
    saved(tmp_path)
    with pytest.raises(MismatchError) as caught:
        Checkpointer(tmp_path).restore(data=Counter(seed=7))
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["  train.seed: was 0, is 7", "    do: set loader.seed = 0 again"]
    assert caught.value.advice == ("set loader.seed = 0 again",)
