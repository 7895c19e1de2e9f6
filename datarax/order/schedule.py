"""Which positions a step covers: batches, the end of the budget, and what becomes of the remainder.

Pure arithmetic on positions. Knows nothing of records, epochs or processes; a process asks for the slots it
reads.
"""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass

import numpy as np

from datarax.core.errors import ConfigError
from datarax.order.positions import MAX_POSITION


class Remainder(enum.StrEnum):
    """What becomes of a budget's last rows if they do not fill a batch; acts once, at the end of the run."""

    DROP = "drop"
    """They are not delivered."""
    PAD = "pad"
    """They come in a last batch whose other slots are pad slots: position -1, key (-1, -1, -1), masked."""
    ERROR = "error"
    """A budget that leaves a remainder is refused before the run starts."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Step s >= base_step covers batch_size positions from base_position + (s - base_step) * batch_size on.

    Raises:
        ConfigError: if a field is out of range, if `error` meets a remainder, or if there would be no step
        at all.
    """

    batch_size: int
    """Rows of a global batch, over all processes."""
    num_rows: int | None
    """Budget in rows: positions 0 to num_rows - 1 are delivered. None is endless."""
    remainder: Remainder
    """What becomes of rows at the end of the budget that do not fill a batch."""
    base_step: int = 0
    """First step that this schedule covers; above 0 only after the batch size was changed in mid-run."""
    base_position: int = 0
    """First position of that step."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "remainder", Remainder(self.remainder))
        except ValueError:
            known = ", ".join(remainder.value for remainder in Remainder)
            raise ConfigError(f"remainder is {self.remainder!r}; choose one of: {known}") from None
        lowest = {"batch_size": 1, "num_rows": 1, "base_step": 0, "base_position": 0}
        for field, low in lowest.items():
            value = getattr(self, field)
            if value is None and field == "num_rows":
                continue
            if type(value) is not int or not low <= value <= MAX_POSITION:
                raise ConfigError(f"{field} is {value!r}; give an int from {low} to 2^63 - 1")
        self._check_budget()

    def _check_budget(self) -> None:
        if self.num_rows is None:
            return
        if self.base_position > self.num_rows:
            raise ConfigError(
                f"base_position is {self.base_position}, beyond the budget of {self.num_rows} rows"
            )
        rows_over = (self.num_rows - self.base_position) % self.batch_size
        if self.remainder is Remainder.ERROR and rows_over:
            raise ConfigError(
                f"{self.num_rows - self.base_position} rows do not make whole batches of {self.batch_size}: "
                f"{rows_over} are left over; choose remainder = 'drop' or 'pad', or another batch size"
            )
        if self.num_steps == 0:
            raise ConfigError(
                f"a batch of {self.batch_size} rows is larger than the budget of {self.num_rows} rows, so "
                "dropping the remainder leaves no step; choose remainder = 'pad' or a smaller batch size"
            )

    @property
    def num_steps(self) -> int | None:
        """Steps of the whole run, those before `base_step` included; None if endless."""
        if self.num_rows is None:
            return None
        rows = self.num_rows - self.base_position
        steps = -(-rows // self.batch_size) if self.remainder is Remainder.PAD else rows // self.batch_size
        return self.base_step + steps

    def positions(self, step: int, slots: np.ndarray) -> np.ndarray:
        """The positions in some slots of the global batch at a step.

        Args:
            step: base_step <= step, and < num_steps unless endless.
            slots: int64[m], each from 0 to batch_size - 1.

        Returns:
            int64[m]; -1 for a pad slot.

        Raises:
            IndexError: if there is no such step or slot.
        """
        first = self._first_position(operator.index(step))  # exact, where np.int64 would wrap
        slots = np.asarray(slots, np.int64)
        if slots.size and not (slots.min() >= 0 and slots.max() < self.batch_size):
            raise IndexError(f"slots go from 0 to {self.batch_size - 1}, got {slots.min()} to {slots.max()}")
        positions = slots + np.int64(first)
        if self.num_rows is not None and first + self.batch_size > self.num_rows:
            positions[slots >= self.num_rows - first] = -1
        return positions

    def positions_of(self, steps: np.ndarray) -> np.ndarray:
        """The positions of the whole global batches of many steps: int64[k] -> int64[k, batch_size]; -1 for pad slots.

        Raises:
            IndexError: if there is no such step.
        """
        for border in (steps.min(), steps.max()) if len(steps) else ():
            self._first_position(int(border))
        first = (steps - self.base_step) * np.int64(self.batch_size) + np.int64(self.base_position)
        positions = first[:, np.newaxis] + np.arange(self.batch_size)
        if self.num_rows is not None:
            # Where a sum passed 2^63 it is negative; the slot lies beyond the budget all the same.
            positions[(positions >= self.num_rows) | (positions < 0)] = -1
        return positions

    def first_position(self, step: int) -> int:
        """The global row at which a step begins; the end of the run, which is no step, is the end of its rows."""
        position = self.base_position + (step - self.base_step) * self.batch_size
        return position if self.num_rows is None else min(position, self.num_rows)

    def rows_in(self, step: int) -> int:
        """Rows of the whole global batch of a step, pad slots not counted."""
        if self.num_rows is None:
            return self.batch_size
        return min(self.batch_size, self.num_rows - self.first_position(step))

    def step_of(self, position: int) -> tuple[int, int]:
        """The step and the slot at which a position is delivered.

        Raises:
            IndexError: if it lies before `base_position`, in a dropped remainder, or beyond the budget.
        """
        position = operator.index(position)
        if position < self.base_position:
            raise IndexError(f"position {position} lies before this schedule's first, {self.base_position}")
        step, slot = divmod(position - self.base_position, self.batch_size)
        if self.num_rows is not None and position >= self.num_rows:
            raise IndexError(f"position {position} lies beyond the budget of {self.num_rows} rows")
        self._first_position(step + self.base_step)
        return step + self.base_step, slot

    def _first_position(self, step: int) -> int:
        if step < self.base_step:
            raise IndexError(f"step {step} lies before this schedule's first, {self.base_step}")
        if self.num_steps is not None and step >= self.num_steps:
            raise IndexError(f"step {step} does not exist: the budget ends after {self.num_steps} steps")
        first = self.base_position + (step - self.base_step) * self.batch_size
        if first + self.batch_size - 1 > MAX_POSITION and self.num_rows is None:
            raise IndexError(f"step {step} passes the last position, 2^63 - 1")
        return first
