"""A run of one process, signalled at random moments, the building of its data included."""

import random
import signal
import time

from tests.support.processes import SIGNALS, Command, FreshCommand, run_command

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

# 75: saved, run me again; or ended by the signal itself, before there was anything to save.
ALLOWED = {
    signal.SIGKILL: {0, -signal.SIGKILL},
    signal.SIGTERM: {0, 75, -signal.SIGTERM},
    signal.SIGINT: {0, 75, -signal.SIGINT},
}


def write_config(directory, lines=800):
    # Of 800 lines about 800 KB of text: enough that building takes long enough to be hit.
    text = directory / "text.txt"
    line = "".join(chr(32 + i % 95) for i in range(997))
    text.write_text("".join(f"{i} {line}\n" for i in range(lines)))
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(text=text))
    return config


def signalled(command, delay, number):
    """Signals a command; returns what became of it, its exit code last."""
    code = command.kill_after(delay, number)
    assert code in ALLOWED[number], f"exit code {code} after {number!r} at {delay} s:\n{command.output()}"
    return signal.Signals(number).name, round(delay, 2), code


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
        outcomes.append(signalled(command, delay, number))
        if outcomes[-1][-1] == 0:
            break
    code, output = run_command(*arguments, directory=directory)
    assert code == 0, f"after {outcomes}:\n{output}"
    return outcomes


def survive_starts(place, starts, seed):
    """Runs in fresh interpreters through so many signals at moments from the first line of `main` to the end of the process.

    Each run is continued to its end, and must be the same as one that nobody disturbed. Returns what became of each start.
    """
    rng, outcomes = random.Random(seed), []

    def run(directory):
        config = write_config(directory)
        return FreshCommand(["run", config], directory=directory, log=directory / "output.log")

    undisturbed = place / "undisturbed"
    undisturbed.mkdir()
    command, began = run(undisturbed), time.monotonic()
    assert command.kill_after(120, signal.SIGKILL) == 0, command.output()
    whole = time.monotonic() - began
    while len(outcomes) < starts:
        directory = place / str(len(outcomes))
        directory.mkdir()
        code = None
        while len(outcomes) < starts and code != 0:
            outcomes.append(signalled(run(directory), rng.uniform(0, whole), rng.choice(SIGNALS)))
            code = outcomes[-1][-1]
        code, output = run_command("run", directory / "config.toml", directory=directory)
        assert code == 0, f"after {outcomes}:\n{output}"
        code, output = run_command("diff", undisturbed / "run", directory / "run", directory=place)
        assert code == 0, f"after {outcomes}:\n{output}"
    return outcomes
