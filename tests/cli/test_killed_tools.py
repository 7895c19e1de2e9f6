"""`build`, `verify`, `chaos` killed at random moments: nothing is left outside their own directory, and the next call works."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.cli.test_chaos import left
from tests.support.processes import Command, run_command
from tests.support.runs import copy_run, tree, write_config

pytestmark = pytest.mark.full

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def killed(rng, directory, *arguments, within):
    """Runs a command and signals it at some moment; returns what happened to it when all of its processes are gone."""
    number = rng.choice(SIGNALS)
    command = Command(
        arguments,
        directory=directory,
        log=directory.parent / f"{directory.name}.log",
        environment=ENVIRONMENT,
    )
    seconds = rng.uniform(0, within)
    code = command.kill_after(seconds, number)
    until = time.monotonic() + 120
    while left(directory.parent):
        assert time.monotonic() < until, f"processes live on after {number.name} at {seconds:.2f} s"
        time.sleep(0.05)
    assert code in (0, 128 + number, -number), command.output()
    return number.name, round(seconds, 2), code


@pytest.mark.parametrize("seed", range(4))
def test_a_verification_that_is_killed_has_changed_nothing(seed, finished, tmp_path):
    directory = tmp_path / "place"
    directory.mkdir()
    run = copy_run(finished / "run", directory / "run")
    before, rng = tree(directory), random.Random(seed)
    for _ in range(3):
        done = killed(rng, directory, "verify", run, within=2.0)
        assert tree(directory) == before, done
    assert run_command("verify", run, directory=tmp_path)[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_build_that_is_killed_is_done_anew_and_leaves_nothing(seed, tmp_path):
    directory, rng = tmp_path / "place", random.Random(seed)
    directory.mkdir()
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{i} {'x' * 997}\n" for i in range(8000)))
    content, words = text.read_bytes(), ("build", "text", text, "--output", directory / "data")
    for _ in range(3):
        if killed(rng, directory, *words, within=1.0)[-1] == 0:
            break
    again = Command(words, directory=tmp_path, log=tmp_path / "again.log", environment=ENVIRONMENT)
    assert again.wait() == 0, again.output()
    assert [path.name for path in directory.iterdir()] == ["data"]
    assert text.read_bytes() == content


@pytest.mark.parametrize("seed", range(3))
def test_chaos_that_is_killed_takes_its_runs_with_it_and_touches_nothing_else(seed, tmp_path):
    directory, rng = tmp_path / "place", random.Random(seed)
    directory.mkdir()
    config = write_config(directory, steps=20)
    (directory / "run").mkdir()
    (directory / "run" / "precious").write_text("do not touch")
    own = tmp_path / "own"
    words = ("chaos", config, "--directory", own, "--kills", "1", "--seed", seed)
    before = None
    for _ in range(2):
        killed(rng, directory, *words, within=12.0)
        after = {name: data for name, data in tree(directory).items() if not name.startswith("data/")}
        assert before in (None, after)
        before = after
    assert before.keys() <= {"config.toml", "text.txt", "run/precious"}
    again = Command(words, directory=tmp_path, log=tmp_path / "again.log", environment=ENVIRONMENT)
    assert again.wait() == 0, again.output()
