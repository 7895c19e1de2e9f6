"""Runs over a Grain pipeline: rehearsed, continued exactly, verified, refused by name, alone and in two processes."""

import json

import pytest

from datarax.cli.main import main
from tests.support.runs import datarax, flipped, replaced, tree

_CONFIG = """
[run]
directory = "{directory}/run"
steps = 12

[task]
use = "tests.support.grain_task:task"

[grain_pipeline]
use = "datarax.examples.grain_numbers:pipeline"
parameters = {{ num_records = 300, batch_size = 8 }}

[save]
every_steps = 4
keep_latest = 2
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("grain")
    (directory / "config.toml").write_text(_CONFIG.format(directory=directory))
    assert main(["run", str(directory / "config.toml")]) == 0
    return directory


def command(capsys, *arguments):
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = main([*map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_run_verifies_through_its_whole_history(finished, capsys):
    code, output, _ = command(capsys, "verify", finished / "run", "--all", "--json")
    report = json.loads(output.splitlines()[-1])
    assert (code, report["covered_steps"]) == (0, [[0, 12]])
    assert all(each["bytes_compared"] for each in report["snapshots"])
    assert report["data_checked"] is False, "there are no data files of ours"


def test_a_run_that_is_stopped_and_continued_is_the_run_that_was_not(finished, tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(_CONFIG.format(directory=tmp_path))
    for steps in (3, 7, 12):
        assert command(capsys, "run", config, "--set", f"run.steps={steps}")[0] == 0
    code, output, _ = command(capsys, "diff", finished / "run", tmp_path / "run")
    assert code == 0, output


def test_another_pipeline_is_refused_by_name_with_the_first_step_that_differs(finished, capsys):
    changed = ["--set", "grain_pipeline.parameters.seed=2"]
    code, output, _ = command(capsys, "verify", finished / "run", *changed)
    assert code == 1
    assert "train.pipeline.01_ShuffleMapDataset.seed: was " in output
    assert (
        "step 4: explained by what differs in the recipe: train.pipeline.01_ShuffleMapDataset.seed" in output
    )
    more = ["--set", "run.steps=13"]
    code, _, error = command(capsys, "run", finished / "config.toml", *changed, *more)
    assert code == 1
    assert "train.pipeline.01_ShuffleMapDataset.seed: was " in error


def test_a_changed_state_of_grain_is_found(finished, capsys):
    path = finished / "run" / "12" / "data" / "processes.json"
    tree = json.loads(path.read_bytes())
    state = tree["parts"]["0"]["train"]["grain_state"]
    assert "12" in json.dumps(state)
    changed = json.dumps(tree).replace(json.dumps(state), json.dumps(state).replace("12", "13"))
    with replaced(path, json.dumps(json.loads(changed), sort_keys=True, separators=(",", ":")).encode()):
        code, output, _ = command(capsys, "verify", finished / "run")
    assert code == 1
    assert "data/processes.json: its content has changed" in output
    assert "grain_state" in output, output
    assert "of process 0 is recorded as 13, the replay gives 12" in output, output


def test_a_wrong_digest_names_the_step(finished, capsys):
    with flipped(finished / "run" / "12" / "data" / "steps.bin", 16 * 2 + 8):
        code, output, _ = command(capsys, "verify", finished / "run")
    assert code == 1
    assert "step 10 is the first whose bytes differ" in output
    assert "describes itself as it did then" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "run", "--fast"], "has no keys to compare"),
        (["order", "run", "--steps", "0:2"], "only that knows which records were in which step"),
        (["order", "config.toml", "--steps", "0:2"], "only Grain knows which records its elements hold"),
        (["plan", "config.toml"], "only Grain knows which records its elements hold"),
        (["run", "config.toml", "--set", "loader.seed=1"], "unknown key 'loader'"),
        (
            ["run", "config.toml", "--set", "grain_pipeline.use=grain:MapDataset.range"],
            "grain_pipeline.parameters",
        ),
        (["run", "config.toml", "--set", "grain_pipeline.use=json:loads"], "names the standard library"),
        (["run", "config.toml", "--set", "grain_pipeline.use=none:such"], "grain_pipeline.use = 'none:such'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_grain_pipeline_cannot_answer_is_wrong_input(arguments, message, finished, capsys):
    verb, what, *rest = arguments
    code, _, error = command(capsys, verb, finished / what, *rest)
    assert (code, message in error) == (2, True), error


def test_data_that_end_before_the_run_are_said_with_what_to_set(tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text(_CONFIG.format(directory=tmp_path))
    sets = ["--set", "grain_pipeline.use=tests.support.grain_task:finite", "--set", "task.parameters={}"]
    code, _, error = command(capsys, "run", config, *sets, "--set", "grain_pipeline.parameters={}")
    assert code == 2
    assert "the data ended after 5 steps, but the run is to have 12; set run.steps = 5" in error
    assert "snapshot 4 is committed" in error


@pytest.mark.full
def test_two_processes_keep_two_states_in_one_snapshot_and_one_verify_replays_both(tmp_path, capsys):
    config = tmp_path / "config.toml"
    text = _CONFIG.format(directory=tmp_path).replace('[task]\nuse = "tests.support.grain_task:task"\n', "")
    config.write_text(text)
    for steps in (6, 12):
        done = datarax("run", config, "--processes", 2, "--set", f"run.steps={steps}", directory=tmp_path)
        assert done.returncode == 0, done.stderr
    code, output, _ = command(capsys, "verify", tmp_path / "run", "--all", "--json")
    report = json.loads(output.splitlines()[-1])
    assert (code, report["covered_steps"]) == (0, [[0, 12]]), output
    code, _, error = command(capsys, "run", config, "--set", "run.steps=13")
    assert code == 1
    assert "SliceMapDataset" in error, "its part of the records is another one"
    code, checks = rehearsed(capsys, config, "run.steps=13")
    assert (code, failed(checks)) == (1, ["identity", "restore"])
    assert "saved by 2 processes and continues on that number only" in checks["restore"]["found"]
    assert checks["restore"]["do"].startswith("launch with 2 processes")


# The rehearsal.

REHEARSED = [
    *("config", "imports", "directory", "writing", "writer", "leftovers", "snapshot", "mesh", "pipeline"),
    *("identity", "restore", "steps", "files", "model", "space", "clock", "saves", "versions"),
    *("cpu threads", "batches"),
]


def rehearsed(capsys, config, *overrides):
    """Exit code of `datarax doctor`, and its checks by name."""
    sets = [word for override in overrides for word in ("--set", override)]
    code, output, error = command(capsys, "doctor", config, *sets, "--json")
    assert output, error
    checks = {check["name"]: check for check in json.loads(output)["checks"]}
    assert all(check["do"] or check["verdict"] == "ok" for check in checks.values())
    return code, checks


def failed(checks):
    return [name for name, check in checks.items() if check["verdict"] == "fail"]


def test_a_healthy_launch_passes_every_check_and_leaves_nothing_behind(finished, capsys):
    before = tree(finished), sorted(map(str, finished.rglob("*")))
    code, checks = rehearsed(capsys, finished / "config.toml", "run.steps=40", "run.cpu_threads=2")
    assert (code, list(checks)) == (0, REHEARSED)
    others = {name: check["verdict"] for name, check in checks.items() if check["verdict"] != "ok"}
    others.pop("cpu threads", None)  # depends on how many the environment gave the run
    assert others == {"files": "skipped"}
    assert "Grain does not say which records it will read" in checks["files"]["found"]
    assert "01_ShuffleMapDataset" in checks["pipeline"]["found"]
    assert "for process 0 of 1" in checks["pipeline"]["found"]
    assert "continues at element 12" in checks["restore"]["found"]
    assert checks["steps"]["numbers"] == {"done": 12, "total": 40, "left": 28}
    numbers = checks["batches"]["numbers"]
    assert checks["batches"]["found"].startswith("from step 12: ")
    assert (numbers["batches"], numbers["batch_bytes"]) == (28, 8 * (8 + 4))
    assert numbers["rows_per_second"] == pytest.approx(8 * numbers["batches_per_second"])
    assert (tree(finished), sorted(map(str, finished.rglob("*")))) == before


def test_a_rehearsal_refuses_another_seed_by_name(finished, capsys):
    changed = "grain_pipeline.parameters.seed=2"
    code, checks = rehearsed(capsys, finished / "config.toml", "run.steps=40", changed)
    assert (code, failed(checks)) == (1, ["identity"])
    assert checks["identity"]["details"][0].startswith("train.pipeline.01_ShuffleMapDataset.seed: was ")
    assert checks["restore"]["verdict"] == "skipped"


def other_pipeline(name):
    return [f"grain_pipeline.use=tests.support.grain_task:{name}", "grain_pipeline.parameters={}"]


def test_a_pipeline_that_grain_cannot_resume_is_found_with_the_way_out(finished, tmp_path, capsys):
    elsewhere = f"run.directory={tmp_path / 'run'}"
    code, checks = rehearsed(capsys, finished / "config.toml", elsewhere, *other_pipeline("repeated_files"))
    assert (code, failed(checks)) == (1, ["pipeline"])
    assert "RepeatIterDataset cannot be resumed" in checks["pipeline"]["found"]
    assert "MapDataset.repeat" in checks["pipeline"]["found"]
    assert [name for name, check in checks.items() if check["verdict"] == "skipped"] == [
        *("identity", "steps", "files", "batches")
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_raises_is_found_with_the_element(finished, tmp_path, capsys):
    elsewhere = f"run.directory={tmp_path / 'run'}"
    code, checks = rehearsed(capsys, finished / "config.toml", elsewhere, *other_pipeline("failing"))
    assert (code, failed(checks)) == (1, ["batches"])
    assert "step 0 raised ZeroDivisionError: no sine of " in checks["batches"]["found"]
    assert "in Grain pipeline 'grain', element 0" in checks["batches"]["details"]


def test_data_that_end_before_the_run_are_found_beforehand(finished, tmp_path, capsys):
    elsewhere = f"run.directory={tmp_path / 'run'}"
    code, checks = rehearsed(capsys, finished / "config.toml", elsewhere, *other_pipeline("finite"))
    assert (code, failed(checks)) == (1, ["batches"])
    assert "the data end after 5 steps, before the run does" in checks["batches"]["found"]
    assert checks["batches"]["do"].startswith("set run.steps = 5")


def test_what_may_surprise_of_a_pipeline_is_a_warning(finished, tmp_path, capsys):
    elsewhere = f"run.directory={tmp_path / 'run'}"
    code, checks = rehearsed(capsys, finished / "config.toml", elsewhere, *other_pipeline("odd_shuffle"))
    assert (code, checks["pipeline"]["verdict"]) == (0, "warning")
    assert "Grain's shuffle is no permutation of 65537 records" in checks["pipeline"]["details"][0]
    assert checks["batches"]["verdict"] == "ok", "a warning stops nothing"


def test_a_run_whose_end_nobody_knows_needs_run_steps(finished, tmp_path, capsys):
    config = tmp_path / "config.toml"
    config.write_text((finished / "config.toml").read_text().replace("steps = 12\n", ""))
    code, checks = rehearsed(capsys, config)
    assert (code, failed(checks)) == (1, ["steps"])
    assert (checks["steps"]["found"], checks["steps"]["do"]) == (
        *("nothing says when the run ends", "set run.steps"),
    )


def test_a_mesh_has_to_fit_the_devices_and_no_batch_has_to_be_divided(finished, capsys):
    config = finished / "config.toml"
    code, checks = rehearsed(capsys, config, "run.steps=40", "mesh.axes={ data = -1 }")
    assert (code, checks["mesh"]["verdict"]) == (0, "ok")
    code, checks = rehearsed(capsys, config, "run.steps=40", "mesh.axes={ data = 1, model = 4096 }")
    assert (code, checks["mesh"]["verdict"]) == (0, "warning")
    assert "batch" not in checks["mesh"]["found"]


def test_a_rehearsed_name_that_cannot_be_imported_is_told(finished, capsys):
    code, checks = rehearsed(capsys, finished / "config.toml", "grain_pipeline.use=nowhere:pipeline")
    assert (code, failed(checks)) == (1, ["imports"])
    assert "grain_pipeline.use" in checks["imports"]["details"][0]
