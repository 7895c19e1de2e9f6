"""Golden snapshots: what every later version must read, restore and verify, and what it must never edit."""

import hashlib
import json
import platform
import socket

import pytest

from datarax.checkpoint import (
    Checkpointer,
    Snapshot,
    ledger_record,
    ledger_steps,
    list_steps,
    restore_snapshot,
)
from datarax.checkpoint.identity_reader import lift_identity
from datarax.cli.main import main
from datarax.core.errors import MismatchError
from tests.checkpoint import golden_parts
from tests.checkpoint.golden_parts import Own, shared_loader
from tests.checkpoint.make_golden import (
    CASES,
    EXPECTED,
    GOLDEN,
    PROCESSES,
    facts,
    files_of,
    generation,
    loader_tail,
    make,
    open_loader,
    plain,
    write_missing,
)
from tests.checkpoint.modules import same
from tests.support.joined import joined
from tests.support.runs import copy_run, tree

# Of each `expected.json`, which lists all other files. Enter a line when `make golden` prints it; never change one.
SHA256 = {
    "v2-identity2-sample2-array-record": "eb115835796b6064adb30d4fa0bec96b7dada6a5d836144326beff0209a7d634",
    "v2-identity2-sample2-changed": "f6afab03ac107164b4ddb5fd287284ce0abb44166aee1e8e6ed8a009df054014",
    "v2-identity2-sample2-no-model": "3b71416f9cea2f17ac4a3c92a9da8d28fa75effd10915d3f571ef9b235123684",
    "v2-identity2-sample2-plain": "a9541c9534aab9681e8e5b3dfa3032aa7dffbbbfab8b4a9fdbbaeb9a196a6047",
    "v2-identity2-sample2-processes": "27e204d313b0826b4bc3723a271a6bf914af22c3431074bbc498e3fcef2b7f2e",
    "v1-array-record": "163d67c3c5cfb6e83feae0781cd251b4888222265fd8cb3bd975606b3ec0e9e8",
    "v1-changed": "5bb2c9bd8b55a7627dce02cdb5c39d30e50299ecffaaddc6ce4a4972586c4be7",
    "v1-no-model": "7b1960613b986309ab4a7c9dd0ed473b10d943c5be3b4470dec82019b8d3533c",
    "v1-plain": "c6ae7fa8a91baeedc634724defe4d9512f0c65d8e9967926c293a59b709c89ef",
    "v1-processes": "6e1ac4b18c18be6418801be81558caa0e054d79f669a9eb33aec0a531bc73e25",
}

each_golden = pytest.mark.parametrize("name", SHA256)
each_run_of_one = pytest.mark.parametrize(
    "name", [name for name in SHA256 if not name.endswith("-processes")]
)


def expected(name):
    return json.loads((GOLDEN / name / EXPECTED).read_text(encoding="utf-8"))


def in_todays_form(recorded):
    """What was recorded with a golden run: fields that came later as their readers fill them in."""
    for snapshot in recorded["snapshots"].values():
        snapshot["identity"] = lift_identity(snapshot["identity"])
        snapshot["history"] = [{"reason": None, **entry} for entry in snapshot["history"]]
    return {key: value for key, value in recorded.items() if key != "files"}


def numbers(found):
    """As they come back from JSON."""
    return json.loads(json.dumps(found))


@pytest.fixture
def golden(name, tmp_path):
    return copy_run(GOLDEN / name, tmp_path / name)


def with_data(place):
    """What says where the files of a golden run lie here."""
    return ["--set", f"source.files={place / 'data'}"] if (place / "data").exists() else []


# What is committed.


def test_golden_snapshots_are_never_edited_or_lost():
    found = {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.glob(f"*/{EXPECTED}")
    }
    assert found == SHA256
    assert {path.name for path in GOLDEN.iterdir()} == set(SHA256)


@each_golden
def test_every_byte_of_a_golden_snapshot_is_as_it_was_committed(name):
    assert files_of(GOLDEN / name) == expected(name)["files"]


def test_the_present_formats_have_their_golden_snapshots():
    missing = [case for case in CASES if f"{generation()}-{case}" not in SHA256]
    assert not missing, f"run `make golden` for the formats that were raised: {missing} of {generation()}"


def test_no_golden_file_tells_on_which_machine_it_was_made():
    names = {socket.gethostname(), platform.node()} - {"", "golden", "localhost"}
    told = [f'"{each}"' for each in names] + ["/tmp", "/home", "/root", "/Users", str(GOLDEN.parents[2])]
    for path in GOLDEN.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [each for each in told if each.encode() in data], path
            if path.parent.name == "starts":
                start = json.loads(data)
                assert (start["host"], start["pid"], start["unix_seconds"]) == ("golden", 1, 0)


def test_golden_snapshots_are_never_overwritten(tmp_path):
    for case in CASES:
        (tmp_path / f"{generation()}-{case}").mkdir()
    (tmp_path / f"{generation()}-plain" / EXPECTED).write_text("as it was")
    assert write_missing(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*.json")] == [EXPECTED]
    assert (tmp_path / f"{generation()}-plain" / EXPECTED).read_text() == "as it was"


def test_the_golden_snapshots_hold_everything_that_a_run_may_hold():
    first = {case: GOLDEN / f"v1-{case}" / "run" for case in CASES}
    assert ledger_steps(first["plain"]) == [4]
    assert list_steps(first["plain"]) == [8, 12]
    newest = Snapshot.open(first["changed"])
    assert newest.record.earlier_history is not None
    assert len(newest.history) == 6
    for digests in ([entry.identity for entry in newest.history], [entry.config for entry in newest.history]):
        assert len(set(digests)) == 2
    assert Snapshot.open(first["no-model"]).leaves is None
    assert set(Snapshot.open(first["processes"]).process_parts()) == {"0", "1"}
    assert (first["array-record"].parent / "data" / "manifest.json").exists()
    kinds = {leaf.kind for leaf in Snapshot.open(first["plain"]).leaves}
    assert kinds == {"jax", "key", "numpy", "bool", "int", "float", "none"}


# What is read.


@each_golden
def test_a_golden_snapshot_gives_the_facts_that_were_recorded_with_it(name, golden):
    assert numbers(facts(golden)) == in_todays_form(expected(name))


@each_run_of_one
def test_a_golden_snapshot_restores_strictly_into_fresh_modules_and_goes_on_as_it_did(name, golden):
    for step, recorded in expected(name)["snapshots"].items():
        snapshot = Snapshot.open(golden / "run", int(step))
        template = None if snapshot.leaves is None else golden_parts.model(0)
        with open_loader(golden, snapshot) as loader:
            restored = restore_snapshot(snapshot, model=template, data=loader)
            assert restored.identity_changed == ()
            if template is not None:
                assert same(restored.model, golden_parts.model(int(step)))
            states = snapshot.states()
            assert plain(states) == recorded["states"][0]
            assert loader.get_state() == loader.recorded_state(states["train"])
            assert numbers(loader_tail(loader)) == recorded["tails"][0]["train"]


def restore_own(processes, run):
    own = Own()
    with (
        shared_loader(processes.index, processes.count) as loader,
        Checkpointer(run, processes=processes) as checkpointer,
    ):
        checkpointer.restore(data={"train": loader, "own": own})
        states = Snapshot.open(run).states(process_index=processes.index, process_count=PROCESSES)
        assert loader.get_state() | {"part": None} == loader.recorded_state(states["train"])
        return plain([states, own.get_state(), [next(own) for _ in range(3)]])


def test_a_golden_snapshot_of_several_processes_restores_to_each_of_them(tmp_path):
    golden = copy_run(GOLDEN / "v1-processes", tmp_path / "golden")
    recorded = expected("v1-processes")["snapshots"]["3"]
    results = joined(restore_own, golden / "run", count=PROCESSES)
    assert results == [
        [state, state["own"], tail["own"]]
        for state, tail in zip(recorded["states"], recorded["tails"], strict=True)
    ]
    with (
        shared_loader() as loader,
        pytest.raises(MismatchError, match="was saved by 2 and can be restored by 2, not by 1"),
    ):
        restore_snapshot(Snapshot.open(golden / "run"), data={"train": loader, "own": Own()})


@each_run_of_one
def test_a_golden_run_verifies(name, golden, capsys):
    before = tree(golden)
    assert main(["verify", str(golden / "run"), *with_data(golden)]) == 0
    output = capsys.readouterr().out
    for step in list_steps(golden / "run"):
        assert f"snapshot {step}: good, steps" in output
    assert tree(golden) == before


def test_a_golden_run_without_a_config_cannot_be_replayed_and_says_why(capsys):
    assert main(["verify", str(GOLDEN / "v1-processes" / "run")]) == 2
    assert "was made from Python and keeps no config" in capsys.readouterr().err


@each_golden
def test_inspect_and_diff_read_a_golden_run(name, golden, capsys):
    run = str(golden / "run")
    assert main(["inspect", run, "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["problems"], seen["committed_steps"]) == ([], expected(name)["committed"])
    assert main(["inspect", run]) == 0
    assert main(["diff", run, str(GOLDEN / name / "run")]) == 0


@each_golden
def test_the_ledger_of_a_golden_run_is_read(name, golden):
    for step in expected(name)["ledger"]:
        record, steps = ledger_record(golden / "run", step)
        assert record.step == step
        assert len(steps) == 16 * record.loaders["train"].steps.count


@each_run_of_one
def test_order_says_of_a_golden_run_which_records_come_after_its_snapshots(name, golden, tmp_path, capsys):
    for step, recorded in expected(name)["snapshots"].items():
        snapshot = Snapshot.open(golden / "run", int(step))
        config = golden / "run" / "configs" / f"{snapshot.record.config}.toml"
        rows = recorded["tails"][0]["train"]["source_index_epoch"]
        if not rows or int(step) != list_steps(golden / "run")[-1]:
            continue
        capsys.readouterr()
        steps = f"{step}:{int(step) + len(rows)}"
        words = ["--set", f"run.directory={golden / 'run'}", *with_data(golden)]
        assert main(["order", str(config), "--steps", steps, "--json", *words]) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["index"], row["epoch"]) for row in said] == [(i, e) for each in rows for _, i, e in each]


# What is written.


def without_configs(found):
    """The facts but for the digests of configs, which any new key with a default changes."""
    for snapshot in found["snapshots"].values():
        for entry in snapshot["history"]:
            entry["config"] = None
    return {key: value for key, value in found.items() if key != "files"}


@pytest.mark.parametrize("case", [case for case in CASES if case != "processes"])
def test_what_is_written_now_holds_what_the_golden_snapshot_of_these_formats_does(case, tmp_path):
    make(case, tmp_path / "made")
    made = json.loads((tmp_path / "made" / EXPECTED).read_text(encoding="utf-8"))
    assert without_configs(made) == without_configs(expected(f"{generation()}-{case}")), (
        "what a run keeps has changed: a format or a version needs a new number, a reader and golden snapshots"
    )
