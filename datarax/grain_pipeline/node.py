"""The stages of a Grain pipeline as values, and the ways through them.

Knows nothing of Grain's objects: `graph.py` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Shard = tuple[int, int]
"""(shard index, shard count)."""

ENDLESS = sys.maxsize
"""The length that Grain gives to what repeats for ever."""


@dataclass(frozen=True)
class FilePart:
    """A file, or records [start, end) of it."""

    path: str
    start: int | None = None
    end: int | None = None


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
    files: tuple[FilePart, ...] = ()
    """The files that are read."""
    shard: Shard | None = None
    """Which part of the data this stage takes, where it takes every n-th record."""
    length: int | None = None
    """Elements in an epoch; None for a stream."""
    known: bool = True
    """Whether this is one of the stages in the table below."""
    has_processes: bool = False
    """Whether the stage starts processes."""

    def children(self) -> list[tuple[str, Node]]:
        """All that feeds this stage, by name; the name of `below` is empty."""
        return [("", self.below)] if self.below is not None else list(self.branches.items())


def named_stages(node: Node) -> list[tuple[str, Node]]:
    """The stages from the first one to `node`, with their names."""
    chain = [node]
    while chain[-1].below is not None:
        chain.append(chain[-1].below)
    return [(f"{i:02d}_{each.kind}", each) for i, each in enumerate(reversed(chain))]


def all_stages(node: Node, path: str = "pipeline") -> Iterator[tuple[str, Node]]:
    """Every stage below `node`, itself included, with its path in the identity."""
    for name, stage in named_stages(node):
        yield f"{path}.{name}", stage
        for key, branch in stage.branches.items():
            yield from all_stages(branch, f"{path}.{name}.parents.{key}")


def shards_of(node: Node) -> dict[str, Shard]:
    """Which shard each stage takes that takes one, by its path."""
    return {path: stage.shard for path, stage in all_stages(node) if stage.shard is not None}
