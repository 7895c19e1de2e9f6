"""Builds a dataset: raw text or JSONL becomes ArrayRecord shards and a manifest, whole or not at all.

Everything is written into a temporary sibling of the output directory, the manifest last, and renamed when it is on
the disk. A lock beside the output, a `flock`, is freed by the kernel when its holder dies, however it dies; what a dead
builder left is removed by the next one that holds it. Read next: `build_inputs.py` (the records), `manifest.py`.
"""

import contextlib
import errno
import functools
import glob
import itertools
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeAlias

from datarax.core.config import Checked, Positive, check_fields
from datarax.core.errors import ConfigError, DataraxError, InputError, ReadError
from datarax.core.tree import differences
from datarax.sources.array_record_files import open_writer
from datarax.sources.build_inputs import (
    PYTHON_STDLIB,
    InputKind,
    find_inputs,
    inputs_digest,
    inputs_stamp,
    is_standard_library,
    jsonl_records,
    text_records,
)
from datarax.sources.manifest import (
    INPUTS_STAMP_NAME,
    MANIFEST_NAME,
    Manifest,
    inventory,
    load_manifest,
    write_inventory,
)
from datarax.store.files import local_path, sync, take_lock, write_whole

BUILD_FORMAT = 1
"""Raise this when the same inputs and settings give other records."""

Progress: TypeAlias = Callable[["BuildProgress"], None]
_MOST_SHARDS = 10**6  # six digits in a name: names must sort like numbers
_SECONDS_BETWEEN_TRIES = 0.1
_TOLD_EVERY_RECORDS = 4096


class BuildError(DataraxError, OSError):
    """A dataset could not be written; nothing of it is left."""

    exit_code = 74


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
    output = local_path(config.output, "output directory")
    files = find_inputs(config.inputs)
    try:
        if _is_finished(output):  # asked before the lock: a finished dataset may lie where nobody can write
            return _reuse(config, output, files, report)
        with _workplace(output, report) as directory:
            if _is_finished(output):
                return _reuse(config, output, files, report)
            return _build(config, output, files, report, directory)
    except (
        RuntimeError,
        ReadError,
    ) as error:  # the library that writes says RuntimeError, whatever the cause
        raise BuildError(f"dataset {output} could not be written: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and _is_finished(output):
            return _reuse(config, output, files, report)  # a process on another machine was faster
        message = f"dataset {output} cannot be written: {error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise BuildError(f"{message}; nothing of it is left, make room and build again") from error
        raise InputError(f"{message}; give another output") from error


def build_if_missing(table: BuildTable, output: str, say: Callable[[str], None]) -> None:
    """Builds `output`; a finished dataset of these settings is used as it is: its inputs may have moved on since.

    Raises:
        InputError: see `build_dataset`.
        BuildError: see `build_dataset`.
    """
    config = BuildConfig(output=output, **vars(table))
    there = load_manifest(output) if os.path.isdir(output) else None
    settings = {**config.identity("", 0), "inputs": None}
    if there is not None and not differences({**(there.build or {}), "inputs": None}, settings):
        return
    say_once = functools.cache(say)
    result = build_dataset(config, progress=lambda now: say_once(f"building {output}: {now.stage}"))
    if not result.reused:
        say(f"built {result.manifest.num_records:,} records in {output}")


def _reuse(config: BuildConfig, output: str, files: Mapping[str, str], report: Progress) -> BuildResult:
    manifest = load_manifest(output)
    assert manifest is not None
    recorded = dict(manifest.build or {})
    stamp, stamped = inputs_stamp(files), b""
    with contextlib.suppress(OSError), open(os.path.join(output, INPUTS_STAMP_NAME), "rb") as file:
        stamped = file.read()
    if stamped == stamp.encode():  # compared with these inputs before: they need not be read again
        sha256 = (recorded.get("inputs") or {}).get("sha256", "")
    else:
        report(BuildProgress("reading"))
        sha256 = inputs_digest(files)
    found = differences(recorded, config.identity(sha256, len(files)))
    if found:
        raise InputError(
            f"{output} holds a dataset that was built from something else; give another output, or delete it and "
            "build again:\n" + "\n".join(f"  {difference}" for difference in found)
        )
    _stamp(output, stamp)
    return BuildResult(output, manifest, reused=True)


def _build(
    config: BuildConfig, output: str, files: Mapping[str, str], report: Progress, directory: str
) -> BuildResult:
    report(BuildProgress("reading"))
    stamp = inputs_stamp(files)
    identity = config.identity(inputs_digest(files), len(files))
    leftovers = Counter[str]()
    names, num_records = _write_shards(config, files, leftovers, directory, report)
    if not names:
        dropped = leftovers["dropped_bytes"]
        held = f"{dropped} bytes, less than one record of record_bytes = {config.record_bytes}"
        raise InputError(
            f"the inputs ({len(files)} files, the first is {next(iter(files.values()))}) hold "
            f"{held if dropped else 'no record'}"
        )
    if inputs_stamp(files) != stamp:
        raise InputError("the input files changed while they were read; build again")
    manifest, hashes = inventory(directory, names, identity)
    if manifest.num_records != num_records:
        raise ReadError(f"it holds {manifest.num_records} records, {num_records} were written")
    _stamp(directory, stamp)
    write_inventory(directory, manifest, hashes)
    sync(directory)
    os.rename(directory, output)
    sync(os.path.dirname(output))
    return BuildResult(output, manifest, reused=False, **leftovers)


def _records(config: BuildConfig, files: Mapping[str, str], leftovers: Counter[str]) -> Iterator[bytes]:
    if config.kind is InputKind.JSONL:
        return jsonl_records(files, leftovers)
    return text_records(
        files, config.record_bytes, leftovers, skip_undecodable=is_standard_library(config.inputs)
    )


def _shard_lengths(config: BuildConfig, files: Mapping[str, str]) -> Iterator[int | None]:
    """Number of records in each shard; None: all that are left, so that the inputs are always read to their end."""
    if config.records_per_shard is not None:
        return itertools.repeat(config.records_per_shard)
    if config.num_shards is None:
        return iter([None])
    total = sum(1 for _ in _records(config, files, Counter()))
    if 0 < total < config.num_shards:
        raise InputError(f"{total} records cannot fill num_shards = {config.num_shards} files; ask for fewer")
    each, more = divmod(total, config.num_shards)
    return iter([*(each + (i < more) for i in range(config.num_shards - 1)), None])


def _write_shards(
    config: BuildConfig,
    files: Mapping[str, str],
    leftovers: Counter[str],
    directory: str,
    report: Progress,
) -> tuple[list[str], int]:
    """Writes the records of the inputs: names of the files, none if there are no records, and number of records."""
    records = _records(config, files, leftovers)
    names: list[str] = []
    num_records = num_bytes = 0
    for length in _shard_lengths(config, files):
        first = next(records, None)
        if first is None:
            break
        if len(names) == _MOST_SHARDS:
            raise InputError(
                f"the dataset would have more than {_MOST_SHARDS} files; ask for more records_per_shard"
            )
        names.append(f"records-{len(names):06d}.array_record")
        path = os.path.join(directory, names[-1])
        shard = open_writer(path, group_size=config.group_size, compression=config.compression)
        rest = itertools.islice(records, None if length is None else length - 1)
        for record in itertools.chain([first], rest):
            shard.write(record)
            num_records += 1
            num_bytes += len(record)
            if num_records % _TOLD_EVERY_RECORDS == 0:
                report(BuildProgress("writing", num_records, num_bytes))
        shard.close()
        sync(path)
    report(BuildProgress("writing", num_records, num_bytes))
    return names, num_records


# The place of a build


def _is_finished(output: str) -> bool:
    """Whether the output is a finished dataset.

    Raises:
        InputError: if something else is there.
    """
    if os.path.exists(os.path.join(output, MANIFEST_NAME)):
        return True
    if not os.path.lexists(output) or (os.path.isdir(output) and not os.listdir(output)):
        return False
    raise InputError(
        f"{output} exists and is no finished dataset (it has no {MANIFEST_NAME}); give another output, or move it away"
    )


@contextlib.contextmanager
def _workplace(output: str, report: Progress) -> Iterator[str]:
    """A new directory beside the output, for one builder at a time: waits as long as it takes for the lock.

    What dead builders left is removed. The host is in the names because a flock may not reach across machines: each
    removes only its own leftovers.
    """
    parent, name = os.path.split(output)
    os.makedirs(parent, exist_ok=True)
    lock = os.path.join(parent, f".{name}.build-lock")
    prefix = os.path.join(parent, f".{name}.building-{socket.gethostname()}-")
    while True:
        try:
            descriptor = take_lock(lock)
            break
        except BlockingIOError:
            report(BuildProgress("waiting"))
            time.sleep(_SECONDS_BETWEEN_TRIES)
    directory = f"{prefix}{os.getpid()}-{time.time_ns()}"
    try:
        for leftover in glob.glob(f"{glob.escape(prefix)}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        os.mkdir(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(lock)
        os.close(descriptor)


def _stamp(directory: str, stamp: str) -> None:
    """Records a stamp; a directory that cannot be written to keeps the old one, which only costs time."""
    with contextlib.suppress(OSError):
        write_whole(os.path.join(directory, INPUTS_STAMP_NAME), stamp.encode())
