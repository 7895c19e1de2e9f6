"""Metrics that are inf or NaN: said once by name with the step, or the end of the run before anything of it is saved."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarax.checkpoint import SaveConfig, Snapshot, list_steps
from datarax.cli.main import main
from datarax.core.errors import ConfigError
from datarax.training import LogConfig, NonFiniteError
from datarax.training.metrics import STEPS_AHEAD, MetricsAhead
from tests.support.kills import write_config
from tests.support.many import write_config as write_many
from tests.support.processes import run_command, run_fleet
from tests.training.test_session import session


class Breaking:
    """Counts; from a step on its loss is NaN, as is what it trains."""

    def __init__(self, at, value=float("nan"), kind=jnp.float32):
        self.at, self.value, self.kind = at, value, kind

    def init(self, config, mesh):
        return {"w": jnp.zeros(()), "count": 0}

    def step(self, state, batch):
        count = state["count"] + 1
        w = state["w"] + (self.value if count >= self.at else 1.0)
        return {"w": w, "count": count}, {"loss": self.kind(w), "accuracy": 0.5}


class BreakingInThird(Breaking):
    """As a config names it."""

    def __init__(self):
        super().__init__(at=3)


def test_by_default_the_run_goes_on_and_says_so_once_with_the_step(tmp_path):
    said = io.StringIO()
    # No report in between: what the log interval leaves out is seen all the same.
    outcome = session(
        tmp_path / "run", task=Breaking(3), stream=said, log=LogConfig(every_seconds=3600)
    ).run()
    assert outcome.complete
    assert said.getvalue().count("warning: metric 'loss' is nan at step 3 (said once;") == 1
    assert said.getvalue().count("warning") == 1


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64, float, complex])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_step_is_seen_whatever_the_number_is_made_of(kind, value, tmp_path):
    said = io.StringIO()
    session(tmp_path / "run", task=Breaking(9, value, kind), stream=said, steps=9).run()
    # A complex one is written as such: (nan+0j).
    assert re.search(rf"metric 'loss' is \(?{value}(\+0j\))? at step 9", said.getvalue())


def test_it_is_said_for_each_name_and_a_metric_that_recovers_is_not_mentioned_again():
    said = []
    metrics = MetricsAhead(stop=False, say=said.append)
    for step, (loss, norm) in enumerate(
        [(1.0, 1.0), (np.nan, 1.0), (1.0, np.inf), (np.nan, np.inf)], start=1
    ):
        metrics.handed_over(step, {"loss": jnp.float32(loss), "of": {"norm": np.array([0.0, norm])}})
    metrics.look(4)
    assert [text.partition(" (")[0] for text in said] == [
        "warning: metric 'of.norm' is inf at step 3",
        "warning: metric 'loss' is nan at step 2",
    ]


def test_what_holds_no_such_numbers_is_left_alone():
    metrics = MetricsAhead(stop=True, say=print)
    given_away = jnp.ones(3) * jnp.nan
    given_away.delete()
    nothing = {
        "step": 3,
        "big": 1 << 80,
        "text": "nan",
        "flag": True,
        "none": None,
        "key": jax.random.key(0),
        "record": np.zeros(2, [("a", np.float32)]),
        "words": np.array(["nan"]),
        "objects": np.array([float("nan")], object),
        "empty": np.zeros((0, 3)),
        "counts": jnp.arange(3),
        "given_away": given_away,
        "large": np.full(70_000, np.nan),
    }
    metrics.handed_over(1, nothing)
    metrics.look(1)


def test_a_task_that_returns_one_dict_again_and_again_is_named_at_the_right_step(tmp_path):
    class Reusing(Breaking):
        def __init__(self, at):
            super().__init__(at)
            self.metrics = {}

        def step(self, state, batch):
            state, metrics = super().step(state, batch)
            self.metrics["loss"] = float(metrics["loss"])
            return state, self.metrics

    with pytest.raises(NonFiniteError, match="'loss' is nan at step 4,"):
        session(tmp_path / "run", task=Reusing(4), on_nonfinite="stop").run()


@pytest.mark.parametrize("at", [1, 2, 4, 5, 7, 8, 10])
@pytest.mark.parametrize("every", [1, 4])
def test_stop_ends_the_run_before_a_snapshot_of_that_step_or_a_later_one(at, every, tmp_path):
    save = SaveConfig(every_steps=every, keep_latest=None)
    with pytest.raises(
        NonFiniteError, match=f"metric 'loss' is nan at step {at}, and run.on_nonfinite"
    ) as caught:
        session(tmp_path / "run", task=Breaking(at), save=save, on_nonfinite="stop").run()
    good = [step for step in range(every, 11, every) if step < at]
    assert list_steps(tmp_path / "run") == good
    for step in good:
        assert np.isfinite(Snapshot.open(tmp_path / "run", step).model()["w"])
    stays, then = caught.value.__notes__[-2:]
    assert (f"snapshot {good[-1]} is committed" if good else "no snapshot was committed") in stays
    assert "verify RUN --require-finite" in then


def test_stop_needs_no_save_to_be_noticed_a_few_steps_later(tmp_path):
    done = []

    class Counted(Breaking):
        def step(self, state, batch):
            done.append(state["count"] + 1)
            return super().step(state, batch)

    save = SaveConfig(every_steps=None, every_seconds=None)
    with pytest.raises(NonFiniteError, match="at step 3"):
        session(tmp_path / "run", task=Counted(3), save=save, on_nonfinite="stop", steps=15).run()
    assert done[-1] <= 3 + STEPS_AHEAD


def test_the_task_repaired_the_run_goes_on_from_the_good_snapshot(tmp_path):
    with pytest.raises(NonFiniteError):
        session(tmp_path / "run", task=Breaking(7), on_nonfinite="stop").run()
    assert session(tmp_path / "run", task=Breaking(99), on_nonfinite="stop").run().ran == 6


def test_a_signal_in_the_step_that_breaks_does_not_save_it(tmp_path):
    import signal

    class Stopped(Breaking):
        def step(self, state, batch):
            if state["count"] == 5:
                signal.raise_signal(signal.SIGTERM)
            return super().step(state, batch)

    with pytest.raises(NonFiniteError, match="at step 6"):
        session(tmp_path / "run", task=Stopped(6), on_nonfinite="stop").run()
    assert list_steps(tmp_path / "run") == [4]


def test_only_two_answers_are_allowed(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.on_nonfinite must be one of 'warn', 'stop', got 'ignore'"):
        session(tmp_path / "run", on_nonfinite="ignore")
    config = write_config(tmp_path)
    assert main(["plan", str(config), "--set", "run.on_nonfinite=ignore"]) == 2


def test_the_loop_never_waits_for_metrics_that_are_on_their_way(monkeypatch):
    # What `handed_over` notes is not looked at before somebody has waited for that step.
    asked = []
    monkeypatch.setattr("datarax.training.metrics._not_finite", asked.append)
    metrics = MetricsAhead(stop=True, say=print)
    for step in (1, 2, 3):
        metrics.handed_over(step, {"loss": jnp.float32(step)})
        metrics.look(step - 2)
    assert [float(each) for each in asked] == [1.0]


def test_a_metric_that_no_float_can_hold_ends_nothing(tmp_path):
    class Counting:
        def init(self, parameters, mesh):
            return {"n": 0}

        def step(self, state, batch):
            return {"n": state["n"] + 1}, {"big": 10**5000, "small": -(10**400)}

    assert session(tmp_path / "run", task=Counting(), steps=3).run().complete


# The command line, and many processes.

_BREAKING = ("--set", "task.use=tests.training.test_finiteness:BreakingInThird")
_STOP = ("--set", 'run.on_nonfinite="stop"')


def test_the_command_line_ends_with_70_and_one_message(tmp_path):
    config = write_config(tmp_path)
    code, output = run_command(
        "run", config, *_BREAKING, *_STOP, "--set", "save.every_steps=1", directory=tmp_path
    )
    assert code == 70, output
    assert "datarax: metric 'loss' is nan at step 3" in output
    assert "snapshot 2 is committed; run again to continue after it" in output
    assert "--debug" not in output


@pytest.mark.full
@pytest.mark.parametrize("how", ["warn", "stop"])
def test_many_processes_end_at_the_same_step(how, tmp_path):
    config = write_many(tmp_path)
    settings = [
        *_BREAKING,
        "--set",
        f'run.on_nonfinite="{how}"',
        "--set",
        "save.every_steps=1",
        "--set",
        "run.steps=9",
    ]
    codes, output = run_fleet("run", config, *settings, count=2, directory=tmp_path)
    assert codes == ([70, 70] if how == "stop" else [0, 0]), output
    assert output.count("metric 'loss' is nan at step 3") == (2 if how == "stop" else 1), output
    assert list_steps(tmp_path / "run")[-1] == (2 if how == "stop" else 9)


@pytest.mark.parametrize("metrics", [{"loss": 1.0, 3: 2.0}, {"loss": 1.0, "parts": {"a": 1.0, 3: 2.0}}])
def test_metrics_that_have_no_order_are_named_with_the_step(metrics):
    with pytest.raises(TypeError, match=r"at step 7 have names of several kinds \('loss', .* use text"):
        MetricsAhead(stop=False, say=print).handed_over(7, metrics)
