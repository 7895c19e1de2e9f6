"""Which file holds which records of a source: as a source lists them, and as an identity keeps them.

A long list is not in the identity, only its digest; a list found elsewhere is then held against that. Knows nothing of
what is in the files or where they lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.core.tree import digest

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


def listed(files: Sequence[SourceFile]) -> Any:
    """What an identity holds of `files`."""
    entries = [{"name": f.name, "size": f.size, "num_records": f.num_records} for f in files]
    return entries if len(entries) <= NUM_LISTED_FILES else {"sha256": digest(entries)}


def with_first_indices(facts: Sequence[tuple[str, int, int]]) -> tuple[SourceFile, ...]:
    """The files of a source from (name, records, bytes) of each, in their order."""
    files, first = [], 0
    for name, num_records, size in facts:
        files.append(SourceFile(name, first, num_records, size))
        first += num_records
    return tuple(files)


def recorded_files(identity: Mapping[str, Any]) -> tuple[SourceFile, ...] | None:
    """The files in the recorded identity of a source: () if it has none, None if only their digest was kept."""
    entries = identity.get("files", [])
    if not isinstance(entries, list):
        return None
    return with_first_indices([(each["name"], each["num_records"], each["size"]) for each in entries])
