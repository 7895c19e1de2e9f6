"""The training session from Python: run it again and it continues exactly, whatever the task's state is made of."""

import contextlib
import io
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax.audit.diff import diff_runs
from datarax.checkpoint import SaveConfig, Snapshot, list_steps
from datarax.cli.main import main
from datarax.core.errors import ConfigError, InputError, MismatchError, SnapshotDamagedError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource
from datarax.training import LogConfig, Outcome, ResumeConfig, TrainingSession, load_task
from tests.support.tiny import TinyTask

ROWS = 60


def new_loader(**changes):
    source = MemorySource(
        MemoryConfig(name="numbers"), {"x": np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3) / 100}
    )
    return DataLoader(DataLoaderConfig(**{"batch_size": 4, "seed": 1, "byte_digest": True} | changes), source)


class Mixed:
    """A state of everything that may be in one: NNX, typed keys, None, bfloat16, NumPy, plain numbers."""

    def init(self, config, mesh):
        model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
        self.graph, parameters = nnx.split(model)
        return {
            "model": parameters,
            "half": jnp.ones((2, 2), jnp.bfloat16),
            "keys": (jax.random.key(3), jax.random.key(4, impl="rbg")),
            "nothing": None,
            "counts": np.zeros(3, np.int64),
            "best": float("inf") if config.get("infinite") else 1e9,
            "steps": 0,
            "done": False,
            "empty": jnp.zeros((0, 3)),
        }

    def step(self, state, batch):
        model = nnx.merge(self.graph, state["model"])
        key, draw = jax.random.split(state["keys"][0])
        loss = jnp.mean(model(jnp.asarray(batch["x"])) ** 2) + jax.random.normal(draw)
        return {
            "model": nnx.state(model),
            "half": state["half"] * jnp.bfloat16(1.01),
            "keys": (key, state["keys"][1]),
            "nothing": None,
            "counts": state["counts"] + np.int64(1 << 40),
            "best": min(state["best"], float(loss)),
            "steps": state["steps"] + 1,
            "done": state["steps"] > 5,
            "empty": state["empty"],
        }, {"loss": loss}


class Stopping(Mixed):
    """Sends itself a signal in the middle of a step."""

    def __init__(self, at):
        self.at = at

    def step(self, state, batch):
        if state["steps"] + 1 == self.at:
            signal.raise_signal(signal.SIGTERM)
        return super().step(state, batch)


def session(directory, *, task=None, loader=None, steps=10, **options):
    loader = new_loader() if loader is None else loader
    options = {"save": SaveConfig(every_steps=4), "stream": None} | options
    return TrainingSession(directory, loader=loader, task=task or Mixed(), steps=steps, **options)


def assert_same_state(a, b):
    left, right = (jax.tree.leaves(each, is_leaf=lambda leaf: leaf is None) for each in (a, b))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(left, right, strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(x) == jax.random.key_impl(y)
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if x is not None:
            assert np.asarray(x).dtype == np.asarray(y).dtype
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: (directory, outcome)."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, session(directory).run()


def test_a_run_ends_complete_with_its_last_step_saved(whole):
    directory, outcome = whole
    assert (outcome.step, outcome.complete, outcome.ran) == (10, True, 10)
    assert list_steps(directory) == [4, 8, 10]


@pytest.mark.parametrize("at", [1, 3, 4, 9, 10])
def test_a_run_stopped_in_any_step_continues_exactly_with_any_state(at, tmp_path, whole):
    first = session(tmp_path / "run", task=Stopping(at)).run()
    assert (first.step, first.complete) == (at, at == 10)
    second = session(tmp_path / "run").run()
    assert (second.step, second.complete, second.ran) == (10, True, 10 - at)
    assert_same_state(second.state, whole[1].state)
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_restoring_gives_back_every_kind_of_leaf(tmp_path, whole):
    again = session(whole[0]).run()
    assert again.ran == 0
    assert_same_state(again.state, whole[1].state)
    assert again.state["half"].dtype == jnp.bfloat16
    assert again.state["counts"].tolist() == [10 << 40] * 3
    assert isinstance(again.state["counts"], np.ndarray)
    assert again.state["done"] is True


def test_one_session_object_may_run_again(tmp_path, whole):
    one = session(tmp_path / "run", task=Stopping(3))
    assert one.run().step == 3
    assert one.run().step == 10
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_a_session_goes_on_to_more_steps(tmp_path):
    session(tmp_path / "short", steps=7).run()
    session(tmp_path / "short", steps=12).run()
    session(tmp_path / "long", steps=12).run()
    assert diff_runs(tmp_path / "short", tmp_path / "long").lines == []


def test_without_a_task_the_batches_are_taken_and_recorded(tmp_path):
    outcome = TrainingSession(tmp_path / "run", loader=new_loader(num_epochs=2), stream=None).run()
    assert (outcome.step, outcome.state) == (30, None)
    assert Snapshot.open(tmp_path / "run").states()["train"]["epoch"] == 2


def test_a_loader_that_has_handed_over_batches_does_not_begin_a_run(tmp_path):
    loader = new_loader()
    next(loader)
    with pytest.raises(InputError, match="has handed over 1 batches already"):
        session(tmp_path / "run", loader=loader).run()
    assert list_steps(tmp_path / "run") == []


def test_a_loader_anywhere_continues_where_the_snapshot_says(tmp_path, whole):
    session(tmp_path / "run", task=Stopping(5)).run()
    loader = new_loader()
    loader.seek(9)
    session(tmp_path / "run", loader=loader).run()
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_steps_and_epochs_end_a_run_whichever_comes_first(tmp_path):
    def steps_of(name, **loader):
        return session(tmp_path / name, loader=new_loader(**loader), steps=20).run().step

    assert steps_of("epochs", num_epochs=1) == ROWS // 4
    assert steps_of("steps", num_epochs=9) == 20
    with pytest.raises(ConfigError, match=r"set run.steps or loader.num_epochs"):
        session(tmp_path / "endless", steps=None)
    for steps in (0, -1, True, 2.0, "3"):
        with pytest.raises(ConfigError, match=r"run\.steps must be an integer of at least 1"):
            session(tmp_path / "wrong", steps=steps)
    assert not (tmp_path / "wrong").exists()


def test_another_recipe_or_another_state_is_refused_and_leaves_loader_and_run_as_they_were(whole):
    directory = whole[0]
    before = {path: path.read_bytes() for path in directory.glob("[0-9]*/**/*") if path.is_file()}
    loader = new_loader(seed=2)
    with pytest.raises(MismatchError, match=r"train.seed: was 1, is 2"):
        session(directory, loader=loader, steps=12).run()
    assert loader.idx.get_value() == 0
    with pytest.raises(MismatchError, match=r"model.w: was \(absent\)"):
        session(directory, task=TinyTask(), steps=12).run()
    assert {path: path.read_bytes() for path in directory.glob("[0-9]*/**/*") if path.is_file()} == before


def test_a_damaged_snapshot_stops_or_falls_back_as_told(tmp_path, whole):
    session(tmp_path / "run").run()
    (tmp_path / "run" / "10" / "data" / "steps.bin").write_bytes(b"")
    with pytest.raises(SnapshotDamagedError, match="the one before it is of step 8") as caught:
        session(tmp_path / "run").run()
    assert any("--step 8" in note for note in caught.value.__notes__)
    resumed = session(tmp_path / "run", resume=ResumeConfig(on_damage="previous")).run()
    assert resumed.ran == 2
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_going_back_repeats_the_steps_bit_for_bit(tmp_path, whole):
    session(tmp_path / "run").run()
    assert session(tmp_path / "run").run(from_step=4).ran == 6
    assert (tmp_path / "run" / "set_aside" / "1" / "10").is_dir()
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_an_exception_of_the_task_says_where_it_came_from_and_what_stays(tmp_path, whole):
    class Failing(Mixed):
        def step(self, state, batch):
            if state["steps"] == 6:
                raise KeyError("labels")
            return super().step(state, batch)

    failing = session(tmp_path / "run", task=Failing())
    with pytest.raises(KeyError, match="labels") as caught:
        failing.run()
    assert failing.task_failed
    assert caught.value.__notes__[-2:] == [
        "raised by the task's step, at step 7",
        "snapshot 4 is committed; run again to continue after it",
    ]
    session(tmp_path / "run").run()
    assert diff_runs(whole[0], tmp_path / "run").lines == []


def test_progress_goes_to_the_standard_error_of_the_moment(tmp_path):
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        session(tmp_path / "run", stream="stderr", log=LogConfig(every_seconds=0), steps=2).run()
    assert text.getvalue().startswith("step 1/2  loss ")


class Terminal(io.StringIO):
    """What a stream of a terminal is to those who write to it."""

    def isatty(self):
        return True


def test_how_to_go_on_stands_on_a_line_of_its_own_beside_the_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    seen = Terminal()
    session(tmp_path / "run", task=Stopping(3), stream=seen, log=LogConfig(every_seconds=0)).run()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue()))
    assert "stopped by SIGTERM after step 3; run again to continue exactly here" in map(str.strip, lines)


def test_handlers_of_signals_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    session(tmp_path / "run", steps=1).run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


class StoppedInInit(TinyTask):
    """Sends itself a signal before the first step."""

    def init(self, config, mesh):
        signal.raise_signal(signal.SIGTERM)
        return super().init(config, mesh)


def test_a_signal_before_the_first_step_stops_before_anything_ran(tmp_path):
    outcome = session(tmp_path / "run", task=StoppedInInit()).run()
    assert (outcome.step, outcome.complete, outcome.ran) == (0, False, 0)
    assert list_steps(tmp_path / "run") == []


def test_a_handler_of_the_callers_own_stays_and_the_run_says_so(tmp_path, monkeypatch):
    heard, said = [], io.StringIO()
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        outcome = session(tmp_path / "run", task=Stopping(3), stream=said).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.complete
    assert heard == [signal.SIGTERM]
    assert "warning: SIGTERM has a handler already" in said.getvalue()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    said, before = io.StringIO(), signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert session(tmp_path / "run", task=Stopping(3), stream=said).run().complete
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "warning" not in said.getvalue()


def test_a_run_from_python_verifies_with_a_config_and_says_so_without(tmp_path, whole, capsys):
    assert main(["verify", str(whole[0])]) == 2
    errors = capsys.readouterr().err
    assert "was made from Python" in errors
    assert "--config" in errors
    config = tmp_path / "config.toml"
    config.write_text(
        """
        [run]
        directory = "unused"
        steps = 10
        [source]
        kind = "memory"
        name = "numbers"
        use = "tests.training.test_session:numbers"
        [loader]
        batch_size = 4
        seed = 1
        """
    )
    assert main(["verify", str(whole[0]), "--config", str(config)]) == 0
    assert "keys and bytes compared" in capsys.readouterr().out
    arguments = ["verify", str(whole[0]), "--config", str(config), "--set", "loader.seed=3"]
    assert main(arguments) == 1
    assert "train.seed: was 1, is 3" in capsys.readouterr().out


def numbers():
    return {"x": np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3) / 100}


def test_a_task_is_an_object_or_a_class_of_them():
    assert isinstance(load_task("tests.support.tiny:TinyTask"), TinyTask)
    assert isinstance(load_task("tests.support.tiny:task"), TinyTask)


def test_an_outcome_prints_without_its_state():
    assert repr(Outcome(3, True, {"w": 1}, 2)) == "Outcome(step=3, complete=True, ran=2)"


# Byte digests


@pytest.mark.parametrize(
    ("asked", "with_task", "hashed"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_a_session_digests_bytes_by_default_where_it_trains_a_task(asked, with_task, hashed, tmp_path):
    def run(steps):
        loader = new_loader(byte_digest=asked)
        task = Mixed() if with_task else None
        TrainingSession(tmp_path / "run", loader=loader, task=task, steps=steps, stream=None).run()
        return loader

    run(3)
    loader = run(6)
    whole = new_loader(byte_digest=True)
    for _ in range(6):
        next(whole)
    assert loader.digest.keys == whole.digest.keys
    assert loader.digest.bytes == (whole.digest.bytes if hashed else None)
    state = Snapshot.open(tmp_path / "run", 6).states()["train"]
    assert state["digest_bytes"] == loader.digest.to_state()["bytes"]


def test_byte_digests_may_come_and_go_between_starts(tmp_path):
    for steps, asked in enumerate((None, False, True, None), start=1):
        loader = new_loader(byte_digest=asked)
        session(tmp_path / "run", loader=loader, steps=2 * steps).run()
        # A sum over some of the rows would compare with nothing.
        assert (loader.digest.rows, loader.digest.bytes is None) == (8 * steps, steps > 1)
