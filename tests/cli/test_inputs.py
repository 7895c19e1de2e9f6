"""Inputs that are not what the data were built from: run, plan and doctor say the same, and nothing is written."""

import json
import os
import re
import shlex
import shutil

import pytest

from datarax.cli.main import main
from tests.support.runs import finish_run, write_config

NEW, ON = "run.directory={}/new", "run.steps=14"


@pytest.fixture
def begun(tmp_path):
    finish_run(tmp_path, steps=4)
    return tmp_path


def everything(place):
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def ask(command, place, *sets, capsys):
    code = main([command, str(place / "config.toml"), *(word for each in sets for word in ("--set", each))])
    told = capsys.readouterr()
    return code, told.out + told.err


def change_text(place):
    text = (place / "text.txt").read_text()
    (place / "text.txt").write_text(text.replace("a", "A"))


def name_others(place):
    (place / "more.txt").write_text("m" * 320)
    config = place / "config.toml"
    config.write_text(config.read_text().replace(f'["{place}/text.txt"]', f'["{place}/more.txt"]'))


@pytest.mark.parametrize("change", [change_text, name_others])
@pytest.mark.parametrize("which", [NEW, ON])
def test_other_inputs_are_refused_by_all_and_nothing_is_written(begun, change, which, capsys):
    change(begun)
    before = everything(begun)
    for command, code in (("run", 2), ("plan", 2), ("doctor", 1)):
        found, told = ask(command, begun, which.format(begun), capsys=capsys)
        assert found == code, command
        assert "built from something else" in told, command
        assert "--again" in told, command
    assert everything(begun) == before


@pytest.mark.parametrize("which", [NEW, ON])
def test_inputs_that_are_gone_are_a_note_of_all(begun, which, capsys):
    (begun / "text.txt").unlink()
    for command in ("plan", "doctor", "run"):
        code, told = ask(command, begun, which.format(begun), capsys=capsys)
        assert code == 0, command
        assert "1 of 1 inputs" in told, command
        assert "the built data are used as recorded" in told, command


def test_without_a_build_table_built_data_are_used_as_they_are(begun, capsys):
    change_text(begun)
    config = begun / "config.toml"
    before, after = config.read_text().split("[source.build]")
    config.write_text(before + "[loader]" + after.partition("[loader]")[2])
    assert ask("run", begun, ON, capsys=capsys)[0] == 0


def test_a_run_that_builds_says_what_it_took(tmp_path, capsys):
    write_config(tmp_path, steps=4)
    assert "built 300 records in" in ask("run", tmp_path, capsys=capsys)[1]
    shutil.rmtree(tmp_path / "data")
    assert "from 1 input files, 9,600 bytes" in ask("run", tmp_path, ON, capsys=capsys)[1]


def test_what_build_takes_is_said_and_the_keys_of_json_stay(begun, capsys):
    words = ["build", "text", str(begun / "text.txt"), "--output", str(begun / "other")]
    assert main(words) == 0
    assert "taken: 1 input files, 9,600 bytes" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"]


# Shards that no manifest lists


def add_shard(place, name="records-000003.array_record"):
    (place / "data" / name).parent.mkdir(exist_ok=True)
    shutil.copy(place / "data" / "records-000000.array_record", place / "data" / name)


@pytest.fixture
def bare(begun):
    """The same without `[source.build]`."""
    config = begun / "config.toml"
    before, _, after = config.read_text().partition("[source.build]")
    config.write_text(before + "[loader]" + after.partition("[loader]")[2])
    return begun


def test_shards_that_were_added_are_refused_by_a_new_run_and_named_by_all(bare, capsys):
    add_shard(bare)
    before = everything(bare)
    for command, code in (("run", 2), ("plan", 2), ("doctor", 1)):
        found, told = ask(command, bare, NEW.format(bare), capsys=capsys)
        assert found == code, command
        assert "1 files beside the data of source 'text' are not in its manifest" in told, command
        assert f"{bare}/data/records-000003.array_record" in told, command
    assert everything(bare) == before


def test_a_run_goes_on_by_its_manifest_and_says_so(bare, capsys):
    add_shard(bare)
    for command in ("plan", "doctor", "run"):
        code, told = ask(command, bare, ON, capsys=capsys)
        assert code == 0, command
        assert f"{bare}/data/records-000003.array_record" in told, command
        assert "the run goes on by the manifest" in told, command
    assert main(["verify", str(bare / "run")]) == 0


def test_shards_that_were_added_may_be_ignored(bare, capsys):
    add_shard(bare)
    for command in ("plan", "doctor", "run"):
        code, told = ask(command, bare, NEW.format(bare), 'source.unlisted="ignore"', capsys=capsys)
        assert (code, "records-000003" in told) == (0, False), command


@pytest.mark.parametrize("name", ["records-000003.array_record", "later/records-000000.array_record"])
def test_what_the_message_says_works_when_typed(bare, name, capsys):
    add_shard(bare, name)
    data = (bare / "data").rename(bare / "data [1] $x")
    config = bare / "config.toml"
    config.write_text(re.sub(r'(?m)^files = ".*"$', f'files = "{data}"', config.read_text()))
    _, told = ask("run", bare, NEW.format(bare), capsys=capsys)
    remove, record = [part for part in told.split("`") if part.startswith(("rm ", "datarax "))]
    (path,) = shlex.split(remove)[1:]
    os.unlink(path)
    assert main(shlex.split(record)[1:]) == 0
    assert ask("run", bare, NEW.format(bare), "run.steps=4", capsys=capsys)[0] == 0
    assert "records           400" in ask("plan", bare, f"run.directory={bare}/other", capsys=capsys)[1]


@pytest.mark.parametrize(
    "name", ["notes.txt", ".records-000003.array_record", "records-000003.array_record.part", "array_record"]
)
def test_what_does_not_end_like_data_is_no_data(bare, name, capsys):
    add_shard(bare, name)
    assert ask("run", bare, NEW.format(bare), capsys=capsys)[0] == 0


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_the_command_that_is_named_for_other_inputs_works_when_typed(begun, command, capsys):
    name_others(begun)
    _, told = ask(command, begun, NEW.format(begun), capsys=capsys)
    (build,) = [part for part in told.split("`") if part.startswith("datarax build")]
    assert main(shlex.split(build)[1:]) == 0
    assert ask("doctor", begun, NEW.format(begun), "run.steps=1", capsys=capsys)[0] == 0
    assert ask("run", begun, NEW.format(begun), "run.steps=1", capsys=capsys)[0] == 0
