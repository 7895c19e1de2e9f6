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
    """The mean of each statistic over all rows so far; a value.

    Args:
        means: the means over `rows` rows, as `values` gave them.
        rows: rows so far; 0 starts anew.

    Raises:
        ConfigError: if a mean is not a number or an array of at most 1 KB.
    """

    def __init__(self, means: Mapping[str, Any] | None = None, rows: int = 0) -> None:
        self.rows = rows
        self._means = {key: _as_float64(key, value) for key, value in (means or {}).items()} if rows else {}

    def after(self, statistics: Mapping[str, Any], rows: int) -> RunningMeans:
        """The means once the statistics of one more batch of `rows` rows are weighed in; these stay what they are.

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
        means = self._means or {key: np.zeros_like(value) for key, value in arrays.items()}
        for key, value in arrays.items():
            if value.shape != means[key].shape:
                raise ConfigError(
                    f"batch_stats_fn: {key!r} has the shape {value.shape}, but {means[key].shape} before; a mean needs "
                    f"one shape in every batch"
                )
        return RunningMeans(
            {key: mean + (arrays[key] - mean) * (rows / total) for key, mean in means.items()}, total
        )

    def values(self) -> dict[str, Any]:
        """Means so far: Python floats for scalars, float64 arrays otherwise."""
        return {key: float(mean) if mean.ndim == 0 else mean.copy() for key, mean in self._means.items()}


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
