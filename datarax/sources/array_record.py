"""Records from ArrayRecord files: which files, how many records in each, and what is known of their content.

With a manifest beside the files, counts come from it and no file is opened before it is read. Reading itself is in
`array_record_files.py`, the manifest in `manifest.py`.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
from flax import nnx

from datarax.core.config import Checked, Positive
from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.sources.array_record_files import ArrayRecordFiles
from datarax.sources.build import build_if_missing, is_dataset
from datarax.sources.build_check import check_dataset
from datarax.sources.build_config import BuildConfig, BuildTable
from datarax.sources.dataset import DataFiles, write_manifest
from datarax.sources.files import Rows, SourceFile, file_stamps, listed
from datarax.sources.manifest import FileEntry, Manifest, RecordedFile, load_record_hashes
from datarax.sources.records import SAMPLE_VERSION, Look, Records, records_digest, sample_positions
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
        if self.manifest is not None:
            raise ConfigError("the manifest of ArrayRecord files lies beside them; leave source.manifest out")
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
            super().resolved(),
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

    def write_manifest(self) -> Manifest:
        """Records the files, beside them."""
        return write_manifest(self.files)

    def open(self) -> "ArrayRecordSource":
        """The source of these files."""
        return ArrayRecordSource(self)

    def list_files(self) -> Sequence[SourceFile]:
        """The files, by the manifest alone where there is one."""
        return DataFiles(self.files, only_listed=self.unlisted == "ignore").facts()[1]


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
            local. A file that is not as large as its manifest says is refused when it is first opened.
    """

    def __init__(
        self, config: ArrayRecordConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        if config.build is not None and not os.path.exists(str(config.files)):
            raise InputError(
                f"the data {config.files} are not built yet; `datarax run` with this config builds them, or `datarax build`"
            )
        found = DataFiles(config.files, only_listed=config.unlisted == "ignore")
        found.check_there()
        self._open(ArrayRecordRecords(*found.facts(), config.max_open_files))
        self._runtime.found = found

    def unlisted_files(self) -> Sequence[str]:
        """Beside what the manifest of a directory lists; see `unlisted` of the config."""
        config, found = cast(ArrayRecordConfig, self.config), self._runtime.found
        self._runtime.found = None  # the next look is a new one
        return () if config.unlisted == "ignore" else (found or DataFiles(config.files)).unlisted()

    @property
    def base_directory(self) -> str:
        """The directory that the files' names are relative to."""
        return self._runtime.base


class ArrayRecordRecords(ArrayRecordFiles, Records):
    """The records of files, and what is recorded of them.

    Args:
        base: the directory that the names of the files are relative to.
        files: the files.
        recorded: what a manifest says of each of them; () without one.
        max_open_files: files kept open between reads.
    """

    kind = "array_record"
    """See `Records.kind`."""
    found: DataFiles | None = None
    """How the files were found, until what lies beside them is asked for. No copy has it."""

    def __init__(
        self,
        base: str,
        files: Sequence[SourceFile],
        recorded: Sequence[RecordedFile],
        max_open_files: int,
    ) -> None:
        self._made_from = base, files, recorded, max_open_files
        self.base, self._listed, self._recorded = base, files, recorded
        names, counts = Rows.columns(files, "name", "num_records")
        self.empty = f"its {len(files)} files in {base} hold 0 records"
        self.content_recorded = bool(recorded)
        super().__init__([f"{base}/{name}" for name in names], counts, max_open_files=max_open_files)
        self._stamps: dict[str, list[int]] = {}
        self._look: Look | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_from

    def outline(self) -> dict[str, Any]:
        """Number of files, their names and sizes, and the manifest's digest; opens no file."""
        return dict(self._outline)

    @functools.cached_property
    def _outline(self) -> dict[str, Any]:
        content = self._content or {"sha256": None}
        return {"num_files": len(self._listed), "files": listed(self._listed), "content": content["sha256"]}

    @functools.cached_property
    def _content(self) -> dict[str, Any] | None:
        if not self._recorded:
            return None
        (names,) = Rows.columns(self._listed, "name")
        manifest = self._recorded[0].manifest
        if list(names) == list(*Rows.columns(manifest.files, "name")):
            return {"num_records": len(self), "sha256": manifest.content_digest()}
        facts = RecordedFile.columns(self._recorded, "size", "num_records", "sha256")
        entries = Rows(FileEntry, names, *facts)
        return {"num_records": len(self), "sha256": Manifest(entries, "").content_digest()}

    def sample(self, version: int = SAMPLE_VERSION) -> str:
        """Of at most 16 records, from files all over, by each version: more would open more files."""
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
        return self._content

    def content_stamp(self) -> dict[str, Any]:
        """Size and time of each file."""
        (names,) = Rows.columns(self._listed, "name")
        return file_stamps(names, self._paths, "ArrayRecord file")

    def watch(self, look: Look) -> None:
        """With a manifest a file is looked at when it is opened: those that are, now; else all, since all were opened."""
        self._look = look if self._recorded else None
        look(self._stamps if self._recorded else self.content_stamp())

    def opening(self, number: int, stat: os.stat_result) -> None:
        """Looks at a file before its first record is read, and again where it has changed since.

        Raises:
            ReadError: if it is not as large as its manifest says.
        """
        file, stamp = self._listed[number], [stat.st_size, stat.st_mtime_ns]
        if self._stamps.get(file.name) == stamp:
            return
        if self._recorded and stat.st_size != file.size:
            raise ReadError(
                f"{self._paths[number]} has {stat.st_size} bytes, its manifest says {file.size}: the file is truncated or was "
                f"replaced; restore it, or build the dataset again"
            )
        if self._look is not None:
            self._look({file.name: stamp})
        self._stamps[file.name] = stamp

    def check_content(self, names: Sequence[str] | None = None) -> list[str]:
        """Compares size and SHA-256 of these files with the manifest, and in files that differ every record's hash.

        If all are checked, so are the side files with those hashes: they must be good on the day they are needed.
        """
        recorded, known = list(zip(self._listed, self._recorded, strict=False)), dict[str, np.ndarray]()
        checked = [each.problem(known) for file, each in recorded if names is None or file.name in names]
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
                for position, what in self._recorded[number].changed(positions.tolist(), known):
                    found[file.first_index + position] = f"{file.name}: {what}"
        return found
