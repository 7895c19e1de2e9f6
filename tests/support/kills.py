"""A run of one process, signalled at random moments, the building of its data included."""

import random
import shutil
import signal
import time

from tests.support.processes import SIGNALS, Command, run_command

_CONFIG = """
[run]
directory = "run"
steps = {steps}
cpu_threads = 2

{task}

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

{transforms}

[save]
every_steps = 4
keep_latest = 2

[log]
every_seconds = 0.2
"""

_TINY = {
    "steps": 60,
    "task": '[task]\nuse = "tests.support.tiny:task"\nparameters = { pause = 0.01 }',
    "transforms": "".join(
        f'[[transforms]]\nuse = "tests.support.tiny:{name}"\n' for name in ("to_rows", "add_noise")
    ),
}
_REAL = {
    "steps": 32,
    "task": """[task]
use = "datarax.examples.byte_lm:task"
parameters = { width = 32, num_layers = 1, num_heads = 2, length = 32, learning_rate = 3e-3, seed = 0 }""",
    "transforms": '[[transforms]]\nuse = "datarax.examples.byte_lm:tokens"\n',
}


def allowed(number):
    """How a run may end by a signal. 75: saved, run me again; or by the signal itself, before there was anything to save."""
    return {0, -number} | ({75} if number != signal.SIGKILL else set())


def write_config(directory, lines=800, *, real_model=False):
    # Of 800 lines about 800 KB of text: enough that building takes long enough to be hit.
    text = directory / "text.txt"
    line = "".join(chr(32 + i % 95) for i in range(997))
    text.write_text("".join(f"{i} {line}\n" for i in range(lines)))
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(text=text, **(_REAL if real_model else _TINY)))
    return config


def signalled(command, delay, number):
    """Signals a command; returns what became of it, its exit code last."""
    code = command.kill_after(delay, number)
    assert code in allowed(number), f"exit code {code} after {number!r} at {delay} s:\n{command.output()}"
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


def survive_signals(place, count, seed, start, *, real_model=False, signals=SIGNALS, say=lambda number: None):
    """Runs through so many signals, each at a moment from the beginning of a start to the end of its process.

    Each run is continued to its end, must be the same as one that nobody disturbed, and is replayed from its first step.

    Args:
        place: where the runs lie.
        count: signals.
        seed: of their kinds and moments.
        start: `FreshCommand`, an interpreter that has imported nothing yet, or `Command`, a fork.
        real_model: whether a transformer is trained.
        signals: which.
        say: told of the number of signals so far.

    Returns:
        (name, seconds, exit code) of each.
    """
    rng, outcomes = random.Random(seed), []

    def begin(directory):
        return start(["run", directory / "config.toml"], directory=directory, log=directory / "output.log")

    def succeed(*arguments, directory=place):
        code, output = run_command(*arguments, directory=directory)
        assert code == 0, f"after {outcomes}:\n{output}"

    undisturbed = place / "undisturbed"
    for directory in (place / "before", undisturbed):  # the first may have to compile what the second finds
        directory.mkdir()
        write_config(directory, real_model=real_model)
        command, began = begin(directory), time.monotonic()
        assert command.kill_after(120, signal.SIGKILL) == 0, command.output()
    whole = time.monotonic() - began
    while len(outcomes) < count:
        directory = place / str(len(outcomes))
        directory.mkdir()
        config = write_config(directory, real_model=real_model)
        code = None
        while len(outcomes) < count and code != 0:
            outcomes.append(signalled(begin(directory), rng.uniform(0, whole), rng.choice(signals)))
            code = outcomes[-1][-1]
            say(len(outcomes))
        succeed("run", config, directory=directory)
        succeed("diff", undisturbed / "run", directory / "run")
        succeed("verify", directory / "run", "--all")
        shutil.rmtree(directory)
    return outcomes
