"""A run that is killed at random moments, its data still being built included, ends like one that never was.

Real processes, real signals, the real command line. Where a kill lands is random; what must come out is not.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.support.kills import survive, survive_signals, write_config
from tests.support.processes import Command, FreshCommand, run_command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    config = write_config(directory)
    code, output = run_command("run", config, directory=directory)
    assert code == 0, output
    return directory


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


# As `make soak` does hundreds of times: at any moment of a start.
@pytest.mark.full
def test_fresh_interpreters_signalled_from_the_first_line_of_main_on_end_bit_identical(tmp_path):
    outcomes = survive_signals(tmp_path, 20, 0, FreshCommand)
    print(outcomes)
    assert any(code < 0 for *_, code in outcomes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.few(1)
def test_a_signal_in_an_import_ends_the_process_without_a_word(number, tmp_path):
    config = write_config(tmp_path)
    (tmp_path / "slow_task.py").write_text(
        f"import os\nos.kill(os.getpid(), {int(number)})\nfrom tests.support.tiny import task\n"
    )
    arguments = ["run", config, "--set", "task.use=slow_task:task", "--set", "run.steps=3"]
    code, output = run_command(*arguments, directory=tmp_path)
    assert code == -number, output
    assert all(line.startswith("buil") for line in output.splitlines())
    # What lies where the user stands can be named in a config.
    (tmp_path / "slow_task.py").write_text("from tests.support.tiny import task\n")
    code, output = run_command(*arguments, directory=tmp_path)
    assert code == 0, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.full
def test_a_signal_in_a_build_ends_it_and_the_next_start_builds(number, tmp_path):
    arguments = ["run", write_config(tmp_path, lines=4000), "--set", "run.steps=3"]
    command = Command(arguments, directory=tmp_path, log=tmp_path / "output.log")
    command.wait_until(lambda: list(tmp_path.glob(".data.building-*/records-*")))
    os.kill(command.process.pid, signal.SIGSTOP)  # so that it has not ended when the signal comes
    left = list(tmp_path.glob(".data.building-*"))
    assert left
    os.kill(command.process.pid, number)
    os.kill(command.process.pid, signal.SIGCONT)
    assert command.wait() == -number, command.output()
    assert list(tmp_path.glob(".data.building-*")) == left
    code, output = run_command(*arguments, directory=tmp_path)
    assert code == 0, output
    assert {path.name for path in tmp_path.glob(".data*")} == set()


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


@pytest.mark.full
def test_a_second_signal_leaves_at_once_and_loses_nothing(tmp_path, undisturbed):
    config = write_config(tmp_path)
    arguments = ["run", config, "--set", "task.parameters.pause=2.0"]
    command = Command(arguments, directory=tmp_path, log=tmp_path / "output.log")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), command)
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
