"""A run keeps the version of the order that it was begun with, after a newer one has become the default."""

import pytest

from datarax.checkpoint import Snapshot, read_config
from datarax.cli.main import main
from tests.support.runs import copy_run, tree
from tests.support.second_order import second_version

_KEY = "\norder_version = 1\n"


def stored_config(run):
    return read_config(run, Snapshot.open(run).record.config)


@pytest.fixture
def run(finished, tmp_path):
    return copy_run(finished / "run", tmp_path / "run")


def on(run, command, finished, *sets):
    words = [word for each in (f"run.directory={run}", *sets) for word in ("--set", each)]
    return main([command, str(finished / "config.toml"), *words])


def test_the_stored_config_says_the_version(run):
    assert _KEY in stored_config(run)


@pytest.mark.parametrize("kept", [True, False], ids=["with the key", "stored before there was the key"])
def test_a_run_of_the_first_version_verifies_when_the_second_is_the_default(run, kept, monkeypatch, capsys):
    if not kept:
        text = stored_config(run).replace(_KEY, "\n")
        monkeypatch.setattr("datarax.audit.recipes.read_config", lambda *arguments: text)
    with second_version():
        code = main(["verify", str(run)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert "steps 8 to 12 replayed, keys and bytes compared" in output


def test_a_config_that_says_no_version_is_refused_by_name_and_told_the_way_out(run, finished, capsys):
    before = tree(run)
    with second_version():
        assert on(run, "plan", finished, "run.steps=14") == 1
        assert "train.order.version: was 1, is 2" in capsys.readouterr().out
        assert on(run, "run", finished, "run.steps=14") == 1
    refusal = capsys.readouterr().err
    assert "train.order.version: was 1, is 2" in refusal
    assert "set loader.order_version = 1" in refusal
    assert {name for name in tree(run) if name[0].isdigit()} == {name for name in before if name[0].isdigit()}


def test_the_way_out_goes_on_as_if_there_were_no_second_version(run, finished, tmp_path, capsys):
    plain = copy_run(run, tmp_path / "plain")
    assert on(plain, "run", finished, "run.steps=14") == 0
    with second_version():
        assert on(run, "run", finished, "run.steps=14", "loader.order_version=1") == 0
        assert main(["verify", str(run)]) == 0
    capsys.readouterr()
    assert main(["diff", str(plain), str(run)]) == 0


def test_a_change_of_version_on_purpose_is_answered_step_by_step_with_the_version_that_made_it(
    run, finished, capsys
):
    def order(steps):
        capsys.readouterr()
        assert main(["order", str(finished / "config.toml"), "--set", f"run.directory={run}", *steps]) == 0
        return capsys.readouterr().out

    before = order(["--steps", "0:12"])
    with second_version():
        assert on(run, "run", finished, "run.steps=14", 'resume.allow_changed=["train.order.version"]') == 0
        allowed = ["--set", 'resume.allow_changed=["train.order.version"]', "--set", "run.steps=14"]
        assert order(["--steps", "0:12", *allowed]) == before
        anew = order(["--steps", "12:14", *allowed])
        assert main(["verify", str(run)]) == 0
    assert order(["--steps", "12:14"]) != anew
