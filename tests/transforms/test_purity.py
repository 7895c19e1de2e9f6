"""Functions with a memory of their own are named, with the line and what shows it; others are not."""

import pytest

from datarax.transforms import Randomness, impurities, map_batch, map_records, random_map_records
from datarax.transforms.purity import function_impurities
from tests.transforms.test_identity_across_modules import package as package

IMPURE = {
    "np.random": ("import numpy as np\ndef f(x):\n    return x + np.random.rand()\n", 3, "np.random.rand"),
    "np.random.seed": (
        "import numpy as np\ndef f(x):\n    np.random.seed(0)\n    return x\n",
        3,
        "np.random.seed",
    ),
    "numpy.random": ("import numpy.random as r\ndef f(x):\n    return r.shuffle(x)\n", 3, "r.shuffle"),
    "random from numpy": (
        "from numpy import random\ndef f(x):\n    return random.randint(x)\n",
        3,
        "random.randint",
    ),
    "a function of numpy.random": (
        "from numpy.random import normal\ndef f(x):\n    return normal()\n",
        3,
        "normal",
    ),
    "random": ("import random\ndef f(x):\n    return random.random()\n", 3, "random.random"),
    "a function of random": ("from random import choice as c\ndef f(x):\n    return c(x)\n", 3, "c"),
    "an import within": ("def f(x):\n    import random\n    return random.gauss(0, 1)\n", 3, "random.gauss"),
    "an import from within": (
        "def f(x):\n    from numpy import random as r\n    return r.rand()\n",
        3,
        "r.rand",
    ),
    "without a call": (
        "import random\ndef f(x):\n    return list(map(random.expovariate, x))\n",
        3,
        "random.expovariate",
    ),
    "no seed": (
        "import numpy as np\ndef f(x):\n    return np.random.default_rng().random()\n",
        3,
        "without a seed",
    ),
    "the seed None": (
        "import numpy as np\ndef f(x):\n    return np.random.default_rng(None)\n",
        3,
        "without a seed",
    ),
    "a Random without a seed": (
        "import random\ndef f(x):\n    return random.Random().random()\n",
        3,
        "without a seed",
    ),
    "a sequence without": (
        "import numpy as np\ndef f(x):\n    return np.random.SeedSequence()\n",
        3,
        "without a seed",
    ),
    "a global": ("N = 0\ndef f(x):\n    global N\n    N += 1\n    return x + N\n", 4, "N"),
    "a global within": (
        "N = 0\ndef f(x):\n    def g():\n        global N\n        N = x\n    return g()\n",
        5,
        "N",
    ),
    "a nonlocal": (
        "def make():\n    n = 0\n    def f(x):\n        nonlocal n\n        n = n + x\n        return n\n"
        "    return f\nf = make()\n",
        *(5, "n"),
    ),
    "a lambda": ("import random\nf = lambda x: x + random.random()\n", 2, "random.random"),
    "a method": (
        "import random\nclass C:\n    def __call__(self, x):\n        return random.random()\nf = C()\n",
        4,
        "random.random",
    ),
    "a partial": (
        "import functools, random\ndef g(y, x):\n    return random.random()\nf = functools.partial(g, 1)\n",
        3,
        "random",
    ),
}
HELPED = {
    "a helper": "import random\ndef g(x):\n    return random.random()\ndef f(x):\n    return g(x)\n",
    "another module": "from .helpers import draw\ndef f(x):\n    return draw(x)\n",
    "a chain": "from . import helpers\ndef f(x):\n    return helpers.draw(x)\n",
    "a closure": "from .helpers import draw\ndef make(g):\n    return lambda x: g(x)\nf = make(draw)\n",
}
DRAWING = "import numpy as np\ndef draw(x):\n    return x + np.random.random()\n"


@pytest.mark.parametrize("case", IMPURE)
def test_a_memory_is_named_with_its_line(case, package):
    text, line, what = IMPURE[case]
    (sentence,) = impurities([map_records(package(text), name="it")])
    assert sentence.startswith("transform 'it': ")
    assert what in sentence
    assert sentence.endswith(f"recipes.py, line {line})")


@pytest.mark.parametrize("case", HELPED)
def test_a_memory_of_a_helper_is_named_by_the_helper(case, package):
    (sentence,) = impurities([map_records(package(HELPED[case], helpers=DRAWING), name="it")])
    assert ": draw draws" in sentence or ": g draws" in sentence


@pytest.mark.parametrize("settings", [{"impure": True}, {}])
def test_a_declared_one_is_not_named_and_a_version_does_not_declare_it(settings, package):
    fn = package(IMPURE["random"][0])
    assert len(impurities([map_records(fn, version=1, **settings)])) == (0 if settings else 1)


PURE = [
    "import numpy as np\ndef f(x):\n    return np.random.default_rng(x).random()\n",
    "import numpy as np\ndef f(x):\n    return np.random.Generator(np.random.Philox(key=x)).random()\n",
    "import numpy as np\ndef f(x):\n    return np.random.SeedSequence(x).spawn(2)\n",
    "import numpy as np\ndef f(x):\n    return np.random.RandomState(x).rand()\n",
    "import random\ndef f(x):\n    return random.Random(x).random()\n",
    "import random\ndef f(x, random):\n    return random.random()\n",
    "def f(x):\n    random = x\n    return random.random()\n",
    "def f(x):\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n    g()\n    return n\n",
    "N = 0\ndef f(x):\n    global N\n    return x + N\n",
    "N = 0\ndef f(x):\n    N = 1\n    return x + N\n",
    "import jax\ndef f(x):\n    return jax.random.bits(jax.random.key(x))\n",
    "import numpy as np\nRNG = np.random.rand(3)\ndef f(x, start=np.random.rand()):\n    return x + RNG + start\n",
]


@pytest.mark.parametrize("text", PURE)
def test_what_has_no_memory_is_not_named(text, package):
    fn = package(text)
    make = random_map_records if "(x, random)" in text else map_records
    assert impurities([make(fn, name="it")]) == []


def test_parameters_are_looked_at_too_and_what_is_no_function_is_left_out(package):
    draw = package(IMPURE["random"][0])

    def fn(rows, by, table):
        return by(rows)

    assert len(impurities([map_batch(fn, name="it", parameters={"by": draw, "table": [1]})])) == 1
    assert function_impurities([draw, len, 3, None], "pipeline 'x'")[0].startswith("pipeline 'x': f draws")


def test_randomness_of_the_row_is_no_memory():
    def fn(record, rng):
        return rng.random()

    kinds = (Randomness.GENERATOR, Randomness.SEED, Randomness.KEY)
    assert impurities([random_map_records(fn, name=str(kind), randomness=kind) for kind in kinds]) == []
