"""What runs write, field by field, and which changes a restore refuses."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path

from datarax import CheckpointableIteratorModule, DataraxModuleConfig
from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.run_config import load_any_config, parse_any_stored_config
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
    write_manifest,
)
from datarax.training import LogConfig, ResumeConfig, TrainingSession
from tests.behaviour import parts
from tests.behaviour.modules import first_line, pipeline

# What runs write.

NORMALISED = {
    "starts/*.json": ("host", "pid", "unix_seconds", "provenance"),
    "starts/*.files.json": ("time of change of each file",),
    "*/manifest.json": ("written_unix_seconds", "checksum", "items.model", "items.data.commit_success.txt"),
    "set_aside/*/note.json": ("unix_seconds",),
}
"""All that is taken out of what a run wrote, since it says when, where and with which libraries: `-` stands in its place.
Of `lock`, `metrics.jsonl`, `_CHECKPOINT_METADATA` and `commit_success.txt` only the names are kept, of the files below `model/`
not even those."""

_CONFIG_TEXT = '[run]\ndirectory = "/behaviour/run"\n'
_BY_NAME_ONLY = ("lock", "metrics.jsonl", "_CHECKPOINT_METADATA", "commit_success.txt")


class Own(CheckpointableIteratorModule):
    """A module whose state belongs to its process."""

    def __init__(self):
        super().__init__(DataraxModuleConfig())
        self.position.set_value(0)

    def __next__(self):
        self.position.set_value(self.position.get_value() + 1)
        return self.position.get_value()


def _session(directory, loader, *, steps, every, from_step=None, task=None, keep_latest=None, changed=()):
    with loader:
        session = TrainingSession(
            directory,
            loader=loader,
            task=task,
            steps=steps,
            save=SaveConfig(every_steps=every, every_seconds=None, keep_latest=keep_latest),
            resume=ResumeConfig(allow_changed=changed),
            log=LogConfig(every_seconds=1000),
            config_text=_CONFIG_TEXT,
            stream=None,
        )
        session.run(from_step=from_step)


def _numbers(batch_size=4, *stages, **settings):
    config = DataLoaderConfig(batch_size=batch_size, seed=20, **settings)
    source = RangeSource(RangeConfig(name="numbers", stop=50))
    return DataLoader(config, source, transforms=[parts.STAGES[name] for name in stages])


def _with_a_model(run, files):
    loader = _numbers(4, "columns", "noisy", "tagged")
    _session(run, loader, steps=6, every=2, keep_latest=2, task=parts.task)


def _without_a_model(run, files):
    stages = ("columns", "measured")
    loader = _numbers(
        7, *stages, order="block", block_size=4, window_blocks=3, num_epochs=1, remainder="pad",
        byte_digest=True, batch_stats_fn=parts.means,
    )  # fmt: skip
    _session(run, loader, steps=None, every=3)


def _changed(run, files):
    """One of two batch sizes in turn: more changes than a record holds itself."""
    for start in range(6):
        loader = _numbers((4, 6)[start % 2], byte_digest=False)
        _session(run, loader, steps=start + 1, every=1, keep_latest=2, changed=["train.batch_size"])


def _gone_back(run, files):
    _session(run, _numbers(), steps=4, every=2)
    _session(run, _numbers(), steps=6, every=2, from_step=2)


def _of_files(run, files):
    data = run.parent / "data"
    data.mkdir()
    for path in sorted((files / "records").iterdir()):
        (data / path.name).write_bytes(path.read_bytes())
    write_manifest(str(data / "*.array_record"))
    for steps in (2, 3):
        source = ArrayRecordSource(ArrayRecordConfig(name="text", files=str(data)))
        config = DataLoaderConfig(batch_size=4, seed=20, byte_digest=True)
        loader = DataLoader(config, source, transforms=[parts.STAGES["columns"]])
        _session(run, loader, steps=steps, every=2)


def _of_a_grain_pipeline(run, files):
    module = pipeline("random_map_in_map")
    with Checkpointer(
        run, config=SaveConfig(every_seconds=None), provenance={"versions": {"x": "1"}}
    ) as saver:
        for step in (1, 2):
            next(module)
            saver.save(step, data=module)
        saver.wait()


def _of_several_modules(run, files):
    own, loader = Own(), _numbers(byte_digest=True)
    with loader, Checkpointer(run, config=SaveConfig(every_seconds=None)) as saver:
        for _ in range(3):
            next(own), next(loader)
        saver.save(3, model=parts.model(3), data={"numbers": loader, "own": own})
        saver.wait()


RUNS = {
    "with a model": _with_a_model,
    "without a model": _without_a_model,
    "changed": _changed,
    "gone back": _gone_back,
    "of files": _of_files,
    "of a Grain pipeline": _of_a_grain_pipeline,
    "of several modules": _of_several_modules,
}


def records(directory):
    """Run -> name of each file -> what is in it."""
    parts.write_files(directory / "files")
    found = {}
    for name, make in RUNS.items():
        place = directory / name
        place.mkdir()
        make(place / "run", directory / "files")
        found[name] = dict(_files(place / "run"))
    return found


def _files(run):
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                yield f"{name}/", "empty"
        elif "/model/" in name:
            yield f"{name.partition('/model/')[0]}/model/", "by name only"
        elif path.name in _BY_NAME_ONLY:
            yield name, "by name only"
        elif path.suffix == ".bin":
            yield name, path.read_bytes().hex()
        else:
            yield name, _content(name, path.read_text(encoding="utf-8"))


def _content(name, text):
    """The text itself; with `-` in place of what NORMALISED lists, where there is such a thing."""
    folder, _, last = name.rpartition("/")
    if folder == "starts" and last.endswith(".files.json"):
        tree = json.loads(text)
        for source in tree["sources"].values():
            source["files"] = {file: [size, "-"] for file, (size, _) in source["files"].items()}
    elif folder == "starts":
        tree = json.loads(text) | dict.fromkeys(NORMALISED["starts/*.json"], "-")
    elif last == "manifest.json":
        tree = json.loads(text) | dict.fromkeys(("written_unix_seconds", "checksum"), "-")
        if "model" in tree["items"]:
            tree["items"]["model"] = "-"
        if "commit_success.txt" in tree["items"].get("data", {}):
            tree["items"]["data"]["commit_success.txt"] = "-"
    elif last == "note.json":
        tree = json.loads(text) | {"unix_seconds": "-"}
    else:
        return text
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


_RUN = '[run]\ndirectory = "/behaviour/run"\n'
_NUMBERS = '[source]\nkind = "range"\nstop = 50\n[loader]\nbatch_size = 4\n'
CONFIGS = {
    "as little as can be": (_RUN + _NUMBERS, ()),
    "overrides": (
        _RUN + _NUMBERS,
        (
            "run.steps=7",
            "loader.seed=9223372036854775807",
            "save={every_steps=3}",
            'resume.allow_changed=["train.seed"]',
        ),
    ),
    "files and transforms": (
        _RUN
        + """
        [task]
        use = "tests.behaviour.parts:task"
        parameters = { rate = 1e-3, names = ["a", "b"], deep = { more = true } }
        [source]
        kind = "array_record"
        files = "/behaviour/data"
        build = { kind = "jsonl", inputs = ["/behaviour/a", "python-stdlib"], compression = "zstd" }
        [loader]
        batch_size = 4
        order = "block"
        block_size = 3
        window_blocks = 2
        remainder = "pad"
        num_epochs = 2
        [[transforms]]
        use = "tests.behaviour.parts:noisy"
        level = "batch"
        randomness = "seed"
        parameters = { scale = 2 }
        [mesh]
        axes = { data = -1, model = 2 }
        """,
        (),
    ),
    "a Grain pipeline": (
        _RUN + '[grain_pipeline]\nuse = "tests.support.grain_task:finite"\n',
        ("run.steps=3",),
    ),
    "of a version before the order had one": (_RUN + _NUMBERS + 'order = "global"\n', ()),
}


def resolved_configs():
    """Case -> the config as a run keeps it, with all defaults."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (text, overrides) in CONFIGS.items():
            path = Path(directory) / "config.toml"
            path.write_text(text)
            was_kept = "version before" in name
            read = (
                parse_any_stored_config(text, overrides, where=name)
                if was_kept
                else load_any_config(path, overrides)
            )
            found[name] = read.to_toml()
    for name, text in found.items():
        assert parse_any_stored_config(text, where=name).to_toml() == text
    return found


# What a restore refuses.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A loader, and how it is saved: what the changes change."""

    config: dict
    data: object = dataclasses.field(default_factory=parts.columns)
    source: str = "memory"
    source_name: str = "rows"
    version: str | None = None
    stages: tuple = ("measured", "noisy")
    name: str = "train"
    model: object = dataclasses.field(default_factory=lambda: parts.model(3))

    def loader(self):
        stages = [parts.STAGES[stage] if isinstance(stage, str) else stage for stage in self.stages]
        if self.source == "memory":
            source = MemorySource(MemoryConfig(name=self.source_name), self.data)
        elif self.source == "range":
            source = RangeSource(RangeConfig(name=self.source_name, **self.data))
        else:
            source = GrainSource(GrainConfig(name=self.source_name, version=self.version), self.data)
        return DataLoader(DataLoaderConfig(**self.config), source, transforms=stages)


_PLAIN = {"batch_size": 4, "seed": 20, "num_epochs": 3, "byte_digest": True, "read_ahead": 0}
BASE = Recipe(_PLAIN)
GRAIN = Recipe(_PLAIN, data=parts.items(), source="grain")
RANGE = Recipe(_PLAIN, data={"stop": 60}, source="range")
BLOCK = Recipe(_PLAIN | {"order": "block", "block_size": 4, "window_blocks": 2})
OF_GRAIN = Recipe(_PLAIN | {"order": "grain", "grain_style": "map_dataset"})


def _config(base, **changes):
    return dataclasses.replace(base, config={**base.config, **changes})


def _other_data(**changes):
    return dataclasses.replace(BASE, data={**parts.columns(), **changes})


def _stages(*stages):
    return dataclasses.replace(BASE, stages=stages)


def _variants():
    """Change -> the recipe that was saved, and the one that is to continue."""
    columns = parts.columns()
    one_value = columns["x"].copy()
    one_value[17, 2] += 1
    replace, stage = dataclasses.replace, parts.STAGES
    measured = stage["measured"]
    of_base = {
        "nothing": BASE,
        "seed": _config(BASE, seed=21),
        "batch size": _config(BASE, batch_size=5),
        "batch size and seed": _config(BASE, batch_size=5, seed=21),
        "epochs": _config(BASE, num_epochs=4),
        "fewer epochs": _config(BASE, num_epochs=1),
        "no end": _config(BASE, num_epochs=None),
        "remainder pad": _config(BASE, remainder="pad"),
        "read-ahead": _config(BASE, read_ahead=3, num_threads=2),
        "no byte digest": _config(BASE, byte_digest=None),
        "order none": _config(BASE, order="none"),
        "order block": BLOCK,
        "order grain": OF_GRAIN,
        "precomputed statistics": _config(BASE, precomputed_stats={"mean": 1.0}),
        "source name": replace(BASE, source_name="other"),
        "source kind": replace(BASE, data={"stop": 53}, source="range", stages=("columns", *BASE.stages)),
        "one value": _other_data(x=one_value),
        "dtype of a column": _other_data(x=columns["x"].astype("int64")),
        "a column less": replace(BASE, data={name: columns[name] for name in ("x", "half")}),
        "a column more": _other_data(y=columns["x"]),
        "name of a column": replace(BASE, data={"z" if n == "x" else n: leaf for n, leaf in columns.items()}),
        "more records": replace(BASE, data=parts.columns(54)),
        "fewer records": replace(BASE, data=parts.columns(52)),
        "records in another order": replace(BASE, data={n: leaf[::-1] for n, leaf in columns.items()}),
        "code of a transform": _stages(replace(measured, fn=parts.measured_otherwise), "noisy"),
        "parameter of a transform": _stages(replace(measured, parameters={"scale": 2}), "noisy"),
        "parameter at its default": _stages(replace(measured, parameters={"scale": 1}), "noisy"),
        "version of a transform": _stages(replace(measured, version=1), "noisy"),
        "name of a transform": _stages(replace(measured, name="other"), "noisy"),
        "name of a random transform": _stages("measured", "noisy again"),
        "a transform less": _stages("measured"),
        "a transform more": _stages("measured", "noisy", "tagged"),
        "transforms in another order": _stages("noisy", "measured"),
        "a package a transform depends on": _stages(replace(measured, depends_on=("grain",)), "noisy"),
        "closure of a transform": _stages(parts.OTHER_STAGES["closure"], "noisy"),
        "name of the module": replace(BASE, name="valid"),
        "model: a leaf more": replace(BASE, model={**parts.model(3), "more": 1}),
        "model: a leaf less": replace(BASE, model={"w": parts.model(3)["w"]}),
        "model: shape": replace(BASE, model={**parts.model(3), "w": parts.model(3)["w"][:, :2]}),
        "model: dtype": replace(BASE, model={**parts.model(3), "half": parts.model(3)["w"][0]}),
        "model: kind": replace(BASE, model={**parts.model(3), "weak": 4}),
        "model and seed": replace(_config(BASE, seed=21), model={"w": parts.model(3)["w"]}),
    }
    found = {name: (BASE, changed) for name, changed in of_base.items()}
    return found | {
        "block size": (BLOCK, _config(BLOCK, block_size=5)),
        "window blocks": (BLOCK, _config(BLOCK, window_blocks=3)),
        "Grain style": (OF_GRAIN, _config(OF_GRAIN, grain_style="index_sampler")),
        "Grain operations between": (OF_GRAIN, _config(OF_GRAIN, grain_ops_between=1)),
        "range: start": (RANGE, replace(RANGE, data={"start": 1, "stop": 61})),
        "range: stop": (RANGE, replace(RANGE, data={"stop": 61})),
        "range: step": (RANGE, replace(RANGE, data={"stop": 120, "step": 2})),
        "version of the data": (GRAIN, replace(GRAIN, version="2")),
        "an item": (GRAIN, replace(GRAIN, data=[{**each, "number": 0} for each in parts.items()])),
        "an item more": (GRAIN, replace(GRAIN, data=parts.items(42))),
    }


SAVED_AT = 3


def _save(base, directory):
    with base.loader() as loader, Checkpointer(directory, config=SaveConfig(every_seconds=None)) as saver:
        for _ in range(SAVED_AT):
            next(loader)
        saver.save(SAVED_AT, model=base.model, data={base.name: loader})
        saver.wait()


def differences(directory):
    """What a restore refuses, and what it does if told to accept it.

    Returns:
        Change -> paths that differ, and what comes of `allow_changed`; change -> first lines of what is said.
    """
    directory.mkdir()
    found, messages, saved = {}, {}, {}
    for name, (base, changed) in _variants().items():
        run = saved.get(id(base))
        if run is None:
            run = saved[id(base)] = directory / str(len(saved))
            _save(base, run)
        with contextlib.ExitStack() as stack:
            refused, said = _restore(run, changed, (), stack)
            fields = refused.get("differ", [])
            found[name] = {"refused": refused}
            messages[name] = {"refused": said} if said else {}
            if fields:
                allowed, said = _restore(run, changed, fields, stack)
                found[name]["allowed"] = allowed
                messages[name] |= {"allowed": said} if said else {}
    return found, {name: said for name, said in messages.items() if said}


def _restore(run, recipe, allowed, stack):
    """What a restore gives, and what it says if it refuses."""
    loader = stack.enter_context(recipe.loader())
    checkpointer = Checkpointer(run, allow_changed=allowed)
    try:
        restored = checkpointer.restore(model=recipe.model, data={recipe.name: loader})
    except Exception as error:
        kind = type(error).__name__
        differ = [difference.path for difference in getattr(error, "differences", ())]
        return {"error": kind, "differ": differ, "idx": loader.idx.get_value()}, first_line(error)
    keys, values, rows = loader.step_digest(restored.step, with_bytes=True)
    return {
        "step": restored.step,
        "changed": [difference.path for difference in restored.identity_changed],
        "place": [loader.idx.get_value(), loader.position.get_value(), loader.num_steps],
        "next": f"{rows} rows {keys:016x} {values:016x}",
        "notes": hashlib.sha256("".join(checkpointer.notes).encode()).hexdigest()[:8]
        if checkpointer.notes
        else "",
    }, None
