"""Which files a dataset should have, told without opening it: one of them may be gone."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from datarax.sources import SourceFile, load_manifest
from datarax.sources.files import recorded_files, with_first_indices


def expected_files(
    files: str | Sequence[str], identity: Mapping[str, Any] | None = None
) -> Sequence[SourceFile] | None:
    """The files of a dataset in the order of their records, as a manifest or else an identity lists them.

    Whether they are there, and as large, is for the caller to look.

    Args:
        files: what a config says: one directory, paths, or globs.
        identity: of the source, as a snapshot recorded it.

    Returns:
        The files, by absolute paths; None if nothing lists them.

    Raises:
        InputError: if there is a manifest that cannot be read.
    """
    named = [os.path.abspath(each) for each in ([files] if isinstance(files, str) else files)]
    base = os.path.commonpath([each if os.path.isdir(each) else os.path.dirname(each) for each in named])
    while glob.has_magic(base) and not os.path.isdir(base):
        base = os.path.dirname(base)
    manifest = load_manifest(base)
    entries = recorded_files({"files": None, **(identity or {})}) if manifest is None else manifest.files
    if entries is None:
        return None
    facts = [(os.path.join(base, each.name), each.num_records, each.size) for each in entries]
    # A manifest may list more than a config names.
    return with_first_indices([each for each in facts if any(_names(pattern, each[0]) for pattern in named)])


def _names(pattern: str, path: str) -> bool:
    """Whether a path, a directory or a glob names this file below it, as `glob` would if the file were there."""
    if "/**/" in pattern:
        depths = range(path.count("/"))
        return any(_names(pattern.replace("/**/", "/" + "*/" * depth, 1), path) for depth in depths)
    return f"{path}/".startswith(f"{pattern.removesuffix('/**')}/") or PurePath(path).match(pattern)
