"""What can be read of a step's data item whatever its manifest says: damaged steps, and steps that only the ledger keeps.

For `verify`, which wants to say in which fields a damaged record differs. A restore never reads this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datarax.checkpoint.layout import (
    DATA_ITEM,
    PROCESSES_NAME,
    RECORD_NAME,
    STEPS_NAME,
    RunLayout,
    local_directory,
)
from datarax.checkpoint.record import Record, process_parts, unpack_processes, unpack_steps
from datarax.core.tree import decode


@dataclass(frozen=True)
class DataItem:
    """A parsed data item, trusted or not."""

    record: Record
    """Its `record.json`."""
    steps_bytes: bytes
    """Its `steps.bin`; empty if there is none."""
    processes_bytes: bytes = b""
    """Its `processes.json`; empty if there is none."""

    def scope(self, loader: str) -> str:
        """`global` or `process`."""
        return self.record.loaders[loader].scope

    def process_count(self, loader: str) -> int:
        """How many states there are of a loader: 1, or as many as processes saved their own.

        Raises:
            ValueError: if `processes.json` does not say.
        """
        if self.scope(loader) == "global":
            return 1
        try:
            return len(process_parts(self.processes_bytes))
        except ValueError as error:
            raise ValueError(
                f"{PROCESSES_NAME} does not say how many processes there were: {error}"
            ) from None

    def state(self, loader: str, process_index: int = 0) -> dict[str, Any]:
        """The decoded state of a loader; of one process, where each has its own.

        Raises:
            ValueError: if there is no such state or it cannot be decoded.
        """
        if loader not in self.record.loaders:
            raise ValueError(f"no loader {loader!r} is recorded")
        encoded = self.record.loaders[loader].state
        if self.scope(loader) == "process":
            count = self.process_count(loader)
            encoded = unpack_processes(self.processes_bytes, process_index, count)[loader]
        state = decode(encoded)
        if not isinstance(state, dict):
            raise ValueError(f"the state of loader {loader!r} is not in the record")
        return state

    def steps(self, loader: str) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None] | None:
        """First step, keys uint64[k] and bytes uint64[k] (None if not kept); None if no step digests were kept.

        Raises:
            ValueError: if `steps.bin` is too short.
        """
        steps = self.record.loaders[loader].steps
        return (
            None
            if steps is None
            else (steps.first_step, *unpack_steps(self.steps_bytes, steps, self.record.format))
        )


def read_data_item(run_directory: str | Path, step: int) -> DataItem | None:
    """The data item of a committed step, or of one in the ledger; None if there is none that parses."""
    layout = RunLayout(local_directory(run_directory))
    for directory in (layout.step(step) / DATA_ITEM, layout.ledger(step)):
        try:
            record = Record.salvaged(layout.read(directory / RECORD_NAME))
            others = (directory / name for name in (STEPS_NAME, PROCESSES_NAME))
            return DataItem(record, *(layout.read(path) if path.exists() else b"" for path in others))
        except (OSError, ValueError):
            continue
    return None
