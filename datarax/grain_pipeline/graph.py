"""What a Grain pipeline is made of: a tree of `Node`s, read from Grain's own objects.

The only file that looks at Grain's private attributes, which Grain may rename at any time: each is named once, in a table,
and one that is missing is an error that says so. Decides nothing: `identity.py` spells the tree, `refusals.py` judges it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from datarax.core.errors import ConfigError
from datarax.grain_pipeline.node import FilePart, Node, Shard
from datarax.sources.records import sample_positions

_MANY_BRANCHES = 2048
_NUM_EXAMPLES = 16


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
        return Node("PrefetchIterDataset", {"allow_nones": False}, below=_read(pipeline, None))
    if isinstance(pipeline, grain.IterDataset):
        return _read(pipeline, None)
    kind = type(pipeline).__name__
    if isinstance(pipeline, grain.DatasetIterator) or (_is_grains(pipeline) and "Iterator" in kind):
        raise TypeError(
            f"a {kind} is an iterator, which cannot be made afresh for a restore; give the dataset or DataLoader that it "
            f"was made from"
        )
    raise TypeError(
        f"a Grain pipeline is a grain.MapDataset, grain.IterDataset or grain.DataLoader, got a {kind}"
    )


def is_dataset(value: Any) -> bool:
    """Whether a record is itself a dataset, as in what is interleaved."""
    return isinstance(value, (grain.MapDataset, grain.IterDataset))


def mark_flags_parsed() -> None:
    """Lets Grain start processes in a plain script: its own command-line flags count as read, with their defaults.

    Without this Grain raises UnparsedFlagAccessError unless the script runs under absl's `app.run`.
    """
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def close_iterator(iterator: Any) -> None:
    """Ends the threads and processes of an iterator."""
    inner = iterator if isinstance(iterator, grain.DatasetIterator) else _attribute(iterator, "_iterator")
    inner.close()


def _is_grains(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "grain"


def _attribute(owner: Any, path: str) -> Any:
    value = owner
    for name in path.split("."):
        try:
            value = vars(value)[name]
        except (KeyError, TypeError):
            raise ConfigError(
                f"this version of Grain keeps {path!r} of a {type(owner).__name__} somewhere else; it was known up to "
                f"grain 0.2.18. Use that version, or one of datarax that knows yours"
            ) from None
    return int(value) if isinstance(value, np.integer) else value


# Stages whose description is a list of attributes: {name in the identity: attribute}, first values, then functions.
_PLAIN: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "BatchMapDataset": (
        {"batch_size": "_batch_size", "drop_remainder": "_drop_remainder"},
        {"batch_fn": "_batch_fn"},
    ),
    "BatchIterDataset": (
        {"batch_size": "_batch_size", "drop_remainder": "_drop_remainder"},
        {"batch_fn": "_batch_fn"},
    ),
    "CacheIterDataset": ({}, {}),
    "ConcatenateMapDataset": ({}, {}),
    "FilterIterDataset": ({}, {"filter": "_filter_fn"}),
    "FilterMapDataset": ({}, {"filter": "_filter_fn"}),
    "LimitIterDataset": ({"count": "_count"}, {}),
    "MapIterDataset": ({}, {"map": "_map_fn"}),
    "MapMapDataset": ({}, {"map": "_map_fn"}),
    "MapWithIndexIterDataset": ({}, {"map_with_index": "_map_fn"}),
    "MapWithIndexMapDataset": ({}, {"map_with_index": "_map_fn"}),
    "PrefetchIterDataset": ({"allow_nones": "_allow_nones"}, {}),
    "RandomMapIterDataset": ({"seed": "_seed"}, {"random_map": "_map_fn"}),
    "RandomMapMapDataset": ({"seed": "_rng_pool._seed"}, {"random_map": "_map_fn"}),
    "RangeMapDataset": ({"start": "start", "stop": "stop", "step": "step"}, {}),
    "RebatchIterDataset": ({"batch_size": "_batch_size", "drop_remainder": "_drop_remainder"}, {}),
    "RepeatIterDataset": ({"num_epochs": "_num_epochs"}, {}),
    "RepeatMapDataset": ({"num_epochs": "_num_epochs", "reseed_each_epoch": "_reseed_each_epoch"}, {}),
    "ShuffleMapDataset": ({"seed": "_seed"}, {}),
    "WindowShuffleIterDataset": ({"window_size": "_window_size", "seed": "_seed"}, {}),
    "WindowShuffleMapDataset": ({"window_size": "_window_size", "seed": "_seed"}, {}),
    "ZipIterDataset": ({"strict": "_strict"}, {}),
    "ZipMapDataset": ({}, {}),
}

_PACKING = {
    name: f"_{name}"
    for name in (
        *("packer_cls", "length_struct", "num_packing_bins", "seed", "shuffle_bins", "meta_features"),
        *(
            "shuffle_bins_group_by_feature",
            "pack_alignment_struct",
            "padding_struct",
            "max_sequences_per_bin",
        ),
    )
}

# They change neither an element nor a state: read-ahead, options of telemetry, and seeds that later stages have resolved.
_TRANSPARENT = frozenset(
    {
        *("ThreadPrefetchIterDataset", "WithOptionsIterDataset", "_MpContextIterDataset"),
        *("_LazyWorkerSliceIterDataset", "_WithSeedIterDataset", "_WithSeedMapDataset"),
    }
)


def _read(dataset: Any, worker: Shard | None) -> Node:
    """The node of one dataset; `worker` says for which worker Grain has sliced it."""
    kind = type(dataset).__name__
    if not _is_grains(dataset):
        return _unknown(dataset, worker)
    if kind in _TRANSPARENT:
        return _read(_parents(dataset)[0], worker)
    special = _SPECIAL.get(kind)
    if special is not None:
        return special(dataset, worker)
    if kind not in _PLAIN:
        return _unknown(dataset, worker)
    values, functions = _PLAIN[kind]
    return _node(dataset, worker, _values(dataset, values), _values(dataset, functions))


def _node(
    dataset: Any,
    worker: Shard | None,
    parameters: Mapping[str, Any],
    functions: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
) -> Node:
    """A known stage with everything below it; `names` are those of its parents where they have some."""
    parents = _parents(dataset)
    one = parents[0] if len(parents) == 1 and names is None else None
    keys = names if names is not None else [str(i) for i in range(len(parents))]
    several = {} if one is not None else dict(zip(keys, parents, strict=True))
    return Node(
        kind=type(dataset).__name__,
        parameters=parameters,
        functions=functions or {},
        below=None if one is None else _read(one, worker),
        branches={key: _read(each, worker) for key, each in several.items()},
        length=_length(dataset),
    )


def _values(dataset: Any, attributes: Mapping[str, str]) -> dict[str, Any]:
    return {name: _attribute(dataset, path) for name, path in attributes.items()}


def _parents(dataset: Any) -> Sequence[Any]:
    return _attribute(dataset, "_parents")


def _length(dataset: Any) -> int | None:
    return len(dataset) if isinstance(dataset, grain.MapDataset) else None


def _unknown(dataset: Any, worker: Shard | None) -> Node:
    parents = getattr(dataset, "_parents", ())  # a user's class need not call Grain's constructor
    return Node(
        kind=type(dataset).__name__,
        parameters={} if _length(dataset) is None else {"length": _length(dataset)},
        branches={str(i): _read(each, worker) for i, each in enumerate(parents)},
        length=_length(dataset),
        known=False,
    )


def _prefetch(dataset: Any, worker: Shard | None) -> Node:
    """From random access to a stream; for a worker of several Grain puts its slice right below."""
    (parent,) = _parents(dataset)
    if worker is not None and type(parent).__name__ == "SliceMapDataset":
        start, _, step = _slice_of(parent)
        if (start, step) == worker:
            parent = _parents(parent)[0]
    return Node(
        kind="PrefetchIterDataset",
        parameters={"allow_nones": _attribute(dataset, "_allow_nones")},
        below=_read(parent, worker),
    )


def _slice_of(dataset: Any) -> tuple[int, int, int]:
    start, stop, step = (_attribute(dataset, name) for name in ("_start", "_stop", "_step"))
    return start, stop, step


def _slice(dataset: Any, worker: Shard | None) -> Node:
    """`ds[i::n]` is shard i of n, which differs from process to process; any other slice is the same on all."""
    start, stop, step = _slice_of(dataset)
    if step > 1 and 0 <= start < step and stop == _attribute(dataset, "_parent_length"):
        node = _node(dataset, worker, {"shard_count": step})
        return _with(node, shard=(start, step))
    return _node(dataset, worker, {"start": start, "stop": stop, "step": step})


def _with(node: Node, **changes: Any) -> Node:
    return Node(**{**vars(node), **changes})


def _flat_map(dataset: Any, worker: Shard | None) -> Node:
    transform = _attribute(dataset, "_transform")
    functions = {"flat_map": transform.flat_map}
    return _node(dataset, worker, {"max_fan_out": transform.max_fan_out}, functions)


def _mixed_map(dataset: Any, worker: Shard | None) -> Node:
    chosen = _attribute(dataset, "_selection_map")
    if type(chosen).__name__ == "SelectionWithProportionsMap":
        return _node(
            dataset, worker, {"proportions": _attribute(chosen, "_proportions")}, names=_numbers(dataset)
        )
    return _node(dataset, worker, {"selection_map": chosen}, names=_numbers(dataset))


def _mixed_iter(dataset: Any, worker: Shard | None) -> Node:
    parents = _attribute(dataset, "_parents_structure")
    proportions = _attribute(dataset, "_proportions")
    # Grain flattens a mapping in the order of its keys.
    names = sorted(parents) if isinstance(parents, Mapping) else _numbers(dataset)
    return _node(dataset, worker, {"proportions": dict(zip(names, proportions, strict=True))}, names=names)


def _numbers(dataset: Any) -> list[str]:
    return [str(i) for i in range(len(_parents(dataset)))]


def _packing(dataset: Any, worker: Shard | None) -> Node:
    return _node(dataset, worker, _values(dataset, _PACKING))


def _concat_then_split(dataset: Any, worker: Shard | None) -> Node:
    return _node(dataset, worker, dict(vars(_attribute(dataset, "_config"))))


def _interleave(dataset: Any, worker: Shard | None) -> Node:
    """An interleave, or what Grain makes of one: the workers of `mp_prefetch` and of `multithread_prefetch`."""
    datasets = _attribute(dataset, "_datasets")
    kinds = {type(each).__name__ for each in datasets} if isinstance(datasets, (list, tuple)) else set()
    if kinds == {"ProcessPrefetchIterDataset"}:
        return _processes(datasets)
    if kinds == {"_MpContextIterDataset"}:
        workers = {str(i): _read(each, (i, len(datasets))) for i, each in enumerate(datasets)}
        return Node("multithread_prefetch", {"num_workers": len(datasets)}, branches=workers)
    branches = {name: _read(each, None) for name, each in _some_of(datasets).items()}
    if isinstance(datasets, grain.MapDataset):
        branches["datasets"] = _read(datasets, None)
    parameters = {"cycle_length": _attribute(dataset, "_cycle_length"), "num_datasets": len(datasets)}
    return Node("InterleaveIterDataset", parameters, branches=branches)


def _processes(datasets: Sequence[Any]) -> Node:
    """Every process makes the same pipeline and slices it there, so one of them stands for all."""
    (context,) = _parents(datasets[0])
    (inner,) = _parents(context)
    lazy = type(inner).__name__ == "_LazyWorkerSliceIterDataset"
    sequential = _attribute(inner, "_sequential_slice") if lazy else False
    return Node(
        kind="mp_prefetch",
        parameters={"num_workers": len(datasets), "sequential_slice": sequential},
        below=_read(context, None),
        has_processes=True,
    )


def _some_of(datasets: Any) -> dict[str, Any]:
    """All datasets by number, of very many some; what a lazy MapDataset makes is looked at in a few places."""
    most = _NUM_EXAMPLES if isinstance(datasets, grain.MapDataset) else _MANY_BRANCHES
    return {str(i): datasets[i] for i in sample_positions(len(datasets), most)}


def _source(dataset: Any, worker: Shard | None) -> Node:
    source = _attribute(dataset, "_source")
    if isinstance(source, grain.MapDataset):
        return _read(source, worker)
    return _source_node("SourceMapDataset", source)


def _source_node(kind: str, source: Any) -> Node:
    """The stage that reads an object with records."""
    length = len(source)
    files = _array_record_files(source) if isinstance(source, grain.sources.ArrayRecordDataSource) else ()
    parameters: dict[str, Any] = {}
    if type(source).__name__ == "RangeDataSource" and _is_grains(source):
        parameters = {name: _attribute(source, f"_{name}") for name in ("start", "stop", "step")}
    branches = {}
    if length and is_dataset(source[0]):
        branches = {str(i): _read(source[i], None) for i in sample_positions(length, _NUM_EXAMPLES)}
    return Node(kind, parameters, branches=branches, source=source, files=files, length=length)


def _array_record_files(source: Any) -> tuple[FilePart, ...]:
    parts = _attribute(source, "_read_instructions")
    return tuple(FilePart(str(part.filename), part.start, part.end) for part in parts)


def _parquet(dataset: Any, worker: Shard | None) -> Node:
    files = tuple(FilePart(os.fspath(path)) for path in _attribute(dataset, "_paths"))
    return Node("ParquetIterDataset", {"read_kwargs": _attribute(dataset, "_read_kwargs")}, files=files)


def _tf_record(dataset: Any, worker: Shard | None) -> Node:
    return Node("TFRecordIterDataset", files=(FilePart(os.fspath(_attribute(dataset, "_path"))),))


_SPECIAL: Mapping[str, Callable[[Any, Shard | None], Node]] = {
    "BestFitPackIterDataset": _packing,
    "ConcatThenSplitIterDataset": _concat_then_split,
    "FirstFitPackIterDataset": _packing,
    "FlatMapIterDataset": _flat_map,
    "FlatMapMapDataset": _flat_map,
    "InterleaveIterDataset": _interleave,
    "MixedIterDataset": _mixed_iter,
    "MixedMapDataset": _mixed_map,
    "PackIterDataset": _packing,
    "ParquetIterDataset": _parquet,
    "PrefetchIterDataset": _prefetch,
    "SliceMapDataset": _slice,
    "SourceMapDataset": _source,
    "TFRecordIterDataset": _tf_record,
}

# DataLoader

_METHODS: Mapping[str, tuple[type, str]] = {
    "Map": (grain.transforms.Map, "map"),
    "RandomMap": (grain.transforms.RandomMap, "random_map"),
    "TfRandomMap": (grain.transforms.TfRandomMap, "np_random_map"),
    "FlatMap": (grain.experimental.FlatMapTransform, "flat_map"),
    "Filter": (grain.transforms.Filter, "filter"),
}


def _data_loader(loader: Any) -> Node:
    """A DataLoader as the chain that it is: source, sampler, operations, and the loader with its workers and shard."""
    source = _attribute(loader, "_data_source")
    node = _read(source, None) if isinstance(source, grain.MapDataset) else _source_node("DataSource", source)
    node = _sampler(_attribute(loader, "_sampler"), node)
    for operation in _attribute(loader, "_operations"):
        node = _operation(operation, node)
    options = _attribute(loader, "_shard_options")
    workers = _attribute(loader, "_multiprocessing_options").num_workers
    shared = {"shard_count": options.shard_count, "drop_remainder": options.drop_remainder}
    return Node(
        kind="DataLoader",
        parameters={"worker_count": workers, **shared},
        below=node,
        shard=(options.shard_index, options.shard_count) if options.shard_count > 1 else None,
        has_processes=workers > 0,
    )


_SAMPLERS = {
    "SequentialSampler": ("num_records", "seed"),
    "IndexSampler": ("num_records", "shuffle", "num_epochs", "seed"),
}


def _sampler(sampler: Any, below: Node) -> Node:
    kind = type(sampler).__name__
    if not (_is_grains(sampler) and kind in _SAMPLERS):
        return Node("Sampler", {"sampler": sampler}, below=below)
    options = _attribute(sampler, "_shard_options")
    parameters = {name: _attribute(sampler, f"_{name}") for name in _SAMPLERS[kind]}
    parameters |= {"shard_count": options.shard_count, "drop_remainder": options.drop_remainder}
    shard = (options.shard_index, options.shard_count) if options.shard_count > 1 else None
    return Node(kind, parameters, below=below, shard=shard, length=len(sampler))


def _operation(operation: Any, below: Node) -> Node:
    if isinstance(operation, grain.transforms.Batch):
        parameters = {"batch_size": operation.batch_size, "drop_remainder": operation.drop_remainder}
        functions = {} if operation.batch_fn is None else {"batch_fn": operation.batch_fn}
        return Node("Batch", parameters, functions, below)
    for kind, (base, method) in _METHODS.items():
        if isinstance(operation, base):
            found: Any = operation
            fan_out = {"max_fan_out": found.max_fan_out} if kind == "FlatMap" else {}
            return Node(kind, fan_out, {method: getattr(found, method)}, below)
    return Node("Operation", {"class": type(operation).__name__}, below=below)
