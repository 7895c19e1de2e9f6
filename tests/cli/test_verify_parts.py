"""A verdict says no more than was compared; a verification may be divided, limited, stopped, kept and gone on with."""

import builtins
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    MemoryConfig,
    MemorySource,
    SaveConfig,
    TrainingSession,
    map_batch,
)
from datarax.audit.verify import verify_run
from datarax.cli.main import main
from datarax.sources import array_record, manifest
from tests.cli.test_corruption import rewrite, unrecorded
from tests.cli.test_verify import shards
from tests.support.many_snapshots import run_of_snapshots
from tests.support.processes import LIMIT_SECONDS
from tests.support.runs import copy_run, finish_run, flipped, tree

STEPS = [4, 8, 12, 16, 20, 24]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with a snapshot each 4 of 24 steps, all of them there."""
    directory = tmp_path_factory.mktemp("kept")
    finish_run(directory, "save.keep_latest=99", steps=24)
    return directory


def verify(run, capsys, *words):
    """Exit code, the JSON line of each snapshot, and the summary."""
    capsys.readouterr()
    code = main(["verify", str(run), "--json", *map(str, words)])
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    return code, lines, summary


def said(run, capsys, *words):
    capsys.readouterr()
    code = main(["verify", str(run), *map(str, words)])
    return code, capsys.readouterr().out.splitlines()


# What was compared.

KEYS_ONLY = "keys as recorded; contents not compared: steps 0 to 12"


@pytest.fixture
def overwritten(tmp_path):
    """A run without byte digests over a file without a manifest, in which records that are not sampled were overwritten."""
    config, path = unrecorded(tmp_path)
    assert main(["run", str(config), "--set", "save.keep_latest=9", "--set", "loader.byte_digest=false"]) == 0
    sampled = {i * 299 // 15 for i in range(16)}
    for index in sorted({*range(40)} - sampled):
        rewrite(path, index, b"*" * 32)
    return tmp_path / "run"


def test_keys_alone_are_never_called_everything(overwritten, capsys):
    code, lines = said(overwritten, capsys)
    assert code == 0
    assert KEYS_ONLY in lines
    assert "verified: what was compared is as recorded" in lines
    assert not any("everything" in line for line in lines)
    code, _, summary = verify(overwritten, capsys)
    assert (code, summary["ok"], summary["contents_not_compared"]) == (0, True, [[0, 12]])


def test_where_contents_are_required_keys_alone_are_a_no(overwritten, kept, capsys):
    code, lines = said(overwritten, capsys, "--require-contents")
    assert code == 1
    assert KEYS_ONLY in lines
    assert "NOT verified: contents were not compared (--require-contents)" in lines
    assert verify(overwritten, capsys, "--require-contents")[2]["ok"] is False
    code, _, summary = verify(kept / "run", capsys, "--require-contents")
    assert (code, summary["contents_not_compared"]) == (0, [])


def test_a_fast_verification_says_keys_and_names_the_one_that_says_more(kept, capsys):
    code, lines = said(kept / "run", capsys, "--fast", "--set", "source.name=text")
    assert code == 0
    assert "keys as recorded; contents not compared: steps 0 to 24" in lines
    assert lines[-1] == f"next: datarax verify {kept / 'run'} --set source.name=text"
    assert main(["verify", str(kept / "run"), "--fast", "--require-contents"]) == 2


def test_steps_whose_keys_differ_are_not_called_as_recorded(kept, capsys):
    with flipped(kept / "run" / "8" / "data" / "steps.bin", 0):
        code, _, summary = verify(kept / "run", capsys, "--fast")
    assert (code, summary["contents_not_compared"]) == (1, [[0, 4], [8, 24]])


# Lines.


def test_programs_get_a_line_for_each_snapshot_and_a_summary(kept, capsys):
    code, lines, summary = verify(kept / "run", capsys)
    assert (code, [line["step"] for line in lines]) == (0, STEPS)
    assert summary["snapshots"] == lines
    assert all(line["ok"] and line["bytes_compared"] for line in lines)
    assert (summary["stopped"], summary["next"]) == (None, None)


def test_the_next_command_says_where_to_look(kept, finished, capsys):
    run = kept / "run"
    assert verify(finished / "run", capsys)[2]["next"] == f"datarax verify {finished / 'run'} --all"
    with flipped(run / "12" / "data" / "steps.bin", 16):
        assert verify(run, capsys)[2]["next"] == f"datarax order {run} --steps 9"
    with flipped(run / "12" / "data" / "record.json", 5):
        assert verify(run, capsys)[2]["next"] == f"datarax inspect {run} --step 12"
    (identity,) = (run / "identity").iterdir()
    with flipped(identity, 5):
        assert "datarax inspect" in verify(run, capsys)[2]["next"]


# Parts.


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_all_parts_together_are_the_whole(parts, kept, capsys):
    found, checked = [], []
    for part in range(1, parts + 1):
        code, lines, summary = verify(kept / "run", capsys, "--subset", f"{part}/{parts}")
        assert code == 0
        found += [line["step"] for line in lines]
        checked.append(summary["data_checked"])
    assert sorted(found) == STEPS
    assert not any(checked[1:])


def test_a_part_does_not_depend_on_which_other_snapshots_are_there(kept, tmp_path, capsys):
    run = copy_run(kept / "run", tmp_path / "run")
    before = [[line["step"] for line in verify(run, capsys, "--subset", f"{n}/2")[1]] for n in (1, 2)]
    shutil.rmtree(run / "4")
    after = [
        [line["step"] for line in verify(run, capsys, "--subset", f"{n}/2", "--fast")[1]] for n in (1, 2)
    ]
    assert after == [[step for step in part if step != 4] for part in before]


def test_what_is_wrong_is_found_by_one_part(kept, capsys):
    with flipped(kept / "run" / "12" / "data" / "steps.bin", 8):
        codes = [verify(kept / "run", capsys, "--subset", f"{n}/3")[0] for n in (1, 2, 3)]
    assert sorted(codes) == [0, 0, 1]


@pytest.mark.parametrize("subset", ["0/2", "3/2", "1/0", "-1/2", "1", "a/b"])
def test_a_part_that_there_is_not_is_wrong_usage(subset, kept, capsys):
    words = ["verify", str(kept / "run"), f"--subset={subset}"]
    if subset in ("1", "a/b"):
        with pytest.raises(SystemExit, match="2"):
            main(words)
    else:
        assert main(words) == 2


# Limits and proofs.


def test_it_stops_after_so_many_errors(kept, capsys):
    with contextlib.ExitStack() as undo:
        for step in (8, 12, 20):
            undo.enter_context(flipped(kept / "run" / str(step) / "data" / "steps.bin", 8))
        code, lines, summary = verify(kept / "run", capsys, "--max-errors", 2)
        assert verify(kept / "run", capsys, "--max-errors", 4)[2]["stopped"] is None
    assert (code, [line["step"] for line in lines]) == (1, [4, 8, 12])
    assert summary["stopped"] == "after 2 errors (--max-errors)"
    assert main(["verify", str(kept / "run"), "--max-errors", "0"]) == 2


def test_with_no_time_it_proves_what_was_proved_longest_ago(kept, tmp_path, capsys):
    run = copy_run(kept / "run", tmp_path / "run")
    looked_at = []
    for _ in range(8):
        code, (line,), summary = verify(run, capsys, "--max-duration", "0", "--record")
        assert (code, summary["ok"]) == (0, True)
        assert summary["stopped"] == "after 0 seconds (--max-duration)"
        assert summary["next"] == f"datarax verify {run} --max-duration 3600 --record"
        looked_at.append(line["step"])
        time.sleep(0.002)
    assert sorted(looked_at[:6]) == STEPS
    assert looked_at[6:] == looked_at[:2]


def test_the_data_files_take_their_turn(kept, tmp_path, capsys):
    run = copy_run(kept / "run", tmp_path / "run")
    first = verify(run, capsys, "--max-duration", "0", "--record")[2]
    second = verify(run, capsys, "--max-duration", "0", "--record")[2]
    assert (first["data_checked"], second["data_checked"]) == (True, False)
    assert any("not held against their manifest" in note for note in second["notes"])
    assert verify(run, capsys, "--max-duration", "600", "--record")[2]["stopped"] is None
    assert verify(run, capsys, "--max-duration", "0")[2]["data_checked"] is True, (
        "all are proved: the oldest is the data"
    )


def test_proofs_are_written_only_when_they_are_asked_for_and_change_nothing_else(
    kept, finished, tmp_path, capsys
):
    run = copy_run(kept / "run", tmp_path / "run")
    before = tree(run)
    verify(run, capsys)
    assert tree(run) == before
    with flipped(run / "8" / "data" / "steps.bin", 8):
        assert verify(run, capsys, "--record")[0] == 1
    (path,) = (run / "proofs").iterdir()
    proof = json.loads(path.read_bytes())
    assert [each["step"] for each in proof["snapshots"]] == [4, 12, 16, 20, 24], "what failed is no proof"
    assert proof["snapshots"][0].items() >= {"steps": [0, 4], "contents": True, "model": True}.items()
    assert {name: data for name, data in tree(run).items() if not name.startswith("proofs/")} == before
    assert main(["diff", str(kept / "run"), str(run)]) == 0
    words = ["--set", f"run.directory={run}", "--set", "run.steps=25", "--set", "save.keep_latest=99"]
    assert main(["run", str(kept / "config.toml"), *words]) == 0
    assert (run / "proofs" / path.name).exists()


def test_a_proof_that_is_damaged_or_of_another_record_proves_nothing(kept, tmp_path, capsys):
    run = copy_run(kept / "run", tmp_path / "run")
    assert verify(run, capsys, "--max-duration", "0", "--record")[1][0]["step"] == 4
    (path,) = (run / "proofs").iterdir()
    assert verify(run, capsys, "--max-duration", "0")[1][0]["step"] == 8
    with flipped(path, 20):
        assert verify(run, capsys, "--max-duration", "0")[1][0]["step"] == 4
    proof = json.loads(path.read_bytes())
    proof["snapshots"][0]["record"] = "0" * 64
    path.write_text(json.dumps(proof))
    assert verify(run, capsys, "--max-duration", "0")[1][0]["step"] == 4


def test_a_proof_of_keys_is_none_of_contents(kept, tmp_path, capsys):
    run = copy_run(kept / "run", tmp_path / "run")
    assert verify(run, capsys, "--fast", "--step", "4", "--record")[0] == 0
    assert verify(run, capsys, "--max-duration", "0")[1][0]["step"] == 4
    assert verify(run, capsys, "--max-duration", "0", "--fast")[1][0]["step"] == 8


# Interrupts.


def test_an_interrupt_keeps_what_was_proved(kept, tmp_path):
    run = copy_run(kept / "run", tmp_path / "run")

    def say(text):
        if text == "verifying snapshot 12":
            raise KeyboardInterrupt

    report = verify_run(run, record=True, say=say)
    assert [each.step for each in report.snapshots] == [4, 8]
    assert report.ok
    assert "stopped by an interrupt: 2 of 6 snapshots" in report.notes[0]
    (path,) = (run / "proofs").iterdir()
    assert [each["step"] for each in json.loads(path.read_bytes())["snapshots"]] == [4, 8]


def _slow(batch):
    if os.environ.get("SLOW_STEPS"):
        time.sleep(float(os.environ["SLOW_STEPS"]))
    return batch


def slow_loader():
    source = MemorySource(MemoryConfig(), {"x": np.arange(400)})
    config = DataLoaderConfig(batch_size=8, byte_digest=True, read_ahead=0)
    return DataLoader(config, source, transforms=[map_batch(_slow, version=1)])


def test_ctrl_c_prints_what_was_proved_and_exits_130(tmp_path):
    run = tmp_path / "run"
    with slow_loader() as loader:
        save = SaveConfig(every_steps=10, keep_latest=9)
        TrainingSession(run, loader=loader, steps=60, save=save, stream=None).run()
    words = ["--loader", f"{__name__}:slow_loader", "--json", "--record"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "SLOW_STEPS": "0.05"}
    with subprocess.Popen(
        [sys.executable, "-m", "datarax", "verify", str(run), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        seen = next(line for line in command.stderr if line == "verifying snapshot 20\n")
        command.send_signal(signal.SIGINT)
        output, rest = command.communicate(timeout=LIMIT_SECONDS)
    assert (seen, command.returncode) == ("verifying snapshot 20\n", 130), rest
    *lines, summary = map(json.loads, output.splitlines())
    assert summary["stopped"] == "by an interrupt"
    assert 10 in [line["step"] for line in lines]
    assert len(lines) < 6
    assert len(list((run / "proofs").iterdir())) == 1


# Cost.


@contextlib.contextmanager
def counted_calls():
    """How often each call to the file system is made from Python."""
    calls = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in [(os, "open"), (os, "listdir"), (os, "scandir"), (builtins, "open")]:
            real = getattr(module, name)

            def counted(*arguments, _real=real, _name=f"{module.__name__}.{name}", **options):
                calls[_name] += 1
                return _real(*arguments, **options)

            patch.setattr(module, name, counted)
        yield calls


def test_the_newest_steps_cost_the_same_however_many_snapshots_are_before_them(tmp_path, capsys):
    found = []
    for number in (6, 120):
        run = run_of_snapshots(tmp_path / str(number), number, every=5)
        main(["verify", str(run), "--fast", "--steps", "20"])
        with counted_calls() as calls:
            code, lines, _ = verify(run, capsys, "--fast", "--steps", "20")
        assert (code, len(lines)) == (0, 4)
        found.append(calls)
    assert found[0] == found[1]
    assert found[0]["os.scandir"] + found[0]["os.listdir"] < 60


def test_a_long_list_of_snapshots_is_shown_by_its_ends(tmp_path, capsys):
    run = run_of_snapshots(tmp_path, 30)
    capsys.readouterr()
    assert main(["inspect", str(run)]) == 0
    assert "committed       1, 2, 3, 4, 5, … 20 more …, 26, 27, 28, 29, 30\n" in capsys.readouterr().out
    assert main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["committed_steps"] == list(range(1, 31))


def test_records_are_explained_with_one_read_of_their_hashes(kept, capsys, monkeypatch):
    read = []
    load = manifest.load_record_hashes

    def counted(*arguments):
        read.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(manifest, "load_record_hashes", counted)
    source = array_record.ArrayRecordConfig(files=str(kept / "data")).open()
    files = shards(kept)
    with contextlib.ExitStack() as undo:
        undo.callback(source.close)
        for path, text in zip(files, (b"   50 ", b"  150 ", b"  250 "), strict=True):
            undo.enter_context(flipped(path, path.read_bytes().index(text) + 10))
        changed = source.changed_among(np.arange(300))
        assert (sorted(changed), len(read)) == ([50, 150, 250], 1)
        read.clear()
        assert len(source.check_content()) == 3
    assert len(read) == 1
