"""`datarax chaos`: real runs, really killed. What is right passes; what keeps something outside its state is caught."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarax.cli import chaos as command
from datarax.cli.main import main
from datarax.core.errors import ConfigError
from datarax.run_config import load_config
from datarax.testing import kills
from datarax.testing.kills import Campaign, ChaosReport, Kill, PlannedKill, Trial, plan_kills
from datarax.testing.start import Start
from tests.support.processes import run_python
from tests.support.runs import tree, write_config

ROOT = Path(__file__).parents[2]
FORGETFUL = "tests.support.forgetful"

# The first kill of seed 0 is a SIGKILL after a step about a third of the way.
ONE_KILL = ("--kills", "1", "--seed", "0")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def config(tmp_path):
    """A run of 40 slow steps that saves every 4, and a run directory of the user's, which is nobody's business here."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("do not touch")
    path = write_config(tmp_path, steps=40)
    path.write_text(path.read_text().replace('tiny:task"', 'tiny:task"\nparameters = { pause = 0.02 }'))
    return path


def chaos(config, *words, sets=()):
    overrides = [word for each in sets for word in ("--set", each)]
    return main(["chaos", str(config), "--directory", str(place(config)), *words, *overrides])


def place(config):
    return config.parent / "place"


def left(path):
    """The processes whose environment or command line names a path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(path).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.mark.full
def test_a_run_that_keeps_all_in_its_state_survives_and_nothing_is_left_behind(config, capsys):
    assert chaos(config, "--kills", "2", "--seed", "2") == 0, capsys.readouterr()
    out = capsys.readouterr().out
    head, *rows, summary = out.splitlines()
    assert head.split() == ["trial", "kill", "where", "code", "snapshot", "result"]
    assert [row.split()[0] for row in rows] == ["1"] * len(rows)
    assert rows[-1].endswith("40  the same")
    assert "of 2 kills landed, 1 of 1 runs of 40 steps ended the same (seed 2)" in out.replace("\n  ", " ")
    assert "the same: 0 of" not in summary
    assert max(map(len, out.splitlines())) <= 80
    assert tree(config.parent / "run") == {"precious": b"do not touch"}
    assert list(place(config).iterdir()) == []
    assert left(place(config)) == []


@pytest.mark.full
def test_a_task_that_counts_outside_its_state_is_caught_and_only_its_model_is_blamed(config, capsys):
    code = chaos(config, *ONE_KILL, sets=[f"task.use={FORGETFUL}:counting_task"])
    out = capsys.readouterr().out
    assert code == 1, out
    assert "only the model differs, the data are the same" in out
    assert "the task keeps something outside its state" in out.replace("\n    ", " ")
    assert "model.w: 16 of 16 elements differ in their bits" in out
    assert "NOT the same: 1 of 1 kills landed" in out
    kept = next(line for line in out.splitlines() if line.startswith("kept: ")).removeprefix("kept: ")
    assert {path.name for path in Path(kept).iterdir()} == {"undisturbed", "trial-1"}


@pytest.mark.full
def test_rows_from_a_running_stream_are_caught_at_the_first_step_after_the_kill(config, capsys):
    code = chaos(config, "--json", *ONE_KILL, sets=[f"transforms.0.use={FORGETFUL}:stirred"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["ok"], found["kills_landed"]) == (1, False, 1)
    (trial,) = found["trials"]
    (kill,) = trial["kills"]
    assert (kill["code"], kill["planned"]["signals"]) == (-signal.SIGKILL, ["SIGKILL"])
    assert trial["problems"][0].startswith(f"step {kill['newest']}: the bytes of the rows differ, and at ")
    assert (trial["same"], trial["code"], trial["steps_compared"]) == (False, 0, 40)


@pytest.mark.full
def test_a_run_that_cannot_be_continued_is_shown_with_its_code_and_its_last_lines(config, capsys):
    sets = [f"task.use={FORGETFUL}:once_task", f"task.parameters.marker={config.parent / 'used'}"]
    assert chaos(config, *ONE_KILL, sets=sets) == 1
    out = capsys.readouterr().out
    assert "the run ended with code 70 before SIGKILL" in out
    assert "RuntimeError: this place was used before" in out


@pytest.mark.full
def test_a_run_that_hangs_is_killed_and_said_to_hang(config, capsys, monkeypatch):
    monkeypatch.setattr(kills, "_LIMIT_FACTOR", 0.0)
    monkeypatch.setattr(kills, "_LIMIT_MORE_SECONDS", 1.0)
    marker = f"task.parameters.marker={config.parent / 'used'}"
    sets = [f"task.use={FORGETFUL}:once_task", marker, "task.parameters.hangs=true"]
    assert chaos(config, *ONE_KILL, sets=sets) == 1
    out = capsys.readouterr().out
    assert "the run hung before SIGKILL" in out
    assert "hung" in out.splitlines()[1]
    assert left(place(config)) == []


@pytest.mark.full
def test_a_run_that_does_not_hear_a_signal_is_caught(config, capsys, monkeypatch):
    monkeypatch.setattr(kills, "_UNHEARD_SECONDS", 0.0)
    # The first kill of seed 15 is a SIGTERM after a step about a quarter of the way.
    assert chaos(config, "--kills", "1", "--seed", "15", sets=[f"task.use={FORGETFUL}:deaf_task"]) == 1
    out = capsys.readouterr().out.replace("\n    ", " ")
    assert "steps after SIGTERM (after step 10), to its end, as if nothing had come" in out
    assert "not heard" in out
    assert "too late" not in out


@pytest.mark.full
def test_a_run_that_starts_over_although_a_snapshot_was_there_is_caught(config, tmp_path):
    program = tmp_path / "start_over.py"
    program.write_text(
        "import shutil, sys\nfrom datarax.cli.main import main\n"
        "run = next(word for word in sys.argv if word.startswith('run.directory=')).partition('=')[2]\n"
        "shutil.rmtree(run, ignore_errors=True)\nsys.exit(main(sys.argv[1:]))\n"
    )
    place(config).mkdir()
    report = ChaosReport(directory=str(place(config)), kills_planned=1)
    campaign = Campaign(
        report=report,
        config=load_config(config),
        command=[sys.executable, str(program), "run", str(config)],
        environment=os.environ,
    )
    campaign.run()
    (trial,) = report.trials
    newest = trial.kills[0].newest
    assert newest > 0
    assert not report.ok
    assert trial.problems[0] == (
        f"the run went on with step 1 when it was run again to its end, but the newest snapshot was {newest}"
    )


@pytest.mark.full
def test_a_config_that_fails_undisturbed_ends_with_its_own_message_and_code(config, capsys):
    assert chaos(config, sets=["task.use=tests.support.tiny:FailingToBegin"]) == 70
    said = capsys.readouterr().err
    assert "RuntimeError: no weights" in said
    assert f"what it wrote is kept in {place(config)}" in said


def test_wrong_input_is_refused_before_anything_runs(config, capsys):
    assert chaos(config, sets=["run.stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err
    assert chaos(config, "--kills", "0") == 2
    assert "--kills must be at least 1, got 0" in capsys.readouterr().err
    assert chaos(config, "--max-seconds", "nan") == 2
    assert not place(config).exists() or list(place(config).iterdir()) == []


def test_it_needs_no_pytest(config):
    code = (
        "import sys\nsys.modules['pytest'] = None\nfrom datarax.cli.main import main\nassert main(sys.argv[1:]) == 2\n"
        "assert 'datarax.testing.kills' in sys.modules"
    )
    run_python("-c", code, "chaos", config, "--kills", 0, "--directory", place(config))


def test_an_undisturbed_run_that_takes_too_long_is_ended_with_advice(config, capsys):
    assert chaos(config, "--max-seconds", "0.5") == 1
    said = capsys.readouterr().err
    assert "not complete within 0.5 seconds (it was before its first step)" in said
    assert "--steps" in said
    assert left(place(config)) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.few(1)
def test_a_signal_to_chaos_itself_ends_all_and_removes_everything(number, code, config):
    words = ["chaos", str(config), "--directory", str(place(config)), "--steps", "100000"]
    process = subprocess.Popen([sys.executable, "-m", "datarax", *words], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list(place(config).glob("*/undisturbed/output.log")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert list(place(config).iterdir()) == []
    assert left(place(config)) == []


# The plan.


def test_the_same_seed_plans_the_same_kills_and_another_one_others():
    assert plan_kills(7, 30, processes=3) == plan_kills(7, 30, processes=3)
    assert plan_kills(7, 30) != plan_kills(8, 30)
    assert plan_kills(7, 30)[:5] == plan_kills(7, 5)


def test_twelve_kills_hold_every_kind_at_every_point():
    plan = plan_kills(1, 24)
    for part in (plan[:12], plan[12:]):
        assert (
            len({(each.signals[0] if len(each.signals) == 1 else "twice", each.point) for each in part}) == 12
        )
    assert {len(each.signals) for each in plan} == {1, 2}
    assert all(0 <= each.fraction <= 1 and 0 <= each.late <= 1 and each.victim is None for each in plan)


def test_with_many_processes_any_is_hit_but_a_keyboard_reaches_the_launcher_only():
    plan = plan_kills(1, 240, processes=3)
    assert {each.victim for each in plan if each.kind == "SIGKILL"} == {None, 0, 1, 2}
    assert {each.victim for each in plan if "SIGINT" in each.signals or len(each.signals) == 2} == {None}
    with pytest.raises(ConfigError, match="--processes must be at least 1, got 0"):
        plan_kills(1, 2, processes=0)


# One start.

FAMILY = """
import os, subprocess, sys, time
for index in range(2):
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleeping, env={**os.environ, "JAX_PROCESS_ID": str(index)}, start_new_session=True)
time.sleep(600)
"""


def family(tmp_path, check=lambda: None):
    return Start(
        [sys.executable, "-c", FAMILY],
        run=tmp_path / "run",
        log=tmp_path / "output.log",
        environment=os.environ,
        check=check,
    )


def test_one_of_many_processes_is_found_and_hit_and_the_others_do_not_outlive_the_start(tmp_path):
    with family(tmp_path) as start:
        # A child has its own environment only once it runs its own program.
        assert start.wait_for(lambda: len(left(tmp_path)) == 3 and len(numbered(tmp_path, 1)) == 1, 60)
        (victim,) = numbered(tmp_path, 1)
        assert start.signal("SIGKILL", 1)
        assert start.wait_for(lambda: victim not in left(tmp_path), 60)
        assert len(left(tmp_path)) == 2
        assert not start.signal("SIGKILL", 5), "who is not there cannot be hit: it goes to the first"
        assert not start.wait_for(lambda: False, 60)
        assert not start.alive
        assert len(left(tmp_path)) == 1
    assert left(tmp_path) == []


def numbered(tmp_path, index):
    """The processes that were told this index."""
    told = f"JAX_PROCESS_ID={index}\0".encode()
    return [pid for pid in left(tmp_path) if told in Path(f"/proc/{pid}/environ").read_bytes()]


def test_whatever_ends_the_waiting_ends_all_processes(tmp_path):
    def check():
        if len(left(tmp_path)) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError), family(tmp_path, check) as start:
        start.wait(60)
    assert left(tmp_path) == []


# The report.


def report(*, landed=False, **changes):
    planned = PlannedKill(
        signals=("SIGTERM",), point="step", fraction=0.5, late=0.5, gap_seconds=0, victim=None
    )
    kill = Kill(planned=planned, target="", where="after step 7", landed=landed, heard=True, code=0, newest=9)
    trial = Trial(number=1, directory="/place/trial-1", kills=[kill], code=0, newest=9, finished=True)
    facts = {
        "directory": "/place",
        "seed": 0,
        "kills_planned": 1,
        "processes": 1,
        "steps": 9,
        "trials": [trial],
    }
    return ChaosReport(**facts | changes)


def test_kills_that_all_came_too_late_prove_nothing(capsys):
    assert not report().ok
    command._show(report(), kept=True)
    out = capsys.readouterr().out
    assert "too late" in out
    assert "NOTHING was killed" in out
    assert "more --steps" in out.replace("\n  ", " ")


def test_what_was_not_finished_is_no_success(capsys):
    trial = Trial(number=1, directory="/place/trial-1")
    unfinished = report(trials=[trial], time_is_up=True)
    assert report(landed=True).ok
    assert not report(landed=True, time_is_up=True).ok
    assert not unfinished.ok
    command._show(unfinished, kept=False)
    out = capsys.readouterr().out
    assert "not finished" in out
    assert "NOT finished, the time is up (--max-seconds)" in out
