"""Runs that somebody has forged, or a disk has mangled: every command says so in time, and touches nothing outside.

A forger knows the format: checksums are made anew after each change. What a command does is asked in this process; what only a
real process shows is in `test_commands.py`.
"""

import hashlib
import json
import os
import shutil
import signal
import stat

import pytest

from datarax.checkpoint.layout import RunLayout
from datarax.cli.main import main
from datarax.core.tree import canonical_json
from tests.support.runs import copy_run

SECRET = "what lies outside of the run"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def newest(run):
    return max((path for path in run.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


# Files of a run, each as a function of the run


def _first(pattern):
    return lambda run: sorted(run.glob(pattern))[0]


FILES = {
    "manifest": lambda run: newest(run) / "manifest.json",
    "record": lambda run: newest(run) / "data/record.json",
    "steps": lambda run: newest(run) / "data/steps.bin",
    "model": lambda run: newest(run) / "model/manifest.ocdbt",
    "identity": _first("identity/*.json"),
    "config": _first("configs/*.toml"),
    "start": _first("starts/1.json"),
    "stamps": _first("starts/*.files.json"),
    "lock": lambda run: run / "lock",
    "metrics": lambda run: run / "metrics.jsonl",
    "ledger record": _first("ledger/*/record.json"),
    "ledger manifest": _first("ledger/*/manifest.json"),
}


# What is put in the place of a file


def _fifo(path, outside):
    os.mkfifo(path)


def _zeros(path, outside):
    path.symlink_to("/dev/zero")


def _link(path, outside):
    path.symlink_to(outside / "secret.json")


def _dangling(path, outside):
    path.symlink_to(outside / "made")


def _directory(path, outside):
    path.mkdir()
    (path / "x").write_text("x")


def _huge(path, outside):
    with path.open("wb") as file:
        file.truncate(10 << 30)


PLACED = {
    "a fifo": _fifo,
    "endless zeros": _zeros,
    "a link out": _link,
    "a dangling link": _dangling,
    "a directory": _directory,
    "10 GB": _huge,
    "deep JSON": lambda path, outside: path.write_bytes(DEEP),
    "nothing": lambda path, outside: path.write_bytes(b""),
    "no UTF-8": lambda path, outside: path.write_bytes(b"\xff\xfe\x00{"),
    "other JSON": lambda path, outside: path.write_bytes(b'[1,{"format":1e999}]'),
}

# Values that a forger puts into a field

HOSTILE = (
    *(
        -1,
        2**70,
        1e308,
        True,
        None,
        "",
        "../../../../etc/passwd",
        "/etc/passwd",
        [],
        {},
        [[]],
        "\x00",
        "é" * 70,
    ),
    *({"$array": {}}, {"$jax": 1}, {"$int": "zz"}, {"$dict": [1]}, {"$key": {"impl": "no"}}),
)


def _fields(tree, path=()):
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _fields(value, (*path, key))


def _changed(tree, path, value):
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _changed(copy[path[0]], path[1:], value)
    return copy


def seal(step):
    """Makes the manifest of a step anew, so that it says what now lies there."""
    path = step / "manifest.json"
    tree = json.loads(path.read_bytes())
    for name, entry in tree["items"]["data"].items():
        data = (step / "data" / name).read_bytes()
        entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write_sealed(path, tree)


def _write_sealed(path, tree):
    if isinstance(tree, dict):
        tree = {key: value for key, value in tree.items() if key != "checksum"}
        tree["checksum"] = hashlib.sha256(canonical_json(tree)).hexdigest()
    path.write_bytes(canonical_json(tree))


def _forge_record(run, number):
    step = newest(run)
    path = step / "data/record.json"
    tree = json.loads(path.read_bytes())
    fields = list(_fields(tree))
    path.write_bytes(
        canonical_json(_changed(tree, fields[number % len(fields)], HOSTILE[number % len(HOSTILE)]))
    )
    seal(step)


def _forge_manifest(run, number):
    path = newest(run) / "manifest.json"
    tree = json.loads(path.read_bytes())
    fields = [each for each in _fields(tree) if each[:1] != ("checksum",)]
    _write_sealed(path, _changed(tree, fields[number % len(fields)], HOSTILE[number % len(HOSTILE)]))


def addressed(run, kind, data):
    """Puts a file in the place of those that the records name by its content, and seals all that names it."""
    name = hashlib.sha256(data).hexdigest()
    (
        run / ("configs" if kind == "config" else kind) / f"{name}{'.toml' if kind == 'config' else '.json'}"
    ).write_bytes(data)
    for step in (path for path in run.iterdir() if path.name.isdigit()):
        record = step / "data/record.json"
        tree = json.loads(record.read_bytes())
        for each in (tree, *tree["history"]):
            each[kind] = name
        record.write_bytes(canonical_json(tree))
        seal(step)


def _forged_identity(*path, value):
    def forge(run, outside):
        tree = json.loads(FILES["identity"](run).read_bytes())
        text = canonical_json(_changed(tree, path, "VALUE" if isinstance(value, bytes) else value))
        addressed(run, "identity", text.replace(b'"VALUE"', value) if isinstance(value, bytes) else text)

    return forge


def _forge_identity(run, number):
    fields = list(_fields(json.loads(FILES["identity"](run).read_bytes())))
    path, value = fields[number % len(fields)], HOSTILE[number % len(HOSTILE)]
    _forged_identity(*path, value=value)(run, None)


def _forged_config(old, new):
    def forge(run, outside):
        text = FILES["config"](run).read_bytes()
        assert text.count(old) == 1
        addressed(run, "config", text.replace(old, new))

    return forge


def _list_outside(run, outside):
    path = newest(run) / "manifest.json"
    tree = json.loads(path.read_bytes())
    name = os.path.relpath(outside / "secret.json", newest(run) / "data")
    data = (outside / "secret.json").read_bytes()
    tree["items"]["data"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write_sealed(path, tree)


def _link_directory(name):
    def forge(run, outside):
        place = newest(run) / name.removeprefix("step/") if name.startswith("step/") else run / name
        if place.exists():
            shutil.move(place, outside / "moved")
        else:
            (outside / "moved").mkdir()
        (outside / "moved/kept").write_text(SECRET)
        place.symlink_to(outside / "moved")

    return forge


def _odd_entries(run, outside):
    (run / "trash").mkdir(exist_ok=True)
    (run / "trash/note.txt").write_text("mine")
    (run / "trash/dropped-x").mkdir()
    (run / "trash/linked").symlink_to(outside)
    (run / "99.orbax-checkpoint-tmp-1").symlink_to(outside)
    (run / "98").symlink_to(outside)
    (run / "identity/.x.1.tmp").symlink_to(outside / "secret.json")
    (run / "starts/7.json.bak").write_text("{")
    (run / "ledger/5").symlink_to(outside)


def _placed(file, what):
    def forge(run, outside):
        path = FILES[file](run)
        if path.exists():
            path.unlink()
        PLACED[what](path, outside)

    return forge


DIGITS = b"9" * 5000
IDENTITIES = {
    **{f"identity is {value!r}": _forged_identity(value=value) for value in ([], "x", 1.5, True, None, {})},
    **{f"train is {value!r}": _forged_identity("train", value=value) for value in (1.5, "order", None)},
    **{
        f"train.{field} is {value!r}": _forged_identity("train", field, value=value)
        for field, values in {
            "batch_size": ("a", None, {}, 1.5, 2**62),
            "order": (None, 7, "x"),
            "sources": (None, 7, {"text": 7}, {}),
        }.items()
        for value in values
    },
    "train.order.sources is a text": _forged_identity("train", "order", "sources", value="x"),
    "train.seed of 5000 digits": _forged_identity("train", "seed", value=DIGITS),
}
CONFIGS = {
    "config no UTF-8": _forged_config(b"[run]", b"\xff\xfe[run]"),
    "config of 5000 digits": _forged_config(b"\nseed = 5\n", b"\nseed = " + DIGITS + b"\n"),
    "config of 5000 hexadecimal digits": _forged_config(b"\nseed = 5\n", b"\nseed = 0x" + DIGITS + b"\n"),
    "config nested deep": _forged_config(b"\nseed = 5\n", b"\nseed = " + b"[" * 3000 + b"]" * 3000 + b"\n"),
    "config of endless time": _forged_config(b"every_seconds = 300.0", b"every_seconds = 0x" + b"f" * 400),
    "config of endless batches": _forged_config(b"batch_size = 16", b"batch_size = 4611686018427387904"),
}

FORGED = {
    **{f"{file}: {what}": _placed(file, what) for file in FILES for what in PLACED},
    **{f"record {n}": (lambda run, outside, n=n: _forge_record(run, n)) for n in range(0, 400, 7)},
    **{f"manifest {n}": (lambda run, outside, n=n: _forge_manifest(run, n)) for n in range(0, 400, 11)},
    **{f"identity {n}": (lambda run, outside, n=n: _forge_identity(run, n)) for n in range(0, 900, 13)},
    **IDENTITIES,
    **CONFIGS,
    "config of large batches": _forged_config(b"batch_size = 16", b"batch_size = 16777216"),
    "config of endless read-ahead": _forged_config(b"read_ahead = 2", b"read_ahead = 1000000000"),
    "a manifest that lists a file outside": _list_outside,
    **{
        f"{name} is a link to a directory": _link_directory(name)
        for name in (
            "trash",
            "parts",
            "identity",
            "configs",
            "starts",
            "ledger",
            "set_aside",
            "step/data",
            "step/model",
        )
    },
    "odd entries": _odd_entries,
}


@pytest.fixture
def outside(tmp_path):
    place = tmp_path / "outside"
    place.mkdir()
    (place / "secret.json").write_text(json.dumps({"secret": SECRET}))
    return place


def _seen(directory):
    """Everything below a directory, with its content: what a command must leave as it is."""
    return {
        path: path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
        for path in directory.rglob("*")
    }


class HangsError(BaseException):
    """No OSError: a reader that takes those for damage must not take this one."""


def _too_long(number, frame):
    raise HangsError


@pytest.mark.few(12)
@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_run_is_named_in_time_and_nothing_outside_is_touched(
    kind, finished, outside, tmp_path, capfd
):
    work = tmp_path / "work"
    shutil.copytree(finished, work, symlinks=True)
    run = work / "run"
    config = work / "config.toml"
    config.write_text(config.read_text().replace(str(finished), str(work)))
    FORGED[kind](run, outside)
    before = _seen(outside)
    commands = [
        ["inspect", str(run)],
        ["order", str(run), "--steps", "0:3"],
        ["order", str(run), "--steps", "0:3", "--csv"],
        ["diff", str(run), str(finished / "run")],
        ["verify", str(run), "--fast"],
        ["plan", str(config)],
        ["doctor", str(config)],
        ["run", str(config)],
    ]
    signal.signal(signal.SIGALRM, _too_long)
    for command in commands:
        signal.alarm(60)
        try:
            code = main(command)
        finally:
            signal.alarm(0)
        said = capfd.readouterr()
        text = said.out + said.err
        assert code in (0, 1, 2, 74), (command, code, text[-3000:])
        assert "Traceback" not in text, (command, text[-3000:])
        assert SECRET not in text, command
        assert _seen(outside) == before, command


@pytest.mark.parametrize("kind", IDENTITIES)
def test_an_identity_that_is_none_is_named(kind, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run, symlinks=True)
    IDENTITIES[kind](run, None)
    name = json.loads((newest(run) / "data/record.json").read_bytes())["identity"]
    code = main(["order", str(run), "--steps", "0:3", "--csv"])
    assert code in ((0,) if kind == "train.sources is {}" else (1, 2))  # then only the files are not known
    said = capfd.readouterr().err
    assert f"identity/{name}.json" in said
    assert "damaged" in said
    assert main(["verify", str(run), "--fast"]) == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_stored_config_that_is_none_is_named(kind, finished, tmp_path, capfd):
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run, symlinks=True)
    CONFIGS[kind](run, None)
    name = json.loads((newest(run) / "data/record.json").read_bytes())["config"]
    for words in (["verify", str(run)], ["verify", str(run), "--fast"]):
        assert main(words) in (1, 2)
        said = capfd.readouterr()
        assert f"configs/{name[:12]}" in said.out + said.err, words
    assert main(["order", str(run), "--find", "text:3"]) in (0, 1, 2)
    assert f"configs/{name[:12]}" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["data", "model", "model/d"])
def test_an_item_that_is_a_link_is_not_walked(place, finished, outside, tmp_path, capfd):
    run = copy_run(finished / "run", tmp_path / "run")
    linked = newest(run) / place
    shutil.rmtree(linked)
    linked.symlink_to(outside)
    tree = json.loads((newest(run) / "manifest.json").read_bytes())
    for files in tree["items"].values():  # as if it had never listed what has gone
        for name in [name for name in files if place == "model" or name.startswith("d/")]:
            files.pop(name)
    _write_sealed(newest(run) / "manifest.json", tree)
    for words in (["inspect", str(run)], ["diff", str(newest(run)), str(finished / "run")]):
        assert main(words) == 1
        said = capfd.readouterr()
        assert "secret.json" not in said.out + said.err
        assert place.removeprefix("model/") in said.out + said.err


@pytest.mark.parametrize(
    "value", [{"$int": "0x" + "f" * 3900}, {"$array": {"dtype": [], "shape": [], "data": ""}}]
)
def test_a_ledger_entry_whose_state_is_none_is_a_finding(value, finished, tmp_path, capfd):
    run = copy_run(finished / "run", tmp_path / "run")
    record = run / "ledger/4/record.json"
    tree = json.loads(record.read_bytes())
    tree["loaders"]["train"]["state"]["epoch"] = value
    data = canonical_json(tree)
    record.write_bytes(data)
    listed = json.loads((run / "ledger/4/manifest.json").read_bytes())
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    listed["items"]["data"]["record.json"] = entry
    _write_sealed(run / "ledger/4/manifest.json", listed)
    assert main(["verify", str(run), "--fast"]) == 1
    assert "ledger entry 4: FAILED" in capfd.readouterr().out


def test_a_record_that_counts_more_steps_than_are_recorded_is_no_error_of_ours(finished, tmp_path, capfd):
    run = copy_run(finished / "run", tmp_path / "run")
    record = newest(run) / "data/record.json"
    tree = json.loads(record.read_bytes())
    tree["loaders"]["train"]["steps"]["count"] = 2**40
    record.write_bytes(canonical_json(tree))
    seal(newest(run))
    assert main(["order", str(run), "--steps", "8:12"]) == 0
    assert "Error" not in capfd.readouterr().err


def test_many_damaged_snapshots_are_looked_at_once_each(finished, tmp_path, capfd, monkeypatch):
    run = copy_run(finished / "run", tmp_path / "run")
    for step in range(100, 140):
        (run / str(step)).mkdir()
        (run / str(step) / "manifest.json").write_text("{")
    read, reads = RunLayout.read, []
    monkeypatch.setattr(RunLayout, "read", lambda self, path: (reads.append(str(path)), read(self, path))[1])
    assert main(["verify", str(run), "--fast"]) == 1
    assert "snapshot 139: FAILED" in capfd.readouterr().out
    assert reads.count("139/manifest.json") == 1
