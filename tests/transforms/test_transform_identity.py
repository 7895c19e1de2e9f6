"""What makes two transforms the same, shown by changing one thing at a time."""

import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from datarax.core.errors import ConfigError
from datarax.core.tree import canonical_json, differences
from datarax.transforms import (
    map_batch,
    map_records,
    pipeline_identity,
    random_map_records,
    transform_identity,
)
from datarax.transforms import source as source_module

HERE = Path(__file__).parent

MODULE = '''
from __future__ import annotations
import functools
import math
import numpy as np
from os import path

SCALE = 3
TABLE = np.array([1.0, 2.0])
SETTINGS = {"deep": [1, {"er": "text"}]}
HANDLERS = {"first": lambda x: x}

def deepest(x):
    return x - 1

def helper(x, shift=5):
    return deepest(x) + SCALE + shift

def handled(x):
    return x * 2

HANDLERS["second"] = handled

class Base:
    def base(self, x):
        return x

class Scaler(Base):
    """Scales."""

    FACTOR = 2

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.base(x) * self.by

    def method(self, x):
        return x + self.by

SCALER = Scaler(by=6)

def doubled(times):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(x):
            return fn(x) * times
        return inner
    return wrap

@doubled(2)
def decorated(x):
    return helper(x)

def make(a, b):
    def inner(x):
        return x + a + b(x)
    return inner

made = make(4, lambda x: x + 1)
first, second = lambda x: x + 1, lambda x: x + 2
part = functools.partial(helper, shift=7)
method = SCALER.method

def unused(x):
    return x

def transform(x, scale=2.0, *, more=1):
    """Does it.

    At length.
    """
    # A comment.
    y = helper(x) * scale

    return f"{y!r:>{SCALE}} and {more}", TABLE, SETTINGS, HANDLERS, SCALER(x), math.sin(x), path.sep, sorted(x)
'''


@pytest.fixture
def load(tmp_path):
    """Imports a text as a module of its own, each time from another file and directory."""
    count = 0

    def load_text(text):
        nonlocal count
        count += 1
        file = tmp_path / f"directory_{count}" / f"module_{count}.py"
        file.parent.mkdir()
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        loaded.append(file.stem)
        spec.loader.exec_module(module)
        return module

    loaded = []
    yield load_text
    for name in loaded:
        del sys.modules[name]


def identity(fn, **options):
    return transform_identity(map_records(fn, **{"name": "it", **options}))


def changed_fields(load, attribute, old, new):
    assert MODULE.count(old) == 1, f"{old!r} must stand once in the sample"
    was = identity(getattr(load(MODULE), attribute))
    now = identity(getattr(load(MODULE.replace(old, new)), attribute))
    return [difference.path for difference in differences(was, now)]


CHANGES = [
    # attribute, old text, new text, the fields that say so
    ("transform", "helper(x) * scale", "helper(x) + scale", ["source_sha256"]),
    ("transform", "helper(x) * scale", "helper(x) * (scale)", ["source_sha256"]),
    ("transform", "!r:>{SCALE}} and", "!r:<{SCALE}} and", ["source_sha256"]),
    ("transform", "!r:>{SCALE}} and", "!r:>{SCALE}}  and", ["source_sha256"]),
    ("transform", "scale=2.0", "scale=2", ["defaults.scale", "source_sha256"]),
    ("transform", "scale=2.0, *, more", "scale=2.0, more", ["source_sha256"]),
    ("transform", "more=1", "more=True", ["defaults.more", "source_sha256"]),
    ("transform", "SCALE = 3", "SCALE = 4", ["helpers.helper", "names.SCALE"]),
    ("transform", "SCALE = 3", "SCALE = 3.0", ["helpers.helper", "names.SCALE"]),
    ("transform", "[1.0, 2.0]", "[1.0, 2.5]", ["names.TABLE.sha256"]),
    ("transform", "[1.0, 2.0]", "[1, 2]", ["names.TABLE.$array", "names.TABLE.sha256"]),
    ("transform", "[1.0, 2.0]", "[[1.0, 2.0]]", ["names.TABLE.shape[0]", "names.TABLE.shape[1]"]),
    ("transform", '"er": "text"', '"er": "test"', ["names.SETTINGS.deep[1].er"]),
    ("transform", "return x - 1", "return x - 2", ["helpers.deepest"]),
    ("transform", "shift=5", "shift=6", ["helpers.helper"]),
    ("transform", "deepest(x) + SCALE", "deepest(x) - SCALE", ["helpers.helper"]),
    ("transform", "return x * 2", "return x * 3", ["helpers.handled"]),
    ("transform", "lambda x: x}", "lambda x: -x}", ["helpers.<lambda>"]),
    ("transform", "by=6", "by=7", ["names.SCALER.state.by"]),
    ("transform", "FACTOR = 2", "FACTOR = 3", ["helpers.Scaler"]),
    ("transform", "self.base(x) * self.by", "self.base(x) / self.by", ["helpers.Scaler"]),
    (
        "transform",
        "def base(self, x):\n        return x",
        "def base(self, x):\n        return -x",
        ["helpers.Base"],
    ),
    ("transform", "import math", "import cmath as math", ["names.math.$import[0]"]),
    ("transform", "from os import path", "import posixpath as path", ["names.path.$import[0]"]),
    ("decorated", "@doubled(2)", "@doubled(3)", ["closure.times", "helpers.decorated"]),
    ("decorated", "fn(x) * times", "fn(x) + times", ["source_sha256"]),
    (
        "decorated",
        "def decorated(x):\n    return helper(x)",
        "def decorated(x):\n    return -helper(x)",
        ["helpers.decorated"],
    ),
    ("decorated", "return x - 1", "return x - 2", ["helpers.deepest"]),
    ("made", "make(4,", "make(5,", ["closure.a"]),
    ("made", "lambda x: x + 1)", "lambda x: x + 3)", ["helpers.<lambda>"]),
    ("made", "x + a + b(x)", "x - a + b(x)", ["source_sha256"]),
    ("first", "first, second = lambda x: x + 1", "first, second = lambda x: x + 9", ["source_sha256"]),
    ("second", "lambda x: x + 2", "lambda x: x + 9", ["source_sha256"]),
    ("part", "shift=7", "shift=8", ["bound[0].partial.keywords.shift"]),
    ("part", "return x - 1", "return x - 2", ["helpers.deepest"]),
    ("method", "by=6", "by=7", ["bound[0].method_of.state.by"]),
    ("method", "return x + self.by", "return x - self.by", ["helpers.Scaler", "source_sha256"]),
    ("SCALER", "by=6", "by=[6]", ["bound[0].object.by"]),
    ("SCALER", "FACTOR = 2", "FACTOR = 3", ["attributes.FACTOR", "source_sha256"]),
    ("SCALER", "self.base(x) * self.by", "self.base(x) / self.by", ["source_sha256"]),
    (
        "SCALER",
        "def base(self, x):\n        return x",
        "def base(self, x):\n        return -x",
        ["helpers.Base"],
    ),
]


@pytest.mark.parametrize(("attribute", "old", "new", "fields"), CHANGES)
def test_every_change_of_code_or_value_is_named(load, attribute, old, new, fields):
    found = changed_fields(load, attribute, old, new)

    assert sorted(found) == fields


WRAPPER_CLASS = """
import functools
class Wrap:
    def __init__(self, fn):
        functools.update_wrapper(self, fn)
        self.fn, self.by = fn, 2
    def __call__(self, x):
        return self.fn(x) * self.by + 3
@Wrap
def f(x):
    return x
def g(x):
    return f(x)
"""

DISPATCH = """
import functools
@functools.singledispatch
def f(x):
    return x
@f.register(list)
def _(x):
    return x * 2
def g(x):
    return f(x)
"""

# What stands behind a class, an attribute or a registration: name, text, attribute, old text, new text.
BEHIND = [
    ("class_of_a_wrapper", WRAPPER_CLASS, "f", "+ 3", "+ 4"),
    ("attribute_of_a_wrapper", WRAPPER_CLASS, "f", "fn, 2", "fn, 5"),
    ("function_in_a_wrapper", WRAPPER_CLASS, "f", "    return x\n", "    return -x\n"),
    ("class_of_a_wrapper_that_helps", WRAPPER_CLASS, "g", "+ 3", "+ 4"),
    ("attribute_of_a_wrapper_that_helps", WRAPPER_CLASS, "g", "fn, 2", "fn, 5"),
    ("float", "class R(float): pass\nr = R(0.5)\ndef f(x): return x * r\n", "f", "0.5", "0.7"),
    ("int", "class R(int): pass\nr = R(5)\ndef f(x): return x * r\n", "f", "5", "6"),
    ("text", "class R(str): pass\nr = R('a')\ndef f(x): return r\n", "f", "'a'", "'b'"),
    ("bytes", "class R(bytes): pass\nr = R(b'a')\ndef f(x): return r\n", "f", "b'a'", "b'b'"),
    (
        "method_of_a_number",
        "class R(float):\n  def go(self): return 2\nr = R(1)\ndef f(x): return r.go()\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "method_of_a_dict",
        "class D(dict):\n  def go(self): return 2\nd = D(a=1)\ndef f(x): return d.go()\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "content_of_a_dict",
        "class D(dict):\n  def go(self): return 2\nd = D(a=1)\ndef f(x): return d\n",
        *("f", "a=1", "a=4"),
    ),
    (
        "method_of_a_named_tuple",
        "import typing\nclass D(typing.NamedTuple):\n  a: int\n  def go(self): return 2\n"
        "d = D(1)\ndef f(x): return d.go()\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "attribute_of_a_tuple",
        "class T(tuple): pass\nt = T()\nt.by = 2\ndef f(x): return t.by\n",
        *("f", "by = 2", "by = 3"),
    ),
    (
        "default_factory",
        "import collections\ndef one(): return 1\nd = collections.defaultdict(one)\ndef f(x): return d[x]\n",
        *("f", "return 1", "return 2"),
    ),
    ("attribute_of_the_function", "def f(x): return x * f.by\nf.by = 2\n", "f", "by = 2", "by = 3"),
    (
        "attribute_of_a_helper",
        "def h(x): return x * h.by\nh.by = 2\ndef f(x): return h(x)\n",
        *("f", "by = 2", "by = 3"),
    ),
    ("attribute_set_on_a_class", "class C: pass\nC.by = 2\ndef f(x): return C.by\n", "f", "= 2", "= 3"),
    (
        "attribute_set_by_a_decorator",
        "def by(cls):\n  cls.by = HOW\n  return cls\nHOW = 2\n@by\nclass C: pass\ndef f(x): return C.by\n",
        *("f", "HOW = 2", "HOW = 3"),
    ),
    (
        "method_set_on_a_class",
        "class C:\n  def go(self): return 1\ndef g(self): return 2\nC.go = g\nc = C()\ndef f(x): return c.go()\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "method_of_an_enum",
        "import enum\nclass E(enum.Enum):\n  A = 1\n  def go(self): return 2\na = E.A\ndef f(x): return a.go()\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "mask",
        "import numpy as np\nm = np.ma.masked_array([1, 2], mask=[0, 1])\ndef f(x): return m\n",
        *("f", "[0, 1]", "[1, 0]"),
    ),
    (
        "fill_value",
        "import numpy as np\nm = np.ma.masked_array([1, 2], mask=[0, 1], fill_value=7)\ndef f(x): return m\n",
        *("f", "=7", "=8"),
    ),
    (
        "no_mask",
        "import numpy as np\nm = np.ma.array([1, 2])\ndef f(x): return m\n",
        *("f", "np.ma.array", "np.array"),
    ),
    (
        "matrix",
        "import numpy as np\nm = np.ones((1, 2)).view(np.matrix)\ndef f(x): return m\n",
        *("f", "np.matrix", "np.ndarray"),
    ),
    (
        "fill_value_of_rows",
        "import numpy as np\nm = np.ma.zeros(2, dtype=[('a', 'i4')])\nm.fill_value = (7,)\ndef f(x): return m\n",
        *("f", "(7,)", "(8,)"),
    ),
    (
        "array_without_attributes",
        "import numpy as np\nclass U(np.ndarray):\n  __slots__ = ()\n  def go(self): return 2\n"
        "m = np.ones(2).view(U)\ndef f(x): return m\n",
        *("f", "return 2", "return 3"),
    ),
    (
        "unit_of_an_array",
        "import numpy as np\nclass U(np.ndarray): pass\nm = np.arange(2).view(U)\nm.unit = 'm'\ndef f(x): return m\n",
        *("f", "'m'", "'km'"),
    ),
    (
        "class_of_an_array",
        "import numpy as np\nclass U(np.ndarray):\n  def go(self): return 2\nm = np.arange(2).view(U)\ndef f(x): return m\n",
        *("f", "return 2", "return 3"),
    ),
    ("registration", DISPATCH, "f", "x * 2", "x * 3"),
    ("registration_with_a_helper", DISPATCH, "g", "x * 2", "x * 3"),
]


@pytest.mark.parametrize(
    ("text", "attribute", "old", "new"), [e[1:] for e in BEHIND], ids=[e[0] for e in BEHIND]
)
def test_a_change_behind_a_class_an_attribute_or_a_registration_is_another_identity(
    load, text, attribute, old, new
):
    assert text.count(old) == 1
    was, now = (identity(getattr(load(each), attribute)) for each in (text, text.replace(old, new)))

    assert was != now


@pytest.mark.parametrize(("text", "attribute"), [e[1:3] for e in BEHIND], ids=[e[0] for e in BEHIND])
def test_unchanged_code_has_one_identity_when_it_is_imported_twice(load, text, attribute):
    assert identity(getattr(load(text), attribute)) == identity(getattr(load(text), attribute))


# What is data and no more has the tree that it always had.
AS_EVER = [
    ("import collections\nP = collections.namedtuple('P', 'a')\np = P(1)\ndef f(x): return p\n", [1]),
    ("import typing\nclass P(typing.NamedTuple):\n  a: int = 2\np = P(1)\ndef f(x): return p\n", [1]),
    ("class D(dict): pass\np = D(a=1)\ndef f(x): return p\n", {"a": 1}),
    (
        "import enum\nclass E(enum.Enum):\n  A = 1\np = E.A\ndef f(x): return p\n",
        {"$enum": "E.A", "value": 1},
    ),
    ("import collections\np = collections.OrderedDict(a=1)\ndef f(x): return p\n", {"a": 1}),
]


@pytest.mark.parametrize(("text", "tree"), AS_EVER)
def test_classes_that_add_nothing_to_their_data_do_not_count(load, text, tree):
    assert identity(load(text).f)["names"]["p"] == tree


def test_what_a_library_sets_on_a_function_or_registers_does_not_count(load):
    text = (
        "import functools\n@functools.lru_cache\ndef h(x): return x\n"
        "@functools.wraps(h)\ndef f(x): return h(x)\n"
    )
    assert "cache_parameters" in vars(load(text).f)
    assert identity(load(text).f)["attributes"] == {}


SAME = [
    ("    # A comment.\n", ""),
    ("    # A comment.\n", "    # Another.\n\n\n"),
    ("    y = helper(x) * scale\n", "    y = helper(x) * scale  # why   \n"),
    ("    y = helper(x) * scale\n", "    y = helper( x )*scale\n"),
    ("    y = helper(x) * scale\n", "    y = \\\n        helper(x) * \\\n  scale\n"),
    ('    """Does it.\n\n    At length.\n    """\n', ""),
    ('    """Does it.\n\n    At length.\n    """\n', "    'Other text.'\n"),
    ('    """Scales."""\n', '    """Scales.\n\n    More.\n    """\n'),
    ("    FACTOR = 2\n", '    FACTOR = 2\n    """A documented constant."""\n'),
    ("def unused(x):\n    return x\n", "def unused(x):\n    return x + 1\n"),
    ("def unused(x):\n    return x\n", ""),
    ("SCALE = 3\n", "SCALE = 1 + 2\n"),
    ("import math\n", "import math\nimport os.path\n"),
    ("\nSCALE = 3", "\n'''Front\nmatter.'''\n\nOTHER = 1\n\nSCALE = 3"),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_layout_comments_docstrings_other_code_and_the_place_of_the_file_do_not_count(load, old, new):
    assert MODULE.count(old) == 1
    assert identity(load(MODULE).transform) == identity(load(MODULE.replace(old, new)).transform)


def test_a_function_that_is_indented_elsewhere_otherwise_is_the_same(load):
    flat = "def make():\n  def f(x):\n    if x:\n      return 1\n    return 2\n  return f\nf = make()\n"
    deep = textwrap.indent(flat, "    ").replace("  ", "   ")
    assert identity(load(flat).f)["source_sha256"] == identity(load("if True:\n" + deep).f)["source_sha256"]


def test_blocks_count_although_white_space_does_not(load):
    inside = "def f(x):\n    if x:\n        x = 1\n        x = 2\n    return x\n"
    outside = "def f(x):\n    if x:\n        x = 1\n    x = 2\n    return x\n"
    assert identity(load(inside).f) != identity(load(outside).f)


@pytest.mark.parametrize("what", ["name", "level", "parameter", "kind", "nested", "array", "version"])
def test_each_field_of_the_transform_counts(what):
    def fn(rows, **parameters):
        return rows

    plain = {"name": "it", "parameters": {"a": 1, "b": {"c": [1.5]}, "d": np.zeros(3, np.int32)}}
    given = {
        "name": {**plain, "name": "other"},
        "level": plain,
        "parameter": {**plain, "parameters": {**plain["parameters"], "a": 2}},
        "kind": {**plain, "parameters": {**plain["parameters"], "a": True}},
        "nested": {**plain, "parameters": {**plain["parameters"], "b": {"c": [1.25]}}},
        "array": {**plain, "parameters": {**plain["parameters"], "d": np.zeros(3, np.int64)}},
        "version": {**plain, "version": 1},
    }[what]
    make = map_batch if what == "level" else map_records
    found = differences(transform_identity(map_records(fn, **plain)), transform_identity(make(fn, **given)))
    expected = {
        "parameter": "parameters.a",
        "kind": "parameters.a",
        "nested": "parameters.b.c[0]",
        "array": "parameters.d.$array",
    }
    assert expected.get(what, what) in [difference.path for difference in found]


def test_the_order_of_parameters_does_not_count():
    def fn(rows, a, b):
        return rows

    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert canonical_json(identity(fn, parameters=one)) == canonical_json(identity(fn, parameters=other))


def test_randomness_counts():
    def fn(rows, rng):
        return rows

    kinds = [
        transform_identity(random_map_records(fn, name="it", randomness=r))
        for r in ("seed", "key", "generator")
    ]
    assert len({each["randomness"] for each in kinds}) == 3


def test_a_long_value_is_recorded_by_its_digest():
    table = list(range(10_000))

    def fn(x):
        return table[x]

    was = identity(fn)
    assert len(canonical_json(was)) < 1000
    table[5000] = 0
    assert [difference.path for difference in differences(was, identity(fn))] == [
        "closure.table.$sha256",
        "closure.table.bytes",
    ]


@pytest.mark.parametrize(
    "fn", [len, np.asarray, "text".join, dict, functools.partial(len), json.loads, jax.vmap(lambda x: x)]
)
def test_what_cannot_be_read_is_refused_without_a_version_and_accepted_with_one(fn):
    with pytest.raises(ConfigError, match=r"'it' has no identity: .* version"):
        identity(fn)
    declared = identity(fn, version="2024-05")
    assert (declared["version"], declared["source_sha256"]) == ("2024-05", None)
    assert declared != identity(fn, version="2024-06")


def test_functions_made_by_exec_are_refused():
    made = {}
    exec("def fn(x): return x", made)
    with pytest.raises(ConfigError, match="typed in or made by exec"):
        identity(made["fn"])


def test_a_value_that_shows_no_content_is_refused_by_name():
    lock = __import__("threading").Lock()

    def fn(x):
        return lock and x

    with pytest.raises(
        ConfigError, match=r"'lock' in the closure of .*fn cannot be read, since a .*lock shows no"
    ):
        identity(fn)


def test_a_stream_of_random_numbers_is_refused_and_the_way_out_named():
    rng = np.random.default_rng(0)

    def fn(x):
        return x + rng.random()

    with pytest.raises(
        ConfigError, match=r"'rng' in the closure .* is a stream of random numbers.*random_map_records"
    ):
        identity(fn)
    with pytest.raises(ConfigError, match="parameter 'rng' is a stream"):
        identity(lambda x, rng: x, parameters={"rng": rng}, version=1)


def test_a_file_that_was_changed_after_its_import_is_refused(load):
    module = load(MODULE)
    Path(module.__file__).write_text("# one more line\n" + MODULE)
    with pytest.raises(ConfigError, match="changed after it was imported"):
        identity(module.transform)


def test_lambdas_that_cannot_be_told_apart_are_refused(load):
    # Constant bodies leave no trace of their place in Python 3.12.
    module = load("pair = [lambda x: 1, lambda x: 2]\nsame = [lambda x: 1, lambda x: 1]\n")
    try:
        assert identity(module.pair[0]) != identity(module.pair[1])
    except ConfigError as error:
        assert "2 lambdas that it could be; put each on its own line" in str(error)  # noqa: PT017
    assert identity(module.same[0]) == identity(module.same[1])


def test_lambdas_within_lambdas_and_constant_ones_are_told_apart(load):
    outer = load("f = lambda x: (lambda x: x)\n").f
    assert identity(outer)["source_sha256"] != identity(outer(1))["source_sha256"]
    assert identity(outer(1))["source_sha256"] == identity(load("f = lambda x: x\n").f)["source_sha256"]
    by_argument = load("pair = [lambda x: 1, lambda y: 2]\n").pair
    assert identity(by_argument[0]) != identity(by_argument[1])


def test_installing_the_user_s_package_changes_nothing(load, tmp_path, monkeypatch):
    was = identity(load(MODULE).transform)
    module = load(MODULE)
    installed = tmp_path / "site-packages" / f"{module.__name__}.py"
    installed.parent.mkdir()
    installed.write_text(MODULE)
    module.__file__ = str(installed)
    code = compile(MODULE, str(installed), "exec")
    exec(code, vars(module))
    assert identity(module.transform) == was
    assert identity(module.SCALER) == identity(load(MODULE).SCALER)


def test_what_a_library_holds_counts_by_name(load):
    text = (
        "import bisect, operator\ndef make(then):\n    def f(x):\n        return then(x, 1)\n    return f\n"
    )
    module = load(text + "f, g = make(operator.add), make(bisect.bisect)\n")
    assert identity(module.f)["closure"] == {"then": {"$function": "_operator:add"}}
    assert identity(module.f) != identity(module.g)


def test_a_library_decorator_counts_by_its_text_not_by_the_library_s_source(load):
    text = "import jax\n@jax.vmap\ndef f(x):\n    return x + 1\n"
    was = identity(load(text).f)
    assert was["bound"] == [{"wrapper": "jax"}]
    assert identity(load(text.replace("x + 1", "x + 2")).f) != was
    assert identity(load(text.replace("@jax.vmap", "@jax.vmap\n@jax.vmap")).f) != was


def test_a_jitted_function_is_read_through_the_wrapper(load):
    text = "import jax\ndef g(x):\n    return x + 1\nf = jax.jit(g)\n"
    assert identity(load(text).f) == identity(load(text).f)
    assert identity(load(text).f) != identity(load(text.replace("x + 1", "x + 2")).f)


def test_cycles_end(load):
    text = "def a(n):\n    return b(n)\ndef b(n):\n    return a(n) or LOOP\nLOOP = []\nLOOP.append(LOOP)\n"
    assert identity(load(text).a) == identity(load(text).a)
    assert identity(load(text).a) != identity(load(text.replace("or LOOP", "and LOOP")).a)


def test_an_identity_is_the_same_after_a_copy_of_the_transform():
    transform = map_records(_picklable, parameters={"by": np.arange(3)})
    assert transform_identity(pickle.loads(pickle.dumps(transform))) == transform_identity(transform)


def _picklable(x, by):
    return x * by


def test_a_pipeline_is_the_ordered_list_of_its_transforms():
    a, b = map_records(lambda x: x, name="a"), map_records(lambda x: x, name="b")
    assert pipeline_identity([a, b]) != pipeline_identity([b, a])
    with pytest.raises(ConfigError, match="second one with the name 'a'"):
        pipeline_identity([a, a])


GOLDEN = json.loads((HERE / "identity_sample.json").read_text(encoding="utf-8"))
CASES = [
    "plain",
    "strings",
    "branches",
    "decorated",
    "closure",
    "pair.0",
    "pair.1",
    "é",
    "nested",
    "nested.inner",
    "scaled.object",
    "recursive",
]


def _sample():
    spec = importlib.util.spec_from_file_location("identity_sample", HERE / "identity_sample.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["identity_sample"] = module
    spec.loader.exec_module(module)
    return module


def sample_functions():
    m = _sample()
    functions = [m.plain, m.strings, m.branches, m.decorated, m.closure, *m.pair, m.é, m.nested, m.nested(3)]
    return dict(zip(CASES, [*functions, m.Scaled(by=3.5), m.recursive], strict=True))


def test_identities_are_those_that_were_recorded_whatever_the_python_version():
    found = {case: identity(fn) for case, fn in sample_functions().items()}
    assert json.loads(canonical_json(found)) == GOLDEN


# source.py needs nothing but the standard library, so bare interpreters can be asked for what it says.
_ASK = """
import importlib.util, json, sys
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
source = load("source", sys.argv[1])
sys.modules["numpy"] = type(sys)("numpy")
sys.modules["numpy"].arange = lambda *a, **k: None
sys.modules["numpy"].float32 = None
m = load("identity_sample", sys.argv[2])
fns = [m.plain, m.strings, m.branches, m.decorated, m.closure, *m.pair, m.é, m.nested, m.nested(3), m.Scaled]
found = [source.source_of(fn) for fn in [*fns, m.recursive]]
print(json.dumps([[each.sha256, sorted(each.global_names())] for each in found]))
"""


def _interpreters():
    found = {}
    managed = Path.home() / ".pyenv" / "versions"
    bins = [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep)]
    for minor in range(11, 15):
        for python in [
            each / f"python3.{minor}" for each in [*sorted(managed.glob(f"3.{minor}.*/bin")), *bins]
        ]:
            if python.exists() and "shims" not in python.parts:
                found.setdefault(f"3.{minor}", str(python))
    return [sys.executable, *found.values()]


@pytest.mark.parametrize("python", _interpreters())
def test_source_digests_and_names_are_the_same_under_each_interpreter_at_hand(python):
    arguments = [python, "-X", "utf8", "-c", _ASK, source_module.__file__, str(HERE / "identity_sample.py")]
    result = subprocess.run(arguments, capture_output=True, text=True, encoding="utf-8", check=True)
    found = json.loads(result.stdout)
    assert [sha for sha, _ in found] == [GOLDEN[case]["source_sha256"] for case in CASES]
    builtins = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
    for case, (_, names) in zip(CASES, found, strict=True):
        expected = {*GOLDEN[case]["names"], *(GOLDEN[case]["closure"] if "inner" in case else ())}
        assert set(names) - builtins == expected
