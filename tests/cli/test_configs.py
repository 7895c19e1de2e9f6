"""Every config in `configs/` runs, verifies and continues."""

import json
from pathlib import Path

import pytest

from datarax.cli.main import main

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
TRAIN_A_LANGUAGE_MODEL = {"quickstart", "multihost"}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.full] if path.stem in TRAIN_A_LANGUAGE_MODEL else [],
        )
        for path in CONFIGS
    ],
)
def test_every_config_runs_a_few_steps_verifies_and_continues(config, tmp_path, capsys):
    run = tmp_path / "run"
    places = ["--set", f"run.directory={run}"]
    if "[source]" in config.read_text():
        places += ["--set", f"source.files={tmp_path / 'data'}"]
    assert main(["run", str(config), *places, "--set", "run.steps=3"]) == 0
    assert main(["verify", str(run)]) == 0
    capsys.readouterr()
    assert main(["run", str(config), *places, "--set", "run.steps=5", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["step"], answer["steps_run"]) == (5, 2)
    assert main(["verify", str(run)]) == 0


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {"quickstart", "iterate", "multihost", "grain"}
