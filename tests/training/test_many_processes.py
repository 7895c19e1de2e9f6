"""One run in one, two, three and four real processes, stopped and killed between, is the run of one process that never was.

Real `jax.distributed` processes on this machine, real signals, the real command line.
"""

import random
import signal

import pytest

from datarax.checkpoint import Snapshot
from tests.support.many import LOST, assert_same_run, newest, step_digests, survive, table, write_config
from tests.support.processes import Fleet, run_command, run_fleet

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of one process that nobody disturbs."""
    directory = tmp_path_factory.mktemp("undisturbed")
    code, output = run_command("run", write_config(directory), directory=directory)
    assert code == 0, output
    return directory


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


# Together 60 signals at random moments, to 1, 2, 3 or 4 processes, also while they start and while they save.
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_it_is_the_run_of_one_process(seed, tmp_path, undisturbed):
    done = survive(["run", write_config(tmp_path)], tmp_path, 15, seed)
    print(table(done))
    assert sum(set(each.codes) != {0} for each in done) >= 13, "the run was over before its disturbances"
    assert_same_run(tmp_path, undisturbed)
    code, output = run_command("verify", tmp_path / "run", directory=tmp_path)
    assert code == 0, f"{done}\n{output}"
    leftovers = [path.name for path in (tmp_path / "run").rglob("*tmp*")]
    assert leftovers == [], "a finished run leaves no temporary files"


def test_the_end_of_the_data_is_the_same_however_many_read_it(tmp_path):
    # Two epochs of 300 records in batches of 36: an epoch ends within a batch, and the last batch is mostly padding.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ["loader.num_epochs=2", "loader.remainder=pad", "loader.batch_size=36", "save.every_steps=4"]
    settings += ["task.use=tests.support.tiny:task", "save.keep_latest=10"]
    command = {}
    for directory in (whole, parts):
        directory.mkdir()
        command[directory] = ["run", write_config(directory)]
        command[directory] += [word for setting in settings for word in ("--set", setting)]
    code, output = run_command(*command[whole], directory=whole)
    assert code == 0, output
    for count, steps in ((3, 8), (2, 9), (4, 16), (3, 1000), (2, 1000)):
        more = ("--set", f"run.steps={steps}")
        codes, output = run_fleet(*command[parts], *more, count=count, directory=parts)
        assert codes == [0] * count, output
    assert "already complete: 17 steps" in output
    ours, theirs = (Snapshot.open(directory / "run") for directory in (parts, whole))
    assert ours.step == theirs.step == 17
    assert ours.record.loaders["train"].state == theirs.record.loaders["train"].state
    assert ours.record.loaders["train"].digest == theirs.record.loaders["train"].digest
    assert ours.record.loaders["train"].digest["rows"] == 600
    assert step_digests(parts) == step_digests(whole)
    code, output = run_command("verify", parts / "run", directory=parts)
    assert code == 0, output
