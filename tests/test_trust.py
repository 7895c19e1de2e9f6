"""A config names code of the user's: never the standard library's, and never one of two modules."""

import re
import sys

import pytest

from datarax.core.errors import ConfigError
from datarax.trust import call, load_attribute

MODULE = """
import contextlib, functools, numpy, operator, os, subprocess, json
from subprocess import run as imported

CALLED = []

def own(): CALLED.append(1)
class Own:
    def method(self): pass
    @staticmethod
    def static(): pass
def wrapped():
    return os.getcwd()
partial = functools.partial(own)
cached = functools.lru_cache(own)
data = [1, 2]
thing = Own()
bound = thing.method
hidden = functools.partial(functools.partial(os.system), "true")
@functools.wraps(json.loads)
def wrapping(text): return 1
@contextlib.contextmanager
def scope(): yield
@scope()
def decorated(text): return 2
draw = numpy.random.default_rng(0).normal
bytes_of = operator.attrgetter("nbytes")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "its_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "its_own"
    sys.modules.pop("its_own", None)


@pytest.mark.parametrize(
    "name",
    ["own", "Own", "Own.method", "Own.static", "wrapped", "partial", "cached", "data", "thing", "bound"],
)
def test_what_is_the_users_own_is_loaded(name, module):
    load_attribute(f"{module}:{name}", "task.use")


@pytest.mark.parametrize("use", [".a:b", ".:b", "a..b:c", "a.:b", ":b", "a:", "a:.b", "a:b.", "a", "", None])
def test_what_has_another_form_is_refused_before_anything_is_imported(use):
    with pytest.raises(ConfigError, match=re.escape(f"task.use must be 'module:attribute', got {use!r}")):
        load_attribute(use, "task.use")


@pytest.mark.parametrize("use", ["numpy:square", "jax.numpy:square", "jax.nn:relu", "grain:MapDataset.range"])
def test_what_is_of_an_installed_package_is_loaded(use):
    load_attribute(use, "task.use")


@pytest.mark.parametrize(
    "use", ["os:system", "builtins:eval", "subprocess:run", "os.path:join", "posix:system", "json:loads"]
)
def test_the_standard_library_is_refused_by_its_key(use):
    with pytest.raises(ConfigError, match=rf"^source\.use = '{re.escape(use)}' names the standard library"):
        load_attribute(use, "source.use")


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "imported", "subprocess.run", "subprocess.Popen", "hidden", "bytes_of", "json.loads"),
        *(
            "data.append",
            "os.environ.clear",
            "own.__globals__.clear",
            "__builtins__.get",
            "data.__class__.append",
            "data.__class__",
        ),
    ],
)
def test_the_standard_library_is_refused_wherever_it_is_reached(name, module):
    with pytest.raises(
        ConfigError, match=r"^source\.use = .* of the standard library, which a config may not"
    ):
        load_attribute(f"{module}:{name}", "source.use")


@pytest.fixture
def two_places(tmp_path, monkeypatch):
    """An installed package, and a working directory that is looked at last."""
    installed, here = tmp_path / "installed", tmp_path / "here"
    for place in (installed, here):
        place.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*(each for each in sys.path if each), str(installed), ""])
    before = set(sys.modules)
    yield installed, here
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_name_that_is_installed_and_lies_here_is_refused_with_both_places(two_places):
    for place in two_places:
        (place / "my_job_twice.py").write_text("raise AssertionError('imported')")
    with pytest.raises(ConfigError) as refused:
        load_attribute("my_job_twice:task", "task.use")
    for place in two_places:
        assert str(place / "my_job_twice.py") in str(refused.value)


def test_a_package_is_a_module_too_and_so_is_one_of_the_standard_library(two_places):
    installed, here = two_places
    (installed / "my_job_twice.py").write_text("")
    (here / "my_job_twice").mkdir()
    (here / "my_job_twice" / "__init__.py").write_text("raise AssertionError('imported')")
    (here / "profile.py").write_text("raise AssertionError('imported')")
    for name in ("my_job_twice", "my_job_twice.part", "profile"):
        with pytest.raises(ConfigError, match="the working directory holds") as refused:
            load_attribute(f"{name}:task", "task.use")
        assert f"{here / name.partition('.')[0]}" in str(refused.value)


def test_what_lies_in_one_of_both_is_loaded_also_twice(two_places):
    installed, here = two_places
    (installed / "my_job_there.py").write_text("task = 1")
    (here / "my_job_here.py").write_text("task = 2")
    (here / "my_job_there").mkdir()  # a directory of data hides nothing
    for _ in range(2):
        assert load_attribute("my_job_there:task", "task.use") == 1
        assert load_attribute("my_job_here:task", "task.use") == 2


def test_a_working_directory_that_is_not_looked_at_does_not_count(two_places, monkeypatch):
    for place in two_places:
        (place / "my_job_twice.py").write_text(f"task = {place.name!r}")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    assert load_attribute("my_job_twice:task", "task.use") == "installed"


def needs_a_name(*, name):
    return name


def test_a_function_that_cannot_be_called_like_this_is_refused_by_its_key():
    assert call(needs_a_name, {"name": 3}, "source.use = 'x:y'") == 3
    for parameters, wrong in (({}, "missing a required"), ({"name": 1, "other": 2}, "unexpected keyword")):
        with pytest.raises(ConfigError, match=rf"source\.use = 'x:y' cannot be called .*: .*{wrong}"):
            call(needs_a_name, parameters, "source.use = 'x:y'")


@pytest.mark.parametrize(
    "error", ["RuntimeError('no part')", "SystemExit(0)", "ImportError('pip install it')"]
)
def test_a_module_that_raises_when_it_is_asked_for_an_attribute_is_named_by_the_key(
    error, tmp_path, monkeypatch
):
    (tmp_path / "its_lazy.py").write_text(f"def __getattr__(name):\n    raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    kind = error.partition("(")[0]
    with pytest.raises(
        ConfigError, match=rf"task\.use = 'its_lazy:f': .* raised at the attribute 'f' {kind}"
    ):
        load_attribute("its_lazy:f", "task.use")
    del sys.modules["its_lazy"]


def test_the_tests_of_the_standard_library_belong_to_it():
    with pytest.raises(ConfigError, match="names the standard library"):
        load_attribute("test.support.os_helper:rmtree", "source.use")
