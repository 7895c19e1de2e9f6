"""The `[source]` table of a run config: one flat table for all kinds, and how it becomes an open source.

Read next: the kinds themselves, `memory.py` first. Building a missing dataset is `build.py`.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datarax.core.attributes import load_attribute
from datarax.core.errors import ConfigError, InputError
from datarax.core.tree import differences
from datarax.sources.array_record import ArrayRecordConfig, ArrayRecordSource
from datarax.sources.build import BuildConfig, BuildProgress, build_dataset
from datarax.sources.build_inputs import PYTHON_STDLIB, InputKind
from datarax.sources.file_list import SourceFile, with_first_indices
from datarax.sources.local_files import relative_names, require_local
from datarax.sources.manifest import load_manifest
from datarax.sources.memory import MemoryConfig, MemorySource
from datarax.sources.range import RangeConfig, RangeSource
from datarax.sources.source import DataSource


class SourceKind(enum.StrEnum):
    """Where records come from."""

    ARRAY_RECORD = "array_record"
    """ArrayRecord files: `files`, and `build` to make them if they are missing."""
    TENSORSTORE = "tensorstore"
    """TensorStore arrays (zarr3), whose first axis counts records: `path`."""
    RANGE = "range"
    """The numbers of a range: `start`, `stop`, `step`."""
    MEMORY = "memory"
    """Arrays or a list in memory: `use` names them, or a function that makes them."""
    GRAIN = "grain"
    """Any object of Grain's random-access protocol: `use` names it, or a function that makes it."""


_FIELDS = {
    SourceKind.ARRAY_RECORD: {"files", "build", "max_open_files"},
    SourceKind.TENSORSTORE: {"path"},
    SourceKind.RANGE: {"start", "stop", "step"},
    SourceKind.MEMORY: {"use", "parameters"},
    SourceKind.GRAIN: {"use", "parameters", "version"},
}
_REQUIRED = {
    SourceKind.ARRAY_RECORD: "files",
    SourceKind.TENSORSTORE: "path",
    SourceKind.RANGE: "stop",
    SourceKind.MEMORY: "use",
    SourceKind.GRAIN: "use",
}


@dataclass(frozen=True, kw_only=True)
class BuildTable:
    """The `[source.build]` table: what to build the source's files from. See `BuildConfig`."""

    kind: InputKind = InputKind.TEXT
    """What the inputs hold: "text" or "jsonl"."""
    inputs: Sequence[str]
    """Paths, globs or directories, or "python-stdlib", the standard library's source text."""
    record_bytes: int | None = None
    """Text: bytes of each record; None: one record per file."""
    records_per_shard: int | None = None
    """Records in each file but the last."""
    num_shards: int | None = None
    """Number of files of about equal length."""
    group_size: int = 1
    """Records compressed and read together."""
    compression: str = "uncompressed"
    """"uncompressed" or "zstd"."""

    def config(self, output: str) -> BuildConfig:
        """The build that makes `output`."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return BuildConfig(output=output, **{**values, "inputs": tuple(self.inputs)})


@dataclass(frozen=True, kw_only=True)
class SourceTable:
    """The `[source]` table.

    Raises:
        ConfigError: if a key belongs to another kind, or the kind's own key is missing.
    """

    kind: SourceKind
    """Where records come from; decides which of the other keys there may be."""
    name: str = "data"
    """The source's name in orders, seeds and record keys. Identity."""
    files: str | Sequence[str] | None = None
    """array_record: paths, globs, or one directory with a manifest."""
    max_open_files: int | None = None
    """array_record: files kept open between reads."""
    build: BuildTable | None = None
    """array_record: how `files`, then one directory, is built if it is not there."""
    path: str | Mapping[str, str] | None = None
    """tensorstore: path of an array, or a table of paths by name."""
    start: int | None = None
    """range: the first number."""
    stop: int | None = None
    """range: the number after the last."""
    step: int | None = None
    """range: the distance between numbers."""
    use: str | None = None
    """memory, grain: `module:attribute` of the data, or of a function that returns it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """memory, grain: keyword arguments of that function."""
    version: str | None = None
    """grain: a version of the data, declared by hand."""

    def __post_init__(self) -> None:
        allowed = _FIELDS[self.kind] | {"kind", "name"}
        for each in dataclasses.fields(self):
            if each.name not in allowed and getattr(self, each.name) not in (None, {}):
                raise ConfigError(
                    f"{each.name} does not belong to kind = {self.kind.value!r}, which takes {', '.join(sorted(allowed))}"
                )
        required = _REQUIRED[self.kind]
        if getattr(self, required) is None:
            raise ConfigError(f"kind = {self.kind.value!r} needs {required}")
        if self.build is not None and not isinstance(self.files, str):
            raise ConfigError("with a build table, files must be the one directory that the build makes")

    def resolved(self) -> SourceTable:
        """With absolute paths.

        Raises:
            ConfigError: if a path is empty or not local.
        """
        changes: dict[str, Any] = {}
        if self.files is not None:
            changes["files"] = _absolute(self.files, "files")
        if self.path is not None:
            changes["path"] = (
                {name: _absolute(each, "path") for name, each in self.path.items()}
                if isinstance(self.path, Mapping)
                else _absolute(self.path, "path")
            )
        if self.build is not None:
            inputs = [
                each if each == PYTHON_STDLIB else _absolute(each, "inputs") for each in self.build.inputs
            ]
            changes["build"] = dataclasses.replace(self.build, inputs=tuple(inputs))
        return dataclasses.replace(self, **changes)


def _absolute(paths: Any, key: str) -> Any:
    if not isinstance(paths, str):
        return tuple(_absolute(path, key) for path in paths)
    return require_local(paths, key)


def open_source(
    table: SourceTable, *, build: bool = False, say: Callable[[str], None] = lambda text: None
) -> DataSource:
    """Opens the source that a config describes.

    Args:
        table: the `[source]` table.
        build: make the files first if they are missing and there is a `[source.build]` table.
        say: told about building, a line at a time.

    Raises:
        ConfigError: if the table does not describe a source.
        InputError: if data are missing, empty or malformed.
        BuildError: if building fails on the way.
    """
    if table.build is not None:
        if build:
            _build_if_missing(table.build.config(str(table.files)), say)
        elif not os.path.exists(str(table.files)):
            raise InputError(
                f"the data {table.files} are not built yet; `datarax run` with this config builds them, or `datarax build`"
            )
    match table.kind:
        case SourceKind.ARRAY_RECORD:
            files = table.files if isinstance(table.files, str) else tuple(table.files or ())
            config = ArrayRecordConfig(name=table.name, files=files)
            if table.max_open_files is not None:
                config = dataclasses.replace(config, max_open_files=table.max_open_files)
            return ArrayRecordSource(config)
        case SourceKind.TENSORSTORE:
            # Imported where needed: TensorStore is slow to import and most runs have no use for it.
            from datarax.sources.tensorstore import TensorStoreConfig, TensorStoreSource

            assert table.path is not None
            return TensorStoreSource(TensorStoreConfig(name=table.name, path=table.path))
        case SourceKind.RANGE:
            assert table.stop is not None
            step = 1 if table.step is None else table.step
            return RangeSource(
                RangeConfig(name=table.name, start=table.start or 0, stop=table.stop, step=step)
            )
        case SourceKind.MEMORY:
            return MemorySource(MemoryConfig(name=table.name), _made(table))
        case SourceKind.GRAIN:
            from datarax.sources.grain_source import GrainConfig, GrainSource

            return GrainSource(GrainConfig(name=table.name, version=table.version), _made(table))


def list_files(table: SourceTable) -> Sequence[SourceFile]:
    """The files of a source as they are listed today, reading no record: by the manifest alone where there is one.

    Raises:
        ConfigError: if the table does not describe a source.
        InputError: if there is neither a manifest nor the files.
    """
    if table.kind is SourceKind.ARRAY_RECORD and isinstance(table.files, str) and os.path.isdir(table.files):
        manifest = load_manifest(table.files)
        if manifest is not None:
            _, names = relative_names([os.path.join(table.files, each.name) for each in manifest.files])
            facts = zip(names, manifest.files, strict=True)
            return with_first_indices([(name, each.num_records, each.size) for name, each in facts])
    with open_source(table) as source:
        return source.files()


def _build_if_missing(config: BuildConfig, say: Callable[[str], None]) -> None:
    """A finished dataset of these settings is used as it is: its inputs may have gone, or moved on, since."""
    there = load_manifest(config.output) if os.path.isdir(config.output) else None
    if there is not None and there.build is not None:
        recorded, asked = dict(there.build), config.identity("", 0)
        recorded["inputs"] = asked["inputs"] = None
        if not differences(recorded, asked):
            return
    stages: set[str] = set()

    def report(progress: BuildProgress) -> None:
        if progress.stage not in stages:
            stages.add(progress.stage)
            say(f"building {config.output}: {progress.stage}")

    result = build_dataset(config, progress=report)
    if not result.reused:
        say(f"built {result.manifest.num_records:,} records in {config.output}")


def _made(table: SourceTable) -> Any:
    """The data that `use` names; what is callable is called with the parameters."""
    assert table.use is not None
    found = load_attribute(table.use, "source.use")
    return found(**table.parameters) if callable(found) else found
