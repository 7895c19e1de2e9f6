"""Many processes on one machine: how they are started, how signals reach them, and what their ends mean together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarax import Checkpointer
from datarax.cli import launch as launching
from datarax.cli.launch import launch
from tests.checkpoint.modules import Counter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run with one committed snapshot."""
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(40, data={"c": Counter()})
    return tmp_path / "run"


CHILD = """
import os, signal, sys, time
from pathlib import Path
me = int(os.environ["JAX_PROCESS_ID"])
place = Path(__file__).parent
Path(place, f"{me}.tmp").write_text(str(os.getpid()))
os.replace(Path(place, f"{me}.tmp"), Path(place, f"{me}.pid"))

def when_gone(*others):
    # The launcher has taken their ends when their numbers mean no process any more.
    for other in others:
        while not Path(place, f"{other}.pid").exists():
            time.sleep(0.005)
        while Path("/proc", Path(place, f"{other}.pid").read_text()).exists():
            time.sleep(0.005)
"""


def children(tmp_path, text):
    """A program for the children, which know their index as `me`, and may wait until others have ended: `when_gone(0, 2)`."""
    path = tmp_path / "child.py"
    path.write_text(f"{CHILD}\n{text}\n")
    for left in tmp_path.glob("*.pid"):
        left.unlink()
    return [sys.executable, str(path)]


def started(command, run, count=3, **settings):
    settings = {"heartbeat_seconds": 1, **settings}
    return launch(["a", "b"], processes=count, run_directory=str(run), command=command, **settings)


def test_each_child_knows_its_place_and_gets_the_arguments(tmp_path, monkeypatch):
    text = "import json\njson.dump([dict(os.environ), sys.argv[1:]], open(f'{me}.json', 'w'))"
    monkeypatch.chdir(tmp_path)
    assert started(children(tmp_path, text), tmp_path / "none") == 0
    seen = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(3)]
    assert [arguments for _, arguments in seen] == [["a", "b"]] * 3
    assert [environment["JAX_NUM_PROCESSES"] for environment, _ in seen] == ["3"] * 3
    (address,) = {environment["JAX_COORDINATOR_ADDRESS"] for environment, _ in seen}
    assert address.startswith("localhost:")


@pytest.mark.parametrize("code", [1, 2, 70, 74])
def test_a_code_that_says_what_is_wrong_is_the_answer_even_if_others_went_first(code, tmp_path, run, capfd):
    text = f"when_gone(0, 2) if me == 1 else None\nsys.exit({code} if me == 1 else 75)"
    assert started(children(tmp_path, text), run) == code
    assert "process 1 (pid " in capfd.readouterr().err


@pytest.mark.parametrize("number", ["SIGKILL", "SIGABRT"])
def test_a_lost_process_is_named_and_a_snapshot_makes_it_a_stop(number, tmp_path, run, capfd):
    text = f"os.kill(os.getpid(), signal.{number}) if me == 2 else when_gone(2)\nsys.exit(75)"
    assert started(children(tmp_path, text), run) == 75
    said = capfd.readouterr().err
    first = said.split("datarax: ")[1].splitlines()[0]
    assert first.startswith("process 2 (pid ")
    assert ("killed by SIGKILL" if number == "SIGKILL" else "JAX does so when the coordinator") in first
    assert "snapshot 40 is committed; run the same command again to continue after it" in said


def test_a_lost_process_before_any_snapshot_is_a_failure(tmp_path, capfd):
    text = "os.kill(os.getpid(), signal.SIGKILL) if me == 2 else when_gone(2)\nsys.exit(74)"
    assert started(children(tmp_path, text), tmp_path / "none") == 74
    text = "os.kill(os.getpid(), signal.SIGKILL)"
    assert started(children(tmp_path, text), tmp_path / "none") == 74
    assert "no snapshot was committed yet" in capfd.readouterr().err


def test_all_ended_by_sigterm_before_they_had_anything_to_save_is_a_stop(tmp_path, run, capfd):
    text = "os.kill(os.getpid(), signal.SIGTERM)"
    assert started(children(tmp_path, text), tmp_path / "none") == 75
    assert started(children(tmp_path, f"if me: {text}\nsys.exit(75)"), tmp_path / "none") == 75
    said = capfd.readouterr().err
    assert said.count("no snapshot was committed yet; run the same command again to start over") == 2
    killed = f"{text} if me else os.kill(os.getpid(), signal.SIGKILL)"
    assert started(children(tmp_path, killed), tmp_path / "none") == 74


def test_all_stopped_well_needs_no_words(tmp_path, run, capfd):
    assert started(children(tmp_path, "sys.exit(75)"), run) == 75
    assert capfd.readouterr().err == ""


def test_who_does_not_notice_the_loss_of_another_is_ended(tmp_path, run, monkeypatch, capfd):
    monkeypatch.setattr(launching, "_AFTER_LOSS_SECONDS", 0.3)
    monkeypatch.setattr(launching, "_AFTER_SIGTERM_SECONDS", 0.3)
    text = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.kill(os.getpid(), signal.SIGKILL) if me else time.sleep(600)"
    assert started(children(tmp_path, text), run) == 75
    assert "process 0" in capfd.readouterr().err


def test_lines_of_others_have_their_number_and_no_stack_traces(tmp_path, run, capfd):
    text = (
        "print('hello', flush=True)\n"
        "print('*** Check failure stack trace: ***\\n    @     0x7f0a168b5995  std::f()\\nlast', file=sys.stderr)"
    )
    assert started(children(tmp_path, text), run, count=2) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[1] hello", "hello"]
    assert [line for line in err.splitlines() if line.startswith("[1]")] == ["[1] last"]


LAUNCHER = """
import sys
from datarax.cli.launch import launch
names = ["TERM", "INT", "USR1", "HUP", "XCPU"]
sys.exit(
    launch([], processes=2, run_directory="none", heartbeat_seconds=1, signals=names, command=sys.argv[1:])
)
"""

WAITS = """
def stop(*_):
    open(f"stopped-{me}", "w").close()
    if not os.path.exists("stubborn"):
        os._exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_IGN)
from datarax.cli.launch import follow_launcher
follow_launcher()
open(f"ready-{me}", "w").close()
while True:
    time.sleep(0.05)
"""


def launcher(tmp_path, text, shell='exec "$@"'):
    process = subprocess.Popen(
        ["bash", "-c", shell, "-", sys.executable, "-c", LAUNCHER, *children(tmp_path, text)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_for(lambda: all((tmp_path / f"ready-{index}").exists() for index in range(2)))
    return process


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU]
)
def test_a_first_signal_reaches_all_as_sigterm(number, tmp_path):
    process = launcher(tmp_path, WAITS)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_at_once(number, tmp_path):
    (tmp_path / "stubborn").touch()
    process = launcher(tmp_path, WAITS)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: len(list(tmp_path.glob("stopped-*"))) == 2)
    process.send_signal(number)
    assert process.wait(60) == 128 + number


def test_signals_while_stopping_are_ignored_but_for_a_second_sigint_or_sigterm(tmp_path):
    (tmp_path / "stubborn").touch()
    process = launcher(tmp_path, WAITS)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: len(list(tmp_path.glob("stopped-*"))) == 2)
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT


def test_a_launcher_that_ignores_a_signal_goes_on_ignoring_it(tmp_path):
    process = launcher(tmp_path, WAITS, "trap '' HUP; exec \"$@\"")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    assert list(tmp_path.glob("stopped-*")) == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


def test_children_stop_well_if_the_launcher_dies(tmp_path):
    process = launcher(tmp_path, WAITS)
    process.kill()
    process.wait(60)
    wait_for(lambda: len(list(tmp_path.glob("stopped-*"))) == 2)


@pytest.mark.full
def test_the_command_line_runs_many_processes_and_keeps_its_output_clean(tmp_path):
    places = [f"run.directory={tmp_path}/run", f"source.files={tmp_path}/data", "run.steps=3"]
    sets = [word for place in places for word in ("--set", place)]
    many = ["--processes", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "datarax", "run", ROOT / "configs" / "multihost.toml", *sets, *many],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["step"], answer["complete"]) == (3, True)


def test_a_stop_that_is_asked_for_while_processes_are_started_starts_no_more(tmp_path, monkeypatch):
    real, begun = launching._Launcher._child, []

    def child(self, command, index, place):
        begun.append(index)
        if index == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(self, command, index, place)

    monkeypatch.setattr(launching._Launcher, "_child", child)
    run = tmp_path / "run"
    assert started(children(tmp_path, "time.sleep(600)"), run, count=9, heartbeat_seconds=1) == 75
    assert begun == [0, 1]


@pytest.mark.parametrize("count", ["0", "-1", "1025", str(10**18)])
def test_a_number_of_processes_that_makes_no_sense_is_refused(count, capsys):
    from datarax.cli.main import main

    assert main(["run", str(ROOT / "configs" / "multihost.toml"), "--processes", count]) == 2
    assert "--processes must be from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.few(1)
def test_a_signal_to_a_launcher_that_has_not_launched_anything_ends_it_without_a_word(number, tmp_path):
    # Reading the config lasts until somebody has written.
    script = """
import sys
from datarax import run_config
from datarax.__main__ import main
run_config.load_any_config = lambda *asked: print("reading", flush=True) or sys.stdin.read()
main(["run", "config.toml", "--processes", "2"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "reading\n"
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -number, said
    assert said == ""
