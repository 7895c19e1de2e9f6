"""What Grain gets wrong: pipelines that cannot be resumed, and those that deliver something else than one would think.

Each rule names the stage, the defect and the way out. Knows nothing of Grain's objects: `graph.py` has read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from datarax.core.errors import ConfigError
from datarax.grain_pipeline.node import ENDLESS, Node, all_stages
from datarax.order.grain import num_repeated

_SEVERAL_ITERATORS = frozenset({"InterleaveIterDataset", "mp_prefetch", "multithread_prefetch"})


def check_resumable(node: Node, owner: str) -> None:
    """Refuse a pipeline that Grain cannot take up again where it was.

    Raises:
        ConfigError: naming the stage, the defect, and what to do.
    """
    for path, stage in all_stages(node):
        for rule in _RULES:
            problem = rule(stage)
            if problem is not None:
                raise ConfigError(f"{owner}: {path} cannot be resumed: {problem}")


def _repeat_over_several(stage: Node) -> str | None:
    if stage.kind != "RepeatIterDataset":
        return None
    below = [path.split(".")[-1] for path, each in all_stages(stage) if _has_several_iterators(each)]
    if not below:
        return None
    return (
        f"Grain starts every pass over {below[0]} from one state that it changes itself, so files come twice or never, and "
        f"a restore within a later pass skips the rest of it. Repeat before the data become a stream "
        f"(MapDataset.repeat), or within each of the interleaved datasets"
    )


def _has_several_iterators(stage: Node) -> bool:
    return stage.kind in _SEVERAL_ITERATORS or (stage.kind == "ParquetIterDataset" and len(stage.files) > 1)


def _cache(stage: Node) -> str | None:
    if stage.kind != "CacheIterDataset":
        return None
    return (
        "its state does not hold what it has cached, so a restore reads everything from the beginning, and the state that "
        "it gives after a restore is another one. Cache in the source (an object with the records in memory)"
    )


def _legacy_operation(stage: Node) -> str | None:
    if stage.kind != "Operation":
        return None
    return (
        f"{stage.parameters['class']} is an operation of the old kind, which may keep records in a buffer that no state "
        f"holds; they are lost at a restore. Use grain.transforms (Map, RandomMap, Filter, FlatMap, Batch), or pack in an "
        f"IterDataset pipeline"
    )


_RULES: tuple[Callable[[Node], str | None], ...] = (_repeat_over_several, _cache, _legacy_operation)


def warnings_of(node: Node) -> list[str]:
    """What the user of this pipeline should know before a run, one sentence each."""
    return [told for path, stage in all_stages(node) for told in _warnings(path, stage)]


def _warnings(path: str, stage: Node) -> Iterator[str]:
    length = stage.length
    if stage.kind == "ShuffleMapDataset" and length not in (None, 0, ENDLESS):
        repeated = num_repeated(length)  # type: ignore[arg-type]
        if repeated:
            yield (
                f"{path}: Grain's shuffle is no permutation of {length} records: in every epoch {repeated} of them "
                f"{'is' if repeated == 1 else 'are'} never delivered and as many come twice; take one record more or less"
            )
    if stage.kind == "WindowShuffleMapDataset" and length not in (None, ENDLESS):
        window = stage.parameters["window_size"]
        if length % window:  # type: ignore[operator]
            yield (
                f"{path}: the last window of {length} records is shorter than {window}, and Grain shuffles it as if it were "
                f"whole: some records come twice and others never; make the length a multiple of the window"
            )


def num_elements(node: Node) -> int | None:
    """How many elements the pipeline delivers, where that can be told from its stages and has an end; else None.

    A map that returns None, which a MapDataset skips, cannot be seen here.
    """
    count = _count(node)
    return None if count == ENDLESS else count


def _count(node: Node) -> int | None:
    if node.kind in _SAME_LENGTH_MAPS:
        if not _is_dense(node):
            return None
        return ENDLESS if _is_part_of_endless(node) else node.length
    count = None if node.below is None else _count(node.below)
    if count is None:
        return None
    if node.kind == "LimitIterDataset":
        return min(count, node.parameters["count"])
    if node.kind == "BatchIterDataset" and count != ENDLESS:
        size: int = node.parameters["batch_size"]
        return count // size if node.parameters["drop_remainder"] else -(-count // size)
    return count if node.kind in _COUNTED_STREAMS else None


_SAME_LENGTH_MAPS = frozenset(
    {
        *(
            "BatchMapDataset",
            "ConcatenateMapDataset",
            "MapMapDataset",
            "MapWithIndexMapDataset",
            "MixedMapDataset",
        ),
        *(
            "RandomMapMapDataset",
            "RangeMapDataset",
            "RepeatMapDataset",
            "ShuffleMapDataset",
            "SliceMapDataset",
        ),
        *("SourceMapDataset", "WindowShuffleMapDataset", "ZipMapDataset"),
    }
)
_COUNTED_STREAMS = frozenset(
    {
        *("BatchIterDataset", "MapIterDataset", "MapWithIndexIterDataset", "PrefetchIterDataset"),
        *("RandomMapIterDataset", "WindowShuffleIterDataset"),
    }
)


def _is_dense(node: Node) -> bool:
    return all(stage.kind in _SAME_LENGTH_MAPS for _, stage in all_stages(node))


def _is_part_of_endless(node: Node) -> bool:
    """Whether batches or shards of something endless are counted: Grain divides its number for endless like any other."""
    length = node.length or 0
    return length >= ENDLESS >> 32 and any(stage.length == ENDLESS for _, stage in all_stages(node))
