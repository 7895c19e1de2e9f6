"""The manifest of an ArrayRecord dataset: what each file holds, so that start-up opens none and a check trusts none.

`manifest.json` lies beside the files and lists each with its size, number of records and SHA-256; a side file holds a
64-bit hash of every record. A checksum shows whether the manifest itself was changed. It holds no absolute path and no
time, so the same bytes give the same manifest wherever and whenever they were written. Knows nothing of how datasets
are made (`build.py`) or which of them a source reads (`array_record.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from datarax.core.errors import InputError, ReadError
from datarax.core.tree import UnknownFormatError, digest, reader_of
from datarax.sources.array_record_files import ArrayRecordFiles, open_reader
from datarax.sources.files import find_files, flush_to_disk, relative_names, write_durably

MANIFEST_FORMAT = 1
"""Raise this when the meaning of a field changes, and add a reader to the table below; older formats stay readable."""

MANIFEST_NAME = "manifest.json"
RECORD_HASHES_NAME = "records.blake2b64"
"""The side file: a little-endian uint64 (`record_hash`) per record, in the order of the files."""
INPUTS_STAMP_NAME = "inputs.stamp"
"""What a build leaves for the next one: see `build.py`. It holds times, so no manifest lists it."""
SIDE_FILES = frozenset({MANIFEST_NAME, RECORD_HASHES_NAME, INPUTS_STAMP_NAME})
"""What lies beside the data files of a dataset and is none."""

_TOLD_EVERY_RECORDS = 4096
_RECORDS_PER_READ = 1024
_NUM_NAMED_RECORDS = 5


@dataclass(frozen=True)
class FileEntry:
    """One data file of a dataset."""

    name: str
    """POSIX path relative to the manifest's directory."""
    size: int
    """Bytes."""
    num_records: int
    """Records in this file."""
    sha256: str
    """SHA-256 of the whole file, 64 hex digits."""


@dataclass(frozen=True)
class Manifest:
    """The recorded content of a dataset."""

    files: tuple[FileEntry, ...]
    """Sorted by name."""
    record_hashes_sha256: str
    """SHA-256 of the side file with the record hashes."""
    build: Mapping[str, Any] | None = None
    """What the dataset was built from (`BuildConfig.identity`); None for files that were there before."""

    @property
    def num_records(self) -> int:
        """Records in all files together."""
        return sum(file.num_records for file in self.files)

    def content_digest(self) -> str:
        """SHA-256 over names, sizes, counts and hashes of the files: what is in them, not how they came to be."""
        return digest([asdict(file) for file in self.files])

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`."""
        body = {
            "format": MANIFEST_FORMAT,
            "num_records": self.num_records,
            "files": [asdict(file) for file in self.files],
            "record_hashes": {"name": RECORD_HASHES_NAME, "sha256": self.record_hashes_sha256},
            "build": self.build,
        }
        tree = {**body, "checksum": digest(body)}
        return (json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def record_hash(record: bytes) -> bytes:
    """The 64-bit hash of a record: BLAKE2b with an 8-byte digest."""
    return hashlib.blake2b(record, digest_size=8).digest()


def file_sha256(path: str) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_manifest(directory: str) -> Manifest | None:
    """The manifest in `directory`; None if there is none.

    Raises:
        InputError: if there is one that cannot be read or does not say what a manifest must.
    """
    path = os.path.join(directory, MANIFEST_NAME)
    try:
        with open(path, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"manifest {path} cannot be read: {error.strerror}") from error
    try:
        return _parse(json.loads(text))
    except UnknownFormatError as error:
        raise InputError(f"manifest {path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"manifest {path} is damaged or not a manifest of datarax ({error}); build the dataset again, or remove "
            f"the file and write a new one with write_manifest"
        ) from error


def load_record_hashes(manifest: Manifest, directory: str) -> np.ndarray:
    """The recorded hashes, uint64[num_records] in the order of the manifest's files.

    Raises:
        InputError: if the side file is missing, or is not the one that the manifest names.
    """
    path = os.path.join(directory, RECORD_HASHES_NAME)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"record hashes {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.record_hashes_sha256 or len(data) != 8 * manifest.num_records:
        raise InputError(
            f"record hashes {path} have SHA-256 {found}, the manifest says {manifest.record_hashes_sha256}"
        )
    return np.frombuffer(data, dtype="<u8")


def hashes_problem(manifest: Manifest, directory: str) -> str | None:
    """What is wrong with the side file of record hashes; None if all is well."""
    try:
        load_record_hashes(manifest, directory)
    except InputError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class RecordedFile:
    """A data file that a manifest lists, and how what lies there is held against it."""

    directory: str
    """Where the manifest lies."""
    manifest: Manifest
    entry: FileEntry

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        return os.path.join(self.directory, self.entry.name)

    def problem(self) -> str | None:
        """What the file has that its manifest does not say, with the records in question; None if all is well."""
        try:
            size = os.path.getsize(self.path)
            if size != self.entry.size:
                return f"{self.path} has {size} bytes, the manifest says {self.entry.size}"
            if file_sha256(self.path) == self.entry.sha256:
                return None
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror or error}"
        return f"{self.path} is not what the manifest says (SHA-256 differs); {self._changes()}"

    def changed(self, positions: Iterable[int]) -> Iterator[tuple[int, str]]:
        """The positions in the file at which a record is not what its hash says, each with a sentence that says so.

        Raises:
            InputError: if the side file with the hashes is missing, or is not the one that the manifest names.
        """
        first = sum(file.num_records for file in self.manifest.files if file.name < self.entry.name)
        hashes = load_record_hashes(self.manifest, self.directory)[first : first + self.entry.num_records]
        file = ArrayRecordFiles([(self.path, self.entry.num_records)], max_open_files=1)
        for position in positions:  # one by one: a record that cannot be read must not hide the next
            try:
                (record,) = file.read([position])
            except ReadError as error:
                yield position, f"record {position} cannot be read ({error.__cause__ or error})"
            else:
                if record_hash(record) != hashes[position].tobytes():
                    yield position, f"record {position} has changed"

    def _changes(self) -> str:
        try:
            num_records = open_reader(self.path).num_records
            if num_records != self.entry.num_records:
                return f"it has {num_records} records, the manifest says {self.entry.num_records}"
            found = [what for _, what in self.changed(range(num_records))]
        except (InputError, ReadError) as error:
            return str(error)
        if not found:
            return "every record is unchanged, what differs is beside the records"
        more = f", and {len(found) - _NUM_NAMED_RECORDS} more" if len(found) > _NUM_NAMED_RECORDS else ""
        return f"{', '.join(found[:_NUM_NAMED_RECORDS])}{more}"


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
        files, what="ArrayRecord file", expand_directory=_refuse_directory, ignored_in_globs=SIDE_FILES
    )
    base, names = relative_names(paths)
    there = load_manifest(base)
    try:
        with ManifestWriter(base, told or (lambda *_: None)) as writer:
            for name, path in sorted(zip(names, paths, strict=True)):
                num_records = open_reader(path).num_records
                records = ArrayRecordFiles([(path, num_records)], max_open_files=1)
                for start in range(0, num_records, _RECORDS_PER_READ):
                    for record in records.read(range(start, min(start + _RECORDS_PER_READ, num_records))):
                        writer.add_record(record)
                writer.add_file(name, num_records)
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
        self._num_bytes = 0
        self._directory = directory
        self._told = told
        self._partial = os.path.join(directory, f"{RECORD_HASHES_NAME}.{os.getpid()}.partial")
        self._hashes = open(self._partial, "wb")  # noqa: SIM115 (closed by __exit__)
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> Self:
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
        self._num_bytes += len(record)
        if self.num_records % _TOLD_EVERY_RECORDS == 0:
            self._told(self.num_records, self._num_bytes)

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
        write_durably(os.path.join(self._directory, MANIFEST_NAME), manifest.to_json())
        self._told(self.num_records, self._num_bytes)
        return manifest


def _refuse_directory(directory: str) -> list[str]:
    raise InputError(
        f"{directory} is a directory; name its ArrayRecord files, for example {directory}/*.array_record"
    )


def _parse(tree: Any) -> Manifest:
    _require(isinstance(tree, dict), "it holds no JSON object")
    manifest = reader_of(tree.get("format"), _READERS)(tree)
    body = {key: value for key, value in tree.items() if key != "checksum"}
    _require(digest(body) == tree["checksum"], "its checksum does not match its content")
    return manifest


def _read_v1(tree: dict[str, Any]) -> Manifest:
    expected = {"format", "num_records", "files", "record_hashes", "build", "checksum"}
    _require(set(tree) == expected, f"its fields are {sorted(tree)} instead of {sorted(expected)}")
    entries = tuple(_parse_entry(entry) for entry in tree["files"])
    names = [entry.name for entry in entries]
    _require(bool(names) and names == sorted(set(names)), "its files are none, not sorted, or not different")
    hashes = tree["record_hashes"]
    _require(set(hashes) == {"name", "sha256"}, "record_hashes has other fields than name and sha256")
    _require(hashes["name"] == RECORD_HASHES_NAME, f"record_hashes.name is {hashes['name']!r}")
    _require(isinstance(hashes["sha256"], str), "record_hashes.sha256 is no text")
    _require(tree["build"] is None or isinstance(tree["build"], dict), "build is no object")
    manifest = Manifest(entries, hashes["sha256"], tree["build"])
    _require(manifest.num_records == tree["num_records"], "num_records is not the sum over the files")
    return manifest


_READERS = {1: _read_v1}


def _parse_entry(entry: Any) -> FileEntry:
    kinds = {"name": str, "size": int, "num_records": int, "sha256": str}
    assert set(kinds) == {field.name for field in fields(FileEntry)}
    _require(isinstance(entry, dict) and set(entry) == set(kinds), f"a file entry is {entry!r}")
    for key, kind in kinds.items():
        _require(type(entry[key]) is kind, f"{key} of file {entry['name']!r} is {entry[key]!r}")
    parts = entry["name"].split("/")
    _require(
        all(part not in ("", ".", "..") for part in parts), f"file name {entry['name']!r} leads elsewhere"
    )
    _require(entry["size"] >= 0 and entry["num_records"] >= 0, f"a negative count for file {entry['name']!r}")
    return FileEntry(**entry)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
