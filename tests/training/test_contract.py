"""What a task returns is checked when it returns it: a run that could not be resumed does not train for hours first."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarax.checkpoint import Snapshot, list_steps
from datarax.core.errors import InputError, MismatchError
from datarax.training import LogConfig, TrainingSession
from datarax.training.metrics import STEPS_AHEAD, MetricsAhead
from tests.training.test_session import new_loader, session


class Returning:
    """A task whose `init` and `step` return what they are told."""

    def __init__(self, state, *returned):
        self.state, self.returned, self.steps = state, list(returned), 0

    def init(self, config, mesh):
        return self.state

    def step(self, state, batch):
        self.steps += 1
        return self.returned.pop(0) if len(self.returned) > 1 else self.returned[0]


class Counting:
    """One array, and a metric that has the name of the run's own."""

    def init(self, config, mesh):
        return {"w": jnp.zeros(2)}

    def step(self, state, batch):
        return {"w": state["w"] + 1}, {"loss": jnp.float32(1), "step": 77}


@pytest.mark.parametrize("leaf", ["a text", 1 << 70, object(), np.array(["a"])])
def test_a_state_that_no_snapshot_can_hold_is_refused_before_the_first_step(leaf, tmp_path):
    task = Returning({"w": jnp.zeros(2), "bad": leaf}, None)
    with pytest.raises(InputError, match="'bad'"):
        session(tmp_path / "run", task=task).run()
    assert task.steps == 0


@pytest.mark.parametrize(
    ("begin", "later", "words"),
    [
        ({"n": 0}, {"n": jnp.int32(1)}, r"model\.n: was a Python int, is jax int32\[\]"),
        ({"w": np.zeros(2, np.float32)}, {"w": jnp.zeros(2)}, r"was numpy float32\[2\], is jax float32\[2\]"),
        ({"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}, r"was jax float32\[2\], is jax float32\[3\]"),
        ({"w": jnp.zeros(2), "ema": None}, {"w": jnp.zeros(2), "ema": jnp.zeros(2)}, r"model\.ema: was None"),
        (None, {"w": jnp.zeros(2)}, r"model\.w: was \(absent\)"),
    ],
)
def test_a_state_that_step_builds_otherwise_than_init_ends_the_run_at_once(begin, later, words, tmp_path):
    task = Returning(begin, (later, {}))
    going = session(tmp_path / "run", task=task)
    with pytest.raises(TypeError, match=words) as raised:
        going.run()
    assert task.steps == 1
    assert going.task_failed
    assert "raised by the task's step, at step 1" in raised.value.__notes__
    assert list_steps(tmp_path / "run") == []


def test_a_state_that_changes_its_form_later_is_never_saved(tmp_path):
    good, bad = {"n": jnp.zeros(2)}, {"n": jnp.zeros(3)}
    task = Returning(good, *[(good, {})] * 5, (bad, {}))
    with pytest.raises(TypeError, match=r"model\.n"):
        session(tmp_path / "run", task=task).run()
    assert list_steps(tmp_path / "run") == [4]


@pytest.mark.parametrize(
    "returned", [{"a": 1, "b": 2}, ({}, None), ({}, 1.5), ({}, [1]), ({}, {}, {}), None, jnp.zeros(2)]
)
def test_a_step_that_returns_something_else_is_told_what_to_return(returned, tmp_path):
    task = Returning({}, returned)
    going = session(tmp_path / "run", task=task)
    with pytest.raises(TypeError, match=r"step must return \(state, metrics\)"):
        going.run()
    assert task.steps == 1
    assert going.task_failed


def test_a_model_is_never_dropped_by_a_run_without_a_state(tmp_path):
    session(tmp_path / "run", task=Counting(), steps=4).run()
    for task in (None, Returning(None, (None, {}))):
        going = TrainingSession(tmp_path / "run", loader=new_loader(), task=task, steps=8, stream=None)
        with pytest.raises(MismatchError, match=r"model\.w: was jax float32\[2\], is \(absent\)"):
            going.run()
    assert Snapshot.open(tmp_path / "run").leaves is not None


def test_a_metric_named_step_does_not_replace_the_runs_own(tmp_path):
    session(tmp_path / "run", task=Counting(), steps=3, log=LogConfig(every_seconds=0)).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_the_loop_waits_for_the_step_before_the_last(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: waited.extend(map(float, arrays)))
    ahead = MetricsAhead(stop=False, say=print)
    for step in range(6):
        ahead.wait(step - STEPS_AHEAD)
        assert waited == [float(s) for s in range(step - 1)]
        ahead.handed_over(
            step, {"loss": jnp.float32(step), "name": "text", "nested": {"host": np.float32(9)}}
        )
        ahead.look(step - STEPS_AHEAD)


def test_metrics_that_the_next_step_overwrote_are_not_waited_for():
    ahead = MetricsAhead(stop=True, say=print)
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    metric = jnp.float32(0)
    for step in range(6):
        ahead.wait(step - STEPS_AHEAD)
        ahead.handed_over(step, {"loss": metric})
        metric = overwrite(metric)
