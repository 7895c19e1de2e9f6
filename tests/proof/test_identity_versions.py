"""A run that was recorded by identity version 1 goes on, verifies, and says once what version 1 could not see."""

import contextlib
import functools
import json
import shutil
from unittest import mock

import jax
import pytest

from datarax.checkpoint import Snapshot
from datarax.transforms import IDENTITY_VERSION, pipeline_identity
from tests.proof.lab import NEWEST, Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Its run was made by version 1, with helpers that imports bring from other modules."""
    with mock.patch(
        "datarax.loader.loader.pipeline_identity", functools.partial(pipeline_identity, version=1)
    ):
        return Lab.made(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def run(lab, tmp_path):
    return shutil.copytree(lab.run, tmp_path / "run")


def on(lab, run, steps=NEWEST + 1, *more):
    sets = [f"run.directory={run}", f"run.steps={steps}", *more]
    return lab.command("run", "config.toml", *(word for each in sets for word in ("--set", each)))


def version_of(snapshot):
    return snapshot.identity["train"]["pipeline"]["version"]


def test_it_goes_on_enters_version_2_in_its_history_and_says_once_what_was_not_seen(lab, run):
    assert version_of(Snapshot.open(run)) == 1
    code, said = on(lab, run)
    assert code == 0, said
    assert said.count("was identified by earlier rules, which did not see") == 1
    for helper in ("helpers.shift", "helpers.Affine", "helpers.Base", "helpers.late", "helpers.width"):
        assert helper in said
    snapshot = Snapshot.open(run)
    assert version_of(snapshot) == IDENTITY_VERSION == 2
    first, second = snapshot.history
    assert (first.from_step, first.reason) == (0, None)
    assert (second.from_step, second.reason) == (NEWEST, "identity version")
    record = json.loads((snapshot.directory / "data" / "record.json").read_bytes())
    assert [entry.get("reason") for entry in record["history"]] == [None, "identity version"]

    code, said = on(lab, run, NEWEST + 2)
    assert code == 0, said
    assert "earlier rules" not in said
    assert len(Snapshot.open(run).history) == 2


def test_it_verifies_before_and_after(lab, run):
    for arguments in ((), ("--all",), ("--all", "--fast")):
        code, said = lab.command("verify", run, *arguments)
        assert code == 0, said
    code, said = on(lab, run, NEWEST + 6)
    assert code == 0, said
    for arguments in (
        ("--all",),
        ("--all", "--fast"),
        ("--config", "config.toml", "--set", f"run.directory={run}"),
    ):
        code, said = lab.command("verify", run, *arguments)
        assert code == 0, said
        assert "change on purpose" not in said


def test_plan_doctor_and_order_go_by_the_recorded_version(lab, run):
    sets = ["--set", f"run.directory={run}", "--set", f"run.steps={NEWEST + 4}"]
    for command in (
        ["plan", "config.toml", *sets],
        ["doctor", "config.toml", *sets, "--json"],
        ["order", run, "--steps", "0:3"],
    ):
        code, said = lab.command(*command)
        assert code == 0, said
        assert "pipeline" not in said
    with lab.recipe("return x ^ 1", "return x ^ 2"):
        code, said = lab.command("plan", "config.toml", *sets)
        assert code == 1
        assert "helpers.fold: was" in said
        code, said = lab.command("doctor", "config.toml", *sets)
        assert code == 1
        assert "helpers.fold: was" in said


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("return x ^ 1", "return x ^ 2", "train.pipeline.transforms[0].helpers.fold"),
        ("SCALE = 2", "SCALE = 3", "train.pipeline.transforms[0].helpers.helper"),
        ("extra=0):", "extra=1):", "train.pipeline.transforms[0].defaults.extra"),
    ],
)
def test_what_version_1_saw_is_refused_by_name(old, new, named, lab, run):
    with lab.recipe(old, new):
        for code, said in (on(lab, run), lab.command("verify", run)):
            assert code == 1
            assert named in said


def test_what_it_did_not_see_is_refused_from_the_next_snapshot_on(lab, run):
    with lab.package("helpers.py", "return x + by", "return x - by"):
        code, said = on(lab, shutil.copytree(run, run.parent / "other"))
        assert code == 0, "version 1 cannot tell"
        assert "helpers.shift" in said
        code, said = lab.command("verify", run)
        assert code == 1, "the replay can"
        assert "bytes differ" in said
    code, said = on(lab, run)
    assert code == 0, said
    with lab.package("helpers.py", "return x + by", "return x - by"):
        code, said = on(lab, run, NEWEST + 2)
        assert code == 1
        assert "train.pipeline.transforms[4].helpers.shift: was" in said


@contextlib.contextmanager
def x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def test_x64_is_compared_with_what_the_start_recorded(lab, run):
    with x64():
        code, said = on(lab, run)
        assert code == 1
        assert "train.pipeline.transforms[5].dependencies.jax_enable_x64: was 'false', is 'true'" in said
        code, said = lab.command(
            "plan", "config.toml", "--set", f"run.directory={run}", "--set", "run.steps=13"
        )
        assert code == 1
        assert "jax_enable_x64: was 'false', is 'true'" in said
    (run / "starts" / "1.json").write_text("{}")
    code, said = on(lab, run)
    assert code == 0, said


def test_a_change_that_is_allowed_is_the_reason_too(lab, run):
    with lab.recipe("return x ^ 1", "return x ^ 2"):
        code, said = on(lab, run, NEWEST + 1, 'resume.allow_changed=["train.pipeline"]')
    assert code == 0, said
    first, changed = (entry.reason for entry in Snapshot.open(run).history)
    assert first is None
    assert changed.startswith("allowed: train.pipeline.transforms[0]")
    assert changed.endswith("; identity version")


# Functions with a memory.

MEMORIES = {
    "np.random": (
        "return x + by",
        "import numpy as np\n\n    return x + np.random.randint(by)",
        "np.random.randint",
    ),
    "random": ("return x + by", "import random\n\n    return x + random.randint(0, by)", "random.randint"),
    "no seed": (
        "return x + by",
        "import numpy as np\n\n    return x + np.random.default_rng().integers(by)",
        "without a seed",
    ),
    "a global": ("return x + by", "global SCALE\n    SCALE += 0\n    return x + by", "SCALE"),
}


@pytest.mark.parametrize("case", MEMORIES)
@pytest.mark.few(1)
def test_a_new_run_of_a_function_with_a_memory_is_refused_and_goes_on_if_that_is_declared(
    case, lab, tmp_path
):
    old, new, what = MEMORIES[case]
    with lab.package("helpers.py", old, new):
        code, said = on(lab, tmp_path / "new", 1)
        assert code == 2
        assert "transform 'mix': shift " in said
        assert what in said
        assert "labpkg/helpers.py, line " in said
        code, said = on(lab, tmp_path / "new", 1, "transforms.4.impure=true")
        assert code == 0, said
        assert "warning" not in said
    assert Snapshot.open(tmp_path / "new").identity["train"]["pipeline"]["transforms"][4]["impure"] is True


def test_a_run_that_goes_on_with_a_memory_gets_one_warning(lab, run):
    with lab.package("helpers.py", *MEMORIES["a global"][:2]):
        code, said = on(lab, run)
    assert code == 0, said
    assert said.count("warning: what these functions give depends on what they gave before") == 1
