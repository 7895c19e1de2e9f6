"""A run that is killed at random moments, its data still being built included, ends like one that never was.

Real processes, real signals, the real command line. Where a kill lands is random; what must come out is not.
"""

import random
import signal
from pathlib import Path

import pytest

from tests.support.processes import SIGNALS, Command, run_command

_CONFIG = """
[run]
directory = "run"
steps = 60
cpu_threads = 2

[task]
use = "tests.support.tiny:task"
parameters = {{ pause = 0.01 }}

[source]
kind = "array_record"
name = "text"
files = "data"

[source.build]
kind = "text"
inputs = ["{text}"]
record_bytes = 32
num_shards = 3

[loader]
batch_size = 16
seed = 5
byte_digest = true
num_threads = 2

[[transforms]]
use = "tests.support.tiny:to_rows"

[[transforms]]
use = "tests.support.tiny:add_noise"

[save]
every_steps = 4
keep_latest = 2

[log]
every_seconds = 0.2
"""

_LEFT_WELL = {75}  # the first signal: saved (or nothing to save), run me again
_KILLED = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 143}  # before or beyond our handlers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    config = write_config(directory)
    code, output = run_command("run", config, directory=directory)
    assert code == 0, output
    return directory


def write_config(directory):
    # About 800 KB of text: enough that building takes long enough to be hit.
    text = directory / "text.txt"
    line = "".join(chr(32 + i % 95) for i in range(997))
    text.write_text("".join(f"{i} {line}\n" for i in range(800)))
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(text=text))
    return config


def survive(config, directory, kills, seed, *settings):
    """Runs to the end through some kills; returns what became of each."""
    arguments = ["run", config, *settings]
    rng = random.Random(seed)
    outcomes = []
    for _ in range(kills):
        number = rng.choice(SIGNALS)
        # A start takes about 2 s here and elsewhere something else: any moment is as good as another.
        delay = rng.choice((rng.uniform(0, 0.5), rng.uniform(0, 4)))
        command = Command(arguments, directory=directory, log=directory / "output.log")
        code = command.kill_after(delay, number)
        assert code in {0} | _LEFT_WELL | _KILLED, f"exit code {code} after {number!r}:\n{command.output()}"
        outcomes.append((signal.Signals(number).name, round(delay, 2), code))
        if code == 0:
            break
    code, output = run_command(*arguments, directory=directory)
    assert code == 0, f"after {outcomes}:\n{output}"
    return outcomes


@pytest.mark.full
def test_the_quickstart_killed_at_random_moments_ends_bit_identical(tmp_path):
    config = Path(__file__).parents[2] / "configs" / "quickstart.toml"
    short = ("--set", "run.steps=16", "--set", "save.every_seconds=0.5")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    code, output = run_command("run", config, *short, directory=whole)
    assert code == 0, output
    outcomes = survive(config, killed, 3, 100, *short)
    runs = [directory / "runs" / "quickstart" for directory in (whole, killed)]
    code, output = run_command("diff", *runs, directory=tmp_path)
    assert code == 0, f"{outcomes}\n{output}"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.full
def test_a_run_killed_at_random_moments_ends_bit_identical(seed, tmp_path, undisturbed):
    outcomes = survive(write_config(tmp_path), tmp_path, 4, seed)
    code, output = run_command("diff", undisturbed / "run", tmp_path / "run", directory=tmp_path)
    assert code == 0, f"{outcomes}\n{output}"
    code, output = run_command("verify", tmp_path / "run", directory=tmp_path)
    assert code == 0, f"{outcomes}\n{output}"
    leftovers = [path.name for path in tmp_path.rglob("*tmp*")]
    assert leftovers == [], "a finished run leaves no temporary files"


def test_a_signal_while_the_users_modules_are_imported_is_a_stop_and_no_error(tmp_path):
    config = write_config(tmp_path)
    (tmp_path / "slow_task.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfrom tests.support.tiny import task\n"
    )
    arguments = ["run", config, "--set", "task.use=slow_task:task", "--set", "run.steps=3"]
    code, output = run_command(*arguments, directory=tmp_path)
    assert code == 75, output
    assert "SIGTERM received; nothing was running yet" in output
    # What lies where the user stands can be named in a config.
    (tmp_path / "slow_task.py").write_text("from tests.support.tiny import task\n")
    code, output = run_command(*arguments, directory=tmp_path)
    assert code == 0, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.few(1)
def test_a_first_signal_saves_after_the_step_and_exits_75(number, tmp_path):
    config = write_config(tmp_path)
    command = Command(
        ["run", config, "--set", "run.steps=100000"], directory=tmp_path, log=tmp_path / "output.log"
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and committed(tmp_path), command)
    assert command.kill_after(0, number) == 75, command.output()
    assert "run again to continue exactly here" in command.output()
    last = command.output().rsplit("after step ", 1)[1].split(";")[0]
    assert (tmp_path / "run" / last / "manifest.json").exists()


def test_a_second_signal_leaves_at_once_and_loses_nothing(tmp_path, undisturbed):
    config = write_config(tmp_path)
    arguments = ["run", config, "--set", "task.parameters.pause=2.0"]
    command = Command(arguments, directory=tmp_path, log=tmp_path / "output.log")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), command)
    import os
    import time

    os.kill(command.process.pid, signal.SIGINT)
    wait_for(lambda: "SIGINT received" in command.output(), command)
    time.sleep(0.05)
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 143, command.output()
    code, output = run_command("run", config, directory=tmp_path)
    assert code == 0, output
    code, output = run_command("diff", undisturbed / "run", tmp_path / "run", directory=tmp_path)
    assert code == 0, output


def committed(directory):
    return any(path.parent.name.isdigit() for path in Path(directory, "run").glob("*/manifest.json"))


def wait_for(condition, command):
    import time

    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"nothing came:\n{command.output()}"
        assert command.process.is_alive(), (
            f"the command ended with {command.process.exitcode}:\n{command.output()}"
        )
        time.sleep(0.01)
