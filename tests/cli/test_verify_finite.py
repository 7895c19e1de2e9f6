"""A model that holds inf or NaN is as recorded; coming to hold them between two snapshots is a note, or asked to a failure."""

import json
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from datarax.audit.evidence import held
from datarax.checkpoint import Snapshot
from datarax.cli.main import main
from tests.support.runs import write_config


class Masked:
    """Has inf in its state from the beginning, as many do."""

    def init(self, config, mesh):
        return {
            "w": jnp.ones(3),
            "best_loss": jnp.float32(jnp.inf),
            "mask": np.array([0, -np.inf, 0], np.float32),
            "half": jnp.array([1, -jnp.inf], jnp.bfloat16),
            "best": float("inf"),
        }

    def step(self, state, batch):
        return state, {}


class Ruined(Masked):
    """Its weights become NaN, and what was inf becomes NaN, after step 5; snapshots are taken at 4, 8 and 12."""

    def init(self, config, mesh):
        return {"count": 0, **super().init(config, mesh)}

    def step(self, state, batch):
        state = {**state, "count": state["count"] + 1}
        if state["count"] == 5:
            state |= {"w": jnp.array([1, jnp.nan, 1]), "best": float("nan")}
        return state, {}


class RuinedFromTheStart(Ruined):
    """Holds NaN already when it begins."""

    def init(self, config, mesh):
        return {**super().init(config, mesh), "w": jnp.full(3, jnp.nan)}


def finished(directory, task, *, keep=9):
    config = write_config(directory)
    sets = [f"task.use=tests.cli.test_verify_finite:{task}", f"save.keep_latest={keep}"]
    assert main(["run", str(config), *(word for each in sets for word in ("--set", each))]) == 0
    return directory / "run"


def verify(run, capsys, *arguments):
    capsys.readouterr()
    code = main(["verify", str(run), *arguments])
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("masked"), "Masked")


@pytest.fixture(scope="module")
def ruined(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("ruined"), "Ruined")


@pytest.mark.parametrize("arguments", [(), ("--require-finite",), ("--step", "4", "--require-finite")])
def test_inf_that_was_there_from_the_beginning_is_no_failure_and_not_mentioned(arguments, masked, capsys):
    code, output = verify(masked, capsys, *arguments)
    assert code == 0, output
    assert "finite" not in output
    assert "verified: everything is as recorded" in output


def test_what_became_not_finite_is_a_note_at_the_first_snapshot_that_has_it(ruined, capsys):
    code, output = verify(ruined, capsys)
    assert code == 0, output
    (note,) = [line for line in output.splitlines() if "finite" in line]
    assert note == (
        "note: snapshot 8: best (nan), w (nan) of the model hold what is not finite, which snapshot 4 does not, "
        "as it was recorded"
    )


def test_asked_to_it_is_a_failure(ruined, capsys):
    code, output = verify(ruined, capsys, "--require-finite")
    assert code == 1, output
    assert "snapshot 4: good" in output
    assert "snapshot 8: FAILED" in output
    assert "snapshot 12: good" in output
    assert (
        "model: best (nan), w (nan) of the model hold what is not finite, which snapshot 4 does not" in output
    )


@pytest.mark.parametrize("arguments", [("--step", "8"), ("--step", "12")])
def test_of_a_single_snapshot_a_nan_is_told_of_and_an_inf_is_not(arguments, ruined, capsys):
    code, output = verify(ruined, capsys, *arguments)
    assert (
        code,
        "best (nan), w (nan) of the model hold what is not finite, as it was recorded" in output,
    ) == (0, True)
    assert verify(ruined, capsys, *arguments, "--require-finite")[0] == 1


def test_nan_from_the_first_snapshot_on_is_told_of_once(tmp_path, capsys):
    run = finished(tmp_path, "RuinedFromTheStart")
    code, output = verify(run, capsys)
    assert code == 0, output
    assert [line for line in output.splitlines() if "w (nan)" in line] == [
        "note: snapshot 4: w (nan) of the model hold what is not finite, as it was recorded"
    ]


def test_programs_are_told_which_leaves(ruined, capsys):
    report = json.loads(verify(ruined, capsys, "--json")[1].splitlines()[-1])
    infinite = {"best_loss": "inf", "half": "inf", "mask": "inf"}
    assert [each["not_finite"] for each in report["snapshots"]] == [
        infinite | {"best": "inf"},
        infinite | {"best": "nan", "w": "nan"},
        infinite | {"best": "nan", "w": "nan"},
    ]


def test_fast_reads_no_model_so_it_cannot_be_asked_that(ruined, capsys):
    assert main(["verify", str(ruined), "--fast", "--require-finite"]) == 2
    assert "leave out one of them" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("value", "found"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf"), (1, None)])
@pytest.mark.parametrize("at", [0, (1 << 20) - 1, 1 << 20, (1 << 21) + 2])
def test_a_value_is_found_wherever_it_lies(dtype, value, found, at):
    leaf = np.zeros(((1 << 21) + 3, 1), dtype)
    leaf[at] = value
    assert held(leaf) == found


def test_nan_counts_more_than_inf_and_integers_hold_neither():
    assert held(np.concatenate([np.full(1 << 20, np.inf), [np.nan]])) == "nan"
    assert held(np.float32(np.inf).reshape(())) == "inf"
    assert held(np.zeros((0, 3))) is None
    assert held(np.arange(3)) is None


def test_looking_makes_no_copy_of_a_leaf():
    leaf = np.zeros((8, 1 << 20), np.float32)
    leaf[7] = np.inf
    tracemalloc.start()
    try:
        assert held(leaf) == "inf"
        assert tracemalloc.get_traced_memory()[1] < leaf.nbytes / 8
    finally:
        tracemalloc.stop()


def test_leaves_are_read_in_groups_and_come_out_as_from_the_whole(ruined, monkeypatch):
    snapshot = Snapshot.open(ruined, 8)
    sizes, whole = [], snapshot.model()
    read = Snapshot.read_model

    def counted(self, shardings, specs):
        sizes.append(len(specs))
        return read(self, shardings, specs)

    monkeypatch.setattr(Snapshot, "read_model", counted)
    parts = dict(snapshot.model_leaves(held_bytes=1))
    assert max(sizes) == 1
    assert parts.keys() == whole.keys()
    for path, leaf in whole.items():
        assert parts[path].dtype == leaf.dtype
        assert parts[path].tobytes() == leaf.tobytes()
