"""Which ArrayRecord files a config names, and what is recorded of them.

A start reads manifests and the names in directories, each once, and looks at no data file: their sizes and times are looked at
when they are opened. Without a manifest every file is opened to count its records. Read next: `manifest.py`, `array_record.py`.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence

from datarax.core.errors import InputError, ReadError
from datarax.sources.array_record_files import count_records
from datarax.sources.files import (
    Rows,
    SourceFile,
    entries_of,
    file_stats,
    find_files,
    relative_names,
    with_first_indices,
)
from datarax.sources.manifest import (
    MANIFEST_NAME,
    SIDE_FILES,
    Manifest,
    RecordedFile,
    inventory,
    load_manifest,
    write_inventory,
)

_WHAT = "ArrayRecord file"


class DataFiles:
    """The files that paths, globs and directories with a manifest name.

    Args:
        patterns: the paths, globs and directories.
        only_listed: whether a glob leaves out what the manifest does not list.

    Raises:
        InputError: see `find_files`; also if a directory has no manifest, which says what in it is data.
    """

    def __init__(self, patterns: str | Sequence[str], *, only_listed: bool = False) -> None:
        self._manifest = functools.cache(load_manifest)
        self._entries = functools.cache(lambda where: entries_of(where, _WHAT, known=self._listed))
        self._listed: set[str] = set()
        self._directories: list[str] = []
        self.paths = find_files(
            patterns,
            what=_WHAT,
            expand_directory=self._files_of,
            left_out=lambda path, is_dir: is_dir or os.path.basename(path) in SIDE_FILES,
        )
        """Absolute paths, sorted."""
        self._only_listed = only_listed

    def _files_of(self, directory: str) -> list[str]:
        manifest = self._manifest(directory)
        if manifest is None:
            raise InputError(
                f"directory {directory} holds no {MANIFEST_NAME}; name its files with a glob ({directory}/*.array_record), "
                f"or record them with write_manifest"
            )
        (names,) = Rows.columns(manifest.files, "name")
        paths = [f"{directory}/{name}" for name in names]
        self._listed.update(paths)
        self._directories.append(directory)
        return paths

    def check_there(self) -> None:
        """Whether the files that manifests of directories list are in these directories.

        Raises:
            InputError: naming the first that is not.
        """
        homes = {path.rpartition(os.sep)[0] for path in self._listed}
        missing = sorted(self._listed - {entry.path for home in homes for entry in self._entries(home)})
        if missing:
            raise InputError(f"{_WHAT} {missing[0]} cannot be read: No such file or directory")

    def unlisted(self) -> list[str]:
        """Files below directories with a manifest that look like data, and that the manifest does not list.

        That is: they end like a listed one, whatever the numbers ("x-00007.array_record", "x.array_record-00007-of-00009"; the
        whole name counts where nothing ends it). Names that begin with a dot are no data, and a directory below that has a
        manifest of its own is another dataset.

        Raises:
            InputError: if a directory cannot be read.
        """
        others: list[str] = []
        seen: set[str] = set()
        waiting = list(self._directories)
        while waiting:
            where = waiting.pop()
            if os.path.realpath(where) in seen:  # by a link
                continue
            seen.add(os.path.realpath(where))
            entries = [each for each in self._entries(where) if each.path not in self._listed]
            for entry in entries:
                if entry.name[0] == "." or entry.name in SIDE_FILES:
                    continue
                if not entry.is_dir():
                    others.append(entry.path)
                elif not os.path.lexists(os.path.join(entry.path, MANIFEST_NAME)):
                    waiting.append(entry.path)
        endings = {_ending(path) for path in self._listed} if others else set()
        return sorted(path for path in others if _ending(path) in endings)

    def facts(self) -> tuple[str, Sequence[SourceFile], Sequence[RecordedFile]]:
        """The files' base directory, they in the order of their names, and what a manifest says of each; () without one.

        Raises:
            InputError: if a manifest does not fit the files, or there is none and one cannot be opened.
        """
        paths = self.paths
        base, names = relative_names(paths)
        recorded = self._recorded(base)
        if recorded and self._only_listed:
            paths = [path for path in paths if path in recorded]
            base, names = relative_names(paths)
        places = [recorded[path] for path in paths if path in recorded]
        if recorded and len(places) < len(paths):
            unlisted = next(path for path in paths if path not in recorded)
            raise InputError(
                f"in {base} the {MANIFEST_NAME} does not list {os.path.relpath(unlisted, base)}; it belongs to other files: "
                f"write a new manifest that lists all of them, or move the file elsewhere"
            )
        if not places:
            counts, sizes = count_records(paths), [each.st_size for each in file_stats(paths, _WHAT)]
            return base, with_first_indices(list(zip(names, counts, sizes, strict=True))), ()
        homes, numbers = zip(*places, strict=True)
        manifests = [self._manifest(home) for home in homes]
        files = Rows(RecordedFile, homes, manifests, numbers)
        sizes, counts = RecordedFile.columns(files, "size", "num_records")
        return base, with_first_indices(list(zip(names, counts, sizes, strict=True))), files

    def _recorded(self, base: str) -> Mapping[str, tuple[str, int]]:
        """By path, the directory whose manifest lists it, the common one or else its own, and its number there."""
        homes = {base} if self._manifest(base) is not None else {*map(os.path.dirname, self.paths)}
        manifests = {home: self._manifest(home) for home in sorted(homes)}
        without = [home for home, manifest in manifests.items() if manifest is None]
        if len(without) == len(manifests):
            return {}
        if without:
            raise InputError(
                f"some of the files have a manifest, but those in {without[0]} have none; record them with write_manifest"
            )
        known = {
            f"{home}/{name}": (home, number)
            for home, manifest in manifests.items()
            if manifest is not None
            for number, name in enumerate(Rows.columns(manifest.files, "name")[0])
        }
        if known.keys().isdisjoint(self.paths):
            raise InputError(
                f"in {base} the {MANIFEST_NAME} lists none of the files; it belongs to others, remove it"
            )
        return known


def _ending(path: str) -> str:
    name = os.path.basename(path)
    return re.sub(r"\d+", "0", os.path.splitext(name)[1] or name)


def write_manifest(files: str | Sequence[str]) -> Manifest:
    """Records the content of ArrayRecord files that are there already, in the directory that holds them all.

    It becomes part of the identity of sources that read these files: a run that began without it calls that a change.

    Args:
        files: paths or globs; their deepest common directory gets the manifest.

    Raises:
        InputError: if a file cannot be read, or the directory has a manifest that says something else.
    """
    base, names = relative_names(DataFiles(files).paths)
    there = load_manifest(base)
    try:
        manifest, hashes = inventory(base, names)
        if there is None:
            write_inventory(base, manifest, hashes)
    except ReadError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"the manifest of {base} cannot be written: {error}") from error
    if there is not None and there.files != manifest.files:
        raise InputError(
            f"{os.path.join(base, MANIFEST_NAME)} records something else than these files; remove it if it is out of "
            f"date"
        )
    return manifest if there is None else there
