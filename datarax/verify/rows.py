"""Which records the steps of a replay got: fixed when they are replayed, for the stream moves on to others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datarax.order import Timeline
from datarax.sources import DataSource


@dataclass(frozen=True)
class StepRows:
    """The rows of steps, by the timeline that held for them."""

    source: DataSource
    timeline: Timeline

    def indices(self, steps: range) -> npt.NDArray[np.int64]:
        """int64[steps, batch size]: the record in each row; -1 in padding. All at once, which is what orders are fast at."""
        index = self.timeline.rows_at(np.arange(steps.start, steps.stop)).keys.index
        return index.reshape(len(steps), -1)

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
