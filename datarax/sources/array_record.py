"""Records from ArrayRecord files: which files, how many records in each, and what is known of their content.

With a manifest beside the files, counts come from it and no file is opened before it is read. Reading itself is in
`array_record_files.py`, the manifest in `manifest.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx

from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.sources.array_record_files import ArrayRecordFiles, Shard, count_records
from datarax.sources.build_stamp import BUILD_STAMP_NAME
from datarax.sources.content_check import changed_at, changed_records, file_hashes
from datarax.sources.file_list import SourceFile, listed, with_first_indices
from datarax.sources.local_files import find_files, relative_names
from datarax.sources.manifest import (
    MANIFEST_NAME,
    RECORD_HASHES_NAME,
    FileEntry,
    Manifest,
    file_sha256,
    load_manifest,
    load_record_hashes,
)
from datarax.sources.sampling import SAMPLE_VERSION, records_digest, sample_positions
from datarax.sources.source import DataSource, SourceConfig

_NUM_SAMPLED_FILES = 4
_NUM_SAMPLED_RECORDS_PER_FILE = 4


@dataclass(frozen=True, kw_only=True)
class ArrayRecordConfig(SourceConfig):
    """Which files an `ArrayRecordSource` reads.

    Raises:
        ConfigError: if no file is named, or `max_open_files` is not positive.
    """

    files: str | tuple[str, ...]
    """Paths, globs, or directories with a manifest. The files are ordered by their names, whatever the order here."""
    max_open_files: int = 256
    """Files kept open between reads; more are opened and closed as they are needed."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        files = self.files if isinstance(self.files, (str, os.PathLike)) else tuple(self.files)
        object.__setattr__(self, "files", os.fspath(files) if isinstance(files, os.PathLike) else files)
        if not self.files:
            raise ConfigError("files of an ArrayRecord source must name at least one path")
        if type(self.max_open_files) is not int or self.max_open_files < 1:
            raise ConfigError(f"max_open_files must be a positive integer, got {self.max_open_files!r}")


class ArrayRecordSource(DataSource):
    """Records (bytes) from ArrayRecord files, as one sequence: the files in the order of their names.

    Names are relative to the deepest directory that holds all files, so a moved dataset is the same dataset. A
    `manifest.json` in that directory (written by `build_dataset` or `write_manifest`) gives the counts and becomes
    part of the identity; without one every file is opened once to count its records.

    Args:
        config: the files.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: naming the file, if a file is missing, empty of records, truncated, no ArrayRecord file, not
            local, or not as large as the manifest says.
    """

    columnar = False

    def __init__(
        self, config: ArrayRecordConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self._runtime = _Runtime(_find_dataset(config.files), config.max_open_files)
        if self._length() == 0:
            raise InputError(
                f"source {self.name!r} is empty: its {len(self._runtime.dataset.files)} files in "
                f"{self._runtime.dataset.base} hold 0 records"
            )

    def _length(self) -> int:
        return self._runtime.length

    def _read(self, indices: np.ndarray) -> list[bytes]:
        return self._runtime.files.__getitems__(indices)

    @property
    def base_directory(self) -> str:
        """The directory that the files' names are relative to."""
        return self._runtime.dataset.base

    @property
    def file_names(self) -> list[str]:
        """The files in the order of their records, relative to `base_directory`."""
        return [file.name for file in self._runtime.dataset.files]

    def files(self) -> Sequence[SourceFile]:
        """The files, with what each holds; opens none."""
        return with_first_indices([(f.name, f.num_records, f.size) for f in self._runtime.dataset.files])

    @property
    def num_open_files(self) -> int:
        """Files that are open at the moment and not being read."""
        return self._runtime.files.num_open_files

    def identity(self) -> dict[str, Any]:
        """The outline, and at most 16 sampled records.

        Raises:
            InputError: if a sampled record cannot be read.
        """
        return {**self.outline(), "sample": self._sample_digest()}

    def outline(self) -> dict[str, Any]:
        """Kind, name, counts, the files' names and sizes, and the manifest's digest; opens no file."""
        dataset = self._runtime.dataset
        return {
            "kind": "array_record",
            "name": self.name,
            "num_records": self._length(),
            "num_files": len(dataset.files),
            "files": listed(self.files()),
            "content": dataset.content_digest(),
            "sample_version": SAMPLE_VERSION,
        }

    @property
    def content_recorded(self) -> bool:
        """Whether a manifest lies beside the files."""
        return self._runtime.dataset.files[0].recorded is not None

    def check_content(self) -> list[str]:
        """Compares size and SHA-256 of every file with the manifest, and in files that differ every record's hash.

        The side files with those hashes are checked too: they must be good on the day on which they are needed.
        """
        recorded = [file.recorded for file in self._runtime.dataset.files if file.recorded]
        manifests = {each.directory: each.manifest for each in recorded}
        checked = [_hashes_problem(manifest, directory) for directory, manifest in manifests.items()]
        return self.check_files(self.file_names) + [problem for problem in checked if problem is not None]

    def check_files(self, names: Sequence[str]) -> list[str]:
        """Compares size and SHA-256 of these files with the manifest, and in files that differ every record's hash."""
        wanted = set(names)
        files = [file for file in self._runtime.dataset.files if file.recorded and file.name in wanted]
        checked = [file.problem(self.base_directory) for file in files]
        return [problem for problem in checked if problem is not None]

    def changed_among(self, indices: np.ndarray) -> dict[int, str]:
        """Compares these records with the hashes beside the manifest: see `DataSource.changed_among`."""
        files = self._runtime.dataset.files
        ends = np.cumsum([file.num_records for file in files], dtype=np.int64)  # int64[num_files]
        wanted = np.unique(indices)
        found: dict[int, str] = {}
        for k in np.unique(np.searchsorted(ends, wanted, side="right")).tolist():
            first = int(ends[k]) - files[k].num_records
            positions = wanted[(wanted >= first) & (wanted < ends[k])] - first
            changed = files[k].changed_at(self.base_directory, positions.tolist())
            found.update((first + position, f"{files[k].name}: {what}") for position, what in changed)
        return found

    def content_fingerprint(self) -> dict[str, Any] | None:
        """SHA-256 of the manifest's facts about the files; None without a manifest."""
        content = self._runtime.dataset.content_digest()
        return None if content is None else {"num_records": self._length(), "sha256": content}

    def content_stamp(self) -> dict[str, Any]:
        """{name: [bytes, mtime in ns]} of each file.

        Raises:
            InputError: naming a file that is gone.
        """
        try:
            found = [(name, os.stat(os.path.join(self.base_directory, name))) for name in self.file_names]
        except OSError as error:
            raise InputError(f"ArrayRecord file {error.filename} cannot be read: {error.strerror}") from error
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found}

    def _close(self) -> None:
        self._runtime.files.close()

    def _reopened(self) -> object:
        return _Runtime(self._runtime.dataset, self._runtime.max_open_files)

    def _sample_digest(self) -> str:
        counts = np.array([file.num_records for file in self._runtime.dataset.files], dtype=np.int64)
        ends = np.cumsum(counts)
        holding = np.flatnonzero(counts)  # the files that hold records
        sampled = [
            int(ends[k] - counts[k]) + position
            for k in holding[sample_positions(len(holding), _NUM_SAMPLED_FILES)]
            for position in sample_positions(int(counts[k]), _NUM_SAMPLED_RECORDS_PER_FILE)
        ]
        try:
            return records_digest(self.read(np.array(sampled, dtype=np.int64)))
        except ReadError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True)
class _Recorded:
    """Where a file's content is recorded."""

    directory: str
    manifest: Manifest
    entry: FileEntry


@dataclass(frozen=True)
class _File:
    """What is known of a file before it is opened."""

    name: str
    size: int
    num_records: int
    recorded: _Recorded | None

    def changed_at(self, base: str, positions: list[int]) -> list[tuple[int, str]]:
        """The positions at which a record is not as recorded, with what is wrong; [] if nothing is recorded."""
        if self.recorded is None:
            return []
        try:
            hashes = file_hashes(self.recorded.entry, self.recorded.manifest, self.recorded.directory)
        except InputError:
            return []  # `check_content` says that the hashes themselves are damaged
        return list(changed_at(os.path.join(base, self.name), positions, hashes))

    def problem(self, base: str) -> str | None:
        """What the file has that its manifest does not say; None if all is well."""
        assert self.recorded is not None
        path, entry = os.path.join(base, self.name), self.recorded.entry
        try:
            size = os.path.getsize(path)
            if size != entry.size:
                return f"{path} has {size} bytes, the manifest says {entry.size}"
            if file_sha256(path) == entry.sha256:
                return None
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
        where = changed_records(path, entry, self.recorded.manifest, self.recorded.directory)
        return f"{path} is not what the manifest says (SHA-256 differs){where}"


@dataclass(frozen=True)
class _Dataset:
    """The files of a source. Either all of them are recorded in a manifest or none is."""

    base: str
    files: tuple[_File, ...]

    def content_digest(self) -> str | None:
        """Digest of what is recorded of these files (not of others that a manifest may list)."""
        recorded = [(file, file.recorded.entry) for file in self.files if file.recorded]
        entries = tuple(FileEntry(file.name, e.size, e.num_records, e.sha256) for file, e in recorded)
        return Manifest(entries, "").content_digest() if entries else None


class _Runtime:
    """What an open source holds; compared by identity, and never copied."""

    def __init__(self, dataset: _Dataset, max_open_files: int) -> None:
        self.dataset = dataset
        self.max_open_files = max_open_files
        shards = [Shard(os.path.join(dataset.base, file.name), file.num_records) for file in dataset.files]
        self.files = ArrayRecordFiles(shards, max_open_files=max_open_files)
        self.length = len(self.files)


def _hashes_problem(manifest: Manifest, directory: str) -> str | None:
    try:
        load_record_hashes(manifest, directory)
    except InputError as error:
        return str(error)
    return None


def _find_dataset(patterns: str | Sequence[str]) -> _Dataset:
    paths = find_files(
        patterns,
        what="ArrayRecord file",
        expand_directory=_files_of_directory,
        ignored_in_globs=frozenset({MANIFEST_NAME, RECORD_HASHES_NAME, BUILD_STAMP_NAME}),
    )
    base, names = relative_names(paths)
    named = sorted(zip(names, paths, strict=True))
    sizes = [_size(path) for _, path in named]
    recorded = _recorded(base, [path for _, path in named])
    if recorded is None:
        counts = count_records([path for _, path in named])
        unrecorded = zip(named, sizes, counts, strict=True)
        return _Dataset(base, tuple(_File(name, size, count, None) for (name, _), size, count in unrecorded))
    for (_, path), size, found in zip(named, sizes, recorded, strict=True):
        if size != found.entry.size:
            raise InputError(
                f"{path} has {size} bytes, its manifest says {found.entry.size}: the file is truncated or was "
                f"replaced; restore it, or build the dataset again"
            )
    files = zip(named, recorded, strict=True)
    return _Dataset(base, tuple(_File(name, r.entry.size, r.entry.num_records, r) for (name, _), r in files))


def _recorded(base: str, paths: list[str]) -> list[_Recorded] | None:
    """What the manifest of the common directory, or else of each file's own, says of the files; None without any.

    Raises:
        InputError: if a manifest does not list a file beside it, or only some of the files have a manifest.
    """
    homes = {os.path.dirname(path): base for path in paths}
    manifests = {base: load_manifest(base)}
    if manifests[base] is None:
        homes = {directory: directory for directory in homes}
        manifests = {directory: load_manifest(directory) for directory in homes}
    without = sorted(home for home, manifest in manifests.items() if manifest is None)
    if len(without) == len(manifests):
        return None
    if without:
        raise InputError(
            f"some of the files have a manifest, but those in {without[0]} have none; record them with write_manifest"
        )
    listed = {
        home: {entry.name: entry for entry in m.files} for home, m in manifests.items() if m is not None
    }
    found = []
    for path in paths:
        home = homes[os.path.dirname(path)]
        manifest, name = manifests[home], os.path.relpath(path, home).replace(os.sep, "/")
        if manifest is None or name not in listed[home]:
            raise InputError(
                f"{os.path.join(home, MANIFEST_NAME)} does not list {name}; it belongs to other files: write a new "
                f"manifest that lists all of them, or move the file elsewhere"
            )
        found.append(_Recorded(home, manifest, listed[home][name]))
    return found


def _files_of_directory(directory: str) -> list[str]:
    manifest = load_manifest(directory)
    if manifest is None:
        raise InputError(
            f"directory {directory} holds no {MANIFEST_NAME}; name its files with a glob ({directory}/*.array_record), "
            f"or record them with write_manifest"
        )
    return [os.path.join(directory, entry.name) for entry in manifest.files]


def _size(path: str) -> int:
    try:
        if not os.path.isdir(path):
            return os.stat(path).st_size
    except OSError as error:
        raise InputError(f"ArrayRecord file {path} cannot be read: {error.strerror or error}") from error
    raise InputError(f"{path} is a directory, not an ArrayRecord file")
