"""What a Grain pipeline is made of: a tree of `Node`s, read from Grain's own objects.

The only file that names Grain's private attributes, which Grain may rename at any time: each is named once, and one that is
missing is an error that says so. Decides nothing: `identity.py` spells the tree and judges it.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from datarax.core.errors import ConfigError
from datarax.sources.records import sample_positions

Shard = tuple[int, int]
"""(shard index, shard count)."""

ENDLESS = sys.maxsize
"""The length that Grain gives to what repeats for ever."""

_MANY_BRANCHES = 2048
_NUM_EXAMPLES = 16


@dataclass(frozen=True)
class Node:
    """One stage of a pipeline."""

    kind: str
    """Class name, or what Grain calls the function that made it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Values that decide which elements there are."""
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The user's functions."""
    below: Node | None = None
    """The one stage that feeds this one."""
    branches: Mapping[str, Node] = field(default_factory=dict)
    """The several that feed it, by name."""
    source: Any = None
    """The object with the records, of a stage without others below."""
    files: Sequence[tuple[str, Mapping[str, int]]] = ()
    """The files that are read, and the "start" and "end" of the records in each; {} for all of it."""
    shard: Shard | None = None
    """Which part of the data this stage takes, where it takes every n-th record."""
    length: int | None = None
    """Elements in an epoch; None for a stream."""
    known: bool = True
    """Whether this is one of the stages in the tables below."""


def named_stages(node: Node) -> list[tuple[str, Node]]:
    """The stages from the first one to `node`, with their names."""
    before = [] if node.below is None else named_stages(node.below)
    return [*before, (f"{len(before):02d}_{node.kind}", node)]


def all_stages(node: Node, path: str = "pipeline") -> Iterator[tuple[str, Node]]:
    """Every stage below `node`, itself included, with its path in the identity."""
    for name, stage in named_stages(node):
        yield f"{path}.{name}", stage
        for key, branch in stage.branches.items():
            yield from all_stages(branch, f"{path}.{name}.parents.{key}")


# Datasets


def read_pipeline(pipeline: Any) -> Node:
    """The tree of a `grain.MapDataset`, `grain.IterDataset` or `grain.DataLoader`.

    Raises:
        TypeError: if it is something else; an iterator is told apart, for it cannot be made afresh.
        ConfigError: if this version of Grain keeps a parameter somewhere else.
    """
    if isinstance(pipeline, grain.DataLoader):
        return _data_loader(pipeline)
    if isinstance(pipeline, grain.MapDataset):
        # What Grain makes of it for an iterator, so that saying it with other read options is no difference.
        return Node("PrefetchIterDataset", {"allow_nones": False}, below=_read(pipeline))
    if isinstance(pipeline, grain.IterDataset):
        return _read(pipeline)
    kind = type(pipeline).__name__
    if isinstance(pipeline, grain.DatasetIterator) or (is_grains(pipeline) and "Iterator" in kind):
        raise TypeError(
            f"a {kind} is an iterator, which cannot be made afresh for a restore; give the dataset or DataLoader that it "
            f"was made from"
        )
    raise TypeError(
        f"a Grain pipeline is a grain.MapDataset, grain.IterDataset or grain.DataLoader, got a {kind}"
    )


def attribute(owner: Any, path: str) -> Any:
    """A private attribute of one of Grain's objects; dots go deeper.

    Raises:
        ConfigError: if this version of Grain keeps it somewhere else.
    """
    try:
        value = operator.attrgetter(path)(owner)
    except AttributeError:
        raise ConfigError(
            f"this version of Grain keeps {path!r} of a {type(owner).__name__} somewhere else; it was known up to "
            f"grain 0.2.18. Use that version, or one of datarax that knows yours"
        ) from None
    return int(value) if isinstance(value, np.integer) else value


def _attributes(owner: Any, paths: Mapping[str, str]) -> dict[str, Any]:
    return {name: attribute(owner, path) for name, path in paths.items()}


def is_grains(value: Any) -> bool:
    """Whether Grain defines the class of an object."""
    return type(value).__module__.split(".")[0] == "grain"


_BATCH = {"batch_size": "_batch_size", "drop_remainder": "_drop_remainder"}
_BORDERS = {"start": "_start", "stop": "_stop", "step": "_step"}
_PACKING = {
    name: f"_{name}"
    for name in (
        *("packer_cls", "length_struct", "num_packing_bins", "seed", "shuffle_bins", "meta_features"),
        *("shuffle_bins_group_by_feature", "pack_alignment_struct", "padding_struct"),
        "max_sequences_per_bin",
    )
}

# Stages whose description is a list of attributes: {name in the identity: attribute}, first values, then functions.
_PLAIN: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "BatchMapDataset": (_BATCH, {"batch_fn": "_batch_fn"}),
    "BatchIterDataset": (_BATCH, {"batch_fn": "_batch_fn"}),
    "BestFitPackIterDataset": (_PACKING, {}),
    "CacheIterDataset": ({}, {}),
    "ConcatenateMapDataset": ({}, {}),
    "FilterIterDataset": ({}, {"filter": "_filter_fn"}),
    "FilterMapDataset": ({}, {"filter": "_filter_fn"}),
    "FirstFitPackIterDataset": (_PACKING, {}),
    "FlatMapIterDataset": ({"max_fan_out": "_transform.max_fan_out"}, {"flat_map": "_transform.flat_map"}),
    "FlatMapMapDataset": ({"max_fan_out": "_transform.max_fan_out"}, {"flat_map": "_transform.flat_map"}),
    "LimitIterDataset": ({"count": "_count"}, {}),
    "MapIterDataset": ({}, {"map": "_map_fn"}),
    "MapMapDataset": ({}, {"map": "_map_fn"}),
    "MapWithIndexIterDataset": ({}, {"map_with_index": "_map_fn"}),
    "MapWithIndexMapDataset": ({}, {"map_with_index": "_map_fn"}),
    "PackIterDataset": (_PACKING, {}),
    "PrefetchIterDataset": ({"allow_nones": "_allow_nones"}, {}),
    "RandomMapIterDataset": ({"seed": "_seed"}, {"random_map": "_map_fn"}),
    "RandomMapMapDataset": ({"seed": "_rng_pool._seed"}, {"random_map": "_map_fn"}),
    "RangeMapDataset": ({"start": "start", "stop": "stop", "step": "step"}, {}),
    "RebatchIterDataset": (_BATCH, {}),
    "RepeatIterDataset": ({"num_epochs": "_num_epochs"}, {}),
    "RepeatMapDataset": ({"num_epochs": "_num_epochs", "reseed_each_epoch": "_reseed_each_epoch"}, {}),
    "ShuffleMapDataset": ({"seed": "_seed"}, {}),
    "WindowShuffleIterDataset": ({"window_size": "_window_size", "seed": "_seed"}, {}),
    "WindowShuffleMapDataset": ({"window_size": "_window_size", "seed": "_seed"}, {}),
    "ZipIterDataset": ({"strict": "_strict"}, {}),
    "ZipMapDataset": ({}, {}),
}

# They change neither an element nor a state: read-ahead, options of telemetry, and seeds that later stages have resolved.
_TRANSPARENT = frozenset(
    {
        *("ThreadPrefetchIterDataset", "WithOptionsIterDataset", "_MpContextIterDataset"),
        *("_LazyWorkerSliceIterDataset", "_WithSeedIterDataset", "_WithSeedMapDataset"),
    }
)


def _read(dataset: Any, worker: Shard | None = None) -> Node:
    """The node of one dataset; `worker` says for which of several workers Grain has sliced what random access it streams."""
    kind, is_map = type(dataset).__name__, isinstance(dataset, grain.MapDataset)
    if is_grains(dataset) and kind in _SPECIAL:
        return _SPECIAL[kind](dataset, worker)
    worker = None if is_map else worker
    if is_grains(dataset) and kind in _TRANSPARENT:
        return _read(attribute(dataset, "_parents")[0], worker)
    if is_grains(dataset) and kind in _PLAIN:
        values, functions = _PLAIN[kind]
        return _node(dataset, worker, _attributes(dataset, values), _attributes(dataset, functions))
    parents = getattr(dataset, "_parents", ())  # a user's class need not call Grain's constructor
    parameters = {"length": len(dataset)} if is_map else {}
    return _node(dataset, worker, parameters, branches=dict(enumerate(parents)), known=False)


def _node(
    dataset: Any,
    worker: Shard | None,
    parameters: Mapping[str, Any],
    functions: Mapping[str, Any] | None = None,
    branches: Mapping[Any, Any] | None = None,
    **fields: Any,
) -> Node:
    """A stage with everything below it; without `branches` that is its parents, by number if there are several."""
    if branches is None:
        branches = dict(enumerate(attribute(dataset, "_parents")))
        if len(branches) == 1:
            fields["below"] = _read(branches[0], worker)
            branches = {}
    return Node(
        kind=type(dataset).__name__,
        parameters=parameters,
        functions=functions or {},
        branches={str(name): _read(each, worker) for name, each in branches.items()},
        length=len(dataset) if isinstance(dataset, grain.MapDataset) else None,
        **fields,
    )


def _slice(dataset: Any, worker: Shard | None) -> Node:
    """`ds[i::n]` is shard i of n, which differs from process to process; any other slice is the same on all."""
    borders = _attributes(dataset, _BORDERS)
    start, stop, step = borders.values()
    if (start, step) == worker:
        return _read(attribute(dataset, "_parents")[0])  # Grain's own slice
    if step > 1 and 0 <= start < step and stop == attribute(dataset, "_parent_length"):
        return _node(dataset, None, {"shard_count": step}, shard=(start, step))
    return _node(dataset, None, borders)


def _mixed_map(dataset: Any, worker: Shard | None) -> Node:
    chosen = attribute(dataset, "_selection_map")
    is_plain = type(chosen).__name__ == "SelectionWithProportionsMap"
    parameters = {"proportions": attribute(chosen, "_proportions")} if is_plain else {"selection_map": chosen}
    return _node(dataset, None, parameters, branches=dict(enumerate(attribute(dataset, "_parents"))))


def _mixed_iter(dataset: Any, worker: Shard | None) -> Node:
    structure, parents = (attribute(dataset, name) for name in ("_parents_structure", "_parents"))
    # Grain flattens a mapping in the order of its keys.
    names = sorted(structure) if isinstance(structure, Mapping) else [str(i) for i in range(len(parents))]
    proportions = dict(zip(names, attribute(dataset, "_proportions"), strict=True))
    return _node(
        dataset, worker, {"proportions": proportions}, branches=dict(zip(names, parents, strict=True))
    )


def _interleave(dataset: Any, worker: Shard | None) -> Node:
    """An interleave, or what Grain makes of one: the workers of `mp_prefetch` and of `multithread_prefetch`."""
    datasets = attribute(dataset, "_datasets")
    count = len(datasets)
    kinds = {type(each).__name__ for each in datasets} if isinstance(datasets, (list, tuple)) else set()
    if kinds == {"ProcessPrefetchIterDataset"}:
        # Every process makes the same pipeline and slices it there, so one of them stands for all.
        (context,) = attribute(datasets[0], "_parents")
        (inner,) = attribute(context, "_parents")
        is_lazy = type(inner).__name__ == "_LazyWorkerSliceIterDataset"
        sequential = attribute(inner, "_sequential_slice") if is_lazy else False
        return Node(
            "mp_prefetch", {"num_workers": count, "sequential_slice": sequential}, below=_read(context)
        )
    if kinds == {"_MpContextIterDataset"}:
        return Node(
            "multithread_prefetch",
            {"num_workers": count},
            branches={str(i): _read(each, (i, count)) for i, each in enumerate(datasets)},
        )
    # Of very many datasets some are described; what a lazy MapDataset makes is looked at in a few places.
    is_lazy = isinstance(datasets, grain.MapDataset)
    chosen = sample_positions(count, _NUM_EXAMPLES if is_lazy else _MANY_BRANCHES)
    branches = {i: datasets[i] for i in chosen} | ({"datasets": datasets} if is_lazy else {})
    return _node(
        dataset,
        None,
        {"cycle_length": attribute(dataset, "_cycle_length"), "num_datasets": count},
        branches=branches,
    )


def _source_node(kind: str, source: Any) -> Node:
    """The stage that reads an object with records; those of a dataset have stages of their own."""
    if isinstance(source, grain.MapDataset):
        return _read(source)
    length = len(source)
    in_files = isinstance(source, grain.sources.ArrayRecordDataSource)
    parts = attribute(source, "_read_instructions") if in_files else ()
    is_range = type(source).__name__ == "RangeDataSource" and is_grains(source)
    of_datasets = length and isinstance(source[0], (grain.MapDataset, grain.IterDataset))
    examples = sample_positions(length, _NUM_EXAMPLES) if of_datasets else ()
    return Node(
        kind,
        parameters=_attributes(source, _BORDERS) if is_range else {},
        branches={str(i): _read(source[i]) for i in examples},
        source=source,
        files=[(str(part.filename), {"start": part.start, "end": part.end}) for part in parts],
        length=length,
    )


# Stages that are described in a way of their own.
_SPECIAL: Mapping[str, Callable[[Any, Shard | None], Node]] = {
    "ConcatThenSplitIterDataset": lambda dataset, worker: _node(
        dataset, worker, dict(vars(attribute(dataset, "_config")))
    ),
    "InterleaveIterDataset": _interleave,
    "MixedIterDataset": _mixed_iter,
    "MixedMapDataset": _mixed_map,
    "ParquetIterDataset": lambda dataset, worker: Node(
        "ParquetIterDataset",
        {"read_kwargs": attribute(dataset, "_read_kwargs")},
        files=[(os.fspath(path), {}) for path in attribute(dataset, "_paths")],
    ),
    "SliceMapDataset": _slice,
    "SourceMapDataset": lambda dataset, worker: _source_node(
        "SourceMapDataset", attribute(dataset, "_source")
    ),
    "TFRecordIterDataset": lambda dataset, worker: Node(
        "TFRecordIterDataset", files=[(os.fspath(attribute(dataset, "_path")), {})]
    ),
}

# DataLoader

# Kind -> class, values, and the method that is the user's function.
_OPERATIONS: Mapping[str, tuple[type, tuple[str, ...], str]] = {
    "Batch": (grain.transforms.Batch, ("batch_size", "drop_remainder"), "batch_fn"),
    "Map": (grain.transforms.Map, (), "map"),
    "RandomMap": (grain.transforms.RandomMap, (), "random_map"),
    "TfRandomMap": (grain.transforms.TfRandomMap, (), "np_random_map"),
    "FlatMap": (grain.experimental.FlatMapTransform, ("max_fan_out",), "flat_map"),
    "Filter": (grain.transforms.Filter, (), "filter"),
}
_SAMPLERS = {
    "SequentialSampler": ("num_records", "seed"),
    "IndexSampler": ("num_records", "shuffle", "num_epochs", "seed"),
}


def _data_loader(loader: Any) -> Node:
    """A DataLoader as the chain that it is: source, sampler, operations, and the loader with its workers and shard."""
    node = _source_node("DataSource", attribute(loader, "_data_source"))
    sampler = attribute(loader, "_sampler")
    kind = type(sampler).__name__
    if is_grains(sampler) and kind in _SAMPLERS:
        node = _sharded(
            kind,
            {name: attribute(sampler, f"_{name}") for name in _SAMPLERS[kind]},
            sampler,
            below=node,
            length=len(sampler),
        )
    else:
        node = Node("Sampler", {"sampler": sampler}, below=node)
    for operation in attribute(loader, "_operations"):
        node = _operation(operation, node)
    values = {"worker_count": attribute(loader, "_multiprocessing_options").num_workers}
    return _sharded("DataLoader", values, loader, below=node)


def _sharded(kind: str, values: Mapping[str, Any], owner: Any, **fields: Any) -> Node:
    options = attribute(owner, "_shard_options")
    shared = {"shard_count": options.shard_count, "drop_remainder": options.drop_remainder}
    shard = (options.shard_index, options.shard_count) if options.shard_count > 1 else None
    return Node(kind, {**values, **shared}, shard=shard, **fields)


def _operation(operation: Any, below: Node) -> Node:
    for kind, (base, values, method) in _OPERATIONS.items():
        if isinstance(operation, base):
            function = getattr(operation, method)
            functions = {} if function is None else {method: function}
            return Node(kind, {name: getattr(operation, name) for name in values}, functions, below)
    return Node("Operation", {"class": type(operation).__name__}, below=below)
