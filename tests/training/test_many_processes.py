"""One run in one, two, three and four real processes, stopped and killed between, is the run of one process that never was.

Real `jax.distributed` processes on this machine, real signals, the real command line.
"""

import random
import signal
from pathlib import Path

import numpy as np
import pytest

from datarax.checkpoint import Snapshot, ledger_record, ledger_steps, list_steps
from tests.support.processes import Fleet, run_command, run_fleet

STEPS = 48

CONFIG = """
[run]
directory = "run"
steps = 48
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

ENDED_WELL = {0, 75}
LOST = {75, 74, -signal.SIGABRT, -signal.SIGKILL}
"""How processes may end when one of them is killed: they noticed, JAX noticed for them, or they are the one."""


def write_config(directory):
    text = Path(directory) / "text.txt"
    text.write_text("".join(f"{i:5d} {chr(97 + i % 26) * 25}\n" for i in range(300)))
    config = Path(directory) / "config.toml"
    config.write_text(CONFIG.format(text=text))
    return config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of one process that nobody disturbs."""
    directory = tmp_path_factory.mktemp("undisturbed")
    code, output = run_command("run", write_config(directory), directory=directory)
    assert code == 0, output
    return directory


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


@pytest.mark.parametrize("model_axis", [1, 2], ids=["data", "data-and-model"])
def test_stopped_and_killed_through_1_2_4_3_1_processes(model_axis, tmp_path, undisturbed):
    config, rng, outcomes = write_config(tmp_path), random.Random(model_axis), []
    run = tmp_path / "run"
    for leg, (count, number) in enumerate(
        [(1, signal.SIGTERM), (2, signal.SIGKILL), (4, signal.SIGTERM), (3, signal.SIGKILL), (1, None)]
    ):
        axis = model_axis if count % model_axis == 0 else 1
        command = ["run", config, "--set", f"mesh.axes={{data=-1, model={axis}}}"]
        if number is None:
            codes, output = run_fleet(*command, count=count, directory=tmp_path)
            assert codes == [0], output
            break
        fleet = Fleet(command, count=count, directory=tmp_path)
        before = newest(run)
        # Far enough that each leg adds a snapshot, and near enough that all legs have something to do.
        fleet.wait_until(lambda before=before: newest(run) > before)
        victim = rng.randrange(count)
        fleet.signal_after(rng.uniform(0, 0.1), victim, number)
        codes = fleet.wait()
        outcomes.append((leg, count, signal.Signals(number).name, victim, codes, newest(run)))
        if number == signal.SIGTERM:
            assert codes == [75] * count, f"{outcomes}\n{fleet.output()}"
        else:
            assert set(codes) <= LOST, f"{outcomes}\n{fleet.output()}"
    assert_same_run(tmp_path, undisturbed)
    code, output = run_command("verify", run, directory=tmp_path)
    assert code == 0, f"{outcomes}\n{output}"


def newest(run):
    return max(list_steps(run), default=0)
