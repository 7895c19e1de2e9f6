"""Records from ArrayRecord files: which files, how many records in each, and what is known of their content.

With a manifest beside the files, counts come from it and no file is opened before it is read. Reading itself is in
`array_record_files.py`, the manifest in `manifest.py`.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
from flax import nnx

from datarax.core.config import Checked, Positive
from datarax.core.errors import ConfigError, InputError
from datarax.sources.array_record_files import ArrayRecordFiles, count_records
from datarax.sources.build import build_if_missing, is_dataset
from datarax.sources.build_check import check_dataset
from datarax.sources.build_config import BuildConfig, BuildTable
from datarax.sources.files import (
    SourceFile,
    file_stats,
    listed,
    relative_names,
    with_first_indices,
)
from datarax.sources.manifest import (
    MANIFEST_NAME,
    Manifest,
    RecordedFile,
    find_data_files,
    load_manifest,
    load_record_hashes,
    unlisted_files,
)
from datarax.sources.records import Records, records_digest, sample_positions
from datarax.sources.source import DataSource, SourceConfig
from datarax.store.files import local_path

_NUM_SAMPLED_FILES = 4
_NUM_SAMPLED_RECORDS_PER_FILE = 4


@dataclass(frozen=True, kw_only=True)
class ArrayRecordConfig(SourceConfig):
    """Which files an `ArrayRecordSource` reads.

    Raises:
        ConfigError: if no file is named, `max_open_files` is not positive, or files to build are not one directory.
    """

    files: str | tuple[str, ...]
    """Paths, globs, or directories with a manifest. The files are ordered by their names, whatever the order here."""
    max_open_files: Positive = 256
    """Files kept open between reads, at most a quarter of what `ulimit -n` allows; more are opened and closed as they are
    needed."""
    unlisted: Checked[Literal["refuse", "ignore"]] = "refuse"
    """What a new run does where files lie beside the data that end like data and that the manifest does not list: "refuse",
    or "ignore" them. A run that goes on goes on by its manifest, and says so."""
    build: BuildTable | None = None
    """How `files`, then one directory, is built by `prepare` if it is not there."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        files = self.files
        object.__setattr__(
            self, "files", os.fspath(files) if isinstance(files, (str, os.PathLike)) else tuple(files)
        )
        if not self.files:
            raise ConfigError("files of an ArrayRecord source must name at least one path")
        if self.build is not None and not isinstance(self.files, str):
            raise ConfigError("with a build table, files must be the one directory that the build makes")

    def resolved(self) -> Self:
        """With absolute paths."""
        files = [self.files] if isinstance(self.files, str) else self.files
        absolute = tuple(local_path(each, "files") for each in files)
        return replace(
            self,
            files=absolute[0] if isinstance(self.files, str) else absolute,
            build=self.build and self.build.resolved(),
        )

    def prepare(self, say: Callable[[str], None]) -> None:
        """Builds the files if they are missing."""
        if self.build is not None:
            build_if_missing(self.build, str(self.files), say)

    def check_prepared(self, say: Callable[[str], None]) -> None:
        """Holds files that were built against the settings and the inputs."""
        if self.build is not None and is_dataset(str(self.files)):
            check_dataset(BuildConfig(output=str(self.files), **vars(self.build)), keep=False, say=say)

    def open(self) -> "ArrayRecordSource":
        """The source of these files."""
        return ArrayRecordSource(self)

    def list_files(self) -> Sequence[SourceFile]:
        """The files, by the manifest alone where there is one."""
        return _find_dataset(self)[1]


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

    def __init__(
        self, config: ArrayRecordConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        if config.build is not None and not os.path.exists(str(config.files)):
            raise InputError(
                f"the data {config.files} are not built yet; `datarax run` with this config builds them, or `datarax build`"
            )
        records = ArrayRecordRecords(*_find_dataset(config), config.max_open_files)
        stamp = records.content_stamp()
        for file in records.files():
            if stamp[file.name][0] != file.size:
                raise InputError(
                    f"{os.path.join(records.base, file.name)} has {stamp[file.name][0]} bytes, its manifest says "
                    f"{file.size}: the file is truncated or was replaced; restore it, or build the dataset again"
                )
        self._open(records)

    def unlisted_files(self) -> Sequence[str]:
        """Beside what the manifest of a directory lists; see `unlisted` of the config."""
        config = cast(ArrayRecordConfig, self.config)
        return unlisted_files(config.files) if config.unlisted == "refuse" else ()

    @property
    def base_directory(self) -> str:
        """The directory that the files' names are relative to."""
        return self._runtime.base


class ArrayRecordRecords(ArrayRecordFiles, Records):
    """The records of files, and what is recorded of them.

    Args:
        base: the directory that the names of the files are relative to.
        files: the files.
        recorded: what a manifest says of each of them, by its name; {} without one.
        max_open_files: files kept open between reads.
    """

    kind = "array_record"

    def __init__(
        self,
        base: str,
        files: Sequence[SourceFile],
        recorded: Mapping[str, RecordedFile],
        max_open_files: int,
    ) -> None:
        self._made_from = base, files, recorded, max_open_files
        self.base, self._listed, self._recorded = base, files, recorded
        self.empty = f"its {len(files)} files in {base} hold 0 records"
        self.content_recorded = bool(recorded)
        paths = [os.path.join(base, file.name) for file in files]
        super().__init__(paths, [file.num_records for file in files], max_open_files=max_open_files)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_from

    def outline(self) -> dict[str, Any]:
        """Number of files, their names and sizes, and the manifest's digest; opens no file."""
        content = self.content_fingerprint() or {"sha256": None}
        return {"num_files": len(self._listed), "files": listed(self._listed), "content": content["sha256"]}

    def sample(self) -> str:
        """Of at most 16 records, from files all over."""
        holding = [file for file in self._listed if file.num_records]
        sampled = [
            holding[k].first_index + position
            for k in sample_positions(len(holding), _NUM_SAMPLED_FILES)
            for position in sample_positions(holding[k].num_records, _NUM_SAMPLED_RECORDS_PER_FILE)
        ]
        return records_digest(self.read(sampled))

    def files(self) -> Sequence[SourceFile]:
        """The files, with what each holds; opens none."""
        return self._listed

    def content_fingerprint(self) -> dict[str, Any] | None:
        """SHA-256 of the manifest's facts about the files (not about others that it may list); None without one."""
        entries = tuple(replace(each.entry, name=name) for name, each in self._recorded.items())
        known = {"num_records": len(self), "sha256": Manifest(entries, "").content_digest()}
        return known if entries else None

    def content_stamp(self) -> dict[str, Any]:
        """Size and time of each file."""
        stats = zip(self._listed, file_stats(self._paths, "ArrayRecord file"), strict=True)
        return {file.name: [stat.st_size, stat.st_mtime_ns] for file, stat in stats}

    def check_content(self, names: Sequence[str] | None = None) -> list[str]:
        """Compares size and SHA-256 of these files with the manifest, and in files that differ every record's hash.

        If all are checked, so are the side files with those hashes: they must be good on the day they are needed.
        """
        recorded, known = self._recorded.items(), dict[str, np.ndarray]()
        checked = [each.problem(known) for name, each in recorded if names is None or name in names]
        if names is None:
            for directory, manifest in {each.directory: each.manifest for _, each in recorded}.items():
                try:
                    load_record_hashes(manifest, directory)
                except InputError as error:
                    checked.append(str(error))
        return [problem for problem in checked if problem is not None]

    def changed_among(self, indices: np.ndarray) -> dict[int, str]:
        """Compares these records with the hashes beside the manifest."""
        wanted, found, known = np.unique(indices), dict[int, str](), dict[str, np.ndarray]()
        file_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(file_of) if self._recorded else ():
            file = self._listed[number]
            positions = wanted[file_of == number] - file.first_index
            with contextlib.suppress(InputError):  # the hashes are damaged, which `check_content` says
                for position, what in self._recorded[file.name].changed(positions.tolist(), known):
                    found[file.first_index + position] = f"{file.name}: {what}"
        return found


def _find_dataset(
    config: ArrayRecordConfig,
) -> tuple[str, tuple[SourceFile, ...], dict[str, RecordedFile]]:
    """Of the files that a config names: their base directory, they in the order of their names, what is recorded."""
    paths = find_data_files(config.files)
    base, names = relative_names(paths)
    recorded = _recorded(base, paths)
    if recorded and config.unlisted == "ignore":
        paths = [path for path in paths if path in recorded]
        base, names = relative_names(paths)
    facts = [recorded[path] for path in paths if path in recorded]
    if recorded and len(facts) < len(paths):
        unlisted = next(path for path in paths if path not in recorded)
        raise InputError(
            f"in {base} the {MANIFEST_NAME} does not list {os.path.relpath(unlisted, base)}; it belongs to other files: "
            f"write a new manifest that lists all of them, or move the file elsewhere"
        )
    counts = [each.entry.num_records for each in facts] or count_records(paths)
    sizes = [each.entry.size for each in facts] or [
        each.st_size for each in file_stats(paths, "ArrayRecord file")
    ]
    files = with_first_indices(list(zip(names, counts, sizes, strict=True)))
    return base, files, dict(zip(names, facts, strict=False))


def _recorded(base: str, paths: Sequence[str]) -> dict[str, RecordedFile]:
    """What the manifest of the common directory, or else of each file's own, says of each file; {} without any.

    Raises:
        InputError: if a manifest lists none of the files, or only some of the files have a manifest.
    """
    is_common = os.path.exists(os.path.join(base, MANIFEST_NAME))
    homes = [base] if is_common else map(os.path.dirname, paths)
    manifests = {home: load_manifest(home) for home in sorted(set(homes))}
    without = [home for home, manifest in manifests.items() if manifest is None]
    if len(without) == len(manifests):
        return {}
    if without:
        raise InputError(
            f"some of the files have a manifest, but those in {without[0]} have none; record them with write_manifest"
        )
    known = {
        os.path.join(home, entry.name): RecordedFile(home, manifest, entry)
        for home, manifest in manifests.items()
        if manifest is not None
        for entry in manifest.files
    }
    listed = {path: known[path] for path in paths if path in known}
    if not listed:
        raise InputError(
            f"in {base} the {MANIFEST_NAME} lists none of the files; it belongs to others, remove it"
        )
    return listed
