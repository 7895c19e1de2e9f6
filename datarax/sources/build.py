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
from dataclasses import dataclass
from typing import Any, TypeAlias

from datarax.core.errors import DataraxError, InputError, ReadError
from datarax.core.tree import differences
from datarax.sources.array_record_files import open_writer
from datarax.sources.build_check import (
    InputsRead,
    check_dataset,
    inputs_of,
    inputs_read,
    look_at_inputs,
    recorded_build,
    refusal,
)
from datarax.sources.build_config import BUILD_FORMAT as BUILD_FORMAT
from datarax.sources.build_config import BuildConfig, BuildTable
from datarax.sources.build_inputs import (
    InputKind,
    is_standard_library,
    jsonl_records,
    text_records,
)
from datarax.sources.files import file_stamps
from datarax.sources.manifest import MANIFEST_NAME, Manifest, inventory, load_manifest, write_inventory
from datarax.store.files import local_path, sync, take_lock

Progress: TypeAlias = Callable[["BuildProgress"], None]
"""Is told of each stage of a build, with the files and bytes done."""
_MOST_SHARDS = 10**6  # six digits in a name: names must sort like numbers
_SECONDS_BETWEEN_TRIES = 0.1
_TOLD_EVERY_RECORDS = 4096


class BuildError(DataraxError, OSError):
    """A dataset could not be written; nothing of it is left."""

    exit_code = 74
    """Of the command."""


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
    num_inputs: int = 0
    """Input files that were found."""
    input_bytes: int = 0
    """Bytes in all of them."""
    set_aside: str | None = None
    """Where the dataset lies now that was there before; None if none was."""

    @property
    def inputs_taken(self) -> str:
        """What was taken, in words."""
        return f"{self.num_inputs:,} input files, {self.input_bytes:,} bytes"


def build_dataset(
    config: BuildConfig, *, progress: Progress | None = None, again: bool = False
) -> BuildResult:
    """Makes the dataset that `config` describes, or finds it made.

    A finished dataset at the output is reused if it was built from the same contents with the same settings. Killed
    at any moment and called again it starts over; called by two processes at once, one builds and both return it.

    Args:
        config: what to build.
        progress: called every few thousand records, and a few times a second while another process builds.
        again: build although a finished dataset is there, whatever it is; it is set aside when the new one is on the disk.

    Raises:
        InputError: if an input is missing or malformed, there is no record, the output is something else or was built
            from something else (naming what differs), or it cannot be written to.
        BuildError: if writing fails on the way, as on a full disk. What was written is removed.
    """
    report = progress or (lambda _: None)
    output = local_path(config.output, "output directory")
    files = inputs_of(config)
    try:
        if not again and is_dataset(output):  # asked before the lock: it may lie where nobody can write
            return _reuse(config, output, files, report)
        with _workplace(output, report) as directory:
            if is_dataset(output) and not again:
                return _reuse(config, output, files, report)
            return _build(config, output, files, report, directory)
    except (
        RuntimeError,
        ReadError,
    ) as error:  # the library that writes says RuntimeError, whatever the cause
        raise BuildError(f"dataset {output} could not be written: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_dataset(output) and not again:
            return _reuse(config, output, files, report)  # a process on another machine was faster
        message = f"dataset {output} cannot be written: {error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise BuildError(f"{message}; nothing of it is left, make room and build again") from error
        raise InputError(f"{message}; give another output") from error


def build_if_missing(table: BuildTable, output: str, say: Callable[[str], None]) -> None:
    """Builds `output`; a finished dataset is held against the settings and, as far as they are there, the inputs.

    Raises:
        InputError: see `build_dataset` and `check_dataset`.
        BuildError: see `build_dataset`.
    """
    config = BuildConfig(output=output, **vars(table))
    if is_dataset(local_path(output, "output directory")):
        check_dataset(config, keep=True, say=say)
        return
    say_once = functools.cache(say)
    result = build_dataset(config, progress=lambda now: say_once(f"building {output}: {now.stage}"))
    if not result.reused:
        say(f"built {result.manifest.num_records:,} records in {output} from {result.inputs_taken}")


def _reuse(config: BuildConfig, output: str, files: Mapping[str, str], report: Progress) -> BuildResult:
    manifest = load_manifest(output)
    assert manifest is not None
    recorded = recorded_build(output)
    was = inputs_read(output, recorded)
    now = look_at_inputs(config, files, was, lambda: report(BuildProgress("reading")))
    if differences(recorded, config.identity(now.digest(), len(now.files))):
        way_out = f"or replace it with `{config.command(output)} --again`, which sets it aside when the new one is done"
        raise InputError(f"{refusal(config, was, now)}\n  {way_out}")
    if now != was:
        now.write(output)
    return BuildResult(output, manifest, reused=True, **_taken(now))


def _taken(inputs: InputsRead) -> dict[str, Any]:
    return {"num_inputs": len(inputs.files), "input_bytes": sum(each.size for each in inputs.files.values())}


def _build(
    config: BuildConfig, output: str, files: Mapping[str, str], report: Progress, directory: str
) -> BuildResult:
    report(BuildProgress("reading"))
    inputs = look_at_inputs(config, files)
    stamps = {name: [file.size, file.mtime_ns] for name, file in inputs.files.items()}
    identity = config.identity(inputs.digest(), len(files))
    leftovers = Counter[str]()
    names, num_records = _write_shards(config, files, leftovers, directory, report)
    if not names:
        dropped = leftovers["dropped_bytes"]
        held = f"{dropped} bytes, less than one record of record_bytes = {config.record_bytes}"
        raise InputError(
            f"the inputs ({len(files)} files, the first is {next(iter(files.values()))}) hold "
            f"{held if dropped else 'no record'}"
        )
    if file_stamps(files, files.values(), "input file") != stamps:
        raise InputError("the input files changed while they were read; build again")
    manifest, hashes = inventory(directory, names, identity)
    if manifest.num_records != num_records:
        raise ReadError(f"it holds {manifest.num_records} records, {num_records} were written")
    inputs.write(directory)
    write_inventory(directory, manifest, hashes)
    sync(directory)
    set_aside = _set_aside(output) if is_dataset(output) else None
    try:
        os.rename(directory, output)
    except OSError:
        if set_aside is not None:
            os.rename(set_aside, output)
        raise
    sync(os.path.dirname(output))
    return BuildResult(output, manifest, reused=False, set_aside=set_aside, **_taken(inputs), **leftovers)


def _set_aside(output: str) -> str:
    """Gives a finished dataset another name, beside it; who reads it goes on reading it."""
    names = (f"{output}.replaced-{number}" for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    os.rename(output, aside)
    return aside


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


def is_dataset(output: str) -> bool:
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
