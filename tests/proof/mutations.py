"""Every single thing that can be changed in a run, its data and its code, one at a time. See `lab.py`."""

import base64
import contextlib
import functools
import json
import os
from unittest import mock

import jax
import numpy as np

from datarax.core.tree import canonical_json
from tests.cli.test_corruption import rewrite
from tests.proof.lab import NEWEST, Mutation
from tests.support.runs import flipped, replaced


def all_mutations(lab):
    """Every mutation of this run; which fields and files there are is read from the run itself."""
    return [
        *_identity(lab),
        *_state(lab),
        *_record(lab),
        *_steps(lab),
        *_snapshot_files(lab),
        *_run_files(lab),
        *_data(lab),
        *_transforms(),
        *_package(),
        *_side_files(),
        *_edited(),
        *_flags(),
        *_memories(),
        *_algorithms(),
    ]


# Trees.


def _leaves(tree, path=()):
    """Every leaf of a JSON tree with its keys; an empty container is a leaf."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and tree:
        for i, value in enumerate(tree):
            yield from _leaves(value, (*path, i))
    else:
        yield path, tree


def _other(value):
    """Another value, as near as possible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 2 + 1
    if isinstance(value, str):
        last = "0" if value[-1:] != "0" else "1"
        return value[:-1] + last
    return {None: 7}.get(value, "changed") if not isinstance(value, (dict, list)) else "changed"


def _set(tree, path, value):
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def _dotted(path):
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


# What is in a snapshot, with all checksums right.


def _identity(lab):
    digest = lab.record()["identity"]
    tree = json.loads((lab.run / "identity" / f"{digest}.json").read_bytes())
    for path, value in _leaves(tree):
        change = functools.partial(_set, path=path, value=_other(value))
        yield Mutation(
            "identity: a field has another value",
            _dotted(path),
            lambda lab, change=change: lab.identity(change),
            named=_dotted(path),
            by_restore=True,
        )
    for path in (("train", "seed"), ("train", "order", "version"), ("train", "sources", "text", "sample")):

        def drop(tree, path=path):
            for key in path[:-1]:
                tree = tree[key]
            del tree[path[-1]]

        yield Mutation(
            "identity: a field is absent on one side",
            f"{_dotted(path)} dropped",
            lambda lab, drop=drop: lab.identity(drop),
            named=_dotted(path),
            by_restore=True,
        )
    add = functools.partial(_set, path=("train", "surplus"), value=1)
    yield Mutation(
        "identity: a field is absent on one side",
        "train.surplus added",
        lambda lab: lab.identity(add),
        named="train.surplus",
        by_restore=True,
    )


def _with_record(lab, path, value):
    record = lab.record()
    _set(record, path, value)
    return lab.resealed({"record.json": canonical_json(record)})


def _number(value):
    """An encoded int64 scalar."""
    return base64.b64encode(np.asarray(value, np.int64).tobytes()).decode()


# These contradict each other, or the history, at a restore; of the rest only a replay can know what is right.
_CONTRADICTED = {"idx", "position", "epoch", "current", "stats_rows"}
_STATE = ("loaders", "train", "state")


def _state(lab):
    state = lab.record()["loaders"]["train"]["state"]
    for name, value in state.items():
        if isinstance(value, dict):
            path, other = (*_STATE, name, "$array", "data"), _number(5)
        else:
            path, other = (*_STATE, name), _other(value)
        yield Mutation(
            "state: a field has another value",
            name,
            functools.partial(_with_record, path=path, value=other),
            named=name,
            by_restore=name in _CONTRADICTED,
        )

        def drop(lab, name=name):
            record = lab.record()
            del record["loaders"]["train"]["state"][name]
            return lab.resealed({"record.json": canonical_json(record)})

        yield Mutation("state: a field is absent on one side", f"{name} dropped", drop, name, by_restore=True)
    yield Mutation(
        "state: a field is absent on one side",
        "surplus added",
        functools.partial(_with_record, path=(*_STATE, "surplus"), value=1),
        named="surplus",
        by_restore=True,
    )


def _record(lab):
    record = lab.record()
    fields = [
        (path, value) for path, value in _leaves(record) if path[:3] != _STATE and path != ("identity",)
    ]
    refused = {"format", "step", "identity", "config", "earlier_history", "loaders.train.scope"}
    for path, value in fields:
        if path == ("history", 0, "identity"):
            continue  # changed together with `identity`, above
        name = _dotted(path)
        yield Mutation(
            "record: another field has another value",
            name,
            functools.partial(_with_record, path=path, value=_other(value)),
            named=name.removeprefix("loaders.train.") if "digest" in path else name,
            by_restore=name in refused,
        )


def _steps(lab):
    content = (lab.run / str(NEWEST) / "data" / "steps.bin").read_bytes()
    for at in range(0, len(content), 8):
        step = NEWEST - len(content) // 16 + at // 16
        what = "bytes" if at % 16 else "records"

        def change(lab, at=at):
            changed = bytearray(content)
            changed[at] ^= 1
            return lab.resealed({"steps.bin": bytes(changed)})

        yield Mutation(
            "steps.bin: a digest of one step is another",
            f"{what} of step {step}",
            change,
            named=f"step {step} is the first whose {what} differ",
            by_restore=False,
        )


# One byte of each file.


def _flip(lab, relative, at):
    return flipped(lab.path(relative), at, 0x01)


def _flips(lab, paths, group, *, by_restore, named=None):
    for path in paths:
        size = path.stat().st_size
        relative = path.relative_to(lab.directory)
        for at in sorted({0, size // 2, size - 1}):
            yield Mutation(
                group,
                f"{relative} byte {at}",
                functools.partial(_flip, relative=relative, at=at),
                named=named or _name_in_messages(relative),
                by_restore=by_restore,
            )


def _name_in_messages(relative):
    """Without the run and the step, which messages say otherwise."""
    parts = relative.parts
    return "/".join(parts[2:] if parts[1].isdigit() else parts[1:])


def _snapshot_files(lab):
    step = lab.run / str(NEWEST)
    files = [path for path in sorted(step.rglob("*")) if path.is_file() and path.stat().st_size]
    # What Orbax keeps for itself beside the items: nothing reads it.
    trusted = [path for path in files if path.name != "_CHECKPOINT_METADATA" and path.parent != step]
    yield from _flips(
        lab, [*trusted, step / "manifest.json"], "snapshot: one byte of a file", by_restore=True
    )


def _run_files(lab):
    # A start writes its own identity again under its own digest, so a damaged one is put right, not refused.
    for kind, by_restore in (("identity", False), ("configs", True)):
        files = [*(lab.run / kind).iterdir()]
        yield from _flips(lab, files, "run: one byte of a shared file", by_restore=by_restore)
    ledger = [*(lab.run / "ledger" / "4").iterdir()]
    yield from _flips(lab, sorted(ledger), "run: one byte of the ledger", by_restore=False)


def _data(lab):
    shards = sorted(lab.path("data").glob("*.array_record"))
    for path in shards:
        yield from _flips(lab, [path], "data: one byte of a file", by_restore=False, named=path.name)
    for name in ("manifest.json", "records.blake2b64"):
        path = lab.path("data") / name
        yield from _flips(
            lab, [path], f"data: one byte of {name}", by_restore=name == "manifest.json", named=name
        )
    for shard, position in ((0, 50), (1, 7), (2, 98)):
        yield Mutation(
            "data: a record is another, file size and times are not",
            f"{shards[shard].name} record {position}",
            functools.partial(_rewritten, name=shards[shard].name, position=position),
            named=f"record {position} has changed",
            by_restore=False,
        )
    yield Mutation(
        "data: a file is shorter",
        f"{shards[1].name}, its last byte",
        lambda lab: replaced(shards[1], shards[1].read_bytes()[:-1]),
        named=shards[1].name,
        by_restore=True,
    )
    yield Mutation(
        "data: a file is gone",
        shards[2].name,
        lambda lab: replaced(shards[2], None),
        named=shards[2].name,
        by_restore=True,
    )


@contextlib.contextmanager
def _rewritten(lab, name, position):
    path = lab.path("data") / name
    stat, before = path.stat(), path.read_bytes()
    rewrite(path, position, b"*" * 32)
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# Code.

_STAGE = "train.pipeline.transforms"


def _transforms():
    changes = [
        ("the body of a function", "+ offset + extra}", "- offset + extra}", f"{_STAGE}[0].source_sha256"),
        ("a helper that it calls", "return fold(x) * SCALE", "return fold(x) + SCALE", "helpers.helper"),
        ("a helper of the helper", "return x ^ 1", "return x ^ 2", "helpers.fold"),
        ("a constant of the module", "SCALE = 2", "SCALE = 3", f"{_STAGE}[0].helpers.helper"),
        ("an attribute of a class", "by = 3", "by = 4", f"{_STAGE}[0]"),
        ("a method of a class", "return x + self.by", "return x - self.by", "helpers.Shift"),
        ("a default", "extra=0):", "extra=1):", f"{_STAGE}[0].defaults.extra"),
        ("a value in a closure", "stretching(2)", "stretching(3)", f"{_STAGE}[1].closure.width"),
        ("the body of an inner function", "axis=1)", "axis=-1)", f"{_STAGE}[1].source_sha256"),
        ("the default of a random stage", "scale=1.0", "scale=2.0", f"{_STAGE}[2].defaults.scale"),
        ("the name of a stage", 'name="declared"', 'name="promise"', f"{_STAGE}[3].name"),
        ("a declared version", "version=1)", "version=2)", f"{_STAGE}[3].version"),
    ]
    for what, old, new, named in changes:
        yield Mutation(
            "transform", what, lambda lab, old=old, new=new: lab.recipe(old, new), named, by_restore=True
        )
    yield Mutation(
        "transform whose version stands for its code",
        "the body, without raising the version",
        lambda lab: lab.recipe('batch["noise"] + 0', 'batch["noise"] + 1'),
        named="step 4 is the first whose bytes differ",
        by_restore=False,
    )


def _package():
    mix, keyed = f"{_STAGE}[4]", f"{_STAGE}[5]"
    changes = [
        ("the body of a function", "helpers.py", "return x + by", "return x - by", f"{mix}.helpers.shift"),
        ("the default of a function", "helpers.py", "by=1", "by=2", f"{mix}.helpers.shift"),
        ("a function in a default", "helpers.py", "x // 2", "x // 3", f"{mix}.helpers.halved"),
        ("a function in a partial", "helpers.py", "x * by if", "x + by if", f"{mix}.helpers.scaled"),
        ("a constant in a partial", "helpers.py", "SCALE = 2", "SCALE = 3", mix),
        ("a decorator", "helpers.py", "fn(x) * times", "fn(x) + times", mix),
        ("what a decorator was called with", "stages.py", "traced(3)", "traced(4)", mix),
        ("a function that was decorated", "stages.py", "x ^ 5", "x ^ 6", f"{mix}.helpers.folded"),
        ("a method", "helpers.py", "* self.factor", "+ self.factor", f"{mix}.helpers.Affine"),
        ("a class attribute", "helpers.py", "factor = 3", "factor = 4", f"{mix}.helpers.Affine"),
        ("a method of a base", "deep/inner.py", "x + self.by", "x - self.by", f"{mix}.helpers.Base"),
        ("an attribute of a base", "deep/inner.py", "by = 7", "by = 8", f"{mix}.helpers.Base"),
        ("a tuple of constants", "helpers.py", "(0, 200)", "(0, 201)", f"{mix}.names.LIMITS"),
        ("a table of numbers", "tables.py", "% 7", "% 8", f"{mix}.helpers.looked_up"),
        ("a function by its dotted name", "tables.py", "x) % 256", "x) % 255", f"{mix}.helpers.looked_up"),
        (
            "a function of a star import",
            "tables.py",
            "TABLE[3] + x",
            "TABLE[4] + x",
            f"{mix}.helpers.table_of",
        ),
        ("a function imported within", "lazy.py", "x + 11", "x + 12", f"{mix}.helpers.late"),
        ("a module used as a whole", "registry.py", "x * 2", "x * 3", f"{mix}.helpers.chosen"),
        ("a function two modules away", "deep/deeper.py", "x % 3", "x % 5", f"{mix}.helpers.by"),
        ("a constant two modules away", "deep/deeper.py", "OFFSET = 4", "OFFSET = 5", f"{mix}.helpers.by"),
        ("the fields of a named tuple", "deep/inner.py", '"a b"', '"b a"', f"{mix}.helpers.Pair"),
        ("what a random stage imports", "shapes.py", "return 2", "return 3", f"{keyed}.helpers.width"),
        ("which function of a module", "stages.py", "labpkg.tables.looked_up", "labpkg.tables.table_of", mix),
        (
            "what a name stands for",
            "stages.py",
            "import LIMITS, Affine",
            "import Affine as LIMITS, Affine",
            mix,
        ),
    ]
    for what, name, old, new, named in changes:
        yield Mutation(
            "helpers in other modules of the package",
            what,
            lambda lab, name=name, old=old, new=new: lab.package(name, old, new),
            named,
            by_restore=True,
        )


def _side_files():
    files = f"{_STAGE}[4].files"
    for what, name, content, named in [
        ("a byte of a file", "words.txt", b"one two threE\n", f"{files}.words.txt"),
        ("the end of a file", "words.txt", b"one two three", f"{files}.words.txt"),
        ("nothing in a file", "more/rules.txt", b"", f"{files}.more/rules.txt"),
        ("one file in the place of another", "more/rules.txt", b"one two three\n", f"{files}.more/rules.txt"),
    ]:
        yield Mutation(
            "files that a stage depends on",
            what,
            lambda lab, name=name, content=content: replaced(lab.path("labpkg") / "files" / name, content),
            named,
            by_restore=True,
        )
    yield Mutation(
        "files that a stage depends on",
        "a file is gone",
        lambda lab: replaced(lab.path("labpkg") / "files" / "words.txt", None),
        "words.txt, which cannot be read",
        by_restore=True,
        verify_exits=2,
    )


_EDITING = """

def _edit():
    from pathlib import Path

    path = Path({path!r})
    text = path.read_text()
    path.write_text(text.replace({new!r}, {old!r}) if {new!r} in text else text.replace({old!r}, {new!r}))


_edit()
"""


@contextlib.contextmanager
def _edited_on_import(lab, name, old, new):
    """A package whose import ends with an edit of one of its files: what runs is no longer what is written."""
    path = lab.path("labpkg") / name
    before = path.read_bytes()
    try:
        with lab.package(
            "stages.py", "partial = ", _EDITING.format(path=str(path), old=old, new=new) + "\n\npartial = "
        ):
            yield
    finally:
        path.write_bytes(before)


def _edited():
    for what, name, old, new, function in [
        ("a helper", "helpers.py", "return x + by", "return x - by", "shift of"),
        ("the default of a helper's use", "helpers.py", "x // 2", "x // 4", "halved of"),
        ("a method of a base", "deep/inner.py", "x + self.by", "x * self.by", "Base.moved of"),
        ("a helper two modules away", "deep/deeper.py", "x % 3 + OFFSET", "x % 3 - OFFSET", "by of"),
        (
            "a method that is new",
            "deep/inner.py",
            "    by = 7",
            "    by = 7\n\n    def more(self):\n        pass",
            "Base of",
        ),
    ]:
        yield Mutation(
            "a file that is edited after its import",
            what,
            functools.partial(_edited_on_import, name=name, old=old, new=new),
            f"{function} ",
            by_restore=True,
            verify_exits=2,
        )


@contextlib.contextmanager
def _x64(lab):
    jax.config.update("jax_enable_x64", not jax.config.jax_enable_x64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", not jax.config.jax_enable_x64)


def _flags():
    named = f"{_STAGE}[5].dependencies.jax_enable_x64"
    yield Mutation("flags of JAX", "x64, for a stage that draws from JAX keys", _x64, named, by_restore=True)


def _memories():
    for what, old, new in [
        ("np.random", "return x + by", "import numpy as np\n\n    return x + np.random.randint(by)"),
        ("random", "return x + by", "import random\n\n    return x + random.randint(0, by)"),
        (
            "a generator without a seed",
            "return x + by",
            "import numpy as np\n\n    return x + np.random.default_rng().integers(by)",
        ),
        ("a global", "return x + by", "global SCALE\n    SCALE += 1\n    return x + by"),
    ]:
        yield Mutation(
            "a helper that remembers",
            what,
            lambda lab, old=old, new=new: lab.package("helpers.py", old, new),
            f"{_STAGE}[4].helpers.shift",
            by_restore=True,
        )


def _algorithms():
    odd = np.uint64(0x9E3779B97F4A7C15)
    digest = "the digest of this code does not do what version 1 says"
    for what, target, value, named, by_restore in [
        ("rounds of the permutation", "datarax.order.permutation.ROUNDS", 7, "train.order.version", True),
        (
            "a constant of the permutation",
            "datarax.order.permutation._MULTIPLY_1",
            np.uint32(0x7FEB352B),
            "train.order.version",
            True,
        ),
        ("a constant of the seeds", "datarax.order.seeds._MIX_2", odd, "train.order.version", True),
        (
            "how random numbers follow from a seed",
            "datarax.transforms.randomness._STEP",
            np.uint64(3),
            "train.pipeline.transforms[2].randomness",
            True,
        ),
        # It changes no batch, so a restore may go on; the digests of before and after do not compare.
        ("a constant of the digest", "datarax.order.digest._BY_INDEX", odd, digest, False),
    ]:

        @contextlib.contextmanager
        def patched(lab, target=target, value=value):
            with mock.patch(target, value):
                yield

        yield Mutation("our own code", what, patched, named, by_restore=by_restore)
