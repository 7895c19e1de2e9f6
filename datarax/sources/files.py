"""Local files: which ones a user's paths, globs and directories name, what they are called, which records they hold.

Names are relative to the deepest directory that holds all the files, so that moving the data changes nothing. Knows
nothing of what is in the files. Read next: `manifest.py`.
"""

import glob
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.core.errors import InputError
from datarax.core.tree import digest
from datarax.store.files import check_path, local_path

# Up to here an identity lists its files, so that a difference names one; beyond, their digest keeps it small.
NUM_LISTED_FILES = 16


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
    entries = [{"name": f.name, "size": f.size, "num_records": f.num_records} for f in files]
    return entries if len(entries) <= NUM_LISTED_FILES else {"sha256": digest(entries)}


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
    ignored_in_globs: frozenset[str] = frozenset(),
) -> list[str]:
    """Absolute paths of the files that `patterns` name, sorted.

    Args:
        patterns: paths, globs or directories. What exists under the very name is not taken for a glob.
        what: what the files are, for messages ("ArrayRecord file").
        expand_directory: the files that stand for a directory, as absolute paths.
        ignored_in_globs: base names that a glob does not select.

    Raises:
        InputError: if a path does not exist, a glob matches nothing, a file is named twice, or nothing is named.
    """
    found: dict[str, str] = {}
    for pattern in [patterns] if isinstance(patterns, (str, os.PathLike)) else patterns:
        path = local_path(pattern, what)
        if os.path.lexists(path):
            files = expand_directory(path) if os.path.isdir(path) else [path]
        else:
            files = [
                each
                for each in glob.glob(path, recursive=True)
                if not (os.path.isdir(each) or os.path.basename(each) in ignored_in_globs)
            ]
        if not files:
            raise InputError(
                f"no {what} matches {path}" if glob.has_magic(path) else f"{what} {path} does not exist"
            )
        for file in files:
            check_path(file, what)
            if file in found:
                raise InputError(f"{what} {file} is named twice, by {found[file]!r} and by {str(pattern)!r}")
            found[file] = str(pattern)
    if not found:
        raise InputError(f"no {what} was named")
    return sorted(found)


def relative_names(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The deepest directory that holds all `paths`, and their POSIX names relative to it, in the same order."""
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    return base, [os.path.relpath(path, base).replace(os.sep, "/") for path in paths]


def file_stats(paths: Sequence[str], what: str) -> list[os.stat_result]:
    """Sizes and times of files.

    Raises:
        InputError: naming one that is gone.
    """
    try:
        return [os.stat(path) for path in paths]
    except OSError as error:
        raise InputError(f"{what} {error.filename} cannot be read: {error.strerror}") from error
