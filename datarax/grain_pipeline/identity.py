"""The identity of a Grain pipeline: everything that can change one of its elements, and nothing that cannot.

Stages stand in the order of the data's way, by number and kind, so that a difference reads
`pipeline.02_ShuffleMapDataset.seed: was 1, is 2`. Moving files, read-ahead, threads and library versions do not count; which
shard this process reads is state, and only how many there are is identity. Knows nothing of Grain's attributes: see `graph.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.core.errors import ConfigError
from datarax.grain_pipeline.graph import is_dataset
from datarax.grain_pipeline.node import FilePart, Node, named_stages
from datarax.sources.files import relative_names
from datarax.sources.records import SAMPLE_VERSION, records_digest, sample_positions
from datarax.transforms import function_identity, value_identity

RULES_VERSION = 1
"""How identities are made. Raise it when the same pipeline would get another one."""

_NUM_SAMPLED_RECORDS = 16
_WHOLE_RECORDS = 10_000  # an object in memory with at most so many records is hashed whole
_WHOLE_BYTES = 1 << 26
_END_BYTES = 1 << 16  # of a file that is no random-access source, both ends are hashed
# Their functions count by name: their text changes with their version, which is provenance.
_LIBRARIES = frozenset({"grain", "jax", "jaxlib", "ml_dtypes", "numpy", "tree", "optree"})


@dataclass(frozen=True)
class Describer:
    """Spells the nodes of one pipeline."""

    owner: str
    """The pipeline's name, in messages."""
    declared: bool
    """Whether its author has declared a version, which then stands for what cannot be read."""

    def pipeline(self, node: Node) -> dict[str, Any]:
        """The stages that end with `node`, by number and kind.

        Raises:
            ConfigError: naming the stage and what cannot be described.
        """
        return {name: self._stage(each, name) for name, each in named_stages(node)}

    def _stage(self, node: Node, name: str) -> dict[str, Any]:
        if not node.known and not self.declared:
            raise ConfigError(
                f"{self.owner} has a stage {name} that is not known, so nothing can be said of its elements or of its "
                f"state; use stages of grain 0.2.18 itself, or declare a version of the pipeline (version=1), to be raised "
                f"whenever what it delivers changes"
            )
        tree = {key: self._value(value, f"{key} of {name}") for key, value in node.parameters.items()}
        for key, fn in node.functions.items():
            tree[key] = self._function(fn, f"{self.owner}, {key} of {name},")
        if node.source is not None or node.files:
            tree |= self._source(node, name)
        if node.branches:
            tree["parents"] = {key: self.pipeline(each) for key, each in node.branches.items()}
        return tree

    def _value(self, value: Any, what: str) -> Any:
        return value_identity(value, what, self.owner, versioned="the pipeline", declared=self.declared)

    def _function(self, fn: Any, owner: str) -> dict[str, Any]:
        return function_identity(
            fn, owner, versioned="the pipeline", declared=self.declared, by_name=_LIBRARIES
        )

    def _source(self, node: Node, name: str) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        if node.files:
            tree["files"] = file_trees(node.files, ends=node.source is None)
        if node.source is not None:
            tree |= {"type": type(node.source).__qualname__, "num_records": node.length}
            tree |= {"sample_version": SAMPLE_VERSION, "sample": self._sample(node.source, name)}
        return tree

    def _sample(self, source: Any, name: str) -> str | None:
        try:
            first = _sample_digest(source)
            if first != _sample_digest(source):
                raise ConfigError(
                    f"the source of {self.owner}, {name}, gives other records when it is read again; a source must be "
                    f"deterministic, randomness belongs in a random_map"
                )
        except TypeError as error:
            if not self.declared:
                raise ConfigError(
                    f"the source of {self.owner}, {name}, cannot be fingerprinted: {error}; declare a version of the "
                    f"pipeline (version=1), to be raised whenever the data change"
                ) from error
            return None
        return first


def file_trees(parts: Sequence[FilePart], *, ends: bool) -> list[dict[str, Any]]:
    """Relative name, size and range of each file; with `ends` a digest of its first and last 64 KiB.

    Raises:
        ConfigError: if a local file cannot be read.
    """
    local = [os.path.abspath(part.path) for part in parts if "://" not in part.path]
    if len(local) != len(
        parts
    ):  # sizes of object stores are not asked for; records are sampled as everywhere
        names = [part.path for part in parts]
        sizes: list[int | None] = [None] * len(parts)
    else:
        _, names = relative_names(local)
        sizes = [_size(path) for path in local]
    trees: list[dict[str, Any]] = []
    for part, name, size in zip(parts, names, sizes, strict=True):
        tree: dict[str, Any] = {"name": name, "bytes": size}
        if part.end is not None:
            tree |= {"start": part.start, "end": part.end}
        if ends and size is not None:
            tree["ends"] = _ends(part.path, size)
        trees.append(tree)
    return trees


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ConfigError(f"file {path} of a Grain pipeline cannot be read: {error.strerror}") from error


def _ends(path: str, size: int) -> str:
    with open(path, "rb") as file:
        hasher = hashlib.sha256(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        hasher.update(file.read(_END_BYTES))
    return hasher.hexdigest()


def _sample_digest(source: Any) -> str | None:
    """Digest of sampled records, of small objects in memory of all; None where the records are datasets."""
    length = len(source)
    if length and is_dataset(source[0]):
        return None  # each is described as a pipeline of its own
    if isinstance(source, np.ndarray) and source.nbytes <= _WHOLE_BYTES:
        return records_digest([source])
    in_memory = isinstance(source, (list, tuple, np.ndarray))
    most = _WHOLE_RECORDS if in_memory else _NUM_SAMPLED_RECORDS
    return records_digest(source[i] for i in sample_positions(length, most))
