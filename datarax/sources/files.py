"""Local files: which ones a user's paths, globs and directories name, what they are called, which records they hold.

Names are relative to the deepest directory that holds all the files, so that moving the data changes nothing. Knows
nothing of what is in the files. Read next: `manifest.py`.
"""

import fnmatch
import glob
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from datarax.core.errors import InputError
from datarax.store.files import check_path, local_path

T = TypeVar("T")

# Up to here an identity lists its files, so that a difference names one; beyond, their digest keeps it small.
NUM_LISTED_FILES = 16
"""Up to so many files an identity lists by name; of more it keeps a digest."""


class AbsentError(InputError):
    """Nothing is there under a name that a user gave."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    name: str
    """Name relative to the deepest directory that holds all files of the source."""
    first_index: int
    """Index in the source of its first record."""
    num_records: int
    """Records in it."""
    size: int
    """Bytes."""


class Rows(Sequence[T]):
    """Objects kept as columns: a start over 100,000 files makes few of them, where each would cost microseconds.

    Args:
        kind: a dataclass.
        columns: its fields, in their order, of all objects.
    """

    def __init__(self, kind: type[T], *columns: Sequence[Any]) -> None:
        self._kind, self._columns = kind, columns

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Rows(self._kind, *(each[index] for each in self._columns))
        return self._kind(*(each[index] for each in self._columns))

    def __iter__(self) -> Iterator[T]:
        return map(self._kind, *self._columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def columns(rows: Sequence[Any], *fields: str) -> list[Sequence[Any]]:
        """These fields of any sequence of such objects."""
        if not isinstance(rows, Rows):
            return [[getattr(each, field) for each in rows] for field in fields]
        known = list(rows._kind.__dataclass_fields__)
        return [rows._columns[known.index(field)] for field in fields]


def with_first_indices(facts: Sequence[tuple[str, int, int]]) -> Sequence[SourceFile]:
    """The files of a source from (name, records, bytes) of each, in their order."""
    names, counts, sizes = zip(*facts, strict=True) if facts else ((), (), ())
    firsts = list(itertools.accumulate(counts, initial=0))[: len(names)]
    return Rows(SourceFile, names, firsts, counts, sizes)


def listed(files: Sequence[SourceFile]) -> Any:
    """What an identity holds of `files`."""
    if len(files) <= NUM_LISTED_FILES:
        return [{"name": f.name, "size": f.size, "num_records": f.num_records} for f in files]
    keys = ("name", "num_records", "size")
    return {"sha256": hashlib.sha256(files_json(keys, Rows.columns(files, *keys))).hexdigest()}


def files_json(keys: Sequence[str], columns: Sequence[Sequence[Any]]) -> bytes:
    """The canonical JSON of fields of files, texts or numbers: `canonical_json` takes ten times as long.

    Args:
        keys: the fields, sorted.
        columns: each of all files.
    """
    form = "{" + ",".join(f'"{key}":%s' for key in keys) + "}"
    spell = json.encoder.encode_basestring
    cells = [map(spell, each) if each and isinstance(each[0], str) else each for each in columns]
    return "[{}]".format(",".join(map(form.__mod__, zip(*cells, strict=True)))).encode()


def recorded_files(identity: Mapping[str, Any]) -> Sequence[SourceFile] | None:
    """The files in the recorded identity of a source: () if it has none, None if only their digest was kept."""
    entries = identity.get("files", [])
    if not isinstance(entries, list):
        return None
    return with_first_indices([(each["name"], each["num_records"], each["size"]) for each in entries])


def find_files(
    patterns: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    what: str,
    expand_directory: Callable[[str], Sequence[str]],
    left_out: Callable[[str, bool], bool],
    absent: bool = False,
) -> list[str]:
    """Absolute paths of the files that `patterns` name, sorted.

    Args:
        patterns: paths, globs or directories. What exists under the very name is not taken for a glob.
        what: what the files are, for messages ("ArrayRecord file").
        expand_directory: the files that stand for a directory, as absolute paths.
        left_out: whether what a glob matches is not meant, by its path and whether it is a directory. A glob looks into no
            directory, so each that it matches must be left out; those that "**" walks through are.
        absent: whether what is not there is left out.

    Raises:
        AbsentError: if a path does not exist or a glob matches nothing.
        InputError: if a directory on the way cannot be read, a file is named twice, a glob matches a directory that may not
            be left out, or nothing is named.
    """
    found: dict[str, str | os.PathLike[str]] = {}
    for pattern in [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns:
        path = local_path(pattern, what)
        if os.path.lexists(path):
            files = expand_directory(path) if os.path.isdir(path) else [path]
        else:
            matching = dict(_matching(os.sep, path.split(os.sep)[1:], what))
            meant = [each for each, is_dir in matching.items() if not left_out(each, is_dir)]
            files = [each for each in meant if not matching[each]]
            if len(files) < len(meant) and "**" not in path:
                directory = next(each for each in meant if matching[each])
                raise InputError(
                    f"{what}s: {path} matches the directory {directory} too, and nobody can say whether the files in it are "
                    f"meant; name {os.path.dirname(path)}/** for all files below, or a pattern that only files match"
                )
        if not files and not absent:
            if os.path.isdir(path):
                raise AbsentError(f"{what.removesuffix(' file')} directory {path} holds no files")
            raise AbsentError(
                f"no {what} matches {path}" if glob.has_magic(path) else f"{what} {path} does not exist"
            )
        check_path("\n".join(files), what)
        twice = found.keys() & files
        if twice:
            file = min(twice)
            raise InputError(f"{what} {file} is named twice, by {str(found[file])!r} and by {str(pattern)!r}")
        found |= dict.fromkeys(files, pattern)
    if not found and not absent:
        raise InputError(f"no {what} was named")
    return sorted(found)


def walk(directory: str, what: str, *, hidden: bool = True) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """A directory and all below it, each with its entries by name. Links to directories are followed.

    Args:
        directory: where to begin.
        what: what the files are, for messages.
        hidden: whether names that begin with a dot count.

    Raises:
        InputError: naming a directory that cannot be read, or to which a link leads once more.
    """
    seen: dict[str, str] = {}
    waiting = [directory]
    while waiting:
        where = waiting.pop()
        entries = [each for each in entries_of(where, what) if hidden or not each.name.startswith(".")]
        refuse_twice(where, seen, what)
        yield where, entries
        waiting += [each.path for each in reversed(entries) if each.is_dir()]


def refuse_twice(directory: str, seen: dict[str, str], what: str) -> None:
    """Remembers a directory in `seen`.

    Raises:
        InputError: if a link has led to it before.
    """
    first = seen.setdefault(os.path.realpath(directory), directory)
    if first != directory:
        raise InputError(
            f"{what}s: {directory} is the directory {first} once more, by a link; its files would be read twice: remove the "
            f"link, or name the files that are meant"
        )


def entries_of(directory: str, what: str, known: Container[str] = ()) -> list[os.DirEntry[str]]:
    """What is in a directory, by name, links followed.

    Args:
        directory: the directory.
        what: what its files are, for messages.
        known: paths of files that are not looked at, links included.

    Raises:
        InputError: naming the directory, or the link in it, that cannot be read.
    """
    try:
        with os.scandir(directory) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            if entry.path not in known:
                entry.is_dir()  # what a link leads to; the entry keeps the answer, so that no later question fails
    except OSError as error:
        raise InputError(
            f"{what}s: {error.filename or directory} cannot be read: {error.strerror}"
        ) from error
    return entries


def _matching(
    where: str, parts: list[str], what: str, is_dir: bool | None = None
) -> Iterator[tuple[str, bool]]:
    """What `glob.glob` finds, and whether it is a directory; one that cannot be read, or a link back, is an error."""
    if not parts:
        yield where, os.path.isdir(where) if is_dir is None else is_dir
        return
    part, rest = parts[0], parts[1:]
    if not glob.has_magic(part):
        path = os.path.join(where, part)
        if _is_there(path, what, directory=bool(rest)):
            yield from _matching(path, rest, what)
    elif part != "**":
        for entry in entries_of(where, what):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if not hidden and fnmatch.fnmatchcase(entry.name, part) and (not rest or entry.is_dir()):
                yield from _matching(entry.path, rest, what, entry.is_dir())
    else:
        for directory, entries in walk(where, what, hidden=False):
            below = ((entry.path, entry.is_dir()) for entry in entries)
            yield from _matching(directory, rest, what) if rest else below


def _is_there(path: str, what: str, *, directory: bool) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode) if directory else bool(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error


def relative_names(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The deepest directory that holds all `paths`, and their POSIX names relative to it, in the same order."""
    base = os.path.commonpath([os.path.dirname(min(paths)), os.path.dirname(max(paths))])
    start = len(base.rstrip(os.sep)) + 1
    return base, [path[start:] for path in paths]


def file_stamps(names: Iterable[str], paths: Iterable[str], what: str) -> dict[str, list[int]]:
    """By name, bytes and time of change, in ns, of each file: while they stay, a file need not be read again to know it.

    Raises:
        InputError: naming one that is gone.
    """
    try:
        stats = zip(names, map(os.stat, paths), strict=True)
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats}
    except OSError as error:
        raise InputError(f"{what} {error.filename} cannot be read: {error.strerror}") from error
