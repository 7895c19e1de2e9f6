"""Every command: help, JSON, agreement with one another, and output that suits whoever reads it."""

import functools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from datarax.checkpoint import list_steps
from datarax.cli.main import _COMMANDS, main
from tests.support.processes import Command, run_command
from tests.support.runs import NUM_RECORDS, copy_run, datarax, flipped, write_config

_ROOT = str(Path(__file__).parents[2])


def json_of(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def lines_of(capsys, *arguments):
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Help.


def test_help_names_every_command_and_loads_no_jax():
    code = (
        "import sys; from datarax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'jax', 'numpy', 'grain', 'orbax'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": _ROOT}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in _COMMANDS:
        assert re.search(rf"^    {name} ", done.stdout, re.MULTILINE)
    assert "75 stopped" in done.stdout


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help_and_json(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "exit codes:" in text


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "c", "--sett", "a=b"]])
def test_wrong_usage_exits_2_without_a_traceback(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# Answers.


def test_order_gives_one_object_per_line_and_find_agrees_with_it(finished, capsys):
    config = finished / "config.toml"
    rows = lines_of(capsys, "order", config, "--steps", "0:40", "--json")
    assert len(rows) == 40 * 16
    fields = ("step", "row", "source", "index", "epoch", "file", "index_in_file")
    assert {frozenset(row) for row in rows} == {frozenset(fields)}
    assert [(row["step"], row["row"]) for row in rows] == [(i // 16, i % 16) for i in range(40 * 16)]
    assert {(row["index"], row["epoch"]) for row in rows[:NUM_RECORDS]} == {
        (i, 0) for i in range(NUM_RECORDS)
    }
    for index in (0, 17, NUM_RECORDS - 1):
        found = lines_of(
            capsys, "order", config, "--find", f"text:{index}", "--json", "--set", "run.steps=40"
        )
        assert found == [row for row in rows if row["index"] == index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5:3"], "holds no step"),
        (["--steps", "3:3"], "holds no step"),
        (["--steps=-1:3"], "holds no step"),
        (["--steps", "a:b"], "needs A:B with whole numbers"),
        (["--steps", "0:"], "has no end"),
        (["--steps", "0:99", "--set", "loader.num_epochs=1"], "has only 18 steps"),
        (["--find", "17"], "needs SOURCE:INDEX"),
        (["--find", "text:x"], "needs SOURCE:INDEX"),
        (["--find", "words:17"], "no source is called 'words'; this order has text"),
        (["--find", "text:300"], "has records 0 to 299, not 300"),
    ],
)
def test_order_refuses_what_it_cannot_answer(arguments, message, finished, capsys):
    capsys.readouterr()
    assert main(["order", str(finished / "config.toml"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_plan_tells_lengths_and_whether_the_run_fits(finished, tmp_path, capsys):
    config = finished / "config.toml"
    plan = json_of(capsys, "plan", config)
    assert (plan["records"], plan["batch_size"], plan["steps"], plan["mismatches"]) == (300, 16, 12, [])
    assert plan["existing_run"]["snapshots"] == [8, 12]
    assert json_of(capsys, "plan", config, "--set", f"run.directory={tmp_path}")["existing_run"] is None
    misfit = json_of(capsys, "plan", config, "--set", "loader.batch_size=4", code=1)
    assert misfit["mismatches"] == ["train.batch_size: was 16, is 4"]
    main(["plan", str(config)])
    assert "complete: it has all 12 steps" in capsys.readouterr().out
    main(["plan", str(config), "--set", "run.steps=20"])
    assert "continues after step 12" in capsys.readouterr().out


def test_plan_tells_the_rows_of_each_process(finished, capsys):
    config = finished / "config.toml"
    alone, two = json_of(capsys, "plan", config), json_of(capsys, "plan", config, "--processes", "2")
    assert (alone["processes"], alone["rows_per_process"]) == (1, 16)
    assert (two["processes"], two["rows_per_process"]) == (2, 8)
    model = ["--set", "mesh.axes={data=-1, model=2}", "--processes", "4", "--devices", "8"]
    assert main(["plan", str(config), *model]) == 0
    assert "16 rows; 4 rows per process (4 processes)" in capsys.readouterr().out
    assert main(["plan", str(config)]) == 0
    assert "16 rows; 16 rows per process (1 process)" in capsys.readouterr().out
    assert main(["plan", str(config), "--processes", "3"]) == 2


def test_inspect_shows_state_digest_identity_and_model(finished, capsys):
    run = finished / "run"
    facts = json_of(capsys, "inspect", run)
    assert (facts["step"], facts["committed_steps"], facts["ledger_steps"]) == (12, [8, 12], [4])
    assert facts["loaders"]["train"]["state"]["position"] == 192
    assert facts["loaders"]["train"]["digest"]["rows"] == 192
    assert facts["identity"]["train"]["batch_size"] == 16
    assert set(facts["model"]) == {"w", "momentum", "key"}
    assert json_of(capsys, "inspect", run, "--step", "8")["loaders"]["train"]["state"]["idx"] == 8
    assert main(["inspect", str(run)]) == 0
    assert "model           3 leaves" in capsys.readouterr().out
    with flipped(run / "12" / "data" / "steps.bin", 3):
        assert json_of(capsys, "inspect", run, code=1)["problems"]
    with flipped(run / "12" / "manifest.json", 30):
        assert main(["inspect", str(run)]) == 1
        assert "manifest.json" in capsys.readouterr().err
    assert main(["inspect", str(run), "--step", "9"]) == 2


def test_diff_says_same_or_names_every_leaf_and_field(finished, tmp_path, capsys):
    run = finished / "run"
    other = copy_run(run, tmp_path / "other")
    assert json_of(capsys, "diff", run, other)["differences"] == []
    assert json_of(capsys, "diff", run / "8", other / "8")["differences"] == []
    steps = json_of(capsys, "diff", run / "8", run, code=1)["differences"]
    assert "step: 8 and 12" in steps
    assert any(line.startswith("data.train.state.position: 128 and 192") for line in steps)
    assert [line.split(":")[0] for line in steps if line.startswith("model.")] == [
        "model.key",
        "model.momentum",
        "model.w",
    ]


def test_diff_of_runs_that_differ_in_one_seed_names_field_and_leaves(finished, tmp_path, capsys):
    config = str(finished / "config.toml")
    arguments = ["--set", f"run.directory={tmp_path}/run", "--set", "task.parameters.seed=1"]
    assert main(["run", config, *arguments]) == 0
    lines = json_of(capsys, "diff", finished / "run", tmp_path / "run", code=1)["differences"]
    assert {line.split(":")[0] for line in lines} == {"model.key", "model.momentum", "model.w"}


def test_diff_of_a_damaged_run_uses_its_newest_good_snapshot(finished, tmp_path, capsys):
    other = copy_run(finished / "run", tmp_path / "other")
    with flipped(other / "12" / "data" / "record.json", 30):
        report = json_of(capsys, "diff", finished / "run", other, code=1)
        assert report["right"].endswith("other/8")
        assert main(["diff", str(finished / "run"), str(other / "12")]) == 1
        assert "data/record.json" in capsys.readouterr().err


def test_run_again_on_a_complete_run_says_so_and_changes_nothing(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    answer = json_of(capsys, "run", finished / "config.toml", "--set", f"run.directory={run}")
    assert (answer["step"], answer["complete"], answer["steps_run"]) == (12, True, 0)
    assert main(["run", str(finished / "config.toml"), "--set", f"run.directory={run}"]) == 0
    assert f"already complete: 12 steps in {run}" in capsys.readouterr().err
    assert main(["diff", str(finished / "run"), str(run)]) == 0


def test_build_answers_with_what_it_made_and_reuses_it(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abcd" * 10)
    arguments = ["build", "text", tmp_path / "text.txt", "--output", tmp_path / "data", "--record-bytes", "8"]
    first, again = (json_of(capsys, *arguments) for _ in range(2))
    assert (first["records"], first["reused"], again["reused"]) == (5, False, True)
    capsys.readouterr()
    assert main([*map(str, arguments[:3])]) == 2
    assert "--output" in capsys.readouterr().err


# Output.


@pytest.mark.full
def test_a_reader_that_leaves_makes_no_noise(finished):
    """`datarax order … | head -1`"""
    script = f'"{sys.executable}" -m datarax order config.toml --steps 0:4000 | head -1'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        cwd=finished,
        env={**os.environ, "PYTHONPATH": _ROOT},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.fullmatch(r"step 0  row 0  text:\d+  epoch 0\n", done.stdout)


@pytest.mark.full
def test_a_run_does_not_end_with_whoever_read_its_progress(finished, tmp_path):
    """`datarax run … 2>&1 | head -1` trains to the end."""
    read, write = os.pipe()
    overrides = ["--set", f"run.directory={tmp_path}/run", "--set", "log.every_seconds=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "datarax", "run", "config.toml", *overrides],
        cwd=finished,
        env={**os.environ, "PYTHONPATH": _ROOT},
        stderr=write,
        stdout=write,
    )
    os.close(write)
    os.close(read)
    assert process.wait(120) == 0
    assert main(["diff", str(finished / "run"), str(tmp_path / "run")]) == 0


def test_progress_is_plain_lines_where_nobody_watches(finished, tmp_path):
    code, output = run_command(
        "run", finished / "config.toml", "--set", f"run.directory={tmp_path}/run", "--set", "log.every_seconds=0",
        directory=tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "\x1b" not in output
    assert "\r" not in output
    lines = [line for line in output.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{i + 1}/12" for i in range(12)]
    assert re.fullmatch(
        r"step 12/12  loss [\d.]+  [\d,]+ rows/s  data wait [\d.]+%  snapshot \d+ s ago", lines[-1]
    )


@pytest.mark.full
def test_progress_is_a_bar_on_a_terminal(finished, tmp_path):
    seen = on_terminal(
        [
            "run",
            str(finished / "config.toml"),
            "--set",
            f"run.directory={tmp_path}/run",
            "--set",
            "log.every_seconds=0",
        ]
    )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "\x1b[" in seen, "a terminal gets a moving bar"
    for part in ("step 12/12", "━", "loss ", "rows/s", "data wait", "snapshot 0 s ago"):
        assert part in text, text[-2000:]


def on_terminal(arguments):
    """What a command writes to a terminal of 160 columns."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "datarax", *arguments],
        env={**os.environ, "PYTHONPATH": _ROOT, "COLUMNS": "160", "TERM": "xterm-256color"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    seen = b""
    while select.select([terminal], [], [], 120)[0]:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how Linux tells that the other end has closed
            break
        if not block:
            break
        seen += block
    os.close(terminal)
    assert process.wait(120) == 0, seen.decode()
    return seen.decode()


@pytest.mark.full
def test_metrics_are_whole_json_lines_even_after_kills(tmp_path):
    config = write_config(tmp_path, steps=10**6)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def longer_than(size):
        return metrics.exists() and metrics.stat().st_size > size

    for enough in (5000, 10000):
        command = Command(
            ["run", config, "--set", "log.every_seconds=0"], directory=tmp_path, log=tmp_path / "output.log"
        )
        command.wait_until(functools.partial(longer_than, enough))
        assert command.kill_after(0, signal.SIGKILL) == -signal.SIGKILL
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(lines) > 20
    assert {"step", "loss", "rows_per_second", "wait_share", "time"} <= set(lines[0])


# One writer at a time.


def test_a_second_run_on_one_directory_exits_2_and_names_the_holder(tmp_path, capsys):
    config = write_config(tmp_path, steps=10**6)
    first = Command(["run", config], directory=tmp_path, log=tmp_path / "first.log")
    first.wait_until(lambda: (tmp_path / "run" / "4" / "manifest.json").exists())
    code, output = run_command("run", config, directory=tmp_path)
    assert code == 2, output
    assert f"process {first.process.pid} on host {socket.gethostname()}" in output
    assert output.count("datarax: ") == 1
    # Readers need no lock.
    assert run_command("inspect", tmp_path / "run", directory=tmp_path)[0] == 0
    assert run_command("plan", config, directory=tmp_path)[0] == 0
    # The lock of a process that was killed blocks nobody.
    assert first.kill_after(0, signal.SIGKILL) == -signal.SIGKILL
    assert str(first.process.pid) in (tmp_path / "run" / "lock").read_text()
    newest = list_steps(tmp_path / "run")[-1]
    code, output = run_command("run", config, "--set", f"run.steps={newest + 3}", directory=tmp_path)
    assert code == 0, output
    assert f"continuing after step {newest}" in output


def test_the_module_runs_as_a_program(finished):
    done = datarax("inspect", "run", directory=finished)
    assert done.returncode == 0
    assert done.stderr == ""
