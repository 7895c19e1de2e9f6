"""What a signal meets at every moment of a start: nothing but its default action, until there is something to save."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.kills import write_config

ROOT = Path(__file__).parents[1]

# The modules that `import datarax` may load in an interpreter without site, which has loaded hardly any.
IMPORTED = {
    "__future__",
    "datarax",
    "importlib",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
    "warnings",
}


def run_python(*arguments, ignored=False, **settings):
    # "exec" keeps what is ignored, and gives everything else its default action.
    words = ["bash", "-c", "trap '' INT; exec \"$@\"", "-"] if ignored else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    settings = {"check": True, "timeout": 240, "capture_output": True, "text": True, **settings}
    return subprocess.run([*words, sys.executable, *map(str, arguments)], env=environment, **settings).stdout


def test_importing_datarax_imports_next_to_nothing_and_leaves_signals_alone():
    code = (
        f"import sys, json\nsys.path.insert(0, {str(ROOT)!r})\nbefore = set(sys.modules)\nimport datarax\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
        "import signal\nassert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    )
    assert set(json.loads(run_python("-S", "-c", code))) <= IMPORTED


@pytest.mark.full
def test_the_command_line_as_a_library_leaves_signals_alone():
    code = (
        "import signal\nfrom datarax.cli.main import main\nassert main(['plan', 'no-such-file']) != 0\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    run_python("-c", code)


def test_the_console_script_is_the_entry_module():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"datarax": "datarax.__main__:main"}


# Runs the lines of the console script, or a module, and writes down what SIGTERM and SIGINT do: whenever that changes, and at
# calls of the functions below. A look costs two calls in C, so it is taken at every call, those in imports too.
WATCH = """
import json, runpy, sys
from _signal import SIGINT, SIGTERM, default_int_handler, getsignal

POINTS = {"main", "load_any_config", "build_dataset", "init", "step"}
names = {0: "default", 1: "ignored", default_int_handler: "raises"}
changes, points, last = [], {}, None

def name(handler):
    return names.get(handler) or handler.__name__

def watch(frame, event, argument):
    global last
    if event not in ("call", "return"):
        return
    now = getsignal(SIGTERM), getsignal(SIGINT)
    if now != last:
        last = now
        changes.append([*map(name, now)])
        if len(changes) == 2:
            points["imported before"] = sorted({"jax", "numpy", "flax", "argparse"} & set(sys.modules))
    code = frame.f_code
    if code.co_name in POINTS and ("datarax/" in code.co_filename or "tiny" in code.co_filename):
        points.setdefault(f"{code.co_name} {event}", [*map(name, now)])

how, *sys.argv[1:] = sys.argv[1:]
sys.setprofile(watch)
try:
    if how == "script":
        from datarax.__main__ import main
        sys.exit(main())
    runpy.run_module(how, run_name="__main__", alter_sys=True)
except SystemExit as end:
    sys.setprofile(None)
    print(json.dumps({"changes": changes, "points": points, "code": end.code}))
"""


def watched(how, arguments, **settings):
    return json.loads(run_python("-c", WATCH, how, *arguments, **settings).splitlines()[-1])


DEFAULT = ["default", "default"]


@pytest.mark.parametrize(
    ("how", "imported"), [("script", []), ("datarax", []), ("datarax.cli.main", ["argparse"])]
)
def test_sigint_has_its_default_action_before_anything_large_is_imported(how, imported):
    seen = watched(how, ["--version"])
    assert seen["points"]["imported before"] == imported
    assert seen["points"]["main call"] == DEFAULT
    assert seen["changes"] == [["default", "raises"], DEFAULT]
    assert seen["code"] == 0


def test_a_sigint_that_is_ignored_stays_so():
    seen = watched("datarax", ["--version"], ignored=True)
    assert seen["changes"] == [["default", "ignored"]]


@pytest.mark.full
def test_no_handler_exists_until_the_data_are_built_and_the_session_begins(tmp_path):
    seen = watched("script", ["run", write_config(tmp_path), "--set", "run.steps=3"], cwd=tmp_path)
    ours = ["_handle", "_handle"]
    assert seen["points"] == {
        "imported before": [],
        "main call": DEFAULT,
        "load_any_config call": DEFAULT,  # all is imported
        "load_any_config return": DEFAULT,
        "build_dataset call": DEFAULT,
        "build_dataset return": DEFAULT,
        "init call": ours,  # the session has begun
        "init return": ours,
        "step call": ours,
        "step return": ours,
        "main return": DEFAULT,
    }
    one = [["_handle", "default"], ["default", "_handle"]]
    between = [each for each in seen["changes"][2:] if each not in one]
    assert seen["changes"][:2] == [["default", "raises"], DEFAULT]
    assert between == [ours, DEFAULT]
    assert seen["code"] == 0
