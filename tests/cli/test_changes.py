"""A change made on purpose in mid-run: recorded, and every step stays provable by the recipe that made it."""

import json
import shutil

import pytest

from datarax.checkpoint import Snapshot
from datarax.cli.main import main
from datarax.order import permutation
from tests.support.runs import ALLOWED, NUM_RECORDS, finish_run


def lines_of(capsys, *arguments):
    """The JSON objects that a command prints, one per line."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_an_allowed_change_enters_the_history_with_step_and_position(changed):
    history = Snapshot.open(changed / "run").history
    assert [(entry.from_step, entry.positions["train"]) for entry in history] == [(0, 0), (6, 96), (9, 126)]
    assert len({entry.identity for entry in history}) == 3
    assert len({entry.config for entry in history}) == 3


def test_every_snapshot_across_the_changes_verifies(changed, capsys):
    assert main(["verify", str(changed / "run"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [each["step"] for each in report["snapshots"]] == [4, 6, 8, 9, 12, 14]
    assert [each["replayed_steps"] for each in report["snapshots"]][2:4] == [[6, 8], [8, 9]]


def test_snapshots_verify_without_the_ones_before_them(changed, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(changed / "run", run)
    for step in ("4", "6", "8"):
        shutil.rmtree(run / step)
    code = main(["verify", str(run)])
    assert code == 0, capsys.readouterr().out


def test_order_answers_each_step_by_the_recipe_that_made_it(changed, capsys):
    rows = lines_of(capsys, "order", changed / "config.toml", "--steps", "0:14", "--json")
    counts = [sum(row["step"] == step for row in rows) for step in range(14)]
    assert counts == [16] * 6 + [10] * 8
    delivered = [(row["index"], row["epoch"]) for row in rows]
    assert len(set(delivered[:126])) == 126, "the same order goes on where only the batch size changed"
    before = lines_of(
        capsys, "order", changed / "config.toml", "--steps", "0:6", "--json",
        "--set", f"run.directory={changed}/none", "--set", "loader.batch_size=16", "--set", "loader.seed=5",
    )  # fmt: skip
    assert rows[:96] == before


def test_a_change_that_is_yet_to_be_made_changes_no_step_that_was_done(changed, capsys):
    arguments = ["order", changed / "config.toml", "--json", "--steps", "0:16"]
    as_it_is = lines_of(capsys, *arguments)
    planned = lines_of(capsys, *arguments, "--set", "loader.batch_size=4", "--set", "loader.seed=7")
    done = [row for row in as_it_is if row["step"] < 14]
    assert planned[: len(done)] == done
    assert [row["step"] for row in planned[len(done) :]] == [14] * 4 + [15] * 4


def test_find_agrees_with_steps_across_the_changes(changed, capsys):
    rows = lines_of(capsys, "order", changed / "config.toml", "--steps", "0:14", "--json")
    for index in {row["index"] for row in rows[90:130]} | {0, NUM_RECORDS - 1}:
        found = lines_of(capsys, "order", changed / "config.toml", "--find", f"text:{index}", "--json")
        assert found == [row for row in rows if row["index"] == index]


def test_plan_counts_from_the_last_change(changed, capsys):
    capsys.readouterr()
    assert main(["plan", str(changed / "config.toml"), "--json", "--set", "run.steps=20"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["existing_run"]["newest_step"] == 14
    assert plan["epochs"] == pytest.approx((126 + 11 * 10) / NUM_RECORDS)


def test_plan_shows_what_would_change(changed, capsys):
    capsys.readouterr()
    arguments = ["plan", str(changed / "config.toml"), "--set", "run.steps=20"]
    assert main([*arguments, "--set", "loader.batch_size=4"]) == 0
    assert "allowed change  train.batch_size: was 10, is 4" in capsys.readouterr().out
    assert main([*arguments, "--set", "source.name=other"]) == 1


def test_a_change_that_is_not_on_the_list_is_refused_beside_one_that_is(changed, capsys):
    capsys.readouterr()
    arguments = ["run", str(changed / "config.toml"), "--set", "run.steps=20"]
    assert main([*arguments, "--set", "loader.batch_size=4", "--set", "loader.order=none"]) == 1
    errors = capsys.readouterr().err
    assert "train.order.policy: was 'global', is 'none'" in errors
    assert "batch_size: was" not in errors


def test_an_epoch_budget_holds_across_a_change_of_batch_size(tmp_path, capsys):
    config = finish_run(tmp_path, "loader.num_epochs=1", "run.steps=6", "save.keep_latest=9")
    arguments = ["--set", "loader.num_epochs=1", "--set", "run.steps=1000", "--set", "loader.batch_size=12"]
    arguments += ["--set", ALLOWED]
    assert main(["run", str(config), *arguments]) == 0
    # 300 records: 6 batches of 16 leave 204, which are 17 batches of 12.
    newest = Snapshot.open(tmp_path / "run")
    assert newest.step == 6 + 17
    assert newest.states()["train"]["position"] == NUM_RECORDS
    rows = lines_of(capsys, "order", config, "--steps", "0:23", "--json", *arguments)
    assert sorted(row["index"] for row in rows) == list(range(NUM_RECORDS))
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_order_of_a_config_that_does_not_fit_the_run_says_so(finished, capsys):
    capsys.readouterr()
    assert main(["order", str(finished / "config.toml"), "--steps", "0", "--set", "loader.seed=99"]) == 0
    assert "made with other settings; this is the order of the config alone" in capsys.readouterr().err


_WARNED = ["--set", "run.steps=20", "--set", "loader.seed=9", "--set", "resume.allow_changed=[]"]
_WARNED += ["--set", 'resume.warn_changed=["train.seed", "train.order.seed", "train.sed"]']


def test_a_warned_change_is_said_by_plan_and_loudly_by_the_start_that_makes_it(tmp_path, capsys):
    config = str(finish_run(tmp_path))
    capsys.readouterr()
    assert main(["plan", config, *_WARNED]) == 0
    shown = capsys.readouterr().out
    assert "WARNED of change  train.seed: was 5, is 9" in shown
    assert "resume.warn_changed names 'train.sed', which is no field of this identity; did you mean" in shown
    assert main(["run", config, *_WARNED]) == 0
    errors = capsys.readouterr().err
    said = "WARNING: the identity has changed and resume.warn_changed accepts it: train"
    assert f"{said}.seed: was 5, is 9" in errors
    assert errors.count(said) == 1
    assert "names 'train.sed'" in errors
    assert len(Snapshot.open(tmp_path / "run").history) == 2
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_a_field_in_both_lists_is_refused_before_anything_runs(changed, capsys):
    arguments = ["plan", str(changed / "config.toml"), "--set", 'resume.warn_changed=["train.seed"]']
    assert main(arguments) == 2
    assert "resume.allow_changed and warn_changed both hold 'train.seed'" in capsys.readouterr().err


def test_plan_says_below_each_refused_field_what_to_do(changed, capsys):
    capsys.readouterr()
    arguments = ["plan", str(changed / "config.toml"), "--set", "run.steps=20", "--set", "loader.order=none"]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  train.order.policy: was 'global', is 'none'")
    assert lines[at + 1] == '    do: set loader.order = "global" again'
    assert main([*arguments, "--json"]) == 1
    plan = json.loads(capsys.readouterr().out)
    assert plan["mismatches"][0] == "train.order.policy: was 'global', is 'none'"
    assert plan["advice"][0] == 'set loader.order = "global" again'


def test_a_changed_permutation_of_the_same_version_is_named_by_plan_run_and_verify(
    tmp_path, monkeypatch, capsys
):
    config = str(finish_run(tmp_path))
    monkeypatch.setattr(permutation, "ROUNDS", 9)
    for command in (
        ["plan", config],
        ["run", config, "--set", "run.steps=20"],
        ["verify", str(tmp_path / "run")],
    ):
        capsys.readouterr()
        assert main(command) == 1
        shown = "".join(capsys.readouterr())
        assert "train.order.version: was 1, is '1 (this code is another than version 1: " in shown, command
        if command[0] != "verify":
            assert "do: the order of this code does not do what its version says" in shown
