"""What a dataset is built from, and how: the `[source.build]` table, the identity of what it makes, its command line."""

import shlex
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from datarax.core.config import Checked, Positive, check_fields
from datarax.core.errors import ConfigError
from datarax.sources.build_inputs import PYTHON_STDLIB, InputKind
from datarax.store.files import local_path

BUILD_FORMAT = 1
"""Raise this when the same inputs and settings give other records."""


@dataclass(frozen=True, kw_only=True)
class BuildTable:
    """What to build a dataset from, and how: the `[source.build]` table.

    Raises:
        ConfigError: if a number is not positive, or settings contradict each other.
    """

    kind: Checked[InputKind] = InputKind.TEXT
    """What the inputs hold."""
    inputs: str | tuple[str, ...]
    """Paths, globs or directories (all files below them), or "python-stdlib", the standard library's source text."""
    record_bytes: Positive | None = None
    """Text: the files, one after the other, are cut into records of this many bytes; what is left at the end is
    dropped. None: one record per file. JSONL is always one record per line."""
    records_per_shard: Positive | None = None
    """Records in each file but the last, which holds the rest. None: all in one file, or as `num_shards` says."""
    num_shards: Positive | None = None
    """Number of files, whose record counts differ by at most one. The inputs are read twice."""
    group_size: Positive = 1
    """Records compressed and read together. 1 is for random reads, 16 for long runs (a block order)."""
    compression: Checked[Literal["uncompressed", "zstd"]] = "uncompressed"
    """"uncompressed" or "zstd". Other versions of zstd may write other bytes: files are then not comparable."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_fields(self)
        inputs = self.inputs if isinstance(self.inputs, str) else tuple(self.inputs)
        object.__setattr__(self, "inputs", inputs)
        if self.records_per_shard is not None and self.num_shards is not None:
            raise ConfigError("give records_per_shard or num_shards, not both")
        if self.kind is InputKind.JSONL and self.record_bytes is not None:
            raise ConfigError("record_bytes is for text; of JSONL each line is a record")

    def resolved(self) -> Self:
        """With absolute paths."""
        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        absolute = [each if each == PYTHON_STDLIB else local_path(each, "inputs") for each in inputs]
        return replace(self, inputs=tuple(absolute))

    def command(self, output: str) -> str:
        """The command line that builds this."""
        inputs = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        words = ["datarax", "build", self.kind.value, *inputs, "--output", output]
        for flag, value in (
            ("--record-bytes", self.record_bytes),
            ("--num-shards", self.num_shards),
            ("--records-per-shard", self.records_per_shard),
            ("--group-size", self.group_size if self.group_size != 1 else None),
            ("--compression", self.compression if self.compression != "uncompressed" else None),
        ):
            words += [] if value is None else [flag, str(value)]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class BuildConfig(BuildTable):
    """What to build a dataset from, how, and where.

    Raises:
        ConfigError: if a number is not positive, or settings contradict each other.
    """

    output: str
    """The directory to make. Its parent is made too."""

    def identity(self, inputs_sha256: str, num_inputs: int) -> dict[str, Any]:
        """What decides the bytes of the dataset: settings and contents, no paths."""
        return {
            "format": BUILD_FORMAT,
            "kind": self.kind.value,
            "inputs": {"count": num_inputs, "sha256": inputs_sha256},
            "record_bytes": self.record_bytes,
            "records_per_shard": self.records_per_shard,
            "num_shards": self.num_shards,
            "group_size": self.group_size,
            "compression": self.compression,
        }
