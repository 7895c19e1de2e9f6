"""What a Grain pipeline is: its identity, what Grain gets wrong with it, and how many elements it has.

The identity is everything that can change an element, and nothing that cannot: moving files, read-ahead, threads and library
versions do not count; which shard this process reads is state, and only how many there are is identity. Stages stand in the
order of the data's way, by number and kind, so that a difference reads `pipeline.02_ShuffleMapDataset.seed: was 1, is 2`. What
Grain cannot resume is refused, what it delivers otherwise than one would think is told. Knows nothing of Grain's objects:
`graph.py` has read them.
"""

import hashlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from datarax.core.errors import ConfigError
from datarax.grain_pipeline.graph import ENDLESS, Node, all_stages, named_stages
from datarax.order.grain import num_repeated
from datarax.sources.files import relative_names
from datarax.sources.records import records_digest, sample_positions
from datarax.transforms import IDENTITY_VERSION, function_identity, function_impurities, value_identity

RULES_VERSION = IDENTITY_VERSION
"""How identities are made: of functions by the rules of transforms, and the rest is the same by all of them."""

_NUM_SAMPLED_RECORDS = 16
_WHOLE_RECORDS = 10_000  # an object in memory with at most so many records is hashed whole
_WHOLE_BYTES = 1 << 26
_END_BYTES = 1 << 16  # of a file that is no random-access source, both ends are hashed
# Their functions count by name: their text changes with their version, which is provenance.
_LIBRARIES = frozenset({"grain", "jax", "jaxlib", "ml_dtypes", "numpy", "tree", "optree"})


def stages_identity(
    node: Node, owner: str, *, declared: bool, packages: Collection[str] = (), rules: int = RULES_VERSION
) -> dict[str, Any]:
    """The stages that end with `node`, by number and kind.

    Args:
        node: the last stage.
        owner: the pipeline's name, in messages.
        declared: whether its author has declared a version, which then stands for what cannot be read.
        packages: those whose code counts by its text although they are installed.
        rules: version of the rules.

    Raises:
        ConfigError: naming the stage and what cannot be described.
    """
    version: dict[str, Any] = {"versioned": "the pipeline", "declared": declared}
    version |= {"version": rules, "packages": packages}
    trees: dict[str, Any] = {}
    for name, stage in named_stages(node):
        if not stage.known and not declared:
            raise ConfigError(
                f"{owner} has a stage {name} that is not known, so nothing can be said of its elements or of its "
                f"state; use stages of grain 0.2.18 itself, or declare a version of the pipeline (version=1), to be raised "
                f"whenever what it delivers changes"
            )
        trees[name] = tree = {
            key: value_identity(value, f"{key} of {name}", owner, **version)
            for key, value in stage.parameters.items()
        }
        for key, fn in stage.functions.items():
            tree[key] = function_identity(fn, f"{owner}, {key} of {name},", by_name=_LIBRARIES, **version)
        if stage.files:
            tree["files"] = _files(stage)
        if stage.source is not None:
            tree |= {
                "type": type(stage.source).__qualname__,
                "num_records": stage.length,
                "sample_version": 1,
                # None where the records are pipelines of their own.
                "sample": None if stage.branches else _sample(stage, name, owner, declared),
            }
        parents = {
            key: stages_identity(each, owner, declared=declared, packages=packages, rules=rules)
            for key, each in stage.branches.items()
        }
        tree |= {"parents": parents} if parents else {}
    return trees


def stages_impurities(node: Node, owner: str, packages: Collection[str]) -> list[str]:
    """A sentence for each place where a function of the stages shows a memory of its own."""
    functions = [fn for _, stage in all_stages(node) for fn in stage.functions.values()]
    return function_impurities(functions, owner, packages=packages)


def _files(node: Node) -> list[dict[str, Any]]:
    """Relative name, size and range of each file; a digest of its first and last 64 KiB where no records are sampled."""
    paths = [path for path, _ in node.files]
    # Sizes of object stores are not asked for; records are sampled as everywhere.
    is_local = not any("://" in path for path in paths)
    names = relative_names([os.path.abspath(path) for path in paths])[1] if is_local else paths
    trees = [{"name": name, "bytes": None, **part} for name, (_, part) in zip(names, node.files, strict=True)]
    for tree, path in zip(trees, paths if is_local else (), strict=is_local):
        try:
            tree["bytes"] = size = os.stat(path).st_size
            if node.source is None:
                with open(path, "rb") as file:
                    hasher = hashlib.sha256(file.read(_END_BYTES))
                    file.seek(max(0, size - _END_BYTES))
                    hasher.update(file.read(_END_BYTES))
                tree["ends"] = hasher.hexdigest()
        except OSError as error:
            raise ConfigError(f"file {path} of a Grain pipeline cannot be read: {error.strerror}") from error
    return trees


def _sample(node: Node, name: str, owner: str, declared: bool) -> str | None:
    """Digest of sampled records, of small objects in memory of all; None where a declared version stands for it."""
    source = node.source
    whole = isinstance(source, np.ndarray) and source.nbytes <= _WHOLE_BYTES
    in_memory = isinstance(source, (list, tuple, np.ndarray))
    positions = sample_positions(len(source), _WHOLE_RECORDS if in_memory else _NUM_SAMPLED_RECORDS)
    try:
        first, second = (
            records_digest([source] if whole else (source[i] for i in positions)) for _ in range(2)
        )
    except TypeError as error:
        if declared:
            return None
        raise ConfigError(
            f"the source of {owner}, {name}, cannot be fingerprinted: {error}; declare a version of the "
            f"pipeline (version=1), to be raised whenever the data change"
        ) from error
    if first != second:
        raise ConfigError(
            f"the source of {owner}, {name}, gives other records when it is read again; a source must be "
            f"deterministic, randomness belongs in a random_map"
        )
    return first


# What Grain gets wrong: the stage, the defect and the way out

_SEVERAL_ITERATORS = frozenset({"InterleaveIterDataset", "mp_prefetch", "multithread_prefetch"})
_DEFECTS = {
    "RepeatIterDataset": (
        "Grain starts every pass over {below} from one state that it changes itself, so files come twice or never, and "
        "a restore within a later pass skips the rest of it. Repeat before the data become a stream "
        "(MapDataset.repeat), or within each of the interleaved datasets"
    ),
    "CacheIterDataset": (
        "its state does not hold what it has cached, so a restore reads everything from the beginning, and the state that "
        "it gives after a restore is another one. Cache in the source (an object with the records in memory)"
    ),
    "Operation": (
        "{class} is an operation of the old kind, which may keep records in a buffer that no state "
        "holds; they are lost at a restore. Use grain.transforms (Map, RandomMap, Filter, FlatMap, Batch), or pack in an "
        "IterDataset pipeline"
    ),
}


def check_resumable(node: Node, owner: str) -> None:
    """Refuse a pipeline that Grain cannot take up again where it was.

    Raises:
        ConfigError: naming the stage, the defect, and what to do.
    """
    for path, stage in all_stages(node):
        if stage.kind not in _DEFECTS:
            continue
        several = [
            at.split(".")[-1]
            for at, each in all_stages(stage)
            if each.kind in _SEVERAL_ITERATORS or (each.kind == "ParquetIterDataset" and len(each.files) > 1)
        ]
        if several or stage.kind != "RepeatIterDataset":
            defect = _DEFECTS[stage.kind].format(**stage.parameters, below="".join(several[:1]))
            raise ConfigError(f"{owner}: {path} cannot be resumed: {defect}")


def warnings_of(node: Node) -> Iterator[str]:
    """What the user of this pipeline should know before a run, one sentence each."""
    for path, stage in all_stages(node):
        length = stage.length
        if length is None or length == ENDLESS:
            continue
        repeated = num_repeated(length)
        if stage.kind == "ShuffleMapDataset" and repeated:
            yield (
                f"{path}: Grain's shuffle is no permutation of {length} records: in every epoch {repeated} of them "
                f"{'is' if repeated == 1 else 'are'} never delivered and as many come twice; take one record more or less"
            )
        if stage.kind == "WindowShuffleMapDataset" and length % stage.parameters["window_size"]:
            yield (
                f"{path}: the last window of {length} records is shorter than {stage.parameters['window_size']}, and Grain "
                f"shuffles it as if it were whole: some records come twice and others never; make the length a multiple of "
                f"the window"
            )


# How many elements it has

_SAME_LENGTH_MAPS = frozenset(
    {
        *("BatchMapDataset", "ConcatenateMapDataset", "MapMapDataset", "MapWithIndexMapDataset"),
        *("MixedMapDataset", "RandomMapMapDataset", "RangeMapDataset", "RepeatMapDataset"),
        *("ShuffleMapDataset", "SliceMapDataset", "SourceMapDataset", "WindowShuffleMapDataset"),
        "ZipMapDataset",
    }
)
_COUNTED_STREAMS = frozenset(
    {
        *("BatchIterDataset", "MapIterDataset", "MapWithIndexIterDataset", "PrefetchIterDataset"),
        *("RandomMapIterDataset", "WindowShuffleIterDataset"),
    }
)


def num_elements(node: Node) -> int | None:
    """How many elements the pipeline delivers, where that can be told from its stages; `ENDLESS` if it has no end.

    A map that returns None, which a MapDataset skips, cannot be seen here.
    """
    if node.kind in _SAME_LENGTH_MAPS:
        stages = [stage for _, stage in all_stages(node)]
        if any(stage.kind not in _SAME_LENGTH_MAPS for stage in stages):
            return None
        # Grain divides its number for endless like any other, so batches or shards of it are counted too.
        of_endless = any(stage.length == ENDLESS for stage in stages)
        return ENDLESS if of_endless and (node.length or 0) >= ENDLESS >> 32 else node.length
    count = None if node.below is None else num_elements(node.below)
    if count is None:
        return None
    if node.kind == "LimitIterDataset":
        return min(count, node.parameters["count"])
    if node.kind == "BatchIterDataset" and count != ENDLESS:
        size: int = node.parameters["batch_size"]
        return count // size if node.parameters["drop_remainder"] else -(-count // size)
    return count if node.kind in _COUNTED_STREAMS else None
