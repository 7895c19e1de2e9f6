"""A run of many processes, stopped and killed at random moments, and the check that it is the run of one that never was."""

import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datarax.checkpoint import Snapshot, ledger_record, ledger_steps, list_steps
from tests.support.processes import Fleet, run_fleet

STEPS = 120

CONFIG = """
[run]
directory = "run"
steps = 120
cpu_threads = 2

[task]
use = "tests.support.tiny:recording_task"
parameters = {{ pause = 0.01, batches = "batches" }}

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
batch_size = 12
seed = 5
byte_digest = true
num_threads = 2

[[transforms]]
use = "tests.support.tiny:to_rows"

[[transforms]]
use = "tests.support.tiny:add_noise"

[mesh]
axes = {{ data = -1 }}

[multihost]
start_timeout_seconds = 90
exchange_timeout_seconds = 30
heartbeat_seconds = 10

[save]
every_steps = 5
keep_latest = 2

[log]
every_seconds = 0
"""

TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
"""Within which parameters agree that were trained on other numbers of processes: sums have other orders."""

LOST = {75, 74, -signal.SIGABRT, -signal.SIGKILL}
"""How processes may end when one of them is killed: they noticed, JAX noticed for them, or they are the one."""


def write_config(directory):
    text = Path(directory) / "text.txt"
    text.write_text("".join(f"{i:5d} {chr(97 + i % 26) * 25}\n" for i in range(300)))
    config = Path(directory) / "config.toml"
    config.write_text(CONFIG.format(text=text))
    return config


def batches(directory):
    """Every global batch that lay on devices, step by step: leaf -> rows. However it was split, each row is there."""
    found = {}
    for path in Path(directory, "batches").glob("*.npy"):
        step, name, first, count = path.stem.rsplit("-", 3)
        rows = np.load(path)
        assert len(rows) == int(count)
        whole = found.setdefault(int(step), {}).setdefault(name, {})
        for offset, row in enumerate(rows):
            before = whole.setdefault(int(first) + offset, row)
            assert before.tobytes() == row.tobytes(), (
                f"row {int(first) + offset} of step {step} differs between readers"
            )
    return {
        step: {name: np.stack([rows[i] for i in sorted(rows)]) for name, rows in leaves.items()}
        for step, leaves in found.items()
    }


def step_digests(directory):
    """The recorded digest of every step of a run: from its snapshots, and from the ledger for those that are gone."""
    run = Path(directory, "run")
    digests = {}
    for step in ledger_steps(run):
        record, data = ledger_record(run, step)
        steps = record.loaders["train"].steps
        pairs = np.frombuffer(data, np.uint64).reshape(-1, 2)[steps.offset : steps.offset + steps.count]
        digests |= {steps.first_step + i: tuple(map(int, pair)) for i, pair in enumerate(pairs)}
    for step in list_steps(run):
        first, keys, values = Snapshot.open(run, step).steps["train"]
        digests |= {first + i: (int(keys[i]), int(values[i])) for i in range(len(keys))}
    return digests


def assert_same_run(directory, undisturbed):
    ours, theirs = (Snapshot.open(Path(each, "run")) for each in (directory, undisturbed))
    assert ours.step == theirs.step == STEPS
    assert ours.identity == theirs.identity
    assert ours.record.loaders["train"].state == theirs.record.loaders["train"].state
    assert ours.record.loaders["train"].digest == theirs.record.loaders["train"].digest
    assert step_digests(directory) == step_digests(undisturbed)
    assert len(step_digests(directory)) == STEPS
    got, wanted = batches(directory), batches(undisturbed)
    assert sorted(got) == sorted(wanted) == list(range(STEPS))
    for step in range(STEPS):
        for name in ("x", "noise"):
            assert got[step][name].tobytes() == wanted[step][name].tobytes(), f"{name} of step {step}"
    for path, leaf in ours.model().items():
        np.testing.assert_allclose(leaf, theirs.model()[path], **TOLERANCE, err_msg=path)


def newest(run):
    return max(list_steps(run), default=0)


@dataclass(frozen=True)
class Disturbance:
    """What was done to one start, and what became of it."""

    count: int
    kind: str
    when: str
    """While it started, or while it made steps."""
    victim: int
    seconds: float
    codes: tuple
    step: int
    """The newest snapshot afterwards."""


# Slow steps, so that the run lasts longer than its disturbances; and who waits for one that is gone need not do so for long.
_WHILE_DISTURBED = {
    "task.parameters.pause": 0.15,
    "multihost.start_timeout_seconds": 10,
    "multihost.heartbeat_seconds": 8,
}

KINDS = ("SIGKILL one", "SIGKILL all", "SIGTERM one", "SIGINT one")

# Whoever is signalled before its session begins ends by that; who waits for it then says that it is missing.
ALLOWED = {
    "SIGKILL one": LOST | {0},
    "SIGKILL all": LOST | {0},  # who is not the first may notice before its own turn comes
    "SIGTERM one": {0, 75, 74, -signal.SIGTERM, -signal.SIGABRT},
    "SIGINT one": {0, 75, 74, -signal.SIGINT, -signal.SIGABRT},
}


def disturb(command, directory, rng, *, counts=(1, 2, 3, 4)):
    """Starts a fleet and sends one signal at a random moment; checks that every process ends as it may."""
    count, kind, metrics = rng.choice(counts), rng.choice(KINDS), Path(directory, "run", "metrics.jsonl")
    victim, number = rng.randrange(count), getattr(signal, kind.split()[0])
    before = size(metrics)
    settings = [word for key, value in _WHILE_DISTURBED.items() for word in ("--set", f"{key}={value}")]
    fleet = Fleet([*command, *settings], count=count, directory=directory)
    while_starting = rng.random() < 0.3
    if not while_starting:
        fleet.wait_while(lambda: size(metrics) == before)
    seconds = rng.uniform(0, 2.5 if while_starting else 1.0)
    fleet.signal_after(seconds, victim, number)
    if kind == "SIGKILL all":
        for index in range(count):
            fleet.signal(index, number)
    codes = tuple(fleet.wait())
    when = "start" if while_starting else "steps"
    done = Disturbance(count, kind, when, victim, round(seconds, 2), codes, newest(Path(directory, "run")))
    assert set(codes) <= ALLOWED[kind], f"{done}\n{fleet.output()}"
    return done


def size(path):
    return path.stat().st_size if path.exists() else 0


def survive(command, directory, kills, seed):
    """Disturbs a run so many times and then lets it end; returns what was done."""
    rng, done = random.Random(seed), []
    for _ in range(kills):
        done.append(disturb(command, directory, rng))
    codes, output = run_fleet(*command, count=rng.choice((1, 2, 3, 4)), directory=directory)
    assert set(codes) == {0}, f"after {done}: {codes}\n{output}"
    return done


def table(disturbances):
    """How often which end came of what, as text."""
    found = Counter((d.kind, d.when, d.count, " ".join(map(str, sorted(d.codes)))) for d in disturbances)
    lines = [f"{'signal':12} {'while':6} {'processes':>9}  {'exit codes':20} {'times':>5}"]
    for (kind, when, count, codes), times in sorted(found.items()):
        lines.append(f"{kind:12} {when:6} {count:9}  {codes:20} {times:5}")
    return "\n".join(lines)
