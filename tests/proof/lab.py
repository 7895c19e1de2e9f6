"""A small finished run whose every part can be changed, one at a time: what a restore and `verify` say to it.

The run trains a model over a dataset with a manifest, through transforms with a helper, a closure, defaults, parameters, a
class and a constant. A change is made in place and taken back; the restore is a real `datarax run` that is to go on, in a copy.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import linecache
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from datarax.checkpoint.layout import sha256_hex
from datarax.checkpoint.manifest import FileEntry, Manifest
from datarax.cli.main import main
from datarax.core.tree import canonical_json
from tests.support.runs import replaced

NEWEST = 12

_CONFIG = """
[run]
directory = "run"
steps = 12
cpu_threads = 2

[task]
use = "tests.support.tiny:task"

[source]
kind = "array_record"
name = "text"
files = "data"

[source.build]
kind = "text"
inputs = ["text.txt"]
record_bytes = 32
num_shards = 3

[loader]
batch_size = 16
seed = 5
byte_digest = true

[[transforms]]
use = "lab_recipes:decode"
level = "batch"
parameters = { offset = 1 }

[[transforms]]
use = "lab_recipes:stretch"

[[transforms]]
use = "lab_recipes:noise"
level = "batch"
randomness = "seed"

[[transforms]]
use = "lab_recipes:declared"

[[transforms]]
use = "labpkg.stages:mix"
level = "batch"
depends_on_files = ["labpkg/files/words.txt", "labpkg/files/more/rules.txt"]

[[transforms]]
use = "labpkg.stages:keyed"
level = "batch"
randomness = "key"

[save]
every_steps = 4
keep_latest = 2
"""

RECIPES = '''
"""The user's own code."""

import numpy as np

from datarax.transforms import map_batch

SCALE = 2


class Shift:
    """Adds what it was told."""

    by = 3

    def __call__(self, x):
        return x + self.by


def fold(x):
    # A helper of a helper.
    return x ^ 1


def helper(x):
    """Called by decode."""
    return fold(x) * SCALE


def decode(records, offset, shift=Shift(), extra=0):
    """Bytes to numbers."""
    x = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
    return {"x": shift(helper(x.astype(np.int32))) + offset + extra}


def stretching(width):
    def inside(batch):
        return {"x": np.repeat(batch["x"], width, axis=1)}

    return inside


stretch = map_batch(stretching(2), name="stretch")


def noise(batch, seeds, scale=1.0):
    return {"x": batch["x"], "noise": scale * (seeds >> np.uint64(40)).astype(np.float32) / 2**24}


def promised(batch):
    return {**batch, "noise": batch["noise"] + 0}


declared = map_batch(promised, name="declared", version=1)
'''

PACKAGE = {
    "__init__.py": "",
    "stages.py": '''
"""Stages whose helpers are in other modules of their package."""

import functools

import jax
import numpy as np

import labpkg.tables
from labpkg import helpers
from labpkg import shapes as s
from labpkg.helpers import LIMITS, Affine, halved, traced

from .deep.inner import Pair
from .tables import *


def mix(batch, last=halved):
    from labpkg.lazy import late

    x = helpers.shift(batch["x"])
    x = labpkg.tables.looked_up(x) + s.deeper.by(x)
    x = late(Affine().apply(x)) + sum(Pair(1, 2)._asdict()[each] for each in ("a",))
    x = table_of(x) + np.clip(x, *LIMITS)
    for name in ("first", "second"):
        x = getattr(chosen(), name)(x)
    return {**batch, "x": last(partial(folded(x))).astype(np.int32) + words()}


def words():
    from pathlib import Path

    files = Path(__file__).parent / "files"
    return len((files / "words.txt").read_text()) + len((files / "more" / "rules.txt").read_text())


def chosen():
    from . import registry

    return registry


partial = functools.partial(helpers.scaled, helpers.SCALE)


@traced(3)
def folded(x):
    return x ^ 5


def keyed(batch, keys):
    from labpkg.shapes import width

    return {**batch, "drawn": np.asarray(jax.vmap(lambda key: jax.random.bits(key, (width(),)))(keys))}
''',
    "helpers.py": """
import functools

from labpkg.deep.inner import Base

SCALE = 2
LIMITS = (0, 200)


def shift(x, by=1):
    return x + by


def halved(x):
    return x // 2


def scaled(by, x=None):
    return x * by if x is not None else by * SCALE


def traced(times):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(x):
            return fn(x) * times

        return inner

    return wrap


class Affine(Base):
    factor = 3

    def apply(self, x):
        return self.moved(x) * self.factor


def unused(x):
    return x
""",
    "tables.py": """
import numpy as np

TABLE = np.arange(256, dtype=np.int64) % 7


def looked_up(x):
    return TABLE[np.asarray(x) % 256]


def table_of(x):
    return TABLE[3] + x
""",
    "lazy.py": "def late(x):\n    return x + 11\n",
    "registry.py": "def first(x):\n    return x + 1\n\n\ndef second(x):\n    return x * 2\n",
    "shapes.py": "from labpkg.deep import deeper\n\n\ndef width():\n    return 2\n",
    "deep/__init__.py": "",
    "deep/deeper.py": "OFFSET = 4\n\n\ndef by(x):\n    return x % 3 + OFFSET\n",
    "deep/inner.py": """
import collections

Pair = collections.namedtuple("Pair", "a b")


class Base:
    by = 7

    def moved(self, x):
        return x + self.by
""",
    "files/words.txt": "one two three\n",
    "files/more/rules.txt": "o n\n",
}
"""A package of the user's own, by file; the stages `mix` and `keyed` reach all of it but `unused`."""


@dataclass(frozen=True)
class Mutation:
    """One change to one part."""

    group: str
    """What kind of part is changed."""
    name: str
    """Which part, and how."""
    apply: Callable[["Lab"], AbstractContextManager]
    """Makes the change while its context lasts."""
    named: str
    """What both a restore that refuses it and `verify` must say."""
    by_restore: bool
    """Whether a restore must refuse it; `verify` must always."""
    steps: int = NEWEST
    """Steps of the run that the restore continues."""
    verify_exits: int = 1
    """With which code `verify` ends; 2 where nothing can be replayed."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation."""

    restore: bool
    """Whether a restore refused it and named it."""
    verify: bool
    """Whether `verify` found it and named it."""
    said: str
    """What both said."""


@dataclass(frozen=True)
class Lab:
    """The run with all that it was made from, in one directory."""

    directory: Path

    @staticmethod
    def made(directory):
        """Runs it to its end."""
        lab = Lab(directory)
        (directory / "text.txt").write_text("".join(f"{i:5d} {chr(97 + i % 26) * 25}\n" for i in range(300)))
        (directory / "config.toml").write_text(_CONFIG)
        (directory / "lab_recipes.py").write_text(RECIPES)
        for name, text in PACKAGE.items():
            (directory / "labpkg" / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / "labpkg" / name).write_text(text)
        code, said = lab.command("run", "config.toml")
        assert code == 0, said
        return lab

    @property
    def run(self):
        return self.directory / "run"

    def path(self, relative):
        return self.directory / relative

    def command(self, *arguments):
        """Exit code, and all that was printed, of a command that imports the user's code anew."""
        said = io.StringIO()
        for name in [each for each in sys.modules if each.split(".")[0] in ("lab_recipes", "labpkg")]:
            del sys.modules[name]
        linecache.clearcache()
        importlib.invalidate_caches()
        with (
            contextlib.chdir(self.directory),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            _no_bytecode(),
        ):
            code = main([*map(str, arguments)])
        return code, said.getvalue()

    def restore(self):
        """What a run that is to go on says, in a copy of the run directory."""
        copy = self.directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.run, copy)
        try:
            return self.command(
                "run", "config.toml", "--set", f"run.directory={copy}", "--set", f"run.steps={NEWEST + 1}"
            )
        finally:
            shutil.rmtree(copy)

    def verify(self, *arguments):
        return self.command("verify", self.run, *arguments)

    def judge(self, mutation):
        """Makes the change, asks both, takes it back."""
        with self._times_kept(), mutation.apply(self):
            restored, said_by_restore = self.restore()
            verified, said_by_verify = self.verify()
        said = f"restore exits {restored}:\n{said_by_restore}\nverify exits {verified}:\n{said_by_verify}"
        return Verdict(
            restored in (1, 2, 74) and mutation.named in said_by_restore,
            verified == mutation.verify_exits and mutation.named in said_by_verify,
            said,
        )

    @contextlib.contextmanager
    def _times_kept(self):
        """Taking a change back must not look like a change to the next start."""
        stats = {path: path.stat() for path in self.path("data").iterdir()}
        yield
        for path, stat in stats.items():
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    # Ways to change a part.

    @contextlib.contextmanager
    def resealed(self, changed_files):
        """Files of the newest data item with other content, and a manifest that lists them as they are: no checksum is wrong.

        Args:
            changed_files: name in the data item -> its new bytes.
        """
        step = self.run / str(NEWEST)
        manifest = Manifest.from_bytes((step / "manifest.json").read_bytes())
        items = {name: dict(files) for name, files in manifest.items.items()}
        with contextlib.ExitStack() as undo:
            for name, content in changed_files.items():
                undo.enter_context(replaced(step / "data" / name, content))
                items["data"][name] = FileEntry(len(content), sha256_hex(content))
            sealed = dataclasses.replace(manifest, items=items).to_bytes()
            undo.enter_context(replaced(step / "manifest.json", sealed))
            yield

    def record(self):
        return json.loads((self.run / str(NEWEST) / "data" / "record.json").read_bytes())

    @contextlib.contextmanager
    def identity(self, change):
        """Another identity tree, stored under its own digest and named by the newest record."""
        record = self.record()
        tree = json.loads((self.run / "identity" / f"{record['identity']}.json").read_bytes())
        change(tree)
        content = canonical_json(tree)
        other = sha256_hex(content)
        path = self.run / "identity" / f"{other}.json"
        path.write_bytes(content)
        record["identity"] = other
        record["history"][-1]["identity"] = other
        try:
            with self.resealed({"record.json": canonical_json(record)}):
                yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def recipe(self, old, new):
        """The user's code with other text."""
        assert RECIPES.count(old) == 1, old
        with replaced(self.path("lab_recipes.py"), RECIPES.replace(old, new).encode()):
            yield

    @contextlib.contextmanager
    def package(self, name, old, new):
        """A file of the user's package with other text."""
        assert PACKAGE[name].count(old) == 1, old
        with replaced(self.path("labpkg") / name, PACKAGE[name].replace(old, new).encode()):
            yield

    @contextlib.contextmanager
    def config(self, old, new):
        """The config of the restore, and of `verify`, with other text."""
        assert _CONFIG.count(old) == 1, old
        with replaced(self.path("config.toml"), _CONFIG.replace(old, new).encode()):
            yield


@contextlib.contextmanager
def _no_bytecode():
    """Two versions of a file written within a second have one time stamp; cached bytecode would hide the second."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
