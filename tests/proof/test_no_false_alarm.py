"""What cannot change a batch is never refused: neither by a restore that goes on, nor by `verify` afterwards."""

import contextlib
import importlib
import os
import shutil
import sys
import time
from unittest import mock

import jax
import pytest

from tests.proof.lab import NEWEST, Lab
from tests.support.runs import datarax, replaced


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab.made(tmp_path_factory.mktemp("lab"))


def accepted(lab, target, *overrides, steps=NEWEST + 1):
    """A copy of the run goes on under these overrides; then `verify` passes, with the stored configs and with these."""
    shutil.copytree(lab.run, target)
    sets = [f"run.directory={target}", f"run.steps={steps}", *overrides]
    words = [word for override in sets for word in ("--set", override)]
    code, said = lab.command("run", "config.toml", *words)
    assert code == 0, said
    assert f"continuing after step {NEWEST} of" in said
    for more in ((), words, ("--all",)):
        code, said = lab.command("verify", target, *more)
        assert code == 0, said


@pytest.mark.parametrize(
    "overrides",
    [
        ["loader.read_ahead=0"],
        ["loader.read_ahead=9", "loader.num_threads=3"],
        ["loader.byte_digest=false"],
        ["loader.num_epochs=7"],
        ["save.every_steps=1", "save.keep_latest=9", "save.every_seconds=7"],
        ["log.every_seconds=9"],
        ["source.max_open_files=1"],
        ["run.cpu_threads=1"],
    ],
    ids=lambda value: value[0],
)
@pytest.mark.few(2)
def test_settings_that_no_batch_depends_on(overrides, lab, tmp_path):
    accepted(lab, tmp_path / "run", *overrides)


def test_more_steps_and_more_epochs(lab, tmp_path):
    accepted(lab, tmp_path / "run", "loader.num_epochs=3", steps=50)


def test_a_budget_of_epochs_that_was_raised_after_its_end(lab, tmp_path):
    accepted(lab, tmp_path / "run", "loader.num_epochs=1", steps=500)
    code, said = lab.command(
        *("run", "config.toml", "--set", f"run.directory={tmp_path / 'run'}", "--set", "run.steps=500"),
        *("--set", "loader.num_epochs=2"),
    )
    assert code == 0, said
    code, said = lab.command("verify", tmp_path / "run", "--all")
    assert code == 0, said


@contextlib.contextmanager
def versions_as_of_another_year():
    with (
        mock.patch("importlib.metadata.version", return_value="99.0.0"),
        mock.patch("platform.python_version", return_value="3.99.0"),
    ):
        yield


def test_other_versions_of_python_and_libraries(lab, tmp_path):
    with versions_as_of_another_year():
        accepted(lab, tmp_path / "run")


def test_data_that_were_moved(lab, tmp_path):
    shutil.copytree(lab.path("data"), tmp_path / "elsewhere", copy_function=shutil.copyfile)
    accepted(lab, tmp_path / "run", f"source.files={tmp_path / 'elsewhere'}")


def test_data_that_were_touched(lab, tmp_path):
    times = {path: path.stat() for path in lab.path("data").iterdir()}
    for path in times:
        os.utime(path)
    try:
        accepted(lab, tmp_path / "run")
    finally:
        for path, stat in times.items():
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_run_that_was_moved(lab, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    accepted(lab, tmp_path / "far" / "away" / "run")


def test_a_config_in_another_order_with_other_comments(lab, tmp_path):
    tables = lab.path("config.toml").read_text().strip().split("\n\n")
    stages = [table for table in tables if table.startswith("[[transforms]]")]
    others = [table for table in tables if not table.startswith("[[transforms]]")]
    turned = []
    for table in others[::-1]:
        head, *keys = table.splitlines()
        turned.append("\n".join([head, *(f"{key}  # as it should be" for key in keys[::-1])]))
    text = "# A comment.\n\n" + "\n\n\n".join([*turned, *stages]) + "\n"
    with replaced(lab.path("config.toml"), text.encode()):
        accepted(lab, tmp_path / "run")


def test_code_with_other_comments_docstrings_and_layout(lab, tmp_path):
    text = lab.path("lab_recipes.py").read_text()
    for old, new in [
        ('"""Called by decode."""', '"""Called by decode, and nobody else."""  # at all'),
        ("    # A helper of a helper.\n", "\n\n    # See below.\n"),
        ('"""Bytes to numbers."""', ""),
        ('"""The user\'s own code."""', '"""Something\n\nelse.\n"""\n\n\n\n'),
        ("\n\n\n", "\n\n\n\n"),
    ]:
        assert old in text, old
        text = text.replace(old, new)
    with replaced(lab.path("lab_recipes.py"), text.encode()):
        accepted(lab, tmp_path / "run")


@pytest.mark.full
def test_another_number_of_processes(lab, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(lab.run, target)
    for processes, steps in ((2, NEWEST + 3), (1, NEWEST + 5)):
        sets = ["--set", f"run.directory={target}", "--set", f"run.steps={steps}"]
        done = datarax("run", "config.toml", *sets, "--processes", processes, directory=lab.directory)
        assert done.returncode == 0, done.stderr
    code, said = lab.command("verify", target, "--all")
    assert code == 0, said


def test_code_that_was_changed_on_purpose_leaves_the_steps_before_provable_by_their_keys(lab, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(lab.run, target)
    sets = ["--set", f"run.directory={target}", "--set", f"run.steps={NEWEST + 8}"]
    allowed = ["--set", 'resume.warn_changed=["train.pipeline"]']
    with lab.recipe("return x ^ 1", "return x ^ 2"):
        code, said = lab.command("run", "config.toml", *sets)
        assert code == 1, "a change is refused unless it is meant"
        code, said = lab.command("run", "config.toml", *sets, *allowed)
        assert code == 0, said
        code, said = lab.command("verify", target, "--all")
        assert code == 0, said
        assert "steps 0 to 4 computed, keys compared" in said
        assert f"steps {NEWEST} to {NEWEST + 4} replayed, keys and bytes compared" in said
        assert "made before a change on purpose (train.pipeline.transforms[0].helpers.fold)" in said
        code, said = lab.command("verify", target, "--all", "--fast")
        assert code == 0, said
    code, said = lab.command("verify", target, "--all")
    assert code == 1, "without the code of now the steps after the change cannot be what they were"
    assert "helpers.fold: was" in said


# Code that is the same, however it is imported, compiled and installed.


@contextlib.contextmanager
def replaced_in_package(lab, *changes):
    with contextlib.ExitStack() as undo:
        for name, old, new in changes:
            path = lab.path("labpkg") / name
            assert old in path.read_text(), old
            undo.enter_context(replaced(path, path.read_text().replace(old, new).encode()))
        yield


SAME_PACKAGE = {
    "comments": [("helpers.py", "    return x + by", "    # By how much.\n\n    return x + by  # why")],
    "a docstring": [("helpers.py", "def shift(x, by=1):\n", 'def shift(x, by=1):\n    """Moves."""\n')],
    "layout": [("deep/deeper.py", "x % 3 + OFFSET", "x%3 \\\n        + OFFSET")],
    "what is not reached": [
        ("helpers.py", "def unused(x):\n    return x", "def unused(x):\n    return x + 1")
    ],
    "another function": [("lazy.py", "def late", "def early(x):\n    return late(x)\n\n\ndef late")],
    "another constant": [("deep/deeper.py", "OFFSET = 4", "OTHER = 5\nOFFSET = 4")],
    "a constant that is spelled otherwise": [("deep/deeper.py", "OFFSET = 4", "OFFSET = 2 + 2")],
    "another import": [("deep/deeper.py", "OFFSET = 4", "import math\nOFFSET = 4")],
    "a function in another module": [
        ("helpers.py", "def halved(x):\n    return x // 2\n", "from labpkg.lazy import halved\n"),
        ("lazy.py", "def late", "def halved(x):\n    return x // 2\n\n\ndef late"),
    ],
}


@pytest.mark.parametrize("case", SAME_PACKAGE)
@pytest.mark.few(3)
def test_a_package_with_other_text_that_says_the_same(case, lab, tmp_path):
    with replaced_in_package(lab, *SAME_PACKAGE[case]):
        accepted(lab, tmp_path / "run")


class _Hook(importlib.abc.MetaPathFinder):
    """Compiles the user's modules from other text than that of their files."""

    def __init__(self, change):
        self.change = change

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in ("labpkg", "lab_recipes"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        change = self.change

        class Loader(importlib.machinery.SourceFileLoader):
            def source_to_code(self, data, path, **options):
                return compile(change(bytes(data).decode()), path, "exec", dont_inherit=True)

        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


@contextlib.contextmanager
def hooked(change):
    hook = _Hook(change)
    sys.meta_path.insert(0, hook)
    try:
        yield
    finally:
        sys.meta_path.remove(hook)


@contextlib.contextmanager
def written_long_ago(lab):
    """As files are that were there before the process started: those of the lab are younger."""
    with mock.patch("datarax.transforms.source._STARTED", time.time() + 1e6):
        yield


HOOKS = {
    "that instruments": lambda text: text.replace("return ", "counted = 1; return "),
    "that adds a line before all others": lambda text: "COUNTED = 0\n" + text,
    "that changes nothing": lambda text: text,
}


@pytest.mark.parametrize("case", HOOKS)
@pytest.mark.few(1)
def test_import_hooks(case, lab, tmp_path):
    with hooked(HOOKS[case]), written_long_ago(lab):
        accepted(lab, tmp_path / "run")


def test_pytests_rewriting_of_assertions(lab, tmp_path):
    asserting = [("helpers.py", "    return x + by", "    assert by\n    return x + by")]
    target = tmp_path / "run"
    with replaced_in_package(lab, *asserting):
        code, said = lab.command("run", "config.toml", "--set", f"run.directory={target}")
        assert code == 0, said
        for name in [each for each in sys.modules if each.split(".")[0] == "labpkg"]:
            del sys.modules[name]
        pytest.register_assert_rewrite("labpkg.helpers")
        with written_long_ago(lab):
            code, said = lab.command("verify", target, "--all")
            assert code == 0, said
            code, said = lab.command(
                "run", "config.toml", "--set", f"run.directory={target}", "--set", "run.steps=14"
            )
        assert code == 0, said


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.few(1)
def test_python_that_leaves_out_assertions_and_docstrings(level, lab, tmp_path, monkeypatch):
    target = tmp_path / "run"
    shutil.copytree(lab.run, target)
    monkeypatch.setenv("PYTHONOPTIMIZE", level)
    sets = ["--set", f"run.directory={target}", "--set", f"run.steps={NEWEST + 1}"]
    done = datarax("run", "config.toml", *sets, directory=lab.directory)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("PYTHONOPTIMIZE")
    code, said = lab.command("verify", target, "--all")
    assert code == 0, said


@pytest.mark.parametrize("place", ["site-packages", "dist-packages", "src"])
@pytest.mark.few(1)
def test_a_package_that_is_installed_as_a_copy_or_left_where_it_is(place, lab, tmp_path, monkeypatch):
    files = lab.path("labpkg") / "files"
    installed = tmp_path / "lib" / place
    shutil.copytree(lab.path("labpkg"), installed / "labpkg")
    aside = tmp_path / "aside"
    lab.path("labpkg").rename(aside)
    try:
        # The files of a stage are found where the config says, relative to where the command starts.
        shutil.copytree(aside / "files", files)
        monkeypatch.syspath_prepend(installed)
        accepted(lab, tmp_path / "run")
    finally:
        shutil.rmtree(lab.path("labpkg"))
        aside.rename(lab.path("labpkg"))


def test_files_of_a_stage_that_lie_elsewhere_and_were_touched(lab, tmp_path):
    shutil.copytree(lab.path("labpkg") / "files", tmp_path / "elsewhere")
    os.utime(lab.path("labpkg") / "files" / "words.txt")
    names = [str(tmp_path / "elsewhere" / name) for name in ("more/rules.txt", "words.txt")]
    accepted(lab, tmp_path / "run", f"transforms.4.depends_on_files={names}".replace("'", '"'))


def test_the_flag_of_threefry(lab, tmp_path):
    with jax.threefry_partitionable(False):
        accepted(lab, tmp_path / "run", "loader.num_threads=1", "loader.read_ahead=0")


def test_a_flag_of_threefry_of_all_threads(lab, tmp_path):
    jax.config.update("jax_threefry_partitionable", False)
    try:
        accepted(lab, tmp_path / "run")
    finally:
        jax.config.update("jax_threefry_partitionable", True)
