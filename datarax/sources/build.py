"""Builds a dataset: raw text or JSONL becomes ArrayRecord shards and a manifest, whole or not at all.

Everything is written into a temporary sibling of the output directory, the manifest last, and renamed when it is on
the disk. Read next: `build_place.py` (the sibling and the lock), `build_inputs.py` (the records), `manifest.py`.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from datarax.core.errors import ConfigError, DataraxError, InputError, ReadError
from datarax.core.tree import differences
from datarax.sources.array_record_files import open_reader, open_writer
from datarax.sources.build_inputs import (
    PYTHON_STDLIB,
    InputFile,
    InputKind,
    Leftovers,
    find_inputs,
    inputs_digest,
    inputs_stamp,
    jsonl_records,
    text_records,
)
from datarax.sources.build_place import BuildPlace
from datarax.sources.build_stamp import load_stamp, save_stamp
from datarax.sources.durable import flush_to_disk
from datarax.sources.local_files import require_local
from datarax.sources.manifest import Manifest, load_manifest
from datarax.sources.manifest_writer import ManifestWriter

BUILD_FORMAT = 1
"""Raise this when the same inputs and settings give other records."""

Progress: TypeAlias = Callable[["BuildProgress"], None]
_MOST_SHARDS = 10**6  # six digits in a name: names must sort like numbers


class BuildError(DataraxError, OSError):
    """A dataset could not be written; nothing of it is left."""

    exit_code = 74


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What to build a dataset from, and how.

    Raises:
        ConfigError: if a number is not positive, or settings contradict each other.
    """

    kind: InputKind = InputKind.TEXT
    """What the inputs hold."""
    inputs: str | tuple[str, ...]
    """Paths, globs or directories (all files below them), or "python-stdlib", the standard library's source text."""
    output: str
    """The directory to make. Its parent is made too."""
    record_bytes: int | None = None
    """Text: the files, one after the other, are cut into records of this many bytes; what is left at the end is
    dropped. None: one record per file. JSONL is always one record per line."""
    records_per_shard: int | None = None
    """Records in each file but the last, which holds the rest. None: all in one file, or as `num_shards` says."""
    num_shards: int | None = None
    """Number of files, whose record counts differ by at most one. The inputs are read twice."""
    group_size: int = 1
    """Records compressed and read together. 1 is for random reads, 16 for long runs (a block order)."""
    compression: str = "uncompressed"
    """"uncompressed" or "zstd". Other versions of zstd may write other bytes: files are then not comparable."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.kind not in tuple(InputKind):
            raise ConfigError(
                f"kind must be one of {', '.join(map(repr, map(str, InputKind)))}, got {self.kind!r}"
            )
        object.__setattr__(self, "kind", InputKind(self.kind))
        inputs = self.inputs if isinstance(self.inputs, str) else tuple(self.inputs)
        object.__setattr__(self, "inputs", inputs)
        for name in ("record_bytes", "records_per_shard", "num_shards", "group_size"):
            value = getattr(self, name)
            optional = name != "group_size"
            if not (value is None and optional) and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        if self.records_per_shard is not None and self.num_shards is not None:
            raise ConfigError("give records_per_shard or num_shards, not both")
        if self.kind is InputKind.JSONL and self.record_bytes is not None:
            raise ConfigError("record_bytes is for text; of JSONL each line is a record")
        if self.compression not in ("uncompressed", "zstd"):
            raise ConfigError(f"compression must be 'uncompressed' or 'zstd', got {self.compression!r}")

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


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is."""

    stage: str
    """"waiting" for another process that builds the same, "reading" the inputs, or "writing" records."""
    num_records: int = 0
    """Records written so far."""
    num_bytes: int = 0
    """Bytes of these records."""


@dataclass(frozen=True)
class BuildResult:
    """A finished dataset."""

    directory: str
    """Absolute path; give it to an `ArrayRecordSource`."""
    manifest: Manifest
    """What is in it."""
    reused: bool
    """True if it was there already."""
    skipped_files: int = 0
    """Input files without a record: empty ones, and files of the standard library that are not UTF-8."""
    dropped_bytes: int = 0
    """Bytes after the last whole record, which are in no record."""


def build_dataset(config: BuildConfig, *, progress: Progress | None = None) -> BuildResult:
    """Makes the dataset that `config` describes, or finds it made.

    A finished dataset at the output is reused if it was built from the same contents with the same settings. Killed
    at any moment and called again it starts over; called by two processes at once, one builds and both return it.

    Args:
        config: what to build.
        progress: called every few thousand records, and a few times a second while another process builds.

    Raises:
        InputError: if an input is missing or malformed, there is no record, the output is something else or was built
            from something else (naming what differs), or it cannot be written to.
        BuildError: if writing fails on the way, as on a full disk. What was written is removed.
    """
    report = progress or (lambda _: None)
    output = require_local(config.output, "output directory")
    files = find_inputs(config.inputs)
    place = BuildPlace(output)
    try:
        if place.is_finished():  # asked before the lock: a finished dataset may lie where nobody can write
            return _reuse(config, output, files, report)
        with place.locked(while_waiting=lambda: report(BuildProgress("waiting"))):
            if place.is_finished():
                return _reuse(config, output, files, report)
            return _build(config, place, files, report)
    except DataraxError:
        raise
    except OSError as error:
        raise _cannot_write(output, error) from error


def _reuse(config: BuildConfig, output: str, files: list[InputFile], report: Progress) -> BuildResult:
    manifest = load_manifest(output)
    assert manifest is not None
    recorded = dict(manifest.build or {})
    stamp = inputs_stamp(files)
    inputs = recorded.get("inputs")
    if isinstance(inputs, dict) and load_stamp(output) == stamp:
        sha256 = inputs.get("sha256", "")
    else:
        report(BuildProgress("reading"))
        sha256 = inputs_digest(files)
    found = differences(recorded, config.identity(sha256, len(files)))
    if found:
        raise InputError(
            f"{output} holds a dataset that was built from something else; give another output, or delete it and "
            "build again:\n" + "\n".join(f"  {difference}" for difference in found)
        )
    save_stamp(output, stamp)
    return BuildResult(output, manifest, reused=True)


def _build(config: BuildConfig, place: BuildPlace, files: list[InputFile], report: Progress) -> BuildResult:
    report(BuildProgress("reading"))
    stamp = inputs_stamp(files)
    identity = config.identity(inputs_digest(files), len(files))
    leftovers = Leftovers()
    with place.temporary_directory() as directory:
        with ManifestWriter(directory, lambda n, size: report(BuildProgress("writing", n, size))) as writer:
            _write_shards(
                config, _records(config, files, leftovers), _shard_lengths(config, files), directory, writer
            )
            if writer.num_records == 0:
                raise InputError(_no_records(config, files, leftovers))
            if inputs_stamp(files) != stamp:
                raise InputError("the input files changed while they were read; build again")
            save_stamp(directory, stamp)
            manifest = writer.finish(identity)
        if not place.put_in_place(directory):
            return _reuse(config, place.output, files, report)  # a process on another machine was faster
    return BuildResult(
        place.output,
        manifest,
        reused=False,
        skipped_files=leftovers.skipped_files,
        dropped_bytes=leftovers.dropped_bytes,
    )


def _records(config: BuildConfig, files: list[InputFile], leftovers: Leftovers) -> Iterator[bytes]:
    if config.kind is InputKind.JSONL:
        return jsonl_records(files, leftovers)
    is_library = config.inputs in (PYTHON_STDLIB, (PYTHON_STDLIB,))
    return text_records(files, config.record_bytes, leftovers, skip_undecodable=is_library)


def _shard_lengths(config: BuildConfig, files: list[InputFile]) -> Iterator[int | None]:
    """Number of records in each shard; None: all that are left."""
    if config.records_per_shard is not None:
        return itertools.repeat(config.records_per_shard)
    if config.num_shards is None:
        return iter([None])
    total = sum(1 for _ in _records(config, files, Leftovers()))
    if total == 0:
        return iter([None])  # refused when they are written, in the same words as for one shard
    if total < config.num_shards:
        raise InputError(f"{total} records cannot fill num_shards = {config.num_shards} files; ask for fewer")
    each, more = divmod(total, config.num_shards)
    return iter([each + (i < more) for i in range(config.num_shards)])


def _write_shards(
    config: BuildConfig,
    records: Iterator[bytes],
    lengths: Iterator[int | None],
    directory: str,
    writer: ManifestWriter,
) -> None:
    for i, length in enumerate(lengths):
        first = next(records, None)
        if first is None:
            return
        if i == _MOST_SHARDS:
            raise InputError(
                f"the dataset would have more than {_MOST_SHARDS} files; ask for more records_per_shard"
            )
        rest = itertools.islice(records, None if length is None else length - 1)
        name = f"records-{i:06d}.array_record"
        before = writer.num_records
        _write_shard(config, os.path.join(directory, name), itertools.chain([first], rest), writer)
        writer.add_file(name, writer.num_records - before)
    # Drawn to the end, where what is left over is known.
    if next(records, None) is not None:
        raise InputError("the input files changed while they were read; build again")


def _write_shard(config: BuildConfig, path: str, records: Iterator[bytes], writer: ManifestWriter) -> None:
    before = writer.num_records
    shard = open_writer(path, group_size=config.group_size, compression=config.compression)
    try:
        for record in records:
            shard.write(record)
            writer.add_record(record)
        shard.close()
        flush_to_disk(path)
        if open_reader(path).num_records != writer.num_records - before:
            raise RuntimeError("it holds fewer records than were written to it")
    except (RuntimeError, ReadError) as error:  # the library's own error, which holds the cause as text
        raise BuildError(f"dataset file {path} could not be written: {error}") from error


def _no_records(config: BuildConfig, files: list[InputFile], leftovers: Leftovers) -> str:
    if config.record_bytes is not None and leftovers.dropped_bytes:
        return (
            f"the inputs ({len(files)} files) hold {leftovers.dropped_bytes} bytes, less than one record of "
            f"record_bytes = {config.record_bytes}"
        )
    return f"the inputs ({len(files)} files, the first is {files[0].path}) hold no record"


def _cannot_write(output: str, error: OSError) -> DataraxError:
    message = f"dataset {output} cannot be written: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return BuildError(f"{message}; nothing of it is left, make room and build again")
    return InputError(f"{message}; give another output")
