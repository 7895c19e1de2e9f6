"""At a start: have data files moved since the last one, and if so, do they still hold what was recorded of them?

A quick fingerprint samples a few records; a file that was rewritten between two starts at the same size may escape it. Its time
does not, so such files are read whole and held against the dataset's manifest. All access to files is the source's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datarax.checkpoint import Checkpointer, FileStamps
from datarax.core.errors import MismatchError
from datarax.multihost import Processes
from datarax.sources import DataSource

_A_LOOK_SECONDS = 6 * 3600.0  # a large dataset that was copied is read whole once

_REFUSAL = (
    "data files have changed since an earlier start of this run and are not what their manifest says; the run was not touched. "
    "Restore them from a copy, or build the dataset again (resume.check_moved_files = false looks at no file)"
)


@dataclass(frozen=True)
class FilesFound:
    """What a look at the files of a source found."""

    stamps: dict[str, Any]
    """To be recorded if there are no problems; empty if the source has no files."""
    problems: list[str] = field(default_factory=list)
    """Files that moved and are not what the manifest says."""
    notes: list[str] = field(default_factory=list)
    """What a person should know."""


def check_moved_files(
    source: DataSource, checkpointer: Checkpointer, processes: Processes, say: Callable[[str], None]
) -> None:
    """Checks files that have moved since an earlier start, and records how they are now; process 0 looks for all.

    Args:
        source: whose files.
        checkpointer: of the run, entered.
        processes: those of the run.
        say: told what a person should know.

    Raises:
        MismatchError: if a file that moved is not what the manifest says; names each, and the records if they are known.
        InputError: if a file is gone.
    """
    found: list[FilesFound] = []

    def look() -> list[str]:
        if not processes.first:
            return []
        found.append(look_at_files(source, checkpointer.file_stamps(), say))
        return found[0].problems

    problems = processes.exchange(
        "files",
        look,
        lambda parts: parts[0],
        about="looking at the data files",
        timeout_seconds=_A_LOOK_SECONDS,
    )
    if problems:
        raise MismatchError("\n".join([_REFUSAL, *(f"  {problem}" for problem in problems)]))
    for each in found:
        for note in each.notes:
            say(f"note: {note}")
        if each.stamps:
            checkpointer.record_file_stamps(each.stamps)


def look_at_files(source: DataSource, last: FileStamps | None, say: Callable[[str], None]) -> FilesFound:
    """Compares the files of a source with their stamps, and the content of those that have moved with the manifest.

    Args:
        source: whose files.
        last: the stamps of an earlier start; None: there are none, and nothing is compared.
        say: told before files are read whole.

    Raises:
        InputError: if a file is gone.
    """
    files = source.content_stamp()
    if not files:
        return FilesFound({})
    fingerprint = source.content_fingerprint() if source.content_recorded else None
    stamps = {source.name: {"files": files, "content": fingerprint}}
    if last is None:
        return FilesFound(stamps)
    then = last.sources.get(source.name, {})
    # Another manifest makes no file trustworthy: then all of them are looked at again.
    known = then.get("files", {}) if then.get("content") == fingerprint else {}
    moved = [name for name, stamp in files.items() if known.get(name) != stamp]
    if not moved:
        return FilesFound(stamps)
    what = (
        f"{len(moved)} of {len(files)} files of source {source.name!r} have another time or size, or another manifest, than at "
        f"start {last.start}"
    )
    if not source.content_recorded:
        note = (
            f"{what} ({_some(moved)}); without a manifest their content cannot be checked beyond a few sampled records "
            f"(`datarax build manifest` makes one)"
        )
        return FilesFound(stamps, notes=[note])
    say(f"{what}: checking their content")
    return FilesFound(stamps, problems=source.check_files(moved))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
