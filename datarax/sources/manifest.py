"""The manifest of an ArrayRecord dataset: what each file holds, so that start-up opens none and a check trusts none.

`manifest.json` lies beside the files and lists each with its size, number of records and SHA-256; a side file holds a
64-bit hash of every record. A checksum shows whether the manifest itself was changed. It holds no absolute path and no
time, so the same bytes give the same manifest wherever and whenever they were written. Knows nothing of how datasets
are made (`build.py`) or read (`array_record.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from datarax.core.errors import InputError
from datarax.core.formats import UnknownFormatError, reader_of
from datarax.core.tree import digest
from datarax.sources.durable import write_durably

MANIFEST_FORMAT = 1
"""Raise this when the meaning of a field changes, and add a reader to the table below; older formats stay readable."""

MANIFEST_NAME = "manifest.json"
RECORD_HASHES_NAME = "records.blake2b64"
"""The side file: a little-endian uint64 (`record_hash`) per record, in the order of the files."""


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


def save_manifest(manifest: Manifest, directory: str) -> None:
    """Writes `manifest.json` into `directory`, whole or not at all, and on the disk when this returns."""
    write_durably(os.path.join(directory, MANIFEST_NAME), manifest.to_json())


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
