"""No command runs a module only because it lies where the user stands, or in the run that is looked at."""

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from datarax.cli.import_path import HERE, _InstalledFirst
from tests.support.processes import run_python
from tests.support.runs import copy_run

ROOT = str(Path(__file__).parents[2])

# The lines of the console script, which say at their end what was imported.
SCRIPT = """
import sys
from datarax.__main__ import main
import atexit, json, os

class Missed:
    names = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.names.add(name)

sys.meta_path.append(Missed)

@atexit.register
def tell():
    if "IMPORTED" in os.environ:
        asked = {name.partition(".")[0] for name in [*sys.modules, *Missed.names]}
        open(os.environ["IMPORTED"], "w").write(json.dumps(sorted(asked)))

sys.exit(main())
"""

TRAP = """
import os
with open(os.environ["TRAPPED"], "a") as stream:
    stream.write(__name__ + "\\n")
raise SystemExit("a trap was imported: " + __name__)
"""

COMMANDS = {
    "help": ["--help"],
    "run": ["run", "{config}", "--set", "run.directory={new}"],
    "run of two": ["run", "{config}", "--set", "run.directory={new}", "--processes", "2"],
    "continue": ["run", "{config}", "--set", "run.directory={run}", "--set", "run.steps=16"],
    "plan": ["plan", "{config}"],
    "doctor": ["doctor", "{config}", "--set", "run.directory={new}"],
    "order of a config": ["order", "{config}", "--steps", "0:2"],
    "order": ["order", ".", "--steps", "0:2"],
    "inspect": ["inspect", "."],
    "diff": ["diff", ".", "./8"],
    "verify": ["verify", "."],
    "verify fast": ["verify", ".", "--fast"],
    "verify by a config": ["verify", ".", "--config", "{config}"],
    "chaos": [
        "chaos",
        "{config}",
        "--kills",
        "1",
        "--directory",
        "{new}",
        "--set",
        "task.parameters.pause=0.05",
    ],
    "build": ["build", "text", "{config}", "--output", "{new}"],
}
CODES = {"diff": 1}
FIRST = ["run"]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("bin") / "datarax"
    path.write_text(SCRIPT)
    return path


def command(script, name, finished, run, new, start=(), **environment):
    words = [w.format(config=finished / "config.toml", run=run, new=new) for w in COMMANDS[name]]
    return subprocess.run(
        [sys.executable, *(start or [script]), *words],
        cwd=run,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def set_traps(run, names):
    """A module in the run directory for each name: what others may have put there."""
    for name in names:
        (run / f"{name}.py").write_text(TRAP)


def imported_by(script, name, finished, tmp_path):
    """What the command imports, or tries to, where there is no trap: top-level names."""
    run = copy_run(finished / "run", tmp_path / "clean")
    listed = tmp_path / "imported.json"
    done = command(script, name, finished, run, tmp_path / "new-clean", IMPORTED=str(listed))
    assert done.returncode == CODES.get(name, 0), done.stdout + done.stderr
    shutil.rmtree(tmp_path / "new-clean", ignore_errors=True)
    return [each for each in json.loads(listed.read_text()) if each not in ("__main__", "__mp_main__")]


# `tests` holds the task and the transforms of this run: the user's own.
ALWAYS = [
    "secrets",
    "jax",
    "numpy",
    "orbax",
    "google",
    "datarax",
    "sitecustomize",
    "usercustomize",
    "nest_asyncio",
]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST else pytest.mark.full) for n in COMMANDS]
)
def test_no_module_that_lies_in_a_run_is_executed(name, script, finished, tmp_path):
    names = {*imported_by(script, name, finished, tmp_path), *ALWAYS} - {"tests"}
    assert len(names) > 30
    run = copy_run(finished / "run", tmp_path / "run")
    set_traps(run, names)
    trapped = tmp_path / "trapped"
    done = command(script, name, finished, run, tmp_path / "new", TRAPPED=str(trapped))
    assert not trapped.exists(), trapped.read_text() + done.stderr
    assert done.returncode == CODES.get(name, 0), done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("name", ["inspect", "run"])
def test_nor_with_python_m_what_python_itself_does_not_import_before(name, script, finished, tmp_path):
    """What `-m` needs to find datarax, Python looks for in the working directory first; nothing of datarax can change that."""
    before = (
        "import runpy, sys, importlib.util, pkgutil, json\n"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    pythons = json.loads(
        subprocess.run([sys.executable, "-c", before], capture_output=True, text=True).stdout
    )
    names = {*imported_by(script, name, finished, tmp_path), "secrets"} - {*pythons, "tests", "datarax"}
    run = copy_run(finished / "run", tmp_path / "run")
    set_traps(run, names)
    trapped = tmp_path / "trapped"
    done = command(
        script, name, finished, run, tmp_path / "new", start=["-m", "datarax"], TRAPPED=str(trapped)
    )
    assert not trapped.exists(), trapped.read_text() + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("before", ["", "import google, orbax"])
def test_a_namespace_package_does_not_take_in_what_lies_here(before, tmp_path):
    for name in ("google", "orbax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "only_here.py").write_text(TRAP)
    code = (
        f"import importlib, sys; sys.path[0] = {ROOT!r}; {before}\n"
        "from datarax.cli.import_path import append_working_directory; append_working_directory()\n"
        "import google, orbax; importlib.invalidate_caches(); sys.path.append('/nowhere')\n"
        "import orbax.checkpoint\n"
        "for name in ('google', 'orbax'):\n"
        "    try: importlib.import_module(name + '.only_here')\n"
        "    except ModuleNotFoundError: pass\n"
    )
    trapped = tmp_path / "trapped"
    run_python("-c", code, directory=tmp_path, TRAPPED=str(trapped))
    assert not trapped.exists(), trapped.read_text()


@pytest.mark.parametrize("place", [*site.getsitepackages(), site.getusersitepackages()])
def test_packages_that_are_installed_for_a_user_or_a_system_are_installed(place, tmp_path, monkeypatch):
    (tmp_path / "nest_asyncio_of_nobody.py").write_text("HERE = True")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, HERE])
    monkeypatch.setattr(sys, "meta_path", [_InstalledFirst, *sys.meta_path])
    statement = "import nest_asyncio_of_nobody"
    with pytest.raises(ModuleNotFoundError):
        exec(compile(statement, f"{place}/package.py", "exec"), {"__name__": "package"})
    try:
        exec(compile(statement, f"{tmp_path}/mine.py", "exec"), {"__name__": "mine"})
    finally:
        assert sys.modules.pop("nest_asyncio_of_nobody").HERE


TASK = "from tests.support.tiny import TinyTask\nclass Mine(TinyTask): pass\n"


@pytest.mark.full
@pytest.mark.parametrize(
    ("start", "environment", "code"),
    [
        (None, {}, 0),
        (["-m", "datarax"], {}, 0),
        (["-P"], {}, 2),
        (["-P", "-m", "datarax"], {}, 2),
        (None, {"PYTHONSAFEPATH": "1"}, 2),
        (None, {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}."}, 0),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_the_users_own_code_may_lie_where_they_stand_unless_python_is_told_otherwise(
    start, environment, code, processes, script, finished, tmp_path
):
    (tmp_path / "my_own_task.py").write_text(TASK)
    words = ["run", str(finished / "config.toml"), "--set", f"run.directory={tmp_path}/run"]
    words += ["--set", "task.use=my_own_task:Mine", "--set", "run.steps=2"]
    if processes > 1:
        words += ["--processes", str(processes)]
    start = [*(start or []), *([] if start and "datarax" in start else [script])]
    done = subprocess.run(
        [sys.executable, *start, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == code, done.stderr


@pytest.mark.full
def test_a_task_that_is_installed_and_lies_here_too_is_refused(script, finished, tmp_path):
    installed, here = tmp_path / "installed", tmp_path / "here"
    for place in (installed, here):
        place.mkdir()
        (place / "my_own_task.py").write_text(TASK)
    words = ["run", str(finished / "config.toml"), "--set", f"run.directory={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, script, *words, "--set", "task.use=my_own_task:Mine"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{installed}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 2
    assert f"{installed}/my_own_task.py" in done.stderr
    assert f"{here}/my_own_task.py" in done.stderr
