"""Data files that changed on the disk between two starts of a run and that no manifest describes.

Their content of then is known to nobody: what was delivered from them before and after can be told apart only by steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from datarax.audit.rows import StepRows
from datarax.checkpoint import Snapshot
from datarax.checkpoint.file_stamps import FileStamps, all_file_stamps
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.snapshot import item_steps
from datarax.sources import DataSource


def notes_of_moved_files(
    directory: Path, source: DataSource, looked_at: Sequence[tuple[range, StepRows]]
) -> Iterator[str]:
    """A sentence for each start that found files of a source with another time or size than the one before.

    Args:
        directory: the run.
        source: one without a manifest.
        looked_at: the steps that were looked at and read this source, ascending.
    """
    for before, after in pairwise(all_file_stamps(RunLayout(directory))):
        moved = _moved(before, after, source.name)
        if not moved:
            continue
        since = _steps_before(directory, after.start)
        ranges = [(f.first_index, f.first_index + f.num_records) for f in source.files() if f.name in moved]
        first = next(_reading(looked_at, since, ranges), None)
        read = (
            "none of these steps read them since"
            if first is None
            else f"step {first} is the first that read them since"
        )
        names = ", ".join(moved[:5]) + (" and more" if len(moved) > 5 else "")
        yield (
            f"{names} changed on the disk between start {before.start} and start {after.start}, after step {since}; without a "
            f"manifest nobody can say whether their records did: {read}"
        )


def _moved(before: FileStamps, after: FileStamps, source: str) -> list[str]:
    try:
        was, now = (each.sources[source]["files"] for each in (before, after))
        return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    except (KeyError, TypeError, AttributeError):
        return []


def _steps_before(directory: Path, start: int) -> int:
    """How many steps were saved before this start."""
    items = ((step, Snapshot.salvage(directory, step)) for step in item_steps(directory))
    return max((step for step, item in items if item is not None and item.record.start < start), default=0)


def _reading(
    looked_at: Sequence[tuple[range, StepRows]], since: int, ranges: Sequence[tuple[int, int]]
) -> Iterator[int]:
    """The steps from `since` on that read a record in one of these ranges."""
    for steps, rows in looked_at:
        left = range(max(steps.start, since), steps.stop)
        if not left:
            continue
        indices = rows.indices(left)
        hit = np.zeros(len(left), np.bool_)
        for first, end in ranges:
            hit |= ((indices >= first) & (indices < end)).any(axis=1)
        yield from (left.start + np.flatnonzero(hit)).tolist()


__all__ = ["notes_of_moved_files"]
