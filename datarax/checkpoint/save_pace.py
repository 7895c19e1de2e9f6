"""When a save is due: by steps, which all processes count alike, or by time, which they turn into a step together.

The clock of process 0 rules. It is looked at only at steps that all know beforehand, each time twice as far from the last
save, or where the interval is likely to end: a loop of thousands of steps asks a few times in an interval.
"""

from __future__ import annotations

import time

from datarax.checkpoint.save_config import SaveConfig
from datarax.multihost import Processes


class SavePace:
    """When the next save of one writer is due.

    Args:
        config: the intervals.
        processes: those of the run; all must ask for the same steps in the same order.
    """

    def __init__(self, config: SaveConfig, processes: Processes) -> None:
        self._config = config
        self._processes = processes
        self.begun(None)

    def begun(self, step: int | None) -> None:
        """A save of `step` has begun, or the run has been opened with that as its newest step: the interval starts anew."""
        self._began = time.monotonic()
        self._first: int | None = None
        self._ask_at = 0 if step is None else step + 1

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be saved."""
        config = self._config
        if config.every_steps is not None and step % config.every_steps == 0:
            return True
        if config.every_seconds is None:
            return False
        if self._processes.count == 1:
            return time.monotonic() - self._began >= config.every_seconds
        if not self.asks_others(step):
            return False
        if self._first is None:
            self._first = step
        due, steps = self._processes.exchange(
            "pace", lambda: step, self._answer, about=f"the time of the next save, after step {step}"
        )
        self._ask_at = step + steps
        return due

    def asks_others(self, step: int) -> bool:
        """Whether `is_due` of `step` will ask the other processes."""
        return self._processes.count > 1 and self._config.every_seconds is not None and step >= self._ask_at

    def _answer(self, steps: list[int]) -> tuple[bool, int]:
        """By the clock of process 0: whether a save is due, and after how many steps to look again."""
        step = steps[0]
        assert self._first is not None
        assert self._config.every_seconds is not None
        elapsed = time.monotonic() - self._began
        left = self._config.every_seconds - elapsed
        if left <= 0:
            return True, 1
        done = step - self._first + 1
        # Never further than what was seen so far: the first steps are slow (compilation) or fast (nothing computed yet).
        likely = left / (elapsed / done) if elapsed > 0 else float("inf")
        return False, max(1, int(min(likely, done)))
