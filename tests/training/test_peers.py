"""How a run of many processes ends when one is stopped, fails, differs, hangs or dies: soon, together, with a clear word."""

import re
import shutil
import signal

import pytest

from datarax.checkpoint import list_steps
from tests.support.many import newest, write_config
from tests.support.processes import Fleet, run_command, run_fleet

# A user's module beside the config; each task is the tiny one with something odd about it.
TASKS = """
import os, signal, sys, time
from pathlib import Path
import jax
from tests.support.tiny import TinyTask

me = int(os.environ["JAX_PROCESS_ID"])

class Odd(TinyTask):
    done = 0
    def step(self, state, batch):
        self.done += 1
        return super().step(state, batch)

class FailsOnOne(Odd):
    def step(self, state, batch):
        if self.done == 2 and me == 1:
            raise ValueError("the batch is odd")
        return super().step(state, batch)

class FailsOnAll(Odd):
    def step(self, state, batch):
        if self.done == 2:
            raise ValueError("the batch is odd")
        return super().step(state, batch)

class Differs(Odd):
    def init(self, config, mesh):
        return {**super().init(config, mesh), "key": jax.random.key(me)}

class SlowInit(Odd):
    def init(self, config, mesh):
        Path(f"in-init-{me}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return super().init(config, mesh)

class SlowFirstStep(Odd):
    def step(self, state, batch):
        if self.done == 0:
            Path(f"in-step-{me}").touch()
            while not Path("go").exists():
                time.sleep(0.01)
        return super().step(state, batch)

class TakesSigterm(Odd):
    def init(self, config, mesh):
        if me == 1:
            signal.signal(signal.SIGTERM, lambda *_: None)
        return super().init(config, mesh)

class SlowSave(Odd):
    def init(self, config, mesh):
        from datarax.checkpoint.orbax import OrbaxWriter
        begin = OrbaxWriter.start
        def start(self, step, files, model):
            if step > 5 and me == 1:
                time.sleep(600)
            return begin(self, step, files, model)
        OrbaxWriter.start = start
        return super().init(config, mesh)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of five steps, with a snapshot, and its data."""
    directory = tmp_path_factory.mktemp("made")
    config = write_config(directory)
    (directory / "odd.py").write_text(TASKS)
    codes, output = run_fleet(
        "run",
        config,
        "--set",
        "run.steps=5",
        "--set",
        "task.use=tests.support.tiny:task",
        count=1,
        directory=directory,
    )
    assert codes == [0], output
    return directory


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "it")
    return tmp_path / "it"


def command(place, task, *settings):
    words = ["run", place / "config.toml"]
    for setting in (f"task.use=odd:{task}", "save.every_steps=1000", *settings):
        words += ["--set", setting]
    return words


@pytest.mark.full
def test_one_that_fails_alone_says_why_and_the_others_repeat_it(place):
    codes, output = run_fleet(*command(place, "FailsOnOne"), count=3, directory=place)
    assert codes == [75, 70, 75], output
    assert "datarax: ValueError: the batch is odd" in output
    assert "raised by the task's step, at step 8" in output
    lost = r"process (\d) of 3 stops: it lost process 1 \(pid \d+ on .*\), which ended with: ValueError: the batch is odd"
    told = re.findall(lost, output)
    assert sorted(told) == ["0", "2"]
    assert output.count("snapshot 5 is committed; run the same command again to continue after it") == 2


@pytest.mark.full
def test_one_that_fails_alone_does_not_wait_for_its_save_which_needs_the_others(place):
    codes, output = run_fleet(
        *command(place, "FailsOnOne"), "--set", "save.every_steps=1", count=3, directory=place
    )
    assert codes == [75, 70, 75], output
    assert output.count("which ended with: ValueError: the batch is odd") == 2


@pytest.mark.full
def test_one_that_lacks_its_data_stops_all_before_they_begin(place):
    (place / "hidden").mkdir()
    elsewhere = {"each": lambda index: ("--set", f"source.files={'hidden' if index == 1 else 'data'}")}
    codes, output = run_fleet(*command(place, "Odd"), count=3, directory=place, **elsewhere)
    assert len(set(codes)) == 1, output
    assert codes[0] in (1, 2), output


@pytest.mark.full
def test_the_coordinator_that_fails_alone_lets_the_others_end_first(place):
    (place / "odd.py").write_text(TASKS.replace("me == 1:\n            raise", "me == 0:\n            raise"))
    codes, output = run_fleet(*command(place, "FailsOnOne"), count=3, directory=place)
    assert codes == [70, 75, 75], output
    assert output.count("which ended with: ValueError: the batch is odd") == 2


def test_what_fails_on_all_is_an_error_of_the_task_and_no_loss(place):
    codes, output = run_fleet(*command(place, "FailsOnAll"), count=2, directory=place)
    assert codes == [70, 70], output
    assert output.count("datarax: ValueError: the batch is odd") == 2
    assert "it lost" not in output


@pytest.mark.full
def test_a_killed_process_is_missed_by_name(place):
    fleet = Fleet(command(place, "Odd", "run.steps=100000"), count=3, directory=place)
    fleet.wait_until(lambda: "step 12/" in fleet.output())
    fleet.signal(1, signal.SIGKILL)
    codes = fleet.wait()
    output = fleet.output()
    assert codes[1] == -signal.SIGKILL
    # Who is second to leave may find the coordinator gone already: then JAX aborts it.
    assert codes[0] in (75, -signal.SIGABRT), output
    assert codes[2] in (75, -signal.SIGABRT), output
    assert 75 in codes, output
    assert "it lost process 1 (pid" in output
    assert "snapshot 5 is committed; run the same command again to continue after it" in output
    codes, output = run_fleet(*command(place, "Odd", "run.steps=8"), count=2, directory=place)
    assert codes == [0, 0], output


@pytest.mark.full
def test_a_killed_process_before_any_snapshot_is_a_failure(place):
    shutil.rmtree(place / "run")
    fleet = Fleet(command(place, "Odd", "run.steps=100000"), count=2, directory=place)
    fleet.wait_until(lambda: "step 5/" in fleet.output())
    fleet.signal(1, signal.SIGKILL)
    assert fleet.wait()[0] in (74, -signal.SIGABRT)


@pytest.mark.full
def test_processes_whose_init_differs_train_nothing(place):
    codes, output = run_fleet(*command(place, "Differs"), count=2, directory=place)
    assert codes == [1, 1], output
    assert "the task's init: the processes disagree" in output
    assert list_steps(place / "run") == [5]


@pytest.mark.full
def test_processes_that_were_told_different_things_train_nothing(place):
    seeds = {"each": lambda index: ("--set", f"loader.seed={5 + index}")}
    codes, output = run_fleet(*command(place, "Odd"), count=2, directory=place, **seeds)
    assert codes == [1, 1], output
    assert "identity.train.seed is 5 on process 0, 6 on process 1" in output
    assert "config.loader.seed is 5 on process 0, 6 on process 1" in output
    assert "on process 0" in output
    assert "on process 1" in output


@pytest.mark.full
def test_a_number_of_processes_that_does_not_divide_the_batch_is_refused_with_those_that_do(place):
    codes, output = run_fleet(*command(place, "Odd"), count=5, directory=place)
    assert codes == [2] * 5, output
    assert (
        "a batch of 12 rows cannot be split into 5 row shards (mesh axes data); the numbers of row shards that fit are"
        in output
    )
    assert "1, 2, 3, 4, 6, 12" in output
    assert list_steps(place / "run") == [5]


@pytest.mark.parametrize(("task", "mark"), [("SlowInit", "in-init"), ("SlowFirstStep", "in-step")])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.full
def test_a_signal_while_one_is_busy_waits_for_it_and_is_not_lost(task, mark, number, place):
    fleet = Fleet(command(place, task, "run.steps=100000"), count=2, directory=place)
    fleet.wait_until(lambda: all((place / f"{mark}-{index}").exists() for index in range(2)))
    fleet.signal(1, number)
    (place / "go").touch()
    codes = fleet.wait()
    output = fleet.output()
    assert codes == [75, 75], output
    # The word of it may arrive among the others when they have begun to make steps.
    if newest(place / "run") == 5:
        assert re.search("nothing was running yet|stopped by .* after step 5;", output)
    else:
        assert "run again to continue exactly here" in output
    codes, output = run_fleet(
        *command(place, "Odd", f"run.steps={newest(place / 'run') + 2}"), count=3, directory=place
    )
    assert codes == [0, 0, 0], output


@pytest.mark.full
def test_a_second_interrupt_leaves_at_once(place):
    fleet = Fleet(command(place, "SlowFirstStep"), count=2, directory=place)
    fleet.wait_until(lambda: all((place / f"in-step-{index}").exists() for index in range(2)))
    fleet.signal(1, signal.SIGINT)
    fleet.wait_until(lambda: "all processes save at one step" in fleet.output())
    fleet.signal(1, signal.SIGINT)
    assert fleet.commands[1].wait() == 130
    (place / "go").touch()
    assert fleet.wait()[0] in (75, -signal.SIGABRT), fleet.output()


@pytest.mark.full
def test_a_handler_for_sigterm_that_came_later_is_warned_of(place):
    codes, output = run_fleet(*command(place, "TakesSigterm", "run.steps=8"), count=2, directory=place)
    assert codes == [0, 0], output
    assert output.count("warning: process 1 has got another handler for SIGTERM") == 1


@pytest.mark.full
def test_a_save_that_takes_too_long_after_sigterm_is_left(place):
    fleet = Fleet(
        command(place, "SlowSave", "run.steps=100000", "save.preemption_seconds=2"), count=2, directory=place
    )
    fleet.wait_until(lambda: "step 8/" in fleet.output())
    fleet.signal(0, signal.SIGTERM)
    codes = fleet.wait()
    output = fleet.output()
    assert 75 in codes, output
    assert set(codes) <= {75, -signal.SIGABRT}, output
    assert re.search(r"the save of step \d+ was not committed within 2 seconds after SIGTERM", output)
    assert "snapshot 5 is committed; run again to continue after it" in output
    assert list_steps(place / "run") == [5]


@pytest.mark.full
def test_many_processes_go_back_to_an_older_snapshot_and_past_a_damaged_one(place):
    settings = ("save.every_steps=2", "save.keep_latest=10")
    codes, output = run_fleet(*command(place, "Odd", "run.steps=9", *settings), count=2, directory=place)
    assert codes == [0, 0], output
    assert list_steps(place / "run") == [5, 6, 8, 9]
    codes, output = run_fleet(
        *command(place, "Odd", "run.steps=10", *settings), "--step", "6", count=3, directory=place
    )
    assert codes == [0, 0, 0], output
    assert "set aside, not deleted: snapshots 8, 9" in output
    assert list_steps(place / "run") == [5, 6, 8, 10]
    record = place / "run" / "10" / "data" / "record.json"
    record.write_bytes(record.read_bytes().replace(b'"step":10', b'"step":11'))
    codes, output = run_fleet(*command(place, "Odd", "run.steps=12", *settings), count=2, directory=place)
    assert codes == [1, 1], output
    assert "the one before it is of step 8" in output
    previous = ("resume.on_damage=previous", *settings)
    codes, output = run_fleet(*command(place, "Odd", "run.steps=12", *previous), count=2, directory=place)
    assert codes == [0, 0], output
    assert "going back to step 8" in output
    code, output = run_command("verify", place / "run", directory=place)
    assert code == 0, output
