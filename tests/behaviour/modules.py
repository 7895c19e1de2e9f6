"""States and identities of sources, loaders and Grain pipelines, and what a `set_state` refuses."""

import copy

import numpy as np
from flax import nnx

from datarax.checkpoint import encode
from datarax.grain_pipeline import GrainPipeline, GrainPipelineConfig
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.order import Order, OrderConfig
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    BuildConfig,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    TensorStoreConfig,
    TensorStoreSource,
    build_dataset,
    write_manifest,
)
from datarax.transforms import pipeline_identity, transform_identity
from tests.behaviour import parts
from tests.behaviour.deliveries import CASES, described, open_loader, settings
from tests.support import grain_pipelines

STATES_OF_PIPELINES = (
    "map_and_batch",
    "shuffle_and_repeat",
    "filter_in_stream",
    "window_shuffle",
    "mix_dict",
    "interleave",
    "first_fit",
    "random_map_in_map",
    "data_loader",
)


def first_line(error):
    """The first line of what an error says, and of its cause."""
    texts = [f"{type(error).__name__}: {error}".splitlines()[0]]
    if error.__cause__ is not None:
        texts += first_line(error.__cause__)
    return texts


def small_loader(**settings):
    config = {"batch_size": 4, "seed": 20, "num_epochs": 2, "byte_digest": True, "read_ahead": 0} | settings
    return DataLoader(DataLoaderConfig(**config), MemorySource(MemoryConfig(), parts.columns()))


def pipeline(name):
    return GrainPipeline(GrainPipelineConfig(name=name), getattr(grain_pipelines, name)())


# States.


def states(directory):
    """Case -> state: of sources in mid-iteration, of Grain pipelines, of a loader with statistics and random streams."""
    found = {}
    for kind in parts.SOURCES:
        with parts.source(kind, directory) as source:
            for _ in range(3):
                next(source)
            found[f"source {kind} at 3"] = encode(source.get_state())
            source.reset()
            found[f"source {kind} reset"] = encode(source.get_state())
    for name in STATES_OF_PIPELINES:
        module = pipeline(name)
        found[f"pipeline {name} at 0"] = encode(module.get_state())
        for _ in range(3):
            next(module)
        found[f"pipeline {name} at 3"] = encode(module.get_state())
    config = DataLoaderConfig(batch_size=4, seed=1, batch_stats_fn=parts.means)
    stages = [parts.STAGES["measured"]]
    with DataLoader(config, MemorySource(MemoryConfig(), parts.columns()), transforms=stages) as loader:
        next(loader), next(loader)
        found["loader with statistics"] = encode(loader.get_state())
        loader.reset_statistics()
        found["loader with statistics reset"] = encode(loader.get_state())
    config = DataLoaderConfig(batch_size=4, precomputed_stats={"mean": 2.5})
    with DataLoader(config, parts.source("range", directory), rngs=nnx.Rngs(3, noise=4)) as loader:
        next(loader)
        loader.rngs.noise()
        found["loader with random streams"] = encode(loader.get_state())
    return found


def combined_states(directory):
    """Case -> state and digest of several loaders that each read some slots, as if one had read all."""
    found = {}
    for number in range(20):
        case = settings(number)
        size, count = case["config"]["batch_size"], 2 + number % 3
        shares = [list(range(size))[index::count] for index in range(count)]
        loaders = [open_loader({**case, "rows": rows, "owned": None}, directory) for rows in shares if rows]
        for loader in loaders:
            for _ in range(2):
                next(loader)
            loader.source.close()
        state, digest = loaders[0].combined([loader.contribution() for loader in loaders])
        found[f"{number:03d} by {len(loaders)}"] = {"state": encode(state), "digest": digest}
        for loader in loaders:
            loader.close()
    return found


def _with(**changes):
    def change(state):
        return {**state, **changes}

    return change


def _without(*names):
    def change(state):
        return {name: value for name, value in state.items() if name not in names}

    return change


WRONG_OF_A_LOADER = {
    "no dict": lambda state: list(state.items()),
    "idx missing": _without("idx"),
    "two missing": _without("idx", "digest_rows"),
    "a field too many": _with(surplus=1),
    "idx None": _with(idx=None),
    "idx a text": _with(idx="3"),
    "idx a float": _with(idx=3.0),
    "idx a bool": _with(idx=True),
    "idx negative": _with(idx=-1),
    "idx 0 with rows": _with(idx=0),
    "position beyond the end": _with(position=53 * 2 + 1, epoch=2),
    "epoch of another place": _with(epoch=1),
    "digest_keys of 65 bits": _with(digest_keys=1 << 64),
    "digest_bytes of 65 bits": _with(digest_bytes=1 << 64),
    "digest_rows None": _with(digest_rows=None),
    "current an array": _with(current=np.zeros(3)),
    "counter of another dtype": _with(_applied_count=np.asarray(12, np.int32)),
    "counter of another shape": _with(_applied_count=np.asarray([12], np.int64)),
    "counter a Python int": _with(_applied_count=12),
    "means missing": _with(stats_rows=12),
    "random streams": _with(rngs={"default": {"count": 0}}),
}
WRONG_OF_A_SOURCE = {
    "position beyond the end": _with(position=54, idx=53, epoch=1),
    "position None": _with(position=None),
    "idx of another place": _with(idx=1),
    "epoch of another place": _with(epoch=1),
    "current an array": _with(current=np.zeros(3)),
}
WRONG_OF_A_PIPELINE = {
    "position is not idx": _with(position=2),
    "an epoch": _with(epoch=0),
    "no Grain state": _with(grain_state=None),
    "idx 0 with a Grain state": _with(idx=0, position=0),
    "idx None": _with(idx=None),
    "digest_bytes of 65 bits": _with(digest_bytes=1 << 64),
    "Grain state of nobody": _with(grain_state={"nobody": 1}),
}


def refusals(directory):
    """Case -> kind of error, and case -> what it says, of states that are wrong; a refused state changes nothing."""
    kinds, messages = {}, {}
    makers = {
        "loader": (small_loader, WRONG_OF_A_LOADER),
        "source": (lambda: parts.source("columns", directory), WRONG_OF_A_SOURCE),
        "pipeline": (lambda: pipeline("random_map_in_map"), WRONG_OF_A_PIPELINE),
    }
    for who, (make, wrongs) in makers.items():
        module = make()
        for _ in range(3):
            next(module)
        before = encode(module.get_state())
        for what, change in wrongs.items():
            name = f"{who}: {what}"
            try:
                module.set_state(change(copy.copy(module.get_state())))
            except Exception as error:
                kinds[name] = type(error).__name__
                messages[name] = first_line(error)
            else:
                kinds[name] = "accepted"
                module = make()
                for _ in range(3):
                    next(module)
            assert encode(module.get_state()) == before, name
    return kinds, messages


# Identities.


def identities(directory):
    """Case -> identity tree: of sources, orders, transforms, loaders and Grain pipelines."""
    return {
        **_source_identities(directory),
        **_order_identities(),
        **_transform_identities(),
        **_loader_identities(directory),
        **_pipeline_identities(),
    }


def _source_identities(directory):
    image = str(directory / "zarr" / "image")
    manifest = directory / "with_manifest"
    built = directory / "built"
    if not manifest.exists():
        manifest.mkdir()
        for path in sorted((directory / "records").iterdir()):
            (manifest / path.name).write_bytes(path.read_bytes())
        write_manifest(str(manifest / "*.array_record"))
        (directory / "text.txt").write_bytes(b"".join(parts.lines(0, 40)))
        build_dataset(
            BuildConfig(
                output=str(built),
                inputs=(str(directory / "text.txt"),),
                record_bytes=parts.RECORD_BYTES,
                num_shards=2,
            )
        )
    sources = {kind: parts.source(kind, directory, name="named") for kind in parts.SOURCES} | {
        "list": MemorySource(MemoryConfig(), [b"a", b"bc", "d", {"e": 1, "f": [2.5, None]}]),
        "nested columns": MemorySource(MemoryConfig(), {"a": {"b": np.arange(5)}, "c": [np.ones((5, 2))]}),
        "items with a version": GrainSource(GrainConfig(version="3"), parts.items()),
        "one array": TensorStoreSource(TensorStoreConfig(path=image)),
        "filled array": TensorStoreSource(TensorStoreConfig(path=image, missing_chunks="fill")),
        "records of a manifest": ArrayRecordSource(ArrayRecordConfig(files=str(manifest))),
        "records of a build": ArrayRecordSource(ArrayRecordConfig(files=str(built))),
    }
    found = {}
    for name, source in sources.items():
        found[f"source {name}"] = source.identity()
        found[f"outline {name}"] = source.outline()
        content = source.content_fingerprint()
        found[f"content {name}"] = content
        found[f"files {name}"] = [
            {"name": each.name, "first_index": each.first_index, "num_records": each.num_records}
            for each in source.files()
        ]
        source.close()
    return found


def _order_identities():
    configs = [
        {"policy": "none"},
        {"policy": "none", "seed": 4},
        {"policy": "global", "seed": 20},
        {"policy": "block", "seed": 2**40, "block_size": 16, "window_blocks": 8},
        {"policy": "grain", "seed": 20, "grain_style": "index_sampler"},
        {"policy": "grain", "seed": 20, "grain_style": "map_dataset"},
        {"policy": "grain", "seed": 20, "grain_style": "map_dataset", "grain_ops_between": 3},
    ]
    return {
        f"order {number}": Order(OrderConfig(**config), {"numbers": 1000}).identity()
        for number, config in enumerate(configs)
    }


def _transform_identities():
    stages = {
        name: stage for name, stage in (parts.STAGES | parts.OTHER_STAGES).items() if name not in PER_LINE
    }
    found = {f"transform {name}": transform_identity(stage) for name, stage in stages.items()}
    found["pipeline of three"] = pipeline_identity([stages["columns"], stages["noisy"], stages["closure"]])
    found["pipeline of none"] = pipeline_identity([])
    return found


PER_LINE = frozenset()
"""Stages whose identity holds the version of a package that the two lines have in different versions."""


def _loader_identities(directory):
    found = {}
    for number in range(3, CASES, 13):
        case = settings(number)
        with open_loader(case, directory) as loader:
            found[f"loader {number:03d}"] = {
                "case": described(case),
                "identity": loader.identity(),
                "without sample": loader.identity(sample=False),
            }
            loader.source.close()
    config = DataLoaderConfig(batch_size=4, precomputed_stats={"mean": 2.5, "table": np.arange(3)})
    with DataLoader(config, parts.source("range", directory)) as loader:
        found["loader with statistics"] = loader.identity()
    return found


def _pipeline_identities():
    found = {f"grain {make.__name__}": pipeline(make.__name__).identity() for make in grain_pipelines.ALL}
    config = GrainPipelineConfig(name="named", version=4, num_steps=5)
    found["grain with a version"] = GrainPipeline(config, grain_pipelines.map_and_batch()).identity()
    return found
