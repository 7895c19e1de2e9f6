"""Which records the steps of a stretch got: fixed when they are replayed, for the loader moves on to other stretches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datarax.loader import DataLoader
from datarax.order import Order, Schedule
from datarax.sources import DataSource


@dataclass(frozen=True)
class StepRows:
    """The rows of steps, by the order and the schedule that held for them."""

    source: DataSource
    order: Order
    schedule: Schedule

    @staticmethod
    def of(loader: DataLoader) -> StepRows:
        """Those of the steps for which a loader stands ready now."""
        return StepRows(loader.source, loader.order, loader.schedule)

    def indices(self, steps: range) -> npt.NDArray[np.int64]:
        """int64[steps, batch size]: the record in each row; -1 in padding. All at once, which is what orders are fast at."""
        slots = np.arange(self.schedule.batch_size)
        positions = np.empty((len(steps), len(slots)), np.int64)
        for i, step in enumerate(steps):
            positions[i] = self.schedule.positions(step, slots)
        return self.order.keys(positions.reshape(-1)).index.reshape(positions.shape)

    def changed_records(self, step: int) -> list[str]:
        """The records of a step that are not what the manifest says, with their rows."""
        (indices,) = self.indices(range(step, step + 1))
        changed = self.source.changed_among(real(indices))
        return [
            f"row {row} is {self.source.name}:{index} ({changed[index]})"
            for row, index in enumerate(indices.tolist())
            if index in changed
        ]


def real(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Without the rows that are padding."""
    return indices[indices >= 0]


__all__ = ["StepRows", "real"]
