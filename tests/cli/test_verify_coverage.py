"""Which steps `verify` covers: those of the snapshots, the newest K, all through the ledger; and keys alone, without a read."""

import json
import shutil

import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
    SaveConfig,
    TrainingSession,
)
from datarax.audit.verify import verify_run
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.retention import drop
from datarax.cli.main import main
from datarax.sources.array_record_files import ArrayRecordFiles
from tests.cli.test_verify import changed_fields
from tests.support.runs import finish_run, flipped, replaced


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """60 steps, a snapshot each 4, of which 56 and 60 are left; three epochs and more."""
    directory = tmp_path_factory.mktemp("long")
    finish_run(directory, steps=60)
    return directory


def verify(directory, capsys, *arguments):
    capsys.readouterr()
    code = main(["verify", str(directory / "run"), "--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def covered(report):
    return [tuple(interval) for interval in report["covered_steps"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], [(52, 60)]),
        (["--step", "56"], [(52, 56)]),
        (["--all"], [(0, 60)]),
        (["--steps", "1"], [(59, 60)]),
        (["--steps", "10"], [(50, 60)]),
        (["--steps", "23"], [(37, 60)]),
        (["--steps", "1000"], [(0, 60)]),
        (["--step", "56", "--steps", "3"], [(53, 56)]),
        (["--fast"], [(0, 60)]),
        (["--fast", "--steps", "7"], [(53, 60)]),
        (["--fast", "--all"], [(0, 60)]),
        (["--fast", "--step", "60"], [(56, 60)]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else "",
)
def test_it_says_which_steps_it_covers(arguments, expected, long, capsys):
    code, report = verify(long, capsys, *arguments)
    assert (code, covered(report)) == (0, expected), report
    borders = [0, *(border for interval in expected for border in interval), report["newest_step"]]
    uncovered = [[a, b] for a, b in zip(borders[::2], borders[1::2], strict=True) if a < b]
    assert report["uncovered_steps"] == uncovered


def test_people_read_what_is_covered_and_what_is_not(long, capsys):
    assert main(["verify", str(long / "run")]) == 0
    output = capsys.readouterr().out
    assert "covers steps: 52 to 60 of 60; not covered: 0 to 52 (--all also replays" in output
    assert main(["verify", str(long / "run"), "--all"]) == 0
    output = capsys.readouterr().out
    assert "ledger entry 4: good, steps 0 to 4 replayed, keys and bytes compared" in output
    assert "covers steps: 0 to 60 of 60\n" in output


def test_a_wrong_digest_in_the_ledger_is_found_with_its_step(long, capsys):
    path = long / "run" / "ledger" / "24" / "steps.bin"
    with flipped(path, 16 * 2 + 8):  # the bytes of step 22
        (path.parent / "manifest.json").rename(path.parent / "aside")  # as on a full disk: no checksum tells
        try:
            assert verify(long, capsys)[0] == 0
            code, report = verify(long, capsys, "--all")
            exact = verify(long, capsys, "--steps", "38")
            later = verify(long, capsys, "--steps", "37")
        finally:
            (path.parent / "aside").rename(path.parent / "manifest.json")
    assert (code, report["first_diverging_step"]) == (1, 22)
    assert (exact[0], exact[1]["first_diverging_step"]) == (1, 22)
    assert later[0] == 0, "step 22 is the 38th from the end"


def test_a_gap_in_the_ledger_is_a_no_to_the_whole_history_and_to_nothing_else(long, tmp_path, capsys):
    shutil.copytree(long / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "ledger" / "24")
    code, report = verify(tmp_path, capsys, "--all")
    assert (code, covered(report)) == (1, [(0, 20), (24, 60)])
    assert report["uncovered_steps"] == [[20, 24]]
    assert report["run_problems"] == [
        "steps 20 to 24 are recorded nowhere: neither a snapshot nor a ledger entry 24 is there"
    ]
    assert verify(tmp_path, capsys)[0] == 0


def test_steps_whose_beginning_is_kept_nowhere_are_replayed_from_where_their_recipe_began(
    long, changed, tmp_path
):
    """Of the run of three batch sizes the last steps begin at row 156, at step 12, which no batch size alone leads to."""
    for run, step in ((long / "run", 24), (changed / "run", 12)):
        copy = shutil.copytree(run, tmp_path / run.parent.name)
        for place in (copy / str(step), copy / "ledger" / str(step)):
            shutil.rmtree(place, ignore_errors=True)
        for fast in (False, True):
            after = next(
                each for each in verify_run(copy, whole_history=True, fast=fast).snapshots if each.step > step
            )
            assert after.replayed_steps == (step, after.step)
            assert not after.problems, after.problems


def test_a_snapshot_that_retention_takes_meanwhile_is_replayed_from_the_ledger(long, tmp_path):
    shutil.copytree(long / "run", tmp_path / "run")
    layout = RunLayout(tmp_path / "run")

    def say(text):
        if text == "verifying snapshot 56":
            drop(layout, 56)

    report = verify_run(tmp_path / "run", say=say)
    assert report.ok, report
    assert [(each.step, each.in_ledger) for each in report.snapshots] == [(56, True), (60, False)]
    assert report.covered() == [(52, 60)]


# Keys alone.


def test_a_fast_verification_reads_no_record_and_no_model(long, tmp_path, capsys, monkeypatch):
    def read(self, record_keys):
        raise AssertionError("a record was read")

    monkeypatch.setattr(ArrayRecordFiles, "read", read)
    shutil.copytree(long / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "60" / "model" / "d")
    code, report = verify(tmp_path, capsys, "--fast")
    assert (code, covered(report)) == (0, [(0, 60)]), report
    assert not any(each["bytes_compared"] or each["model_leaves"] for each in report["snapshots"])
    assert "no record was read" in report["notes"][0]
    assert report["data_checked"] is False


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("state", "position"), 961, "position is recorded as 961, the keys give 960"),
        (("state", "idx"), 61, "idx is recorded as 61, the keys give 60"),
        (("state", "epoch"), 4, "epoch is recorded as 4, the keys give 3"),
        (("state", "digest_keys"), 1, "digest_keys is recorded as 1, the keys give"),
        (("state", "digest_rows"), 1, "digest_rows is recorded as 1, the keys give 960"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_what_follows_from_the_keys_is_compared(path, value, named, long, capsys):
    record = long / "run" / "60" / "data" / "record.json"
    with replaced(record, changed_fields(record, {("loaders", "train", *path): value})):
        code, report = verify(long, capsys, "--fast")
    assert code == 1
    assert any(named in problem for problem in report["snapshots"][-1]["problems"]), report["snapshots"][-1]


def test_keys_need_no_data(long, tmp_path, capsys):
    shutil.copytree(long / "run", tmp_path / "run")
    (long / "data").rename(long / "elsewhere")
    try:
        code, report = verify(tmp_path, capsys, "--fast")
        with_data = main(["verify", str(tmp_path / "run")])
        said = capsys.readouterr().out
    finally:
        (long / "elsewhere").rename(long / "data")
    assert (code, covered(report)) == (0, [(0, 60)])
    assert "the data are not here, so what they are was not compared" in report["notes"]
    assert with_data == 1
    assert "if they were moved, say where they are: --set source.files=" in said


def test_a_file_is_no_run(long, capsys):
    for verb in ("verify", "inspect"):
        assert main([verb, str(long / "config.toml")]) == 2
        assert "Errno" not in capsys.readouterr().err


def test_a_wrong_key_digest_is_found_fast_with_its_step(long, capsys):
    with flipped(long / "run" / "56" / "data" / "steps.bin", 16 * 3):
        code, report = verify(long, capsys, "--fast")
    assert (code, report["first_diverging_step"]) == (1, 55)


def test_another_recipe_is_refused_fast(long, capsys):
    code, report = verify(long, capsys, "--fast", "--set", "loader.seed=6", "--steps", "8")
    assert (code, report["first_diverging_step"]) == (1, 52)
    assert {"field": "train.seed", "was": 5, "is": 6} in report["snapshots"][-1]["differences"]
    assert "explained by what differs in the recipe: train." in " ".join(report["snapshots"][-1]["problems"])


def test_a_thousand_steps_of_a_trillion_records_are_verified_fast(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(f"""
[run]
directory = "{tmp_path}/run"
steps = 1100
[source]
kind = "range"
stop = 1000000000000
[loader]
batch_size = 64
[save]
every_steps = 100
keep_latest = 1
""")
    assert main(["run", str(config)]) == 0
    code, report = verify(tmp_path, capsys, "--fast")
    assert (code, covered(report)) == (0, [(100, 1100)])


# Runs made from Python.


def make_loader():
    x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    return DataLoader(
        DataLoaderConfig(batch_size=8, seed=3, byte_digest=True), MemorySource(MemoryConfig(), {"x": x})
    )


def make_other_loader():
    return DataLoader(DataLoaderConfig(batch_size=8, seed=3), RangeSource(RangeConfig(stop=500)))


@pytest.fixture(scope="module")
def from_python(tmp_path_factory):
    directory = tmp_path_factory.mktemp("python")
    with make_loader() as loader:
        TrainingSession(
            directory / "run", loader=loader, steps=10, save=SaveConfig(every_steps=5), stream=None
        ).run()
    return directory


def test_a_run_made_from_python_is_verified_by_a_function_that_makes_its_loader(from_python, capsys):
    code, report = verify(from_python, capsys, "--loader", f"{__name__}:make_loader")
    assert (code, covered(report)) == (0, [(0, 10)])
    assert all(each["bytes_compared"] for each in report["snapshots"])


def test_another_loader_is_refused_by_name(from_python, capsys):
    code, report = verify(from_python, capsys, "--loader", f"{__name__}:make_other_loader")
    assert code == 1
    fields = {each["field"] for each in report["snapshots"][0]["differences"]}
    assert "train.sources.data.kind" in fields


def test_without_one_it_says_what_to_name(from_python, capsys):
    assert main(["verify", str(from_python / "run")]) == 2
    message = capsys.readouterr().err
    assert "made from Python and keeps no config" in message
    assert "--loader" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"],
        ["--steps", "-3"],
        ["--all", "--steps", "3"],
        ["--all", "--step", "5"],
        ["--loader", "nowhere:f"],
        ["--loader", "json:loads"],
    ],
    ids=" ".join,
)
def test_wrong_input_is_refused(arguments, from_python, capsys):
    assert main(["verify", str(from_python / "run"), *arguments]) == 2
