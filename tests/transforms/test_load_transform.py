"""Transforms named by a config."""

import sys

import pytest

from datarax.core.errors import ConfigError
from datarax.transforms import Level, Randomness, load_transform

MODULE = """
from datarax.transforms import map_batch
def clean(rows, by=1):
    return rows
def noisy(rows, rng):
    return rows
class Tools:
    @staticmethod
    def polish(rows):
        return rows
ready = map_batch(clean, name="ready", parameters={"by": 2}, version=3)
number = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "transforms_of_a_user.py").write_text(MODULE)
    (tmp_path / "broken_of_a_user.py").write_text("import module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "transforms_of_a_user"
    sys.modules.pop("transforms_of_a_user", None)


def test_a_function_gets_level_randomness_and_parameters_from_the_config(module):
    clean = load_transform(f"{module}:clean", level="batch", parameters={"by": 4})
    assert (clean.name, clean.level, clean.parameters, clean.version) == (
        "clean",
        Level.BATCH,
        {"by": 4},
        None,
    )
    noisy = load_transform(f"{module}:noisy", level="record", randomness="generator", name="n", version="a")
    assert (noisy.name, noisy.randomness, noisy.version) == ("n", Randomness.GENERATOR, "a")
    assert load_transform(f"{module}:Tools.polish", level="record").name == "polish"


def test_a_ready_transform_keeps_what_the_config_does_not_give(module):
    ready = load_transform(f"{module}:ready")
    assert (ready.name, ready.level, ready.parameters, ready.version) == ("ready", Level.BATCH, {"by": 2}, 3)
    changed = load_transform(f"{module}:ready", name="other", level="batch", parameters={"by": 5}, version=4)
    assert (changed.name, changed.parameters, changed.version) == ("other", {"by": 5}, 4)


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        (
            "{}:claen",
            {},
            "has no attribute 'claen'; did you mean 'clean'\\? It has Tools, clean, map_batch, noisy, number, ready",
        ),
        ("{}:Tools.shine", {}, "'transforms_of_a_user.Tools' has no attribute 'shine'; it has polish"),
        ("{}:number", {}, "is 5, neither a Transform nor a function"),
        ("{}:clean", {}, "plain function; say at which level it works: level = 'record' or 'batch'"),
        (
            "{}:clean",
            {"level": "row"},
            "level of transform 'clean' must be one of 'record', 'batch', got 'row'",
        ),
        (
            "{}:ready",
            {"level": "record"},
            "ready is a transform with level 'batch'; the config asks for 'record'",
        ),
        ("{}:ready", {"parameters": {"to": 1}}, "called as"),
        ("{}", {}, "use must be 'module:attribute', got 'transforms_of_a_user'"),
        ("no_such_module:f", {}, "importing 'no_such_module' raised ModuleNotFoundError"),
        ("broken_of_a_user:f", {}, "importing 'broken_of_a_user' raised .*module_that_nobody_has"),
        (7, {}, "use must be 'module:attribute', got 7"),
    ],
)
def test_a_wrong_name_says_what_is_there(module, use, options, message):
    with pytest.raises(ConfigError, match=message):
        load_transform(use.format(module) if isinstance(use, str) else use, **options)
