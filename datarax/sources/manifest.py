"""The manifest of an ArrayRecord dataset: what each file holds, so that start-up opens none and a check trusts none.

`manifest.json` lies beside the files and lists each with its size, number of records and SHA-256; a side file holds a
64-bit hash of every record. A checksum shows whether the manifest itself was changed. It holds no absolute path and no
time, so the same bytes give the same manifest wherever and whenever they were written. Knows nothing of how datasets
are made (`build.py`) or which files a source reads (`dataset.py`).
"""

import contextlib
import functools
import gc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datarax.core.config import Natural, Sha256, from_tree
from datarax.core.errors import InputError, ReadError
from datarax.core.tree import UnknownFormatError, canonical_json, reader_of
from datarax.sources.array_record_files import ArrayRecordFiles, open_reader
from datarax.sources.files import Rows, files_json
from datarax.store.files import open_file, parse_json, read_file, write_whole

MANIFEST_FORMAT = 1
"""Raise this when the meaning of a field changes, and add a reader to the table below; older formats stay readable."""

MANIFEST_NAME = "manifest.json"
"""Of the manifest, beside the data files."""
RECORD_HASHES_NAME = "records.blake2b64"
"""The side file: a little-endian uint64 (`record_hash`) per record, in the order of the files."""
INPUTS_STAMP_NAME = "inputs.stamp"
"""What a build leaves for the next one: see `build.py`. It holds times, so no manifest lists it."""
SIDE_FILES = frozenset({MANIFEST_NAME, RECORD_HASHES_NAME, INPUTS_STAMP_NAME})
"""What lies beside the data files of a dataset and is none."""

_MOST_MANIFEST_BYTES = 1 << 30
_NO_HEX = re.compile("[^0-9a-f]")
_LEADS_ELSEWHERE = re.compile(r"/\.{0,2}/|\\")
_RECORDS_PER_READ = 1024
_NUM_NAMED_RECORDS = 5


@dataclass(frozen=True)
class FileEntry:
    """One data file of a dataset."""

    name: str
    """POSIX path relative to the manifest's directory."""
    size: Natural
    """Bytes."""
    num_records: Natural
    """Records in this file."""
    sha256: Sha256
    """SHA-256 of the whole file, 64 hex digits."""


_KEYS = ("name", "num_records", "sha256", "size")


@dataclass(frozen=True)
class Manifest:
    """The recorded content of a dataset."""

    files: Sequence[FileEntry]
    """Sorted by name."""
    record_hashes_sha256: Sha256
    """SHA-256 of the side file with the record hashes."""
    build: Mapping[str, Any] | None = None
    """What the dataset was built from (`BuildConfig.identity`); None for files that were there before."""

    @property
    def num_records(self) -> int:
        """Records in all files together."""
        return sum(*Rows.columns(self.files, "num_records"))

    def content_digest(self) -> str:
        """SHA-256 over names, sizes, counts and hashes of the files: what is in them, not how they came to be."""
        return self._content_digest

    @functools.cached_property
    def _content_digest(self) -> str:
        return hashlib.sha256(files_json(_KEYS, Rows.columns(self.files, *_KEYS))).hexdigest()

    def tree(self) -> dict[str, Any]:
        """What `manifest.json` holds beside its checksum."""
        return {
            "format": MANIFEST_FORMAT,
            "num_records": self.num_records,
            "files": [{**vars(file)} for file in self.files],
            "record_hashes": {"name": RECORD_HASHES_NAME, "sha256": self.record_hashes_sha256},
            "build": self.build,
        }


def _plain_columns(files: Any) -> list[list[Any]] | None:
    """The columns of entries that are as we write them; None if one is not: `from_tree` says what is wrong, and is slow."""
    if type(files) is not list or {*map(type, files)} - {dict} or {*map(len, files)} - {len(_KEYS)}:
        return None
    try:
        names, counts, hashes, sizes = ([each[key] for each in files] for key in _KEYS)
    except KeyError:
        return None
    is_plain = (
        {*map(type, names), *map(type, hashes)} <= {str}
        and {*map(type, counts), *map(type, sizes)} <= {int}
        and 0 <= min([*counts, *sizes, 0]) <= max([*counts, *sizes, 0]) < 2**63
        and {*map(len, hashes)} <= {64}
        and not _NO_HEX.search("".join(hashes))
    )
    return [names, counts, hashes, sizes] if is_plain else None


def _checksum(tree: Mapping[str, Any], columns: Sequence[Sequence[Any]] | None) -> str:
    """SHA-256 of the canonical JSON of a manifest without its checksum.

    Args:
        tree: the manifest.
        columns: of its files, if they are plain.
    """
    items = {key: canonical_json(value) for key, value in tree.items() if key not in ("checksum", "files")}
    if "files" in tree:
        items["files"] = files_json(_KEYS, columns) if columns is not None else canonical_json(tree["files"])
    text = b",".join(canonical_json(key) + b":" + items[key] for key in sorted(items))
    return hashlib.sha256(b"{" + text + b"}").hexdigest()


def record_hash(record: bytes) -> bytes:
    """The 64-bit hash of a record: BLAKE2b with an 8-byte digest."""
    return hashlib.blake2b(record, digest_size=8).digest()


def file_sha256(path: str) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with open(open_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: a large tree makes Python look many times through all that JAX has loaded."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def load_manifest(directory: str) -> Manifest | None:
    """The manifest in `directory`; None if there is none.

    Raises:
        InputError: if there is one that cannot be read or does not say what a manifest must.
    """
    path = os.path.join(directory, MANIFEST_NAME)
    try:
        data = read_file(path, _MOST_MANIFEST_BYTES)
        with _uncollected():
            tree = parse_json(data)
        if not isinstance(tree, dict):
            raise ValueError("it holds no JSON object")
        reader = reader_of(tree.get("format"), _READERS)
        columns = _plain_columns(tree.get("files"))
        if _checksum(tree, columns) != tree["checksum"]:
            raise ValueError("its checksum does not match its content")
        return reader(tree, columns)
    except FileNotFoundError:
        return None
    except (OSError, UnknownFormatError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"manifest {path} cannot be read: {why}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"manifest {path} is damaged or not a manifest of datarax ({error}); build the dataset again, or remove "
            f"the file and write a new one with write_manifest"
        ) from error


def _read_v1(tree: dict[str, Any], columns: Sequence[Sequence[Any]] | None) -> Manifest:
    columns = columns or _plain_columns(
        tree.get("files")
    )  # another format may have had another name for them
    hashes = tree["record_hashes"]["sha256"]
    fields = {"record_hashes_sha256": hashes, "build": tree["build"]}
    manifest = from_tree(Manifest, {**fields, "files": tree["files"] if columns is None else []})
    if columns is None:  # `from_tree` has taken what cannot be
        raise ValueError("its files are not entries of a manifest")
    names, counts, hashes, sizes = columns
    manifest = replace(manifest, files=Rows(FileEntry, names, sizes, counts, hashes))
    if not names or names != sorted(set(names)):
        raise ValueError("its files are none, not sorted, or not different")
    if _LEADS_ELSEWHERE.search("".join(f"/{name}/\0" for name in names)) or "\0" in "".join(names):
        name = next(each for each in names if _LEADS_ELSEWHERE.search(f"/{each}/") or "\0" in each)
        raise ValueError(f"file name {name!r} leads elsewhere")
    if manifest.num_records >= 2**63:
        raise ValueError("it holds more records than can be counted")
    # The checksum shows what was damaged; what somebody else wrote must say this and nothing more.
    rest = {"files": [], "num_records": manifest.num_records, "checksum": tree["checksum"]}
    told = {**replace(manifest, files=()).tree(), **rest}
    if told != {**tree, "files": [], "format": MANIFEST_FORMAT} or type(tree["num_records"]) is not int:
        raise ValueError("its fields are not those of a manifest, or contradict each other")
    return manifest


_READERS = {1: _read_v1}


def load_record_hashes(manifest: Manifest, directory: str) -> np.ndarray:
    """The recorded hashes, uint64[num_records] in the order of the manifest's files.

    Raises:
        InputError: if the side file is missing, or is not the one that the manifest names.
    """
    path = os.path.join(directory, RECORD_HASHES_NAME)
    try:
        data = read_file(path, 8 * manifest.num_records)
    except OSError as error:
        raise InputError(f"record hashes {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.record_hashes_sha256 or len(data) != 8 * manifest.num_records:
        raise InputError(
            f"record hashes {path} have SHA-256 {found}, the manifest says {manifest.record_hashes_sha256}"
        )
    return np.frombuffer(data, dtype="<u8")


@dataclass(frozen=True)
class RecordedFile:
    """A data file that a manifest lists, and how what lies there is held against it."""

    directory: str
    """Where the manifest lies."""
    manifest: Manifest
    """What lists it."""
    number: int
    """Its number in the manifest."""

    @staticmethod
    def columns(files: Sequence["RecordedFile"], *fields: str) -> list[list[Any]]:
        """These fields of the entries of many files."""
        manifests, numbers = Rows.columns(files, "manifest", "number")
        of = {
            id(each): Rows.columns(each.files, *fields)
            for each in {id(each): each for each in manifests}.values()
        }
        places = list(zip(map(id, manifests), numbers, strict=True))
        return [[of[manifest][field][number] for manifest, number in places] for field in range(len(fields))]

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of it."""
        return self.manifest.files[self.number]

    @property
    def path(self) -> str:
        """Absolute path of the file."""
        return os.path.join(self.directory, self.entry.name)

    def problem(self, known: dict[str, np.ndarray]) -> str | None:
        """What the file has that its manifest does not say, with the records in question; None if all is well.

        Args:
            known: directory -> the record hashes that were read there already; gets those that are read.
        """
        try:
            size = os.path.getsize(self.path)
            if size != self.entry.size:
                return f"{self.path} has {size} bytes, the manifest says {self.entry.size}"
            if file_sha256(self.path) == self.entry.sha256:
                return None
            num_records = open_reader(self.path).num_records()
            changed = (
                [what for _, what in self.changed(range(num_records), known)]
                if num_records == self.entry.num_records
                else [f"it has {num_records} records, the manifest says {self.entry.num_records}"]
            )
        except (InputError, ReadError) as error:
            changed = [str(error)]
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror or error}"
        more = [f"and {len(changed) - _NUM_NAMED_RECORDS} more"] if len(changed) > _NUM_NAMED_RECORDS else []
        named = changed[:_NUM_NAMED_RECORDS] or [
            "every record is unchanged, what differs is beside the records"
        ]
        return f"{self.path} is not what the manifest says (SHA-256 differs); {', '.join([*named, *more])}"

    def changed(self, positions: Iterable[int], known: dict[str, np.ndarray]) -> Iterator[tuple[int, str]]:
        """The positions in the file at which a record is not what its hash says, each with a sentence that says so.

        Args:
            positions: which records of the file.
            known: as `problem` takes it: the side file of a dataset is read once, not for each of its data files.

        Raises:
            InputError: if the side file with the hashes is missing, or is not the one that the manifest names.
        """
        first = sum(Rows.columns(self.manifest.files, "num_records")[0][: self.number])
        if self.directory not in known:
            known[self.directory] = load_record_hashes(self.manifest, self.directory)
        hashes = known[self.directory][first : first + self.entry.num_records]
        file = ArrayRecordFiles([self.path], [self.entry.num_records], max_open_files=1)
        for position in positions:  # one by one: a record that cannot be read must not hide the next
            try:
                (record,) = file.read([position])
            except ReadError as error:
                yield position, f"record {position} cannot be read ({error.__cause__ or error})"
            else:
                if record_hash(record) != hashes[position].tobytes():
                    yield position, f"record {position} has changed"


def inventory(
    directory: str, names: Sequence[str], build: Mapping[str, Any] | None = None
) -> tuple[Manifest, bytes]:
    """Reads the files in `directory` of these sorted names: their manifest, and the hashes of their records.

    Raises:
        ReadError: naming the file, and the record where it is one record that fails.
        OSError: if a file is gone.
    """
    entries, hashes = [], bytearray()
    for name in names:
        path = os.path.join(directory, name)
        num_records = open_reader(path).num_records()
        records = ArrayRecordFiles([path], [num_records], max_open_files=1)
        for start in range(0, num_records, _RECORDS_PER_READ):
            block = records.read(range(start, min(start + _RECORDS_PER_READ, num_records)))
            hashes += b"".join(map(record_hash, block))
        entries.append(FileEntry(name, os.path.getsize(path), num_records, file_sha256(path)))
    return Manifest(tuple(entries), hashlib.sha256(hashes).hexdigest(), build), bytes(hashes)


def write_inventory(directory: str, manifest: Manifest, hashes: bytes) -> None:
    """Writes the record hashes, and then the manifest, to the disk."""
    write_whole(os.path.join(directory, RECORD_HASHES_NAME), hashes)
    tree = manifest.tree()
    tree["checksum"] = _checksum(tree, Rows.columns(manifest.files, *_KEYS))
    text = json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False)
    write_whole(os.path.join(directory, MANIFEST_NAME), (text + "\n").encode())
