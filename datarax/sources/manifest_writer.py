"""Collects what a manifest records while files are written or read. Read next: `manifest.py`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from datarax.core.errors import InputError, ReadError
from datarax.sources.array_record_files import ArrayRecordFiles, Shard, open_reader
from datarax.sources.durable import flush_to_disk
from datarax.sources.local_files import find_files, relative_names
from datarax.sources.manifest import (
    MANIFEST_NAME,
    RECORD_HASHES_NAME,
    FileEntry,
    Manifest,
    file_sha256,
    load_manifest,
    record_hash,
    save_manifest,
)

_TOLD_EVERY_RECORDS = 4096
_RECORDS_PER_READ = 1024


def write_manifest(files: str | Sequence[str], *, told: Callable[[int, int], None] | None = None) -> Manifest:
    """Records the content of ArrayRecord files that are there already, in the directory that holds them all.

    It becomes part of the identity of sources that read these files: a run that began without it calls that a change.

    Args:
        files: paths or globs; their deepest common directory gets the manifest.
        told: called every few thousand records with the numbers of records and bytes read so far.

    Raises:
        InputError: if a file cannot be read, or the directory has a manifest that says something else.
    """
    paths = find_files(
        files,
        what="ArrayRecord file",
        expand_directory=_refuse_directory,
        ignored_in_globs=frozenset({MANIFEST_NAME, RECORD_HASHES_NAME}),
    )
    base, names = relative_names(paths)
    there = load_manifest(base)
    try:
        with ManifestWriter(base, told or (lambda *_: None)) as writer:
            for name, path in sorted(zip(names, paths, strict=True)):
                _add_existing(writer, name, path)
            if there is None:
                return writer.finish(None)
    except ReadError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"the manifest of {base} cannot be written: {error}") from error
    if there.files != tuple(writer.entries):
        raise InputError(
            f"{os.path.join(base, MANIFEST_NAME)} records something else than these files; remove it if it is out of "
            f"date"
        )
    return there


def _add_existing(writer: ManifestWriter, name: str, path: str) -> None:
    num_records = open_reader(path).num_records
    if num_records:
        records = ArrayRecordFiles([Shard(path, num_records)], max_open_files=1)
        for start in range(0, num_records, _RECORDS_PER_READ):
            for record in records.__getitems__(np.arange(start, min(start + _RECORDS_PER_READ, num_records))):
                writer.add_record(record)
    writer.add_file(name, num_records)


def _refuse_directory(directory: str) -> list[str]:
    raise InputError(
        f"{directory} is a directory; name its ArrayRecord files, for example {directory}/*.array_record"
    )


class ManifestWriter:
    """Hashes records as they come, files as they end, and writes both down at last.

    Record hashes go to the disk at once (8 bytes a record add up), under a temporary name until `finish`. Leaving the
    `with` block without `finish` removes them.

    Args:
        directory: where the files are, and the manifest will be.
        told: called every few thousand records with the numbers of records and bytes so far.
    """

    def __init__(self, directory: str, told: Callable[[int, int], None]) -> None:
        self.entries: list[FileEntry] = []
        self.num_records = 0
        self.num_bytes = 0
        self._directory = directory
        self._told = told
        self._partial = os.path.join(directory, f"{RECORD_HASHES_NAME}.{os.getpid()}.partial")
        self._hashes = open(self._partial, "wb")  # noqa: SIM115 (closed by __exit__)
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk fails again when the buffer is flushed
            self._hashes.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)

    def add_record(self, record: bytes) -> None:
        """Takes note of the next record."""
        hashed = record_hash(record)
        self._hashes.write(hashed)
        self._sha256.update(hashed)
        self.num_records += 1
        self.num_bytes += len(record)
        if self.num_records % _TOLD_EVERY_RECORDS == 0:
            self._told(self.num_records, self.num_bytes)

    def add_file(self, name: str, num_records: int) -> None:
        """Takes note of a file whose records, and no others, were added since the last one."""
        path = os.path.join(self._directory, name)
        self.entries.append(FileEntry(name, os.path.getsize(path), num_records, file_sha256(path)))

    def finish(self, build: Mapping[str, Any] | None) -> Manifest:
        """Writes the record hashes, and then the manifest, to the disk."""
        self._hashes.flush()
        os.fsync(self._hashes.fileno())
        os.replace(self._partial, os.path.join(self._directory, RECORD_HASHES_NAME))
        flush_to_disk(self._directory)
        manifest = Manifest(tuple(self.entries), self._sha256.hexdigest(), build)
        save_manifest(manifest, self._directory)
        self._told(self.num_records, self.num_bytes)
        return manifest
