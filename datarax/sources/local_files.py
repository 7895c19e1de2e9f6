"""Which local files a user's paths, globs and directories name, and what they are called relative to one another.

Names are relative to the deepest directory that holds all the files, so that moving the data changes nothing. Knows
nothing of what is in the files.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence

from datarax.core.errors import InputError

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def require_local(path: str | os.PathLike[str], what: str) -> str:
    """The absolute form of a local path, with `~` expanded.

    Raises:
        InputError: if `path` is empty, is not a path, or names an object store or another remote place.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise InputError(f"{what} must be a path, got {path!r} of type {type(path).__name__}") from None
    if not isinstance(text, str) or not text:
        raise InputError(f"{what} must be a non-empty path, got {text!r}")
    if _REMOTE.match(text):
        raise InputError(
            f"{what} {text!r} is not a local path; object stores are not supported yet, copy the data to a local disk"
        )
    return os.path.abspath(os.path.expanduser(text))


def find_files(
    patterns: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    what: str,
    expand_directory: Callable[[str], Sequence[str]],
    ignored_in_globs: frozenset[str] = frozenset(),
) -> list[str]:
    """Absolute paths of the files that `patterns` name, sorted.

    Args:
        patterns: one or several paths, globs (`*`, `?`, `[...]`, `**`) or directories. A path that exists is taken
            literally, whatever characters it holds.
        what: what the files are, for messages ("ArrayRecord file").
        expand_directory: the files that stand for a directory, as absolute paths.
        ignored_in_globs: base names that a glob does not select.

    Raises:
        InputError: if a path does not exist, a glob matches nothing, a file is named twice, or nothing is named.
    """
    listed = [patterns] if isinstance(patterns, (str, os.PathLike)) else list(patterns)
    found: dict[str, str] = {}
    for pattern in listed:
        path = require_local(pattern, what)
        for file in _expand(path, what, expand_directory, ignored_in_globs):
            if file in found:
                raise InputError(f"{what} {file} is named twice, by {found[file]!r} and by {str(pattern)!r}")
            found[file] = str(pattern)
    if not found:
        raise InputError(f"no {what} was named")
    return sorted(found)


def _expand(
    path: str, what: str, expand_directory: Callable[[str], Sequence[str]], ignored: frozenset[str]
) -> Sequence[str]:
    if os.path.isdir(path):
        return expand_directory(path)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(path):
        raise InputError(f"{what} {path} does not exist")
    matches = [m for m in glob.glob(path, recursive=True) if os.path.basename(m) not in ignored]
    files = [m for m in matches if not os.path.isdir(m)]
    if not files:
        raise InputError(f"no {what} matches {path}")
    return files


def relative_names(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The deepest directory that holds all `paths`, and their POSIX names relative to it, in the same order."""
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    return base, [os.path.relpath(path, base).replace(os.sep, "/") for path in paths]
