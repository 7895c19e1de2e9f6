"""`datarax order`: who saw what, both ways, from a run directory alone, for any step, by the recipe of then."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

import datarax.order.timeline
from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.cli.main import main
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.order import Order, OrderConfig
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, RangeConfig, RangeSource
from datarax.training import TrainingSession
from tests.support.processes import Command
from tests.support.runs import ALLOWED, NUM_RECORDS, copy_run, finish_run, flipped, tree, write_config

FILES = [f"records-{k:06d}.array_record" for k in range(3)]


def answer(capsys, *arguments, code=0):
    """Standard output and standard error of `datarax order`."""
    capsys.readouterr()
    assert main(["order", *map(str, arguments)]) == code, capsys.readouterr().err
    return capsys.readouterr()


def rows_of(capsys, *arguments):
    return [json.loads(line) for line in answer(capsys, *arguments, "--json").out.splitlines()]


def refusal(capsys, *arguments, code):
    said = answer(capsys, *arguments, code=code)
    assert said.err.count("datarax: ") == 1
    assert "Traceback" not in said.err
    return said


@contextlib.contextmanager
def moved_away(*paths):
    for path in paths:
        os.rename(path, f"{path}.away")
    try:
        yield
    finally:
        for path in paths:
            os.rename(f"{path}.away", path)


@pytest.fixture
def alone(changed, tmp_path, monkeypatch):
    """The run of many recipes, in another place and seen from a third one, with its config, data and inputs gone."""
    run = copy_run(changed / "run", tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with moved_away(changed / "config.toml", changed / "data", changed / "text.txt"):
        yield run


def delivered_to_the_changed_run():
    """What the docstring of `changed` says, without the machinery under test: (step, row, index, epoch)."""
    first, second = (Order(OrderConfig(seed=seed), {"text": NUM_RECORDS}) for seed in (5, 6))
    keys = [*first.keys(np.arange(126)).rows(), *second.keys(np.arange(126, 176)).rows()]
    places = [(position // 16, position % 16) for position in range(96)]
    places += [(6 + i // 10, i % 10) for i in range(80)]
    return [(*place, index, epoch) for place, (_, index, epoch) in zip(places, keys, strict=True)]


# From a run directory alone.


def test_a_run_directory_alone_says_what_its_config_says(finished, capsys):
    of_config = answer(capsys, finished / "config.toml", "--steps", "0:12", "--json")
    of_run = answer(capsys, finished / "run", "--steps", ":", "--json")
    assert of_run == of_config
    assert len(of_run.out.splitlines()) == 12 * 16
    assert of_run.err == ""


def test_every_step_is_answered_by_the_recipe_of_then(alone, capsys):
    before = tree(alone)
    rows = rows_of(capsys, alone, "--steps", "0:14")
    assert [
        (row["step"], row["row"], row["index"], row["epoch"]) for row in rows
    ] == delivered_to_the_changed_run()
    for step in (0, 5, 6, 8, 9, 13):
        assert rows_of(capsys, alone, "--steps", step) == [row for row in rows if row["step"] == step]
    assert tree(alone) == before


def test_steps_that_only_the_ledger_knows_are_answered(finished, tmp_path, capsys):
    rows = rows_of(capsys, finished / "run", "--steps", "0:12")
    run = copy_run(finished / "run", tmp_path / "run")
    for step in ("8", "12"):
        shutil.rmtree(run / step)
    assert rows_of(capsys, run, "--steps", "0:4") == rows[: 4 * 16]
    found = {row["index"] for row in rows[: 4 * 16]}
    for index in (min(found), max(found)):
        assert rows_of(capsys, run, "--find", f"text:{index}") == [
            r for r in rows[: 4 * 16] if r["index"] == index
        ]
    # What was never saved is what the run will deliver, and that is said.
    said = answer(capsys, run, "--steps", "2:12", "--json")
    assert [json.loads(line) for line in said.out.splitlines()] == rows[2 * 16 :]
    assert "note: steps 4 to 11 are not done, or not saved yet" in said.err


@pytest.mark.full
def test_a_run_is_read_while_a_writer_holds_it(tmp_path, capsys):
    config = write_config(tmp_path, steps=10**6)
    writer = Command(["run", config], directory=tmp_path, log=tmp_path / "writer.log")
    writer.wait_until(lambda: (tmp_path / "run" / "8" / "manifest.json").exists())
    rows = rows_of(capsys, tmp_path / "run", "--steps", "0:8")
    assert len(rows) == 8 * 16
    assert writer.process.is_alive()
    assert writer.kill_after(0, signal.SIGKILL) == -signal.SIGKILL


def test_a_padded_run_that_was_prolonged_is_told_as_it_was(tmp_path, capsys):
    """300 records make 18 batches of 16 and one of 12 and 4 pad slots; the second epoch begins with a new batch."""
    sets = [word for each in ("loader.remainder=pad", "run.steps=1000") for word in ("--set", each)]
    config = write_config(tmp_path)
    for epochs in (1, 2, 3):
        prolonged = [config, *sets, "--set", f"loader.num_epochs={epochs}"]
        steps = f"{19 * epochs - 19}:{19 * epochs}"
        planned = (
            rows_of(capsys, *prolonged, "--steps", steps) if epochs > 1 else None
        )  # the first run builds the data
        assert main(["run", *map(str, prolonged)]) == 0
        assert planned in (None, rows_of(capsys, tmp_path / "run", "--steps", steps))
    for asked in ([tmp_path / "run"], [config, *sets, "--set", "loader.num_epochs=3"]):
        rows = rows_of(capsys, *asked, "--steps", "0:57")
        assert len(rows) == 57 * 16
        pads = [(row["step"], row["row"]) for row in rows if row["source"] is None]
        assert pads == [(step, slot) for step in (18, 37, 56) for slot in range(12, 16)]
        assert {tuple(row.values())[2:] for row in rows if row["source"] is None} == {
            (None, -1, -1, None, None)
        }
        for epoch in range(3):
            assert sorted(row["index"] for row in rows if row["epoch"] == epoch) == list(range(NUM_RECORDS))
        assert rows_of(capsys, *asked, "--find", "text:299") == [row for row in rows if row["index"] == 299]


def new_session(directory, *, records, steps):
    source = RangeSource(RangeConfig(name="numbers", stop=records))
    loader = DataLoader(DataLoaderConfig(batch_size=8, seed=3), source)
    return TrainingSession(directory, loader=loader, steps=steps, stream=None), loader


def test_a_run_made_from_python_is_told_up_to_its_newest_snapshot(tmp_path, capsys):
    session, loader = new_session(tmp_path / "run", records=10**12, steps=5)
    session.run()
    said = answer(capsys, tmp_path / "run", "--steps", "0:", "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    expected = loader.order.keys(np.arange(5 * 8)).index.tolist()
    assert [row["index"] for row in rows] == expected
    assert {row["file"] for row in rows} == {None}
    assert "made from Python and keeps no config" in said.err
    assert "has only 5 steps" in refusal(capsys, tmp_path / "run", "--steps", "5", code=2).err
    for row in rows[::7]:
        assert rows_of(capsys, tmp_path / "run", "--find", f"numbers:{row['index']}") == [row]


def test_a_record_is_found_in_a_config_of_10_to_the_12_records(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(
        f'[run]\ndirectory = "{tmp_path}/run"\nsteps = {10**11}\n[loader]\nbatch_size = 64\nseed = 3\n'
        f'[source]\nkind = "range"\nname = "numbers"\nstop = {10**12}\n'
    )
    found = rows_of(capsys, config, "--find", "numbers:123456789012", "--find", f"numbers:{10**12 - 1}")
    # 6.4 passes over the records.
    assert {row["epoch"] for row in found} >= set(range(6))
    assert len(found) in (12, 13, 14)
    for row in found[::5]:
        assert row in rows_of(capsys, config, "--steps", row["step"])


# Finding.


@pytest.fixture(params=["inverse", "scan"])
def either_way(request, monkeypatch):
    """Both ways to find: the one that is less work is chosen elsewhere, and must not be seen in the answer."""
    limits = {"inverse": (1 << 60, -(1 << 30)), "scan": (-1, 0)}[request.param]
    monkeypatch.setattr(datarax.order.timeline, "_MOST_INVERTED", limits[0])
    monkeypatch.setattr(datarax.order.timeline, "_EPOCH_COST_ROWS", limits[1])


def test_finding_is_filtering(either_way, alone, capsys):
    """For every file and for records, alone and together, in all steps and in some, across recipes."""
    rows = rows_of(capsys, alone, "--steps", "0:14")
    assert {row["file"] for row in rows} == set(FILES)
    for file in FILES:
        found = rows_of(capsys, alone, "--find", file)
        assert found == [row for row in rows if row["file"] == file]
        some = rows_of(capsys, alone, "--find", file, "--steps", "4:10")
        assert some == [row for row in found if 4 <= row["step"] < 10]
    for index in (0, 99, 100, NUM_RECORDS - 1):
        assert rows_of(capsys, alone, "--find", f"text:{index}") == [
            row for row in rows if row["index"] == index
        ]
    both = rows_of(
        capsys, alone, "--find", FILES[2], "--find", "text:5", "--find", "text:5", "--find", FILES[2]
    )
    assert both == [row for row in rows if row["file"] == FILES[2] or row["index"] == 5]
    everything = [word for file in FILES for word in ("--find", file)]
    assert rows_of(capsys, alone, *everything) == rows


def test_padding_is_in_no_file(either_way, tmp_path, capsys):
    config = finish_run(tmp_path, "loader.remainder=pad", "loader.num_epochs=1", "run.steps=1000")
    rows = rows_of(capsys, tmp_path / "run", "--steps", "0:19")
    assert sum(row["file"] is None for row in rows) == 4
    for file in FILES:
        for asked in (
            [tmp_path / "run"],
            [config, "--set", "loader.num_epochs=1", "--set", "loader.remainder=pad"],
        ):
            assert rows_of(capsys, *asked, "--find", file, "--steps", ":") == [
                r for r in rows if r["file"] == file
            ]


def test_a_file_is_named_by_the_end_of_its_path_or_by_a_path_that_ends_with_it(finished, capsys):
    rows = rows_of(capsys, finished / "run", "--find", FILES[1])
    for name in (f"./{FILES[1]}", f"{finished}/data/{FILES[1]}", f"data/{FILES[1]}"):
        assert rows_of(capsys, finished / "run", "--find", name) == rows


def test_the_summary_of_a_find_is_on_standard_error(finished, capsys):
    said = answer(capsys, finished / "run", "--find", FILES[0], "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert f"{len(rows)} rows in steps 0 to {rows[-1]['step']}, epochs 0 to 0" in said.err
    steps = len({row["step"] for row in rows})
    assert (
        f"of these steps {steps} agree with the digests that were recorded when they were delivered"
        in said.err
    )
    # Record 299 stands behind the 12 steps of 16.
    missing = set(range(NUM_RECORDS)) - {
        row["index"] for row in rows_of(capsys, finished / "run", "--steps", ":")
    }
    said = answer(capsys, finished / "run", "--find", f"text:{min(missing)}")
    assert (said.out, said.err) == ("", f"no step of this run delivers text:{min(missing)}\n")


# Tables.


def test_csv_and_json_lines_hold_the_same_rows(alone, tmp_path, capsys):
    of_json = rows_of(capsys, alone, "--steps", "0:14")
    text = answer(capsys, alone, "--steps", "0:14", "--csv").out
    of_csv = list(csv.DictReader(io.StringIO(text)))
    assert list(of_csv[0]) == list(of_json[0])
    assert [list(row.values()) for row in of_csv] == [
        [str(value) for value in row.values()] for row in of_json
    ]
    for style in ("--csv", "--json"):
        path = tmp_path / f"table{style}"
        said = answer(capsys, alone, "--steps", "0:14", style, "--output", path)
        assert said.out == ""
        assert f"wrote {len(of_json)} rows to {path}" in said.err
    assert (tmp_path / "table--csv").read_text() == text
    assert [json.loads(line) for line in (tmp_path / "table--json").read_text().splitlines()] == of_json


def test_a_row_names_the_file_and_the_record_in_it(finished, capsys):
    for row in rows_of(capsys, finished / "run", "--steps", "0:12")[::5]:
        with ArrayRecordSource(ArrayRecordConfig(files=str(finished / "data" / row["file"]))) as file:
            assert int(file[row["index_in_file"]][:5]) == row["index"]


def test_a_table_replaces_no_file_and_leaves_no_half_of_one(finished, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.csv"
    path.write_text("precious")
    arguments = [finished / "run", "--steps", "0:12", "--csv", "--output"]
    assert "exists already" in refusal(capsys, *arguments, path, code=2).err
    assert path.read_text() == "precious"
    for place in ("none", "table.csv"):  # not there, and no directory
        error = refusal(capsys, *arguments, tmp_path / place / "new.csv", code=2).err
        assert f"--output {tmp_path}/{place}/new.csv: nothing can be written in {tmp_path}/{place}: " in error
    monkeypatch.setattr("datarax.order.versions.derive_seed", lambda *parts: 7)
    refusal(capsys, *arguments, tmp_path / "other.csv", code=1)
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_table_may_lie_in_the_working_directory(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answer(capsys, finished / "run", "--steps", "0:12", "--csv", "--output", "table.csv")
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (["--find", "text:" + "9" * 5000], "--find needs SOURCE:INDEX"),
        (["--find", "text:²"], "--find needs SOURCE:INDEX"),
        (["--steps", "9" * 5000], "--steps needs A:B with whole numbers"),
        (["--steps", "9" * 20], "99999999999999999999"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_a_number_that_is_none_of_this_run_is_refused(what, message, finished, capsys):
    for asked in ([finished / "run"], [finished / "config.toml", "--set", "run.directory=none"]):
        assert message in refusal(capsys, *asked, *what, code=2).err


# An audit is not wrong in silence.


def test_records_that_are_not_those_delivered_are_never_given_out(finished, monkeypatch, capsys):
    """The permutation is another one than at delivery, and nobody has raised its version."""
    monkeypatch.setattr("datarax.order.versions.derive_seed", lambda *parts: 7)
    for asked in ("run", "config.toml"):
        for what in (["--steps", "5:12"], ["--find", "text:17"], ["--find", FILES[1]]):
            said = refusal(capsys, finished / asked, *what, code=1)
            assert said.out == ""
            assert "gives other records than were delivered" in said.err
    assert "step 5 of " in refusal(capsys, finished / "run", "--steps", "5:12", code=1).err


def test_steps_whose_digests_are_gone_or_damaged_are_counted(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    shutil.rmtree(run / "ledger" / "4")
    with flipped(run / "8" / "data" / "steps.bin", 3):
        said = answer(capsys, run, "--steps", "2:10", "--json")
    assert "note: 6 steps could not be held against what was recorded at delivery" in said.err
    assert said.out == answer(capsys, finished / "run", "--steps", "2:10", "--json").out


def test_a_recorded_recipe_that_was_changed_is_refused(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    (identity,) = (run / "identity").iterdir()
    identity.write_text(identity.read_text().replace('"seed":5', '"seed":6'))
    assert "its content has changed" in refusal(capsys, run, "--steps", "0", code=1).err


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (60, "step 3 of .* gives other records than were delivered"),
        (40, "steps 0 to 3 are recorded as rows 0 to 39, which are not 4 batches of 16"),
    ],
)
def test_a_record_that_contradicts_the_run_is_refused(position, message, finished, tmp_path, capsys):
    """Where only the ledger is left and the disk was too full to keep its checksums, a record can be wrong."""
    run = copy_run(finished / "run", tmp_path / "run")
    for step in ("8", "12"):
        shutil.rmtree(run / step)
    (run / "ledger" / "4" / "manifest.json").unlink()
    record = run / "ledger" / "4" / "record.json"
    record.write_text(record.read_text().replace('"position":64', f'"position":{position}'))
    said = refusal(capsys, run, "--steps", "3", code=1)
    assert re.search(message, said.err)
    assert said.out == ""


# Files of a source that has many.


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """A run over 20 files: its identity keeps a digest of their list only."""
    directory = tmp_path_factory.mktemp("many_files")
    finish_run(directory, "source.build.num_shards=20", steps=20)
    return directory


def test_a_long_list_of_files_comes_from_the_manifest_and_is_proven(many_files, tmp_path, capsys):
    run, name = many_files / "run", "records-000003.array_record"
    rows = rows_of(capsys, run, "--steps", ":")
    expected = [row for row in rows if row["file"] == name]
    assert len({row["file"] for row in rows}) == 20
    assert {row["index"] - row["index_in_file"] for row in expected} == {45}
    for file in (many_files / "data").glob("*.array_record"):
        shutil.copy(file, tmp_path)  # the manifest alone is enough
        os.rename(file, f"{file}.away")
    assert rows_of(capsys, run, "--find", name) == expected
    with moved_away(many_files / "data"):
        assert (
            rows_of(capsys, run, "--find", f"text:{expected[0]['index']}", "--steps", "0:20")[0]["file"]
            is None
        )
        said = refusal(capsys, run, "--find", name, code=2)
        assert "the run keeps only a digest of the list" in said.err
        assert "--set source.files=DIRECTORY" in said.err
        said = answer(capsys, run, "--steps", "0:2", "--csv")
        assert "note: rows without a file: which of the 20 files" in said.err
        assert all(line.endswith(",,") for line in said.out.splitlines()[1:])
        here = ["--set", f"source.files={many_files}/data.away"]
        assert rows_of(capsys, run, "--find", name, *here) == expected


def test_other_files_than_those_of_then_are_not_believed(many_files, finished, capsys):
    other = ["--set", f"source.files={finished}/data"]
    said = refusal(capsys, many_files / "run", "--find", FILES[0], *other, code=2)
    assert "the files that are listed there now are not those of then" in said.err


def test_each_row_names_its_file_of_then(tmp_path, capsys):
    """The same records were written to other files in mid-run: step 6 on reads two files, not three."""
    config = finish_run(tmp_path, steps=6)
    changes = ["source.build.num_shards=2", f"source.files={tmp_path}/other", "run.steps=12"]
    changes.append('resume.allow_changed=["train.sources"]')
    assert main(["run", str(config), *(word for each in changes for word in ("--set", each))]) == 0
    rows = rows_of(capsys, tmp_path / "run", "--steps", "0:")
    for row in rows:
        size = 100 if row["step"] < 6 else 150
        assert (row["file"], row["index_in_file"]) == (FILES[row["index"] // size], row["index"] % size)
    for file in FILES:
        found = rows_of(capsys, tmp_path / "run", "--find", file)
        assert found == [row for row in rows if row["file"] == file]


# What cannot be answered.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "12"], "this run has only 12 steps"),
        (["--steps", "3:3"], "holds no step"),
        (["--find", "17"], "needs SOURCE:INDEX, for instance text:17, or the name of one of 3 files"),
        (["--find", "words:17"], "no source is called 'words'; this order has text"),
        (["--find", "text:300"], "has records 0 to 299, not 300"),
        (["--find", "00003.array_record"], "got '00003.array_record'"),
        (["--find", "text:1", "--find", "data"], "got 'data'"),
        (["--steps", "0", "--set", "loader.seed=9"], "only source.… (where the data lie now) can be set"),
    ],
)
def test_a_run_refuses_what_it_cannot_answer(arguments, message, finished, capsys):
    said = refusal(capsys, finished / "run", *arguments, code=2)
    assert message in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --steps A:B, or --find"),
        (["--steps", "0", "--json", "--csv"], "--json and --csv exclude each other"),
        (["--steps", "0", "--output", "table.csv"], "--output needs --json or --csv"),
    ],
)
def test_wrong_usage_is_refused(arguments, message, finished, capsys):
    assert main(["order", str(finished / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_name_that_several_have_is_refused(tmp_path, capsys):
    config = finish_run(tmp_path)
    for part in ("a", "b"):
        shutil.copytree(tmp_path / "data", tmp_path / "both" / part)
    text = re.sub(r"\[source.build\].*(?=\[loader\])", "", config.read_text(), flags=re.DOTALL)
    config.write_text(text.replace(f"{tmp_path}/data", f"{tmp_path}/both/*/*.array_record"))
    said = refusal(capsys, config, "--find", FILES[0], "--set", f"run.directory={tmp_path}/none", code=2)
    assert f"2 files are called so (a/{FILES[0]}, b/{FILES[0]})" in said.err
    rows = rows_of(capsys, config, "--find", f"b/{FILES[0]}", "--set", f"run.directory={tmp_path}/none")
    assert {row["file"] for row in rows} == {f"b/{FILES[0]}"}


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    assert "holds no snapshot and no ledger entry" in refusal(capsys, tmp_path, "--steps", "0", code=2).err


def test_a_run_of_other_modules_is_refused(tmp_path, capsys):
    _, loader = new_session(tmp_path / "unused", records=100, steps=2)
    with Checkpointer(tmp_path / "run", config=SaveConfig()) as checkpointer:
        next(loader)
        checkpointer.save(1, data={"mine": loader})
    assert "holds no place of a loader" in refusal(capsys, tmp_path / "run", "--steps", "0", code=2).err


def test_a_config_whose_data_are_gone_says_that_the_run_needs_none(changed, capsys):
    with moved_away(changed / "data"):
        said = refusal(capsys, changed / "config.toml", "--steps", "0", "--set", ALLOWED, code=2)
    assert f"need no data: datarax order {changed / 'run'}" in said.err
