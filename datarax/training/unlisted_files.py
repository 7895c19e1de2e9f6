"""At a start: does data lie beside the data that no manifest lists, so that nobody would read it?

Whoever adds shards to a dataset and forgets its manifest would train on the old ones. A new run is told so; one that goes on is
bound to what it began with.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from datarax.checkpoint import list_steps
from datarax.core.errors import InputError
from datarax.multihost import Processes
from datarax.sources import DataSource

_NUM_NAMED = 5
_A_LISTING_SECONDS = 600.0


def check_unlisted_files(
    source: DataSource, directory: str | Path, processes: Processes, say: Callable[[str], None]
) -> None:
    """Process 0 looks for all, before anything is written.

    Args:
        source: whose files.
        directory: of the run.
        processes: those of the run.
        say: told of them if the run goes on.

    Raises:
        InputError: see `unlisted_note`.
    """
    note = processes.exchange(
        "unlisted",
        lambda: unlisted_note(source, new=not list_steps(directory)) if processes.first else None,
        lambda parts: parts[0],
        about="listing the data files",
        timeout_seconds=_A_LISTING_SECONDS,
    )
    if note is not None:
        say(f"note: {note}")


def unlisted_note(source: DataSource, *, new: bool) -> str | None:
    """What a person should know of files that no manifest lists; None if there are none.

    Args:
        source: whose files.
        new: whether the run has no snapshot yet.

    Raises:
        InputError: if the run is new and there are such files, naming them and the ways out.
    """
    found = source.unlisted_files()
    if not found:
        return None
    more = [f"and {len(found) - _NUM_NAMED} more"] if len(found) > _NUM_NAMED else []
    named = ", ".join([*found[:_NUM_NAMED], *more])
    what = f"{len(found)} files beside the data of source {source.name!r} are not in its manifest and are not read: {named}"
    if not new:
        return f"{what}; the run goes on by the manifest"
    place = next(each for each in Path(found[0]).parents if (each / "manifest.json").exists())
    ending = os.path.splitext(found[0])[1] or os.path.basename(found[0])
    pattern = os.path.join(glob.escape(str(place)), "**", "*" + re.sub(r"\d+", "*", ending).lstrip("*"))
    raise InputError(
        f"{what}; move them elsewhere, or record all files (`rm {shlex.quote(str(place / 'manifest.json'))}`, then "
        f'`datarax build manifest {shlex.quote(pattern)}`), or go on without them by source.unlisted = "ignore"'
    )
