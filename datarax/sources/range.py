"""The integers of a range as records: no data at all, so its length may be anything. For tests, sizes, and indices."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from flax import nnx

from datarax.core.config import Limit
from datarax.core.errors import ConfigError
from datarax.sources.records import Records
from datarax.sources.source import DataSource, SourceConfig

_Int64 = Annotated[int, Limit(lambda value: -(2**63) <= value < 2**63, "of 64 bits")]


@dataclass(frozen=True, kw_only=True)
class RangeConfig(SourceConfig):
    """Which integers a `RangeSource` holds, as `range(start, stop, step)` does.

    Raises:
        ConfigError: if a number is no integer of 64 bits, or the step is 0.
    """

    start: _Int64 = 0
    """The first integer."""
    stop: _Int64
    """The integers end before this one."""
    step: _Int64 = 1
    """Distance from one integer to the next; negative to count down."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        if self.step == 0:
            raise ConfigError("step of a range must not be 0")
        try:
            len(range(self.start, self.stop, self.step))  # Python measures a range in 64 bits too
        except OverflowError:
            raise ConfigError(f"a range from {self.start} to {self.stop} is longer than 2**63 - 1") from None

    def open(self) -> "RangeSource":
        """The source of these integers."""
        return RangeSource(self)


class RangeSource(DataSource):
    """Record i is `start + i * step`, an int64; a read is arithmetic, so the length costs nothing.

    Args:
        config: the range.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: if the range is empty.
    """

    def __init__(self, config: RangeConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None) -> None:
        super().__init__(config, RangeRecords(config), rngs=rngs, name=name)


class RangeRecords(Records):
    """The integers; the outline says all there is."""

    kind = "range"
    """See `Records.kind`."""
    columnar = True
    """See `Records.columnar`."""
    num_sampled = 0
    """See `Records.num_sampled`."""

    def __init__(self, config: RangeConfig) -> None:
        self._numbers = range(config.start, config.stop, config.step)
        self.empty = f"{self._numbers} holds no integer"

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Arithmetic."""
        return self._numbers.start + indices * np.int64(self._numbers.step)

    def outline(self) -> dict[str, Any]:
        """First integer and step."""
        return {"start": self._numbers.start, "step": self._numbers.step}

    def content_fingerprint(self) -> dict[str, Any]:
        """What the numbers are computed from, which is all there is."""
        return {**self.outline(), "num_records": len(self)}
