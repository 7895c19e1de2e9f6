"""The data items that a run still has, of snapshots and in the ledger: read without a lock, checked against their manifests.

For commands that answer for the whole of a run. Knows nothing of what a loader does. What can be saved of a damaged item is in
`salvage.py`.
"""

from __future__ import annotations

from pathlib import Path

from datarax.checkpoint.layout import STEPS_NAME
from datarax.checkpoint.salvage import DataItem
from datarax.checkpoint.snapshot import Snapshot, ledger_record, ledger_steps, list_steps
from datarax.core.errors import SnapshotNotFoundError


def item_steps(run_directory: str | Path) -> list[int]:
    """The steps whose data item is there, committed or in the ledger, ascending; [] if there is no such run."""
    return sorted({*list_steps(run_directory), *ledger_steps(run_directory)})


def read_item(run_directory: str | Path, step: int) -> DataItem:
    """The data item of a step.

    Raises:
        SnapshotNotFoundError: if the run has none.
        SnapshotDamagedError: if it is not as it was written.
    """
    try:
        snapshot = Snapshot.open(run_directory, step)
        kept = any(loader.steps is not None for loader in snapshot.record.loaders.values())
        return DataItem(snapshot.record, snapshot.data_file(STEPS_NAME) if kept else b"")
    except SnapshotNotFoundError:
        # It never was there, or retention has moved it since it was listed.
        return DataItem(*ledger_record(run_directory, step))
