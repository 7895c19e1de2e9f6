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
from typing import Any

from datarax.core.errors import InputError
from datarax.store.files import check_path, local_path

# Up to here an identity lists its files, so that a difference names one; beyond, their digest keeps it small.
NUM_LISTED_FILES = 16


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


def with_first_indices(facts: Sequence[tuple[str, int, int]]) -> tuple[SourceFile, ...]:
    """The files of a source from (name, records, bytes) of each, in their order."""
    firsts = itertools.accumulate((num_records for _, num_records, _ in facts), initial=0)
    return tuple(SourceFile(n, first, c, size) for (n, c, size), first in zip(facts, firsts, strict=False))


def listed(files: Sequence[SourceFile]) -> Any:
    """What an identity holds of `files`."""
    if len(files) <= NUM_LISTED_FILES:
        return [{"name": f.name, "size": f.size, "num_records": f.num_records} for f in files]
    return {"sha256": hashlib.sha256(files_json(map(vars, files), "name", "num_records", "size")).hexdigest()}


def files_json(files: Iterable[Mapping[str, Any]], *keys: str) -> bytes:
    """The canonical JSON of these fields of files, a text "name" and others that stand as they are.

    A start makes it of every file, and `canonical_json` takes ten times as long.

    Args:
        files: the fields of each.
        keys: the fields, sorted.
    """
    form = ",".join(f'"{key}":"%s"' if key == "sha256" else f'"{key}":%s' for key in keys)
    spell = json.encoder.encode_basestring
    rows = ([spell(file[key]) if key == "name" else file[key] for key in keys] for file in files)
    return "[{}]".format(",".join(["{" + form % tuple(row) + "}" for row in rows])).encode()


def recorded_files(identity: Mapping[str, Any]) -> tuple[SourceFile, ...] | None:
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
    found: dict[str, str] = {}
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
        for file in files:
            check_path(file, what)
            if file in found:
                raise InputError(f"{what} {file} is named twice, by {found[file]!r} and by {str(pattern)!r}")
            found[file] = str(pattern)
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
    return base, [path[len(base.rstrip(os.sep)) + 1 :] for path in paths]


def file_stats(paths: Sequence[str], what: str) -> list[os.stat_result]:
    """Sizes and times of files.

    Raises:
        InputError: naming one that is gone.
    """
    try:
        return [os.stat(path) for path in paths]
    except OSError as error:
        raise InputError(f"{what} {error.filename} cannot be read: {error.strerror}") from error
