"""What can be read of a step's data item whatever its manifest says: damaged steps, and steps that only the ledger keeps.

For `verify`, which wants to say in which fields a damaged record differs. A restore never reads this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datarax.checkpoint.encoding import decode
from datarax.checkpoint.layout import DATA_ITEM, RECORD_NAME, STEPS_NAME, RunLayout, local_directory
from datarax.checkpoint.record import Record, unpack_steps


@dataclass(frozen=True)
class DataItem:
    """A parsed data item, trusted or not."""

    record: Record
    """Its `record.json`."""
    steps_bytes: bytes
    """Its `steps.bin`; empty if there is none."""

    def state(self, loader: str) -> dict[str, Any]:
        """The decoded state of a loader of global scope.

        Raises:
            ValueError: if there is no such state or it cannot be decoded.
        """
        if loader not in self.record.loaders:
            raise ValueError(f"no loader {loader!r} is recorded")
        state = decode(self.record.loaders[loader].state)
        if not isinstance(state, dict):
            raise ValueError(f"the state of loader {loader!r} is not in the record")
        return state

    def steps(self, loader: str) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None] | None:
        """First step, keys uint64[k] and bytes uint64[k] (None if not kept); None if no step digests were kept.

        Raises:
            ValueError: if `steps.bin` is too short.
        """
        steps = self.record.loaders[loader].steps
        return None if steps is None else (steps.first_step, *unpack_steps(self.steps_bytes, steps))


def read_data_item(run_directory: str | Path, step: int) -> DataItem | None:
    """The data item of a committed step, or of one in the ledger; None if there is none that parses."""
    layout = RunLayout(local_directory(run_directory))
    for directory in (layout.step(step) / DATA_ITEM, layout.ledger(step)):
        try:
            record = Record.from_bytes((directory / RECORD_NAME).read_bytes())
            steps = directory / STEPS_NAME
            return DataItem(record, steps.read_bytes() if steps.exists() else b"")
        except (OSError, ValueError):
            continue
    return None
