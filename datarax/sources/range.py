"""The integers of a range as records: no data at all, so its length may be anything. For tests, sizes, and indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from flax import nnx

from datarax.core.errors import ConfigError, InputError
from datarax.sources.source import DataSource, SourceConfig

_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, kw_only=True)
class RangeConfig(SourceConfig):
    """Which integers a `RangeSource` holds, as `range(start, stop, step)` does.

    Raises:
        ConfigError: if a number is no integer of 64 bits, or the step is 0.
    """

    start: int = 0
    """The first integer."""
    stop: int
    """The integers end before this one."""
    step: int = 1
    """Distance from one integer to the next; negative to count down."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        for field in ("start", "stop", "step"):
            value = getattr(self, field)
            if type(value) is not int or not _INT64.min <= value <= _INT64.max:
                raise ConfigError(f"{field} of a range must be an integer of 64 bits, got {value!r}")
        if self.step == 0:
            raise ConfigError("step of a range must not be 0")
        try:
            len(range(self.start, self.stop, self.step))  # Python measures a range in 64 bits too
        except OverflowError:
            raise ConfigError(f"a range from {self.start} to {self.stop} is longer than 2**63 - 1") from None


class RangeSource(DataSource):
    """Record i is `start + i * step`, an int64; a read is arithmetic, so the length costs nothing.

    Args:
        config: the range.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: if the range is empty.
    """

    columnar = True

    def __init__(self, config: RangeConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None) -> None:
        super().__init__(config, rngs=rngs, name=name)
        numbers = range(config.start, config.stop, config.step)
        if len(numbers) == 0:
            raise InputError(f"source {self.name!r} is empty: {numbers} holds no integer")
        self._runtime = _Numbers(numbers)

    def _length(self) -> int:
        return self._runtime.length

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return self._runtime.read(indices)

    def identity(self) -> dict[str, Any]:
        """Kind, name, first integer, step and number of records."""
        first, step = self._runtime.start, self._runtime.step
        return {
            "kind": "range",
            "name": self.name,
            "start": first,
            "step": step,
            "num_records": self._length(),
        }

    def outline(self) -> dict[str, Any]:
        """The whole identity: there are no records to read."""
        return self.identity()

    def content_fingerprint(self) -> dict[str, Any]:
        """What the numbers are computed from, which is all there is."""
        return {"start": self._runtime.start, "step": self._runtime.step, "num_records": self._length()}

    def _close(self) -> None:
        pass  # nothing is open

    def _reopened(self) -> object:
        return self._runtime


class _Numbers(grain.sources.RangeDataSource):
    """Grain's range source, with exact lengths (its own divides in floating point) and reads by the batch."""

    def __init__(self, numbers: range) -> None:
        super().__init__(numbers.start, numbers.stop, numbers.step)
        self.start, self.step, self.length = numbers.start, numbers.step, len(numbers)

    def __len__(self) -> int:
        return self.length

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.start + indices * np.int64(self.step)
