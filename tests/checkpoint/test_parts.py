"""What the processes of a run hand to process 0 for a snapshot: little through the coordination service, the rest in files."""

import os
import re
import signal

import numpy as np
import pytest
from flax import nnx

from datarax import Checkpointer
from datarax.checkpoint import Snapshot, list_steps
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.record import Record
from datarax.checkpoint.recorder import Recorder
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import map_batch
from tests.checkpoint.modules import Foreign
from tests.checkpoint.test_many_processes import BY_HAND, Breaks
from tests.support.coordination import Coordinator, together
from tests.support.joined import Failed, joined

LIMIT = 2048


def loader(batch_size, rows=None, steps=0, **config):
    made = DataLoader(
        DataLoaderConfig(batch_size=batch_size, seed=5, byte_digest=True, read_ahead=0, **config),
        RangeSource(RangeConfig(stop=1000), name="numbers"),
        transforms=[map_batch(lambda x: {"x": x}, name="columns", version=1)],
        rows=rows,
        owned=rows,
    )
    for _ in range(steps):
        next(made)
    return made


def recorded(run, step, modules_of, count):
    """The data item that `count` simulated processes make together, and the bytes that each has sent for it."""
    run.mkdir()
    layout = RunLayout(run)
    everyone = Coordinator(count).processes()
    made = []

    def act(index):
        recorder, modules, fixed = Recorder(layout, None, None, []), modules_of(index), []

        def fix():
            fixed.append(recorder.fix(step, None, modules, process=index))
            return fixed[0].part

        def merge(parts):
            made.append(recorder.files(modules, fixed[0], parts, step=step, previous=None, start=1))

        before = everyone[index]._client.sent
        everyone[index].exchange("save", fix, merge)
        fixed[0].remove_file()
        return everyone[index]._client.sent - before

    sent = together(count, act)
    assert list(layout.parts.iterdir()) == []
    return made[0], sent


def recorded_alone(run, step, modules):
    run.mkdir()
    recorder = Recorder(RunLayout(run), None, None, [])
    fixed = recorder.fix(step, None, modules, process=None)
    assert fixed.part == {}
    files = recorder.files(modules, fixed, [fixed.part], step=step, previous=None, start=1)
    assert not (run / "parts").exists()
    return files


@pytest.mark.parametrize(("count", "steps"), [(64, 12), (3, 1000)])
def test_each_process_sends_little_and_the_item_is_that_of_one_process(count, steps, tmp_path):
    processes = [{"train": loader(count, [index], steps)} for index in range(count)]
    files, sent = recorded(tmp_path / "many", steps, processes.__getitem__, count)
    alone = recorded_alone(tmp_path / "one", steps, {"train": loader(count, steps=steps)})
    assert max(sent) < LIMIT, sent
    assert len(files["steps.bin"]) == 16 * steps
    assert files == alone


def test_the_size_of_what_is_sent_depends_on_no_step_and_no_state(tmp_path):
    class Large(Foreign):
        def __init__(self, size):
            super().__init__()
            self.large = nnx.Variable(np.arange(size))

    def sent(name, steps, size):
        means = {"batch_stats_fn": lambda batch: {"mean": np.full(size % 129, batch["x"].mean())}}
        modules = [{"train": loader(4, [i], steps, **means), "mine": Large(size)} for i in range(4)]
        files, each = recorded(tmp_path / name, steps, modules.__getitem__, 4)
        assert len(files["processes.json"]) > 4 * size
        return each

    few, many = sent("few", 1, 1), sent("many", 300, 51_599)
    assert max(many) < LIMIT
    assert max(abs(a - b) for a, b in zip(few, many, strict=True)) < 20, "but for digits of numbers"


def test_steps_have_byte_digests_only_where_each_process_made_them(tmp_path):
    class Digests(Foreign):
        def __init__(self, has_bytes):
            super().__init__()
            self.has_bytes = has_bytes

        def take_step_digests(self):
            return 0, np.ones(2, np.uint64), np.ones(2, np.uint64), self.has_bytes

        def committed(self, step):
            pass

    def has_bytes(*each):
        modules = [{"mine": Digests(one)} for one in each]
        files, _ = recorded(tmp_path / "".join(map(str, each)), 2, modules.__getitem__, len(each))
        return Record.from_bytes(files["record.json"]).loaders["mine"].steps.has_bytes

    assert has_bytes(True, True)
    assert not has_bytes(True, False)
    assert not has_bytes(False, True)


# Real processes, a real directory.


def data(processes):
    return {"train": loader(6, [2 * processes.index, 2 * processes.index + 1]), "mine": Foreign()}


class Counting:
    """A client that adds up what is sent through it."""

    def __init__(self, client):
        self._client, self.sent = client, 0

    def __getattr__(self, name):
        def call(*arguments):
            if name in ("key_value_set", "wait_at_barrier"):
                self.sent += sum(len(each) for each in arguments if isinstance(each, str))
            return getattr(self._client, name)(*arguments)

        return call


def count_a_save(processes, run):
    counting = processes._client = Counting(processes._client)
    sent = []
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        modules = data(processes)
        for steps in (1, 1000):
            while modules["train"].idx.get_value() < steps:
                next(modules["train"])
            before = counting.sent
            checkpointer.save(steps, data=modules)
            checkpointer.wait()
            sent.append(counting.sent - before)
    return sent


@pytest.mark.full
def test_a_whole_save_of_real_processes_sends_little(tmp_path):
    run = tmp_path / "run"
    results = joined(count_a_save, run, count=3)
    for one, thousand in results:
        assert 0 < one < LIMIT
        assert 0 < thousand < LIMIT
    snapshot = Snapshot.open(run)
    assert snapshot.check() == []
    first, keys, values = snapshot.steps["train"]
    alone = loader(6, steps=1000).take_step_digests()
    assert first == 1
    assert np.array_equal(keys, alone[1][1:])
    assert np.array_equal(values, alone[2][1:])
    assert sorted(snapshot.process_parts()) == ["0", "1", "2"]
    assert list((run / "parts").iterdir()) == []


def written(what):
    """A file system that does not keep what process 1 writes."""

    def break_it(write_new):
        def broken(path, content):
            if what == "full":
                raise OSError(28, "No space left on device", str(path))
            if what == "short":
                content = content[:-8]
            if what == "changed":
                content = bytes([content[0] ^ 1]) + content[1:]
            if what != "missing":
                write_new(path, content)

        return broken

    return break_it


FAULTS = {
    "full": r"process 1 \(pid .*\): what process 0 needs of this process cannot be written to {run}/parts: No space left",
    "short": "{run}/parts/1-.*bin does not hold the .* bytes that process 1 wrote: it has ",
    "changed": "{run}/parts/1-.*bin does not hold the .* bytes that process 1 wrote: it has ",
    "missing": "{run}/parts/1-.*bin, written by process 1, cannot be read: No such file",
}


def save_badly(processes, run):
    from datarax.checkpoint import recorder

    failed = []
    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        modules = data(processes)
        for step, fault in enumerate(FAULTS, start=1):
            next(modules["train"])
            with Breaks(recorder, "write_new", written(fault if processes.index == 1 else None)):
                try:
                    checkpointer.save(step, data=modules)
                except OSError as error:
                    failed.append((fault, f"{type(error).__name__}: {error}", checkpointer.steps()))
            checkpointer.save(step, data=modules)
            checkpointer.wait()
        return failed, checkpointer.steps()


def test_a_part_that_does_not_arrive_fails_the_save_on_all_alike_and_the_next_one_works(tmp_path):
    run = tmp_path / "run"
    results = joined(save_badly, run, count=3)
    assert not any(isinstance(result, (Failed, int)) for result in results), results
    assert results[0] == results[1] == results[2]
    failed, steps = results[0]
    assert steps == [1, 2, 3, 4]
    assert [(fault, before) for fault, _, before in failed] == [
        (fault, steps[:index]) for index, fault in enumerate(FAULTS)
    ]
    for step, (fault, said, _) in enumerate(failed, start=1):
        assert said.startswith(f"SaveError: the snapshot of step {step} cannot be saved in {run}: ")
        assert re.search(FAULTS[fault].format(run=run), said), said
    alone = loader(6, steps=4).take_step_digests()[1]
    for step in steps:
        assert Snapshot.open(run, step).check() == []
        first, keys, _ = Snapshot.open(run, step).steps["train"]
        assert (first, keys.tolist()) == (step - 1, alone[step - 1 : step].tolist())


def die_with_a_part(processes, run):
    from datarax.checkpoint import recorder

    def write_and_die(write_new):
        def write(path, content):
            write_new(path, content)
            os.kill(os.getpid(), signal.SIGKILL)

        return write

    with Checkpointer(run, config=BY_HAND, processes=processes) as checkpointer:
        train = loader(6, [2 * processes.index, 2 * processes.index + 1], 1)
        checkpointer.save(1, data=train)
        checkpointer.wait()
        next(train)
        processes._timeout = 2.0
        if processes.index == 1:
            with Breaks(recorder, "write_new", write_and_die):
                checkpointer.save(2, data=train)
        checkpointer.save(2, data=train)


@pytest.mark.full
def test_what_a_killed_process_left_is_no_snapshot_and_goes_at_the_next_start(tmp_path):
    run = tmp_path / "run"
    results = joined(die_with_a_part, run, count=3, settings={"exchange_timeout_seconds": 10})
    assert results[1] == -signal.SIGKILL
    assert {result.kind for result in (results[0], results[2])} == {"PeerLostError"}
    (left,) = (run / "parts").iterdir()
    assert left.name.startswith("1-")
    assert list_steps(run) == [1]
    assert Snapshot.open(run).check() == []
    with Checkpointer(run, config=BY_HAND) as checkpointer:
        assert not (run / "parts").exists()
        assert checkpointer.skipped_directories == []
        train = loader(6)
        checkpointer.restore(data=train)
        assert next(train)["x"].tolist() == [*loader(6, steps=1).__next__()["x"]]
