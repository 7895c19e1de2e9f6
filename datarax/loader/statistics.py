"""Statistics of batches: running means of what `batch_stats_fn` returns, and the identity of precomputed ones.

Means are row-weighted, in float64, reported beside a run, and outside digest and identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from datarax.core.errors import ConfigError
from datarax.core.fingerprint import digest

_MAX_BYTES = 1024


class RunningMeans:
    """The mean of each statistic over all rows so far."""

    def __init__(self) -> None:
        self.rows = 0
        self._means: dict[str, np.ndarray] = {}

    def update(self, statistics: Mapping[str, Any], rows: int) -> None:
        """Weighs in the statistics of one batch of `rows` rows.

        Raises:
            ConfigError: if a statistic is not a number or an array of at most 1 KB, or the keys change in mid-run.
        """
        if not isinstance(statistics, Mapping):
            raise ConfigError(
                f"batch_stats_fn must return a dict of numbers, got {type(statistics).__name__}"
            )
        arrays = {key: _as_float64(key, value) for key, value in statistics.items()}
        if self.rows and arrays.keys() != self._means.keys():
            raise ConfigError(
                f"batch_stats_fn returned the keys {sorted(arrays)}, but {sorted(self._means)} before; "
                f"a mean needs every key in every batch"
            )
        total = self.rows + rows
        for key, value in arrays.items():
            mean = self._means.get(key, np.zeros_like(value))
            self._means[key] = mean + (value - mean) * (rows / total)
        self.rows = total

    def values(self) -> dict[str, Any]:
        """Means so far: Python floats for scalars, float64 arrays otherwise."""
        return {key: float(mean) if mean.ndim == 0 else mean.copy() for key, mean in self._means.items()}

    def restore(self, means: Mapping[str, Any] | None, rows: int) -> None:
        """Continues from a snapshot's means over `rows` rows."""
        self.rows = rows
        self._means = (
            {key: np.asarray(value, np.float64) for key, value in (means or {}).items()} if rows else {}
        )


def _as_float64(key: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size * 8 > _MAX_BYTES:
        raise ConfigError(
            f"batch_stats_fn: {key!r} is {array.dtype} {array.shape}; "
            f"a statistic is a number or a numeric array of at most {_MAX_BYTES // 8} values"
        )
    return array.astype(np.float64)


def statistics_identity(statistics: Mapping[str, Any]) -> str:
    """Digest of precomputed statistics: they may hold arrays, which have no canonical JSON of their own."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            array = np.asarray(value)
            return {"dtype": str(array.dtype), "shape": list(array.shape), "bytes": array.tobytes().hex()}
        return value

    return digest(plain(statistics))
