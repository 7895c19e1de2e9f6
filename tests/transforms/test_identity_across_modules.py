"""The user's own code counts in whatever module it is and however it is imported or installed."""

import importlib
import itertools
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datarax.core.errors import ConfigError
from datarax.core.tree import differences
from datarax.transforms import map_records, source, transform_identity

HELPERS = '''
"""Of the user's own package."""
import collections
import numpy as np
from . import deeper

SCALE = 3
TABLE = np.arange(3)
Pair = collections.namedtuple("Pair", "a b")

def scale(x):
    return deeper.shift(x) * SCALE

class Base:
    by = 2
    def go(self, x):
        return x + self.by

def unused(x):
    return x
'''
DEEPER = "def shift(x):\n    return x - 1\n"

numbers = itertools.count()
real = source.source_file


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of one transform `f` and its helpers, under one name but each time another one."""
    made = []

    def make(recipes, helpers=HELPERS, deeper=DEEPER, place="", name="userspkg", **others):
        for module in [each for each in sys.modules if each.split(".")[0] in (name, *others)]:
            del sys.modules[module]
        root = tmp_path / f"place_{next(numbers)}" / place
        for folder, texts in {
            name: {"recipes": recipes, "helpers": helpers, "deeper": deeper},
            **others,
        }.items():
            (root / folder).mkdir(parents=True)
            for module, text in {"__init__": "", **texts}.items():
                (root / folder / f"{module}.py").write_text(text)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
        try:
            return importlib.import_module(f"{name}.recipes").f
        finally:
            sys.path.remove(str(root))
            made.extend([name, *others])

    yield make
    for module in [each for each in sys.modules if each.split(".")[0] in made]:
        del sys.modules[module]


def identity(fn, version=2, **settings):
    options = {key: settings.pop(key) for key in ("parameters",) if key in settings}
    return transform_identity(map_records(fn, name="it", **options), version=version, **settings)


REACHED = {
    "from_import": "from .helpers import scale\ndef f(x):\n    return scale(x)\n",
    "absolute": "from userspkg.helpers import scale\ndef f(x):\n    return scale(x)\n",
    "renamed": "from .helpers import scale as s\ndef f(x):\n    return s(x)\n",
    "module": "from . import helpers\ndef f(x):\n    return helpers.scale(x)\n",
    "module_renamed": "import userspkg.helpers as h\ndef f(x):\n    return h.scale(x)\n",
    "dotted": "import userspkg.helpers\ndef f(x):\n    return userspkg.helpers.scale(x)\n",
    "twice": "import userspkg\nfrom . import helpers\ndef f(x):\n    return userspkg.helpers.scale(x)\n",
    "inside": "def f(x):\n    from .helpers import scale\n    return scale(x)\n",
    "inside_module": "def f(x):\n    from . import helpers\n    return helpers.scale(x)\n",
    "inside_dotted": "def f(x):\n    import userspkg.helpers\n    return userspkg.helpers.scale(x)\n",
    "inside_renamed": "def f(x):\n    import userspkg.helpers as h\n    return h.scale(x)\n",
    "in_a_lambda": "from .helpers import scale\nf = lambda x: scale(x)\n",
    "in_a_default": "from .helpers import scale\ndef f(x, by=scale):\n    return by(x)\n",
    "in_a_partial": "import functools\nfrom .helpers import scale\ndef g(by, x):\n    return by(x)\n"
    "f = functools.partial(g, scale)\n",
    "in_a_closure": "from .helpers import scale\ndef make(by):\n    return lambda x: by(x)\nf = make(scale)\n",
    "in_a_table": "from . import helpers\nTABLE = {'a': helpers.scale}\ndef f(x):\n    return TABLE['a'](x)\n",
    "in_a_method": "from . import helpers\nclass C:\n    def __call__(self, x):\n        return helpers.scale(x)\nf = C()\n",
    "tried": "try:\n    from .helpers import scale\nexcept ImportError:\n    scale = None\n"
    "def f(x):\n    return scale(x)\n",
    "as_a_whole": "from . import helpers, deeper\ndef f(x):\n    return deeper.shift(getattr(helpers, 'scale')(x))\n",
}
CHANGES = {
    "the helper": ("deeper.shift(x) * SCALE", "deeper.shift(x) / SCALE", "helpers"),
    "its constant": ("SCALE = 3", "SCALE = 4", "helpers"),
    "its own helper": ("x - 1", "x - 2", "deeper"),
}


def changed(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", REACHED)
def test_a_change_of_a_helper_in_another_module_is_seen_however_it_is_imported(how, change, package):
    old, new, where = CHANGES[change]
    was = identity(package(REACHED[how]))
    texts = {"helpers": HELPERS, "deeper": DEEPER}
    now = identity(package(REACHED[how], **{where: changed(texts[where], old, new)}))
    assert differences(was, now)
    assert identity(package(REACHED[how])) == was


OTHERS = [
    # text, old, new: bases, data and classes of another module
    (
        "from . import helpers\nclass C(helpers.Base):\n    pass\nc = C()\ndef f(x):\n    return c.go(x)\n",
        "by = 2",
        "by = 3",
    ),
    ("from .helpers import Base\ndef f(x):\n    return Base().go(x)\n", "x + self.by", "x - self.by"),
    ("from .helpers import SCALE\ndef f(x):\n    return x * SCALE\n", "SCALE = 3", "SCALE = 4"),
    ("from .helpers import TABLE\ndef f(x):\n    return TABLE[x]\n", "np.arange(3)", "np.arange(4)"),
    ("from . import helpers as h\ndef f(x):\n    return h.TABLE[x]\n", "np.arange(3)", "np.arange(4)"),
    ("from .helpers import Pair\ndef f(x):\n    return Pair(*x)\n", '"a b"', '"b a"'),
]


@pytest.mark.parametrize(("text", "old", "new"), OTHERS)
def test_bases_classes_and_data_of_another_module_count(text, old, new, package):
    was = identity(package(text))
    assert identity(package(text, helpers=changed(HELPERS, old, new))) != was
    assert identity(package(text)) == was


@pytest.mark.parametrize("how", ["from_import", "module", "inside"])
def test_what_is_not_reached_does_not_count(how, package):
    was = identity(package(REACHED[how]))
    for old, new in (
        ("def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("by = 2", "by = 3"),
        ('"""Of the user\'s own package."""', ""),
    ):
        assert identity(package(REACHED[how], helpers=changed(HELPERS, old, new))) == was


def test_version_1_does_not_see_through_an_import(package):
    was = identity(package(REACHED["from_import"]), version=1)
    assert was["names"] == {"scale": {"$import": ["from .helpers import scale"]}}
    assert was["helpers"] == {}
    other = changed(HELPERS, "SCALE = 3", "SCALE = 4")
    assert identity(package(REACHED["from_import"], helpers=other), version=1) == was


def test_both_versions_say_the_same_of_what_needs_no_import(package):
    text = "import numpy as np\ndef g(x):\n    return np.abs(x)\ndef f(x):\n    return g(x) + 1\n"
    fn = package(text)
    assert identity(fn, version=1) == identity(fn, version=2)


def test_where_a_package_is_installed_does_not_change_the_identity_of_its_own_transforms(package):
    here = identity(package(REACHED["from_import"]))
    assert identity(package(REACHED["from_import"], place="lib/python3/site-packages")) == here
    assert identity(package(REACHED["from_import"], place="dist-packages")) == here


def test_a_package_in_an_archive_is_read_as_any_other(package, tmp_path):
    here = identity(package(REACHED["from_import"]))
    archive = tmp_path / "wheel.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for module, text in {
            "__init__": "",
            "recipes": REACHED["from_import"],
            "helpers": HELPERS,
            "deeper": DEEPER,
        }.items():
            file.writestr(f"userspkg/{module}.py", text)
    for module in [each for each in sys.modules if each.split(".")[0] == "userspkg"]:
        del sys.modules[module]
    sys.path.insert(0, str(archive))
    try:
        assert identity(importlib.import_module("userspkg.recipes").f) == here
    finally:
        sys.path.remove(str(archive))


OTHER = "from otherpkg.tools import scale\ndef f(x):\n    return scale(x)\n"
TOOLS = "def scale(x):\n    return x * 2\n"


def test_another_package_counts_by_its_text_where_it_is_no_copy_and_by_its_name_where_it_is(package):
    def of(text, place, **settings):
        return identity(package(OTHER, otherpkg={"tools": text}, place=place), **settings)

    more = TOOLS.replace("2", "3")
    assert of(TOOLS, "src") != of(more, "src")
    assert of(TOOLS, "site-packages") == of(more, "site-packages")
    assert of(TOOLS, "site-packages")["names"] == {"scale": {"$import": ["from otherpkg.tools import scale"]}}
    named = {"packages": ["otherpkg"]}
    assert of(TOOLS, "site-packages", **named) != of(more, "site-packages", **named)
    assert of(TOOLS, "site-packages", **named) == of(TOOLS, "src")


def test_datarax_counts_by_name_although_it_may_be_an_editable_copy(package):
    text = "from datarax.transforms import random_uniform\ndef f(x):\n    return random_uniform(x)\n"
    tree = identity(package(text))
    assert tree["names"] == {"random_uniform": {"$import": ["from datarax.transforms import random_uniform"]}}
    assert tree["helpers"] == {}


def test_a_module_that_only_the_function_imports_and_that_is_absent_is_left_to_the_function(package):
    text = "def f(x):\n    try:\n        from .absent import g\n    except ImportError:\n        g = abs\n    return g(x)\n"
    assert identity(package(text))["helpers"] == {}


@pytest.mark.parametrize("made", ["np.frompyfunc(lambda a: a, 1, 1)", "np.vectorize(len)"])
def test_functions_in_c_that_hold_one_of_the_users_are_refused_or_read(made, package):
    text = f"import numpy as np\ng = {made}\ndef f(x):\n    return g(x)\n"
    if "frompyfunc" in made:
        with pytest.raises(
            ConfigError, match=r"'g' that f uses, .* is not written in Python. Give the transform a version"
        ):
            identity(package(text))
    else:
        assert identity(package(text))["names"]["g"]["$object"] == "numpy:vectorize"


# What runs is what is named.


def edit(fn, old, new):
    path = Path(fn.__code__.co_filename)
    path.write_text(changed(path.read_text(), old, new))


PLAIN = "def g(x):\n    return x + 1\n\n\ndef f(x):\n    return g(x)\n"


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("old", "new"), [("x + 1", "x + 2"), ("x + 1", "x - 1"), ("return g(x)", "return -g(x)")]
)
def test_a_function_whose_file_was_edited_since_is_refused_with_the_way_out(old, new, version, package):
    fn = package(PLAIN)
    identity(fn, version=version)
    edit(fn, old, new)
    with pytest.raises(
        ConfigError, match=r"[gf] of .*recipes.py was changed after it was imported.*; start again"
    ):
        identity(fn, version=version)


def test_an_edited_helper_module_is_refused_too(package):
    fn = package(REACHED["module"])
    edit(sys.modules["userspkg.helpers"].scale, "* SCALE", "/ SCALE")
    with pytest.raises(ConfigError, match=r"scale of .*helpers.py was changed"):
        identity(fn)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return x + self.by", "return x - self.by"),
        ("    by = 2\n", "    by = 2\n    def more(self):\n        return 1\n"),
    ],
)
def test_an_edited_class_is_refused(old, new, package):
    fn = package("from .helpers import Base\ndef f(x):\n    return Base().go(x)\n")
    edit(sys.modules["userspkg.helpers"].Base.go, old, new)
    with pytest.raises(ConfigError, match=r"Base(.go)? of .*helpers.py was changed"):
        identity(fn)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def g(x):", "# A comment.\n\n\ndef g(x):"),
        ("return x + 1", "return (x + 1)  # why"),
        ("x + 1\n", "x + 1\n\n\nOTHER = 3\n"),
    ],
)
def test_an_edit_that_changes_no_code_is_none(old, new, package):
    fn = package(PLAIN)
    was = identity(fn)
    edit(fn, old, new)
    now = identity(fn)
    assert {**now, "helpers": None} == {**was, "helpers": None}


HOOK = """
import importlib.abc, importlib.machinery, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if not name.startswith("userspkg."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec
class Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data, path, **options):
        text = data.decode().replace("return ", "return 0 + ")
        return compile("COUNT = 0\\n" + text if sys.argv[3] == "moved" else text, path, "exec", dont_inherit=True)
if sys.argv[2] == "hook":
    sys.meta_path.insert(0, Finder())
sys.path.insert(0, sys.argv[1])
import json
from datarax.transforms import map_records, source, transform_identity
from userspkg.recipes import f
print(json.dumps(transform_identity(map_records(f, name="it"), version=2), sort_keys=True))
"""


@pytest.fixture(scope="module")
def asked_elsewhere(tmp_path_factory):
    root = tmp_path_factory.mktemp("hooked")
    (root / "userspkg").mkdir()
    for module, text in {
        "__init__": "",
        "recipes": REACHED["module"],
        "helpers": HELPERS,
        "deeper": DEEPER,
    }.items():
        (root / "userspkg" / f"{module}.py").write_text(text)

    def ask(*flags, hook="none", moved="-"):
        command = [sys.executable, "-B", *flags, "-c", HOOK, str(root), hook, moved]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return ask, ask()


@pytest.mark.parametrize(
    ("flags", "hook", "moved"),
    [(("-O",), "none", "-"), (("-OO",), "none", "-"), ((), "hook", "-"), ((), "hook", "moved")],
    ids=["-O", "-OO", "hook", "hook that moves lines"],
)
@pytest.mark.few(1)
def test_code_that_differs_from_its_text_for_another_reason_counts_by_its_text(
    flags, hook, moved, asked_elsewhere
):
    ask, plain = asked_elsewhere
    assert ask(*flags, hook=hook, moved=moved) == plain


def test_pytests_rewriting_of_assertions_does_not_count(package):
    def stage(x):
        assert x is not None
        return x

    text = "def make():\n    def stage(x):\n        assert x is not None\n        return x\n    return stage\nf = make()\n"
    assert identity(stage)["source_sha256"] == identity(package(text))["source_sha256"]


def test_arrays_of_another_module_count_by_value(package):
    fn = package(REACHED["from_import"], helpers=HELPERS.replace("SCALE = 3", "SCALE = np.float32(3)"))
    assert identity(fn) != identity(package(REACHED["from_import"]))
    assert np.float32(3) == sys.modules["userspkg.helpers"].SCALE


@pytest.mark.parametrize("name", ["np.sum", "jax.numpy.sum", "jax.nn.relu"])
def test_a_library_s_wrapped_function_counts_by_name_and_is_not_read(name, package, monkeypatch):
    read = []
    monkeypatch.setattr(
        "datarax.transforms.source.source_file", lambda file, *more: read.append(file) or real(file, *more)
    )
    text = f"import jax\nimport numpy as np\nTABLE = {{'by': {name}}}\ndef f(x):\n    return TABLE['by'](x)\n"
    fn = package(text)
    assert identity(fn)["helpers"] == {}
    assert {Path(file).name for file in read} == {"recipes.py"}
