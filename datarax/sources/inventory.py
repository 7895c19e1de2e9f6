"""Which files hold which records, and how large each must be: also of data that cannot be opened because a file is gone.

Reads manifests only. Whether the files are there, and as large, is for the caller to look.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.sources.local_files import relative_names
from datarax.sources.manifest import load_manifest


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, as it was recorded."""

    path: str
    """Absolute path."""
    size: int
    """Bytes."""
    num_records: int
    """Records in it."""


def expected_files(
    files: str | Sequence[str], identity: Mapping[str, Any] | None = None
) -> list[DataFile] | None:
    """The files of an ArrayRecord dataset in the order of their records, as a manifest or else an identity lists them.

    Args:
        files: what a config says: one directory, paths, or globs.
        identity: of the source, as a snapshot recorded it.

    Returns:
        None if nothing lists them.

    Raises:
        InputError: if there is a manifest that cannot be read.
    """
    base = _base(files)
    manifest = load_manifest(base)
    if manifest is not None:
        listed = [(each.name, each.size, each.num_records) for each in manifest.files]
    elif identity is not None and isinstance(identity.get("files"), list):
        listed = [(each["name"], each["size"], each["num_records"]) for each in identity["files"]]
    else:
        return None
    found = [DataFile(os.path.join(base, name), size, count) for name, size, count in listed]
    return [file for file in found if _is_asked_for(file.path, files)]


def _is_asked_for(path: str, files: str | Sequence[str]) -> bool:
    """A manifest may list more than a config names."""
    if isinstance(files, str) and os.path.isdir(files):
        return True
    patterns = map(os.path.abspath, [files] if isinstance(files, str) else files)
    return any(path == each or _matches(path.split(os.sep), each.split(os.sep)) for each in patterns)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As `glob` with `recursive=True`, for files that need not be there."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _base(files: str | Sequence[str]) -> str:
    """The directory that names are relative to."""
    if isinstance(files, str) and os.path.isdir(files):
        return os.path.abspath(files)
    patterns = [files] if isinstance(files, str) else list(files)
    fixed = [_without_magic(os.path.abspath(pattern)) for pattern in patterns]
    return relative_names(fixed)[0]


def _without_magic(pattern: str) -> str:
    """A path whose directory is the deepest one that the pattern fixes."""
    while glob.has_magic(os.path.dirname(pattern)):
        pattern = os.path.dirname(pattern)
    return pattern
