"""Writes the golden snapshots of the present formats that are missing: whole run directories, with what they must give.

Run it with `make golden` after a format has been raised on purpose, and enter the printed hashes in `test_golden.py`. What is
there is never edited or overwritten: it is how every later version knows that it still reads what this one wrote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.checkpoint import SNAPSHOT_FORMAT, Snapshot, ledger_steps, list_steps, read_config
from datarax.checkpoint.layout import COMMIT_MARK_NAME
from datarax.checkpoint.manifest import MANIFEST_FORMAT, FileEntry, Manifest
from datarax.core.tree import canonical_json
from datarax.order import DIGEST_VERSION, ORDER_VERSION
from datarax.run_config import build_loader, parse_stored_config
from datarax.sources.build import BuildConfig, build_dataset
from datarax.sources.manifest import INPUTS_STAMP_NAME as BUILD_STAMP_NAME
from datarax.sources.manifest import MANIFEST_FORMAT as DATASET_FORMAT
from datarax.sources.open import open_source
from datarax.sources.records import SAMPLE_VERSION
from datarax.training import LogConfig, TrainingSession, load_task
from datarax.transforms import IDENTITY_VERSION
from tests.checkpoint.golden_parts import Own, save_as_one_of_several, shared_loader
from tests.order.make_golden import spelled
from tests.support.joined import joined

GOLDEN = Path(__file__).parents[2] / "checkpoints" / "golden" / "snapshots"
EXPECTED = "expected.json"
TAIL = 3
"""Steps after each snapshot whose records and digests are expected."""
PROCESSES = 2

# Stands in configs and marks where the maker's own path would stand.
PLACE = "/golden"

_RUN = f"""
[run]
directory = "{PLACE}/run"
steps = 12

[save]
keep_latest = 2
"""

_PLAIN = f"""{_RUN}
every_steps = 4

[task]
use = "tests.checkpoint.golden_parts:task"

[source]
kind = "memory"
name = "rows"
use = "tests.checkpoint.golden_parts:records"

[loader]
batch_size = 4
seed = 20
byte_digest = true

[[transforms]]
use = "tests.checkpoint.golden_parts:add_noise"
parameters = {{ scale = 3 }}
"""

_NO_MODEL = f"""
batch_stats_fn = "tests.checkpoint.golden_parts:means"
{_RUN}
every_steps = 6

[source]
kind = "range"
name = "numbers"
start = 5
stop = 200
step = 3

[loader]
batch_size = 7
seed = 20
order = "block"
block_size = 4
window_blocks = 3
num_epochs = 1
remainder = "pad"
byte_digest = true

[[transforms]]
use = "tests.checkpoint.golden_parts:name_them"
"""

_CHANGED = f"""{_RUN}
every_steps = 2

[resume]
allow_changed = ["train.batch_size"]

[source]
kind = "range"
name = "numbers"
stop = 50

[loader]
batch_size = {{batch_size}}
seed = 20
byte_digest = false
"""

_FILES = f"""{_RUN}
every_steps = 6

[source]
kind = "array_record"
name = "text"
files = "{PLACE}/data"

[loader]
batch_size = 4
seed = 20
byte_digest = true

[[transforms]]
use = "tests.checkpoint.golden_parts:decode"
"""


def _make_plain(place: Path) -> None:
    _run(place, _PLAIN)


def _make_no_model(place: Path) -> None:
    _run(place, _NO_MODEL)


def _make_changed(place: Path) -> None:
    """Six starts with one of two batch sizes in turn: more changes than a record holds itself."""
    for start in range(6):
        _run(place, _CHANGED.format(batch_size=(4, 6)[start % 2]), steps=2 * (start + 1))


def _make_array_record(place: Path) -> None:
    text = place / "text.txt"
    text.write_text("".join(f"{i:7d} {chr(97 + i % 26) * 7}\n" for i in range(30)))
    build_dataset(BuildConfig(output=str(place / "data"), inputs=(str(text),), record_bytes=16, num_shards=1))
    (place / "data" / BUILD_STAMP_NAME).unlink()
    text.unlink()
    _run(place, _FILES)


def _make_processes(place: Path) -> None:
    results = joined(save_as_one_of_several, place / "run", count=PROCESSES)
    assert results == [None] * PROCESSES, results


CASES = {
    "plain": _make_plain,
    "no-model": _make_no_model,
    "changed": _make_changed,
    "array-record": _make_array_record,
    "processes": _make_processes,
}


def _run(place: Path, text: str, steps: int | None = None) -> None:
    """Runs a config from Python, so that the run may lie elsewhere than its config says."""
    config = parse_stored_config(text, where="golden")
    with _open_source(config.source, place) as source, build_loader(config, source) as loader:
        TrainingSession(
            place / "run",
            loader=loader,
            task=load_task(config.task.use) if config.task else None,
            steps=steps or config.run.steps,
            save=config.save,
            resume=config.resume,
            log=LogConfig(every_seconds=0),
            config_text=config.to_toml(),
            stream=None,
        ).run()


def _open_source(table: Any, place: Path) -> Any:
    if "files" in table.settings:
        table = dataclasses.replace(table, settings={**table.settings, "files": str(place / "data")})
    return open_source(table)


def make(case: str, place: Path) -> None:
    """Makes a golden directory: `run`, `data` if it reads files, and `expected.json`."""
    place.mkdir(parents=True)
    CASES[case](place)
    _make_neutral(place / "run", str(place))
    expected = {**facts(place), "files": files_of(place)}
    (place / EXPECTED).write_text(spelled(expected), encoding="utf-8")


def _make_neutral(run: Path, path: str) -> None:
    """Takes out what tells one machine from another: host, pid and time of the starts, and paths."""
    for start in sorted((run / "starts").iterdir()):
        said = {**json.loads(start.read_bytes()), "host": "golden", "pid": 1, "unix_seconds": 0}
        start.write_bytes(canonical_json(said) + b"\n")
    for name in ("lock", "metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "trash", ignore_errors=True)
    for mark in run.rglob(COMMIT_MARK_NAME):
        mark.write_text(mark.read_text().replace(path, PLACE))
    for step in list_steps(run):
        _seal(run / str(step))


def _seal(step: Path) -> None:
    """The manifest for the marks as they are now."""
    manifest = Manifest.from_bytes((step / "manifest.json").read_bytes())
    items = {name: dict(files) for name, files in manifest.items.items()}
    for name, files in items.items():
        if COMMIT_MARK_NAME in files:
            data = (step / name / COMMIT_MARK_NAME).read_bytes()
            files[COMMIT_MARK_NAME] = FileEntry(len(data), hashlib.sha256(data).hexdigest())
    (step / "manifest.json").write_bytes(dataclasses.replace(manifest, items=items).to_bytes())


def files_of(place: Path) -> dict[str, str]:
    """SHA-256 of every file of a golden directory but `expected.json`, by path."""
    paths = sorted(path for path in place.rglob("*") if path.is_file() and path.name != EXPECTED)
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def facts(place: Path) -> dict[str, Any]:
    """What the snapshots of a golden directory hold and how their loaders go on, as JSON that no format of ours decides."""
    run = place / "run"
    return {
        "committed": list_steps(run),
        "ledger": ledger_steps(run),
        "snapshots": {
            str(step): _snapshot_facts(place, Snapshot.open(run, step)) for step in list_steps(run)
        },
    }


def _snapshot_facts(place: Path, snapshot: Snapshot) -> dict[str, Any]:
    record = snapshot.record
    many = any(loader.scope == "process" for loader in record.loaders.values())
    count = PROCESSES if many else 1
    states = [snapshot.states(process_index=index, process_count=count) for index in range(count)]
    return {
        "previous": record.previous,
        "start": record.start,
        "identity": snapshot.identity,
        "history": [vars(entry) for entry in snapshot.history],
        "loaders": {
            name: {"scope": loader.scope, "digest": loader.digest} for name, loader in record.loaders.items()
        },
        "step_digests": {
            name: [first, _hex(keys), None if values is None else _hex(values)]
            for name, (first, keys, values) in snapshot.steps.items()
        },
        "states": plain(states),
        "leaves": None if snapshot.leaves is None else [leaf.to_tree() for leaf in snapshot.leaves],
        "model": plain(snapshot.model()),
        "tails": [tail(place, snapshot, state) for state in states],
    }


def open_loader(place: Path, snapshot: Snapshot) -> Any:
    """A fresh loader for a snapshot of a golden directory, from the config that the run has kept."""
    if snapshot.record.config is None:
        return shared_loader()
    config = parse_stored_config(
        read_config(snapshot.layout.directory, snapshot.record.config), where="golden"
    )
    return build_loader(config, _open_source(config.source, place))


def tail(place: Path, snapshot: Snapshot, states: dict[str, Any]) -> dict[str, Any]:
    """How fresh modules go on from the states of a snapshot."""
    with open_loader(place, snapshot) as loader:
        loader.set_state(loader.recorded_state(states["train"]))
        found: dict[str, Any] = {"train": loader_tail(loader)}
    if "own" in states:
        own = Own()
        own.set_state(states["own"])
        found["own"] = plain([next(own) for _ in range(TAIL)])
    return found


def loader_tail(loader: Any) -> dict[str, Any]:
    """Records and digests of the next steps of a loader, pad slots as -1; fewer where the run ends."""
    step, end = loader.idx.get_value(), loader.num_steps
    count = TAIL if end is None else min(TAIL, end - step)
    loader.committed(step)
    rows = [list(loader.record_keys(step + i).rows()) for i in range(count)]
    for _ in range(count):
        next(loader)
    _, keys, values, has_bytes = loader.take_step_digests()
    return {
        "source_index_epoch": [[list(row) for row in each] for each in rows],
        "keys": _hex(keys),
        "bytes": _hex(values) if has_bytes else None,
    }


def plain(value: Any) -> Any:
    """A value as JSON from which its kind, dtype, shape and bits can be told, without our own encoding."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": str(jax.random.key_impl(value)), **plain(np.asarray(jax.random.key_data(value)))}
    array = np.asarray(value)
    return {"dtype": array.dtype.name, "shape": list(array.shape), "bits": array.tobytes().hex()}


def _hex(values: np.ndarray) -> list[str]:
    return [f"{value:016x}" for value in values.tolist()]


def generation() -> str:
    """What the directories of the present versions are called first: `v` and the snapshot format, then what else was raised."""
    others = {
        "manifest": MANIFEST_FORMAT,
        "dataset": DATASET_FORMAT,
        "order": ORDER_VERSION,
        "digest": DIGEST_VERSION,
        "identity": IDENTITY_VERSION,
        "sample": SAMPLE_VERSION,
    }
    return f"v{SNAPSHOT_FORMAT}" + "".join(
        f"-{name}{version}" for name, version in others.items() if version > 1
    )


def write_missing(directory: Path) -> list[str]:
    """Makes each golden directory of the present versions that is not there, and returns their names."""
    written = []
    for case in CASES:
        name = f"{generation()}-{case}"
        if (directory / name).exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            made = Path(temporary, "made")
            make(case, made)
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copytree(made, directory / f".{name}")
            os.rename(directory / f".{name}", directory / name)
        written.append(name)
    return written
