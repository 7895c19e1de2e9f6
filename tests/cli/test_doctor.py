"""The rehearsal before a launch: each thing that ends launches is found by name, hides no other, and nothing is left behind."""

import errno
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.lock import RunLock
from datarax.cli.main import main
from datarax.transforms import steadiness
from tests.checkpoint.modules import start_process
from tests.checkpoint.test_lock import events
from tests.support.runs import copy_run, finish_run, flipped, tree, write_config

ALL = [
    *("config", "imports", "directory", "writing", "writer", "leftovers", "snapshot", "mesh", "processes"),
    *("source", "manifest", "loader", "identity", "restore", "steps", "files", "model", "space", "clock"),
    *("saves", "versions", "cpu_threads", "batches", "transforms"),
]


def sets(*overrides):
    return [word for override in overrides for word in ("--set", override)]


MORE = sets("run.steps=40")
"""The runs here have 12 steps; a launch has 28 to do."""


class Answer:
    """What `datarax doctor --json` said."""

    def __init__(self, code, report):
        self.code = code
        self.checks = {check["name"].replace(" ", "_"): check for check in report["checks"]}
        self.report = report

    def __getitem__(self, name):
        return self.checks[name]

    def named(self, *verdicts):
        return [name for name, check in self.checks.items() if check["verdict"] in verdicts]

    @property
    def failed(self):
        return self.named("fail")


@pytest.fixture
def fresh_process(monkeypatch):
    """Where transforms are run once more: here, since an interpreter for each call of `doctor` would take most of the time."""
    with monkeypatch.context() as patched:
        patched.setattr(
            steadiness,
            "_in_a_fresh_process",
            lambda rebuild, records, seeds, limit: steadiness._digests_after(rebuild(), records, seeds),
        )
        yield patched


@pytest.fixture
def doctor(capsys, fresh_process):
    def ask(*arguments):
        capsys.readouterr()
        code = main(["doctor", *map(str, arguments), "--json"])
        answer = Answer(code, json.loads(capsys.readouterr().out))
        assert answer.code == (1 if answer.failed else 0)
        for check in answer.checks.values():
            assert check["found"]
            assert "\n" not in check["found"]
            assert check["do"] or check["verdict"] == "ok"
        return answer

    return ask


def everything(directory):
    """Files with their bytes, and directories."""
    return tree(directory), sorted(map(str, Path(directory).rglob("*")))


@pytest.fixture(scope="module")
def in_order(tmp_path_factory):
    """As `finished`, but in the order of the files, 100 records each.

    Step 12 begins at row 192 and needs files 1 and 2; file 0 is needed again from step 18 (row 288) on.
    """
    directory = tmp_path_factory.mktemp("in-order")
    finish_run(directory, "loader.order=none")
    return directory


@pytest.fixture
def moved(in_order, tmp_path):
    """That run with data of its own to damage: config, data directory, and what to set."""
    shutil.copytree(in_order, tmp_path / "moved")
    files = sorted((tmp_path / "moved" / "data").glob("*.array_record*"))
    assert len(files) == 3
    overrides = sets(
        f"source.files={tmp_path / 'moved' / 'data'}",
        f"run.directory={tmp_path / 'moved' / 'run'}",
        "loader.order=none",
        "run.steps=40",
    )
    return in_order / "config.toml", files, overrides


# Healthy.


def test_a_healthy_launch_passes_every_check_and_leaves_nothing_behind(finished, doctor):
    before = everything(finished)
    answer = doctor(finished / "config.toml", *MORE)
    assert answer.code == 0
    assert list(answer.checks) == ALL
    assert answer.named("ok") == ALL
    assert answer.report["ok"]
    assert answer.report["directory"] == str(finished / "run")
    assert answer["steps"]["numbers"] == {"done": 12, "total": 40, "left": 28}
    assert answer["files"]["numbers"]["first"] == 12
    assert answer["files"]["numbers"]["last"] == 39
    assert everything(finished) == before


def test_the_rehearsal_measures_what_it_predicts(finished, doctor):
    numbers = doctor(finished / "config.toml", *MORE)["batches"]["numbers"]
    for name in (
        "seconds_to_first_batch",
        "rows_per_second",
        "bytes_per_second",
        "seconds_for_the_steps_left",
    ):
        assert numbers[name] > 0, name
    assert numbers["batches"] == 28
    assert numbers["batch_bytes"] == 16 * (32 + 4)


def test_a_healthy_pipeline_passes_in_a_fresh_process_too(finished, fresh_process, doctor):
    fresh_process.undo()
    answer = doctor(finished / "config.toml", *MORE)
    assert answer.named("ok") == ALL
    assert answer["transforms"]["found"] == (
        "decode, jitter: the same bytes for the records of step 12, run again, in another order, and in a fresh process"
    )


def test_a_run_that_is_not_there_yet_starts_at_step_0_and_is_not_made(finished, tmp_path, doctor):
    answer = doctor(finished / "config.toml", tmp_path / "new" / "run")
    assert answer.code == 0
    assert list(answer.checks) == [name for name in ALL if name != "restore"]
    assert "starts at step 0" in answer["snapshot"]["found"]
    assert answer["directory"]["numbers"]["exists"] is False
    assert answer["model"]["numbers"] == {"leaves": 3, "bytes": 16 * 4 + 16 * 4 + 2 * 4}
    assert list(tmp_path.iterdir()) == []


def test_people_see_a_line_for_each_check_what_to_do_and_a_summary(finished, capsys):
    assert main(["doctor", str(finished / "config.toml"), *sets("loader.seed=6", "run.steps=40")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["ok", "config"]
    at = next(i for i, line in enumerate(lines) if line.startswith("fail     identity"))
    assert lines[at + 1].strip().startswith("train.seed: was 5, is 6")
    assert any(line.strip().startswith("do: ") for line in lines[at:])
    assert re.fullmatch(r"\d+ ok, 1 fail, 1 skipped: do not launch yet", lines[-1])


@pytest.mark.parametrize(
    "arguments", [["nowhere.toml"], ["{config}", "--steps", "0"], ["{config}", "--devices", "0"]]
)
def test_wrong_usage_is_no_finding(arguments, finished, capsys):
    words = [word.format(config=finished / "config.toml") for word in arguments]
    assert main(["doctor", *words]) == 2
    assert capsys.readouterr().out == ""


# Config and code.


def test_a_config_that_does_not_parse_is_the_only_line(finished, doctor):
    answer = doctor(finished / "config.toml", *sets("loader.batch=3"))
    assert answer.failed == list(answer.checks) == ["config"]
    assert "batch" in answer["config"]["found"]


def test_every_name_that_cannot_be_imported_is_told_and_the_rest_is_still_checked(finished, doctor):
    broken = sets("task.use=nowhere:task", "transforms.1.use=tests.support.tiny:add_noize")
    answer = doctor(finished / "config.toml", *MORE, *broken)
    assert answer.failed == ["imports"]
    assert len(answer["imports"]["details"]) == 2
    assert "nowhere" in answer["imports"]["details"][1]
    assert "did you mean 'add_noise'" in answer["imports"]["details"][0]
    assert answer.named("skipped") == [
        "loader",
        "identity",
        "restore",
        "steps",
        "model",
        "batches",
        "transforms",
    ]
    assert "'imports'" in answer["loader"]["found"]
    assert answer["files"]["verdict"] == answer["space"]["verdict"] == "ok"


def test_a_transform_that_only_the_working_directory_has_is_a_warning(
    finished, tmp_path, monkeypatch, doctor
):
    shown = Path(finished).parent / "nothing"
    (tmp_path / "only_here.py").write_text("from tests.support.tiny import to_rows\n")
    monkeypatch.chdir(tmp_path)
    try:
        answer = doctor(finished / "config.toml", shown, *sets("transforms.0.use=only_here:to_rows"))
        assert answer["imports"]["verdict"] == "warning"
        assert (
            f"only_here can be imported only because it lies in the working directory {tmp_path}"
            in (answer["imports"]["found"])
        )
        monkeypatch.syspath_prepend(tmp_path)
        answer = doctor(finished / "config.toml", shown, *sets("transforms.0.use=only_here:to_rows"))
        assert answer["imports"]["verdict"] == "ok"
    finally:
        sys.modules.pop("only_here", None)


UNSTEADY = """
import itertools, time
import numpy as np
from tests.support.tiny import decode, jitter

calls = itertools.count()

def timed(batch, seeds):
    return {**jitter(batch, seeds), "at": np.full(len(seeds), time.time())}

def counted(batch, seeds, before=[0]):
    before[0] += 1
    return {**jitter(batch, seeds), "calls": np.full(len(seeds), before[0])}

def of_a_set(batch, seeds):
    words = np.frombuffer("".join({f"{i}-" for i in range(20)}).encode(), np.uint8)
    return {**jitter(batch, seeds), "words": np.tile(words, (len(seeds), 1))}
"""


RUNS = [
    "again on the same records",
    "on the same records in another order",
    "in a fresh process with another PYTHONHASHSEED",
]


@pytest.mark.parametrize(
    ("function", "comparisons"), [("timed", RUNS), ("counted", RUNS), ("of_a_set", RUNS[2:])]
)
def test_a_transform_with_a_memory_of_its_own_is_named_with_the_run_that_differed(
    function, comparisons, finished, tmp_path, monkeypatch, fresh_process, doctor
):
    if function == "of_a_set":
        fresh_process.undo()
    (tmp_path / "unsteady_here.py").write_text(UNSTEADY)
    monkeypatch.syspath_prepend(tmp_path)
    table = f'{{ use = "unsteady_here:{function}", level = "batch", randomness = "seed" }}'
    transforms = f'transforms=[{{ use = "tests.support.tiny:to_rows" }}, {table}]'
    try:
        answer = doctor(finished / "config.toml", tmp_path / "run", *sets(transforms, "task.parameters={}"))
    finally:
        sys.modules.pop("unsteady_here", None)
    assert answer.failed == ["transforms"]
    assert answer["transforms"]["found"] == f"{function}: other bytes for the same records"
    assert [each["comparison"] for each in answer["transforms"]["numbers"]["unsteady"]] == comparisons
    assert answer["transforms"]["details"][0].startswith(
        f"transform '{function}', run {comparisons[0]}: 16 of 16"
    )


class _Editable:
    """Finds a package as `pip install -e` has it found: not through the path, but where it is written down to lie."""

    def __init__(self, name, directory):
        self.name, self.directory = name, directory

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.directory / name / "__init__.py")


def test_a_package_that_is_installed_from_the_clone_where_one_stands_is_installed(
    finished, tmp_path, monkeypatch, doctor
):
    package = tmp_path / "of_a_clone"
    package.mkdir()
    (package / "__init__.py").write_text("from tests.support.tiny import to_rows\n")
    monkeypatch.chdir(tmp_path)
    ask = [finished / "config.toml", tmp_path / "run", *sets("transforms.0.use=of_a_clone:to_rows")]
    try:
        assert doctor(*ask)["imports"]["verdict"] == "warning", "it is only there"
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Editable("of_a_clone", tmp_path)])
        assert doctor(*ask)["imports"]["verdict"] == "ok"
    finally:
        sys.modules.pop("of_a_clone", None)


def test_the_quickstart_of_a_fresh_clone_may_be_launched_without_a_warning(tmp_path, monkeypatch, doctor):
    clone = Path(__file__).parents[2]
    monkeypatch.chdir(clone)
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if entry and Path(entry).resolve() != clone]
    )
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Editable("datarax", clone)])
    places = sets(f"run.directory={tmp_path / 'runs'}", f"source.files={tmp_path / 'data'}")
    answer = doctor("configs/quickstart.toml", *places)
    assert answer.code == 0
    assert answer.named("fail", "warning") == []
    assert list(tmp_path.iterdir()) == []


def test_a_transform_that_raises_is_found_with_step_and_record(finished, tmp_path, doctor):
    failing = sets("transforms.1.use=tests.support.tiny:add_failing_noise")
    answer = doctor(finished / "config.toml", tmp_path / "run", *failing)
    assert answer.failed == ["batches"]
    assert "step 0 raised ZeroDivisionError: no noise today" in answer["batches"]["found"]
    assert any("step 0" in line and "text:" in line for line in answer["batches"]["details"])


def test_an_init_that_cannot_read_its_weights_fails_and_one_that_needs_values_is_skipped(
    finished, tmp_path, monkeypatch, doctor
):
    (tmp_path / "tasks_of_this_test.py").write_text(
        "import numpy as np, jax.numpy as jnp\n"
        "from tests.support.tiny import TinyTask\n"
        "print('what a module says when it is imported')\n"
        "class Missing(TinyTask):\n"
        "    def init(self, config, mesh):\n"
        "        return {'w': np.load('/nowhere/weights.npy')}\n"
        "class Values(TinyTask):\n"
        "    def init(self, config, mesh):\n"
        "        return {'w': np.asarray(jnp.zeros(3) + 1)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    answer = doctor(finished / "config.toml", tmp_path / "run", *sets("task.use=tasks_of_this_test:Missing"))
    assert answer.failed == ["model"]
    assert "/nowhere/weights.npy" in answer["model"]["found"]
    answer = doctor(finished / "config.toml", tmp_path / "run", *sets("task.use=tasks_of_this_test:Values"))
    assert answer.named("skipped") == ["model", "space"]
    assert answer.code == 0


# Identity and the snapshot.


def test_data_that_cannot_be_opened_do_not_hide_another_seed(moved, doctor):
    config, files, overrides = moved
    files[0].unlink()
    answer = doctor(config, *overrides)
    assert "in all but the source" in answer["identity"]["found"]
    answer = doctor(config, *overrides, *sets("loader.seed=6"))
    assert answer.failed == ["source", "identity", "files"]
    assert answer["identity"]["details"] == ["train.seed: was 5, is 6", "do: set loader.seed = 5 again"]
    assert answer.named("skipped") == ["manifest", "loader", "restore", "steps", "batches", "transforms"]


def test_another_seed_is_refused_field_by_field(finished, doctor):
    answer = doctor(finished / "config.toml", *MORE, *sets("loader.seed=6"))
    assert answer.failed == ["identity"]
    assert answer["identity"]["details"] == ["train.seed: was 5, is 6", "do: set loader.seed = 5 again"]
    assert answer.named("skipped") == ["restore"]
    assert "from step 0" in answer["batches"]["found"]


def test_an_accepted_change_is_listed_as_such(finished, doctor):
    allowed = 'resume.allow_changed=["train.seed", "train.order"]'
    answer = doctor(finished / "config.toml", *MORE, *sets("loader.seed=6", allowed))
    assert answer.named("warning") == ["identity"]
    assert "train.seed: was 5, is 6 (accepted by resume.allow_changed)" in answer["identity"]["details"]
    assert answer["restore"]["verdict"] == "ok"


def test_another_model_is_refused_leaf_by_leaf(finished, doctor):
    answer = doctor(finished / "config.toml", *MORE, *sets("task.parameters.width=8"))
    assert answer.failed == ["model"]
    assert answer["model"]["details"] == [
        "model.momentum: was jax float32[16], is array float32[8]",
        "model.w: was jax float32[16], is array float32[8]",
    ]


def test_a_damaged_snapshot_names_the_newest_good_one_and_the_rest_looks_at_that(finished, doctor):
    with flipped(finished / "run" / "12" / "data" / "record.json", 40):
        answer = doctor(finished / "config.toml", *MORE)
        assert answer.failed == ["snapshot"]
        assert "step 12 is damaged; the newest good one is step 8" in answer["snapshot"]["found"]
        assert "record.json" in answer["snapshot"]["details"][0]
        assert "--step 8" in answer["snapshot"]["do"]
        assert "step 8" in answer["restore"]["found"]
        assert answer["steps"]["numbers"]["left"] == 32
        answer = doctor(finished / "config.toml", *MORE, *sets("resume.on_damage=previous"))
        assert answer.named("warning") == ["snapshot"]


def test_without_a_good_snapshot_what_needs_one_is_skipped(finished, tmp_path, doctor):
    run = copy_run(finished / "run", tmp_path / "run")
    for step in (8, 12):
        (run / str(step) / "data" / "record.json").unlink()
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer.failed == ["snapshot"]
    assert answer.named("skipped") == ["identity", "steps", "files"]


@pytest.mark.parametrize(("steps", "verdict"), [(12, "warning"), (4, "fail")])
def test_a_run_that_has_all_its_steps_or_more_is_told(steps, verdict, finished, doctor):
    answer = doctor(finished / "config.toml", *sets(f"run.steps={steps}"))
    assert answer["steps"]["verdict"] == verdict
    assert "12 steps" in answer["steps"]["found"]


# Data.


def test_before_the_first_build_a_launch_may_begin_and_the_command_that_builds_is_right(tmp_path, doctor):
    config = write_config(tmp_path)
    before = everything(tmp_path)
    answer = doctor(config)
    assert answer.code == 0
    assert answer.named("fail", "warning") == []
    assert answer.named("skipped") == [
        "manifest",
        "loader",
        "identity",
        "steps",
        "files",
        "batches",
        "transforms",
    ]
    assert "a launch builds it first, from 1 input files" in answer["source"]["found"]
    assert answer["loader"]["found"] == "needs 'source', which is not there yet"
    assert everything(tmp_path) == before
    command = answer["source"]["details"][0].partition("before the launch: ")[2]
    words = shlex.split(command)
    assert words[:2] == ["datarax", "build"]
    assert main(words[1:]) == 0
    assert doctor(config).named("fail", "warning", "skipped") == []
    built = everything(tmp_path / "data")
    assert main(["run", str(config)]) == 0
    assert everything(tmp_path / "data") == built, "run takes what was built so, and builds nothing anew"


def test_an_empty_directory_for_the_data_is_one_that_a_launch_builds_into(tmp_path, doctor):
    config = write_config(tmp_path)
    (tmp_path / "data").mkdir()
    answer = doctor(config)
    assert answer.named("fail", "warning") == []
    assert "is not built yet" in answer["source"]["found"]
    assert main(["run", str(config)]) == 0


def test_data_that_a_launch_could_not_build_are_a_failure(tmp_path, monkeypatch, doctor):
    config = write_config(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path) and real(path, mode))
    answer = doctor(config, tmp_path / "elsewhere" / "run")
    assert answer.failed == ["source"]
    assert f"cannot write to {tmp_path}" in answer["source"]["found"]
    monkeypatch.setattr(os, "access", real)
    (tmp_path / "text.txt").unlink()
    answer = doctor(config)
    assert answer.failed == ["source"]
    assert (
        f"is not built yet, and cannot be: input file {tmp_path / 'text.txt'} does not exist"
        in (answer["source"]["found"])
    )


def test_data_that_were_removed_and_would_be_built_again_are_not_missing_files(finished, tmp_path, doctor):
    config = write_config(tmp_path)
    answer = doctor(config, finished / "run", *MORE)
    assert answer.named("fail", "warning") == []
    assert "in all but the source" in answer["identity"]["found"]
    assert answer["files"]["verdict"] == "skipped"


def test_a_missing_file_is_named_with_the_first_step_that_needs_it(moved, doctor):
    config, files, overrides = moved
    files[0].unlink()
    files[2].unlink()
    answer = doctor(config, *overrides)
    assert answer.failed == ["source", "files"]
    bad = answer["files"]["numbers"]["bad"]
    assert bad == [
        {"path": str(files[2]), "problem": "is missing", "first_step": 12},
        {"path": str(files[0]), "problem": "is missing", "first_step": 18},
    ]
    assert "the first at step 12" in answer["files"]["found"]
    assert f"{files[0]} is missing; step 18 needs it" in answer["files"]["details"]


def test_a_file_that_the_next_steps_do_not_need_is_not_reported(moved, doctor):
    config, files, overrides = moved
    files[0].unlink()
    answer = doctor(config, *overrides, "--steps", "6")
    assert answer["files"]["verdict"] == "ok"
    assert answer["files"]["numbers"]["files"] == 2
    assert answer["source"]["verdict"] == "fail", "a launch looks at all of them when it opens"
    assert doctor(config, *overrides, "--steps", "7").failed == ["source", "files"]


def test_a_truncated_file_is_named_with_both_sizes(moved, doctor):
    config, files, overrides = moved
    size = files[2].stat().st_size
    os.truncate(files[2], size - 1)
    answer = doctor(config, *overrides)
    assert answer.failed == ["identity", "files", "batches"]
    assert answer["files"]["numbers"]["bad"] == [
        {"path": str(files[2]), "problem": f"has {size - 1:,} bytes, should have {size:,}", "first_step": 12}
    ]


def test_a_file_that_this_user_may_not_read_is_named(moved, monkeypatch, doctor):
    config, files, overrides = moved
    real = os.open

    def opened(path, *rest, **options):
        if str(path) == str(files[1]):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", opened)
    answer = doctor(config, *overrides)
    assert answer["files"]["verdict"] == "fail"
    assert answer["files"]["numbers"]["bad"][0]["path"] == str(files[1])
    assert os.strerror(errno.EACCES) in answer["files"]["numbers"]["bad"][0]["problem"]


@pytest.fixture
def without_manifest(in_order, tmp_path):
    """A config of files by a glob, with nothing recorded beside them, and the files."""
    shutil.copytree(in_order / "data", tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        if "array_record" not in path.name:
            path.unlink()
    text = (in_order / "config.toml").read_text().replace(str(in_order), str(tmp_path))
    text = re.sub(r"\[source\.build\].*?\n\n", "", text, flags=re.DOTALL)
    text = text.replace('/data"', '/data/*"').replace("seed = 5", 'seed = 5\norder = "none"')
    (tmp_path / "config.toml").write_text(text)
    return tmp_path / "config.toml", sorted((tmp_path / "data").iterdir())


def test_files_without_a_manifest_are_a_warning_and_the_advice_ends_it(without_manifest, doctor):
    config, _ = without_manifest
    answer = doctor(config)
    assert answer.named("warning", "fail", "skipped") == ["manifest"]
    words = shlex.split(answer["manifest"]["do"].partition(" (")[0])
    assert main(words[1:]) == 0
    assert doctor(config).named("warning", "fail", "skipped") == []


def test_without_a_manifest_the_run_itself_knows_which_files_it_needs(without_manifest, doctor):
    config, files = without_manifest
    assert main(["run", str(config)]) == 0
    files[0].unlink()
    answer = doctor(config, *MORE)
    assert answer.failed == ["identity", "files"]
    assert answer["files"]["numbers"]["bad"] == [
        {"path": str(files[0]), "problem": "is missing", "first_step": 18}
    ]


# The run directory.


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_directory_that_cannot_be_written_is_found(number, finished, tmp_path, monkeypatch, doctor):
    real = os.open

    def opened(path, flags, *rest, **options):
        if flags & os.O_CREAT and str(path).startswith(str(tmp_path)):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", opened)
    answer = doctor(finished / "config.toml", tmp_path / "run")
    assert answer.failed == ["writing"]
    assert os.strerror(number) in answer["writing"]["found"]
    assert answer.named("skipped") == ["clock"]


def test_a_run_that_another_user_made_is_found(finished, monkeypatch, doctor):
    real = os.access
    closed = str(finished / "run" / "starts")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != closed and real(path, mode))
    answer = doctor(finished / "config.toml", *MORE)
    assert answer.failed == ["writing"]
    assert closed in answer["writing"]["found"]


def test_a_name_that_orbax_takes_for_a_wildcard_and_a_file_in_the_way_are_found(finished, tmp_path, doctor):
    (tmp_path / "file").write_text("precious")
    assert doctor(finished / "config.toml", tmp_path / "run[1]").failed == ["writing"]
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        answer = doctor(finished / "config.toml", place)
        assert answer.failed == ["directory"], place
        assert answer["batches"]["verdict"] == "ok", "the rest is looked at all the same"
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(("field", "what"), [("f_bavail", "space"), ("f_favail", "inodes")])
def test_a_disk_without_room_for_the_next_snapshots_is_found(field, what, finished, monkeypatch, doctor):
    real = os.statvfs

    class Full:
        def __init__(self, path):
            self.found = real(path)

        def __getattr__(self, name):
            return 3 if name == field else getattr(self.found, name)

    monkeypatch.setattr(os, "statvfs", Full)
    answer = doctor(finished / "config.toml", *MORE)
    assert answer.failed == ["space"]
    assert f"not enough {what}" in answer["space"]["found"]


def test_room_is_asked_for_all_snapshots_that_will_stand_beside_one_another(finished, tmp_path, doctor):
    new = doctor(finished / "config.toml", tmp_path / "run", *MORE)["space"]["numbers"]
    assert new["soon_bytes"] == 3 * new["snapshot_bytes"], "two are kept, and one more is being written"
    again = doctor(finished / "config.toml", *MORE)["space"]["numbers"]
    assert again["soon_bytes"] == again["snapshot_bytes"], "two are there already"
    wide = doctor(finished / "config.toml", tmp_path / "run", *MORE, *sets("task.parameters.width=1000"))
    assert wide["space"]["numbers"]["snapshot_bytes"] - new["snapshot_bytes"] == 2 * 4 * (1000 - 16)


def test_the_model_s_part_of_a_snapshot_is_foretold_from_init_alone(finished, tmp_path, doctor):
    wide = sets("task.parameters.width=1000000", "run.steps=4")
    foretold = doctor(finished / "config.toml", tmp_path / "run", *wide)["space"]["numbers"]["snapshot_bytes"]
    assert foretold >= 2 * 4 * 1_000_000
    assert foretold < 1.01 * 2 * 4 * 1_000_000


def hold(directory, ready, release):
    with_lock = RunLock(RunLayout(Path(directory)))
    ready.set()
    release.wait(60)
    with_lock.release()


def test_a_live_writer_is_named_and_its_lock_is_left_alone(finished, tmp_path, doctor):
    run = copy_run(finished / "run", tmp_path / "run")
    ready, release = events()
    holder = start_process(hold, str(run), ready, release)
    assert ready.wait(60)
    before = everything(run)
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer.failed == ["writer"]
    assert f"process {holder.pid} on host" in answer["writer"]["found"]
    assert everything(run) == before
    release.set()
    holder.join(60)
    assert doctor(finished / "config.toml", run, *MORE)["writer"]["verdict"] == "ok"


def test_a_writer_on_another_host_is_suspected_while_the_run_changes(finished, tmp_path, doctor):
    run = copy_run(finished / "run", tmp_path / "run")
    holder = {**json.loads((run / "lock").read_bytes()), "host": "elsewhere"}
    (run / "lock").write_text(json.dumps(holder))
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer["writer"]["verdict"] == "warning"
    assert "host elsewhere" in answer["writer"]["found"]
    for path in (run / "lock", run / "metrics.jsonl"):
        os.utime(path, (time.time() - 3600,) * 2)
    assert doctor(finished / "config.toml", run, *MORE)["writer"]["verdict"] == "ok"


def test_what_killed_writers_left_is_listed_and_stays(finished, tmp_path, doctor):
    run = copy_run(finished / "run", tmp_path / "run")
    (run / "16.orbax-checkpoint-tmp").mkdir()
    (run / "trash" / "dropped-4").mkdir(parents=True)
    (run / "parts").mkdir()
    (run / "parts" / "1-a.bin").touch()
    left = ["16.orbax-checkpoint-tmp", "parts/1-a.bin", "trash/dropped-4"]
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer["leftovers"]["verdict"] == "ok"
    assert answer["leftovers"]["numbers"]["left"] == left
    (run / "20").mkdir()
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer.named("warning") == ["leftovers"]
    assert "20" in answer["leftovers"]["found"]
    assert (run / "16.orbax-checkpoint-tmp").is_dir()


def test_other_versions_are_a_note_and_other_threads_a_warning(finished, tmp_path, doctor):
    run = copy_run(finished / "run", tmp_path / "run")
    start = json.loads((run / "starts" / "1.json").read_bytes())
    start["provenance"]["jax"] = "0.0.1"
    (run / "starts" / "1.json").write_text(json.dumps(start))
    answer = doctor(finished / "config.toml", run, *MORE)
    assert answer["versions"]["verdict"] == "ok"
    assert answer["versions"]["details"][0].startswith("jax: was '0.0.1', is ")
    assert answer["cpu_threads"]["verdict"] == "ok"
    config = tmp_path / "config.toml"
    config.write_text((finished / "config.toml").read_text().replace("cpu_threads = 2\n", ""))
    answer = doctor(config, run, *MORE)
    assert answer.named("warning") == ["cpu_threads"]
    assert answer["cpu_threads"]["do"] == "set run.cpu_threads = 2"


def test_a_snapshot_from_the_future_is_a_warning_about_clocks(finished, monkeypatch, doctor):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    answer = doctor(finished / "config.toml", *MORE)
    assert answer["clock"]["verdict"] == "warning"


def test_a_run_that_saves_only_at_its_end_is_a_warning(finished, doctor):
    answer = doctor(finished / "config.toml", *MORE, *sets("save.every_steps=50", "save.every_seconds=inf"))
    assert answer.named("warning") == ["saves"]


# Processes and meshes.


def test_a_mesh_that_fits_no_devices_fails_and_one_that_fits_others_is_a_warning(finished, doctor):
    def ask(*words):
        return doctor(finished / "config.toml", *MORE, *words)

    assert ask("--set", "mesh.axes={ data = 5 }").failed == ["mesh"]
    answer = ask("--set", "mesh.axes={ data = -1, model = 2 }")
    assert answer["mesh"]["verdict"] == "warning"
    assert answer["mesh"]["numbers"]["devices_that_fit"] == [2, 4, 8, 16, 32]
    assert ask("--set", "mesh.axes={ data = -1, model = 2 }", "--devices", "8").named("fail", "warning") == []
    assert ask("--set", "mesh.axes={ data = -1, model = 2 }", "--devices", "6").failed == ["mesh"]
    assert ask("--set", "mesh.axes={ data = -1 }").named("fail", "warning") == []


def test_the_process_counts_that_fit_are_listed_to_the_last(finished, doctor):
    answer = doctor(finished / "config.toml", *MORE)
    assert answer["processes"]["numbers"]["process_counts"] == [1, 2, 4, 8, 16]
    assert answer["processes"]["found"].startswith("1, 2, 4, 8, 16 processes of 1 device each")
    assert doctor(finished / "config.toml", *MORE, "--devices", "32").failed == ["mesh"]


@pytest.mark.full
def test_the_device_counts_that_fit_are_those_that_a_loader_accepts():
    code = """
import jax
from datarax.core.errors import ConfigError
from datarax.audit.rehearse_place import fitting_devices
from datarax.multihost import slots_of
from datarax.run_config import batch_sharding, build_mesh, parse_config

for axes, batch_axes in [("{ data = -1 }", '["data"]'), ("{ data = -1, model = 2 }", '["data"]'),
                         ("{ a = 2, b = -1, model = 3 }", '["b", "a"]'), ("{ data = 6, model = 2 }", '["data"]'),
                         ("{ data = -1, model = 4 }", "[]")]:
    config = parse_config(f'''
        run = {{ directory = "run", steps = 1 }}
        source = {{ kind = "range", stop = 100 }}
        loader = {{ batch_size = 12 }}
        mesh = {{ axes = {axes}, batch_axes = {batch_axes} }}''')
    accepted = []
    for count in range(1, 25):
        jax.device_count = lambda count=count: count
        jax_make_mesh = jax.make_mesh
        jax.make_mesh = lambda *a, **k: jax_make_mesh(*a, devices=jax.devices()[:count], **k)
        try:
            slots_of(batch_sharding(config, build_mesh(config)), 12)
            accepted.append(count)
        except ConfigError:
            pass
        finally:
            jax.make_mesh = jax_make_mesh
    assert [count for count in fitting_devices(config, 12) if count <= 24] == accepted, (axes, accepted)
    print(axes, accepted)
"""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=24",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "{ data = -1 } [1, 2, 3, 4, 6, 12]" in done.stdout


def test_the_page_explains_every_check_in_their_order():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    assert [name.replace(" ", "_") for name in re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE)] == ALL
