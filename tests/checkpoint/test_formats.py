"""Readers of earlier formats: with a made-up format 0 of everything a run keeps, all commands go on as if it were today's.

The golden snapshots of format 1 are rewritten in format 0, in which fields have other names, `steps.bin` has another layout,
and the identity lacks a field. With a reader for it they are good; without, they are refused by its number.
"""

import hashlib
import json

import numpy as np
import pytest

from datarax.checkpoint import Snapshot, identity_reader, ledger_record, list_steps, manifest, record
from datarax.cli.main import main
from datarax.core.errors import InputError, SnapshotDamagedError
from datarax.core.tree import canonical_json, digest
from datarax.sources import manifest as dataset
from tests.checkpoint.make_golden import GOLDEN, facts
from tests.checkpoint.test_golden import expected, in_todays_form, numbers, with_data
from tests.support.runs import copy_run, replaced, tree


def renamed(fields, names):
    return {names.get(key, key): value for key, value in fields.items()}


def swapped(names):
    return {new: old for old, new in names.items()}


RECORD = {"step": "steps_done", "loaders": "modules"}
LOADER = {"state": "cursor"}
ENTRY = {"from_step": "since"}
PROCESSES = {"parts": "states", "process_count": "world_size"}
MANIFEST = {"items": "contents", "written_unix_seconds": "time"}
DATASET = {"files": "shards"}


# The writer of format 0.


def older_run(run):
    """Rewrites a run of format 1 in format 0."""
    identities = {path.stem: older_identity(path) for path in (run / "identity").iterdir()}
    histories = {path.stem: older_history(path, identities) for path in run.glob("history/*")}
    for place in [*run.glob("[0-9]*/data"), *run.glob("ledger/*")]:
        path = place / "record.json"
        fields = older_record(json.loads(path.read_bytes()), identities, histories)
        path.write_bytes(canonical_json(fields))
        if (place / "steps.bin").exists():
            pairs = np.fromfile(place / "steps.bin", "<u8").reshape(-1, 2)
            (place / "steps.bin").write_bytes(pairs[:, ::-1].astype(">u8").tobytes())
        if (place / "processes.json").exists():
            fields = renamed(json.loads((place / "processes.json").read_bytes()), PROCESSES)
            (place / "processes.json").write_bytes(canonical_json(fields | {"format": 0}))
        older_manifest(place if place.parent.name == "ledger" else place.parent, place)


def older_identity(path):
    modules = json.loads(path.read_bytes())
    modules["train"] = {key: value for key, value in modules["train"].items() if key != "row_mask"}
    modules["train"]["version"] = 0
    return moved(path, canonical_json(modules))


def older_history(path, identities):
    entries = [older_entry(entry, identities) for entry in json.loads(path.read_bytes())]
    return moved(path, canonical_json(entries))


def older_entry(entry, identities):
    return renamed({**entry, "identity": identities[entry["identity"]]}, ENTRY)


def older_record(fields, identities, histories):
    fields = {**fields, "format": 0, "identity": identities[fields["identity"]]}
    fields["earlier_history"] = histories.get(fields["earlier_history"])
    fields["history"] = [older_entry(entry, identities) for entry in fields["history"]]
    fields["loaders"] = {name: renamed(loader, LOADER) for name, loader in fields["loaders"].items()}
    return renamed(fields, RECORD)


def older_manifest(directory, data):
    path = directory / "manifest.json"
    fields = json.loads(path.read_bytes())
    for name, file in fields["items"]["data"].items():
        content = (data / name).read_bytes()
        file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    del fields["checksum"]
    fields = renamed(fields, MANIFEST) | {"format": 0}
    path.write_bytes(canonical_json({**fields, "checksum": digest(fields)}))


def older_dataset(data):
    path = data / "manifest.json"
    fields = json.loads(path.read_bytes())
    del fields["checksum"]
    fields = renamed(fields, DATASET) | {"format": 0}
    path.write_text(json.dumps({**fields, "checksum": digest(fields)}))


def moved(path, content):
    """The digest of what a file named by its content is now."""
    sha256 = hashlib.sha256(content).hexdigest()
    path.unlink()
    path.with_stem(sha256).write_bytes(content)
    return sha256


# Its readers: each gives the form of format 1 to the reader of that.


def record_v0(fields):
    fields = renamed(fields, swapped(RECORD))
    loaders = {name: renamed(loader, swapped(LOADER)) for name, loader in fields["loaders"].items()}
    history = [renamed(entry, swapped(ENTRY)) for entry in fields["history"]]
    return record._record_v1({**fields, "loaders": loaders, "history": history})


def history_v0(entries):
    return record._history_v1([renamed(entry, swapped(ENTRY)) for entry in entries])


def steps_v0(data, steps):
    pairs = np.frombuffer(data, ">u8").reshape(-1, 2)
    return record._steps_v1(pairs[:, ::-1].astype("<u8").tobytes(), steps)


def module_v0(fields):
    return {key: value for key, value in fields.items() if key != "version"} | {"row_mask": False}


READERS = [
    (record._RECORD_READERS, record_v0),
    (record._HISTORY_READERS, history_v0),
    (record._STEPS_READERS, steps_v0),
    (record._PROCESSES_READERS, lambda fields: record._processes_v1(renamed(fields, swapped(PROCESSES)))),
    (manifest._READERS, lambda fields: manifest._read_v1(renamed(fields, swapped(MANIFEST)))),
    (dataset._READERS, lambda fields, *rest: dataset._read_v1(renamed(fields, swapped(DATASET)), *rest)),
    (identity_reader._MODULE, module_v0),
]


@pytest.fixture
def readers(monkeypatch):
    for table, reader in READERS:
        monkeypatch.setitem(table, 0, reader)


@pytest.fixture
def old(case, tmp_path):
    place = copy_run(GOLDEN / f"v1-{case}", tmp_path / "old")
    older_run(place / "run")
    if (place / "data").exists():
        older_dataset(place / "data")
    return place


# `no-model` pads its batches: its identity says so, which the made-up version could not.
REPLAYED = ["plain", "changed", "array-record"]
each_case = pytest.mark.parametrize("case", [*REPLAYED, "processes"])
each_replayed = pytest.mark.parametrize("case", REPLAYED)


def settings(place):
    return ["--set", f"run.directory={place / 'run'}", *with_data(place)]


def stored_config(place):
    newest = Snapshot.open(place / "run")
    return place / "run" / "configs" / f"{newest.record.config}.toml"


@each_case
def test_everything_of_an_earlier_format_is_read_in_todays_form(case, old, readers):
    recorded, found = in_todays_form(expected(f"v1-{case}")), numbers(facts(old))
    for snapshot in [*recorded["snapshots"].values(), *found["snapshots"].values()]:
        for entry in snapshot["history"]:
            entry["identity"] = None  # the files have other names now
    assert found == recorded


@each_replayed
def test_a_run_of_an_earlier_format_verifies_and_is_read_by_every_command(case, old, readers, capsys):
    run, before = str(old / "run"), tree(old)
    assert main(["verify", run, *with_data(old)]) == 0, capsys.readouterr().out
    assert "replayed, keys" in capsys.readouterr().out
    assert main(["inspect", run]) == 0
    assert main(["diff", run, str(GOLDEN / f"v1-{case}" / "run")]) == 0
    assert main(["plan", str(stored_config(old)), *settings(old)]) == 0
    assert main(["order", str(stored_config(old)), "--steps", "0:12", *settings(old)]) == 0
    assert tree(old) == before


@each_replayed
def test_a_run_of_an_earlier_format_is_continued_in_todays_and_still_verifies(case, old, readers, capsys):
    kept = list_steps(old / "run")
    assert main(["run", str(stored_config(old)), "--set", "run.steps=16", *settings(old)]) == 0
    capsys.readouterr()
    newest = Snapshot.open(old / "run")
    assert (newest.step, newest.record.format) == (16, record.SNAPSHOT_FORMAT)
    assert newest.history[0].from_step == 0
    dropped = [step for step in kept if step not in list_steps(old / "run")]
    assert dropped
    assert {ledger_record(old / "run", step)[0].format for step in dropped} == {0}
    assert main(["verify", str(old / "run"), *with_data(old)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("case", ["plain"])
def test_a_damaged_record_of_an_earlier_format_is_not_blamed_for_its_format(case, old, readers, capsys):
    path = old / "run" / "12" / "data" / "record.json"
    with replaced(path, path.read_bytes().replace(b'"previous":8', b'"previous":4')):
        assert main(["verify", str(old / "run")]) == 1
    output = capsys.readouterr().out
    assert "previous is recorded as 4, the rest of the run says 8" in output
    assert "format is recorded" not in output


@each_replayed
def test_a_field_of_an_earlier_identity_that_really_differs_is_still_refused(case, old, readers, capsys):
    other = ["--set", 'loader.remainder="pad"', "--set", "loader.num_epochs=9"]
    assert main(["plan", str(stored_config(old)), *settings(old), *other]) == 1
    differences = [line for line in capsys.readouterr().out.splitlines() if ": was " in line]
    assert [line.strip() for line in differences] == ["train.row_mask: was False, is True"]


@each_replayed
def test_without_the_lift_the_missing_field_is_a_mismatch_by_name(case, old, readers, monkeypatch, capsys):
    monkeypatch.delitem(identity_reader._MODULE, 0)
    assert main(["verify", str(old / "run"), *with_data(old)]) == 1
    output = capsys.readouterr().out
    assert "train.row_mask: was (absent), is False" in output
    assert main(["run", str(stored_config(old)), "--set", "run.steps=16", *settings(old)]) == 1
    assert "train.row_mask: was (absent), is False" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["plain"])
@pytest.mark.parametrize(
    ("table", "named"),
    [
        (manifest._READERS, "manifest.json: its format is 0, which no version"),
        (record._RECORD_READERS, "data/record.json: its format is 0, which no version"),
        (record._STEPS_READERS, "data/steps.bin: its format is 0, which no version"),
    ],
    ids=["manifest", "record", "steps"],
)
def test_a_format_without_a_reader_is_refused_by_its_number(
    case, old, table, named, readers, monkeypatch, capsys
):
    config = stored_config(old)
    monkeypatch.delitem(table, 0)
    before = {name: data for name, data in tree(old / "run").items() if name[0].isdigit()}
    assert main(["verify", str(old / "run"), "--step", "12"]) == 1
    assert named in capsys.readouterr().out
    assert main(["run", str(config), "--set", "run.steps=16", *settings(old)]) == 1
    assert named in capsys.readouterr().err
    assert {name: data for name, data in tree(old / "run").items() if name[0].isdigit()} == before


@pytest.mark.parametrize("case", ["changed"])
def test_an_earlier_history_without_a_reader_is_refused_by_its_number(
    case, old, readers, monkeypatch, capsys
):
    monkeypatch.delitem(record._HISTORY_READERS, 0)
    assert main(["run", str(stored_config(old)), "--set", "run.steps=16", *settings(old)]) == 1
    assert "json: its format is 0, which no version" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["processes"])
def test_states_of_processes_without_a_reader_are_refused_by_their_number(
    case, old, readers, monkeypatch, capsys
):
    monkeypatch.delitem(record._PROCESSES_READERS, 0)
    assert main(["inspect", str(old / "run")]) == 1
    assert "data/processes.json: its format is 0, which no version" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["array-record"])
def test_a_dataset_manifest_without_a_reader_is_refused_by_its_number(case, old, readers, monkeypatch):
    monkeypatch.delitem(dataset._READERS, 0)
    with pytest.raises(InputError, match=r"manifest\.json cannot be read: its format is 0, which no version"):
        dataset.load_manifest(str(old / "data"))


def test_a_snapshot_of_a_later_format_is_refused_with_what_to_do(tmp_path):
    place = copy_run(GOLDEN / "v1-plain", tmp_path / "new")
    path = place / "run" / "12" / "manifest.json"
    fields = json.loads(path.read_bytes()) | {"format": 2}
    del fields["checksum"]
    with (
        replaced(path, canonical_json({**fields, "checksum": digest(fields)})),
        pytest.raises(SnapshotDamagedError) as caught,
    ):
        Snapshot.open(place / "run")
    assert caught.value.problems == (
        "manifest.json: its format is 2; this version of datarax reads up to 1: use the version that wrote it, or a later one",
    )
