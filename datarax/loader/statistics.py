"""Running means of what `batch_stats_fn` says of each batch: weighted by rows, in float64, outside digest and identity.

Knows no modules, asks no process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax.core.errors import ConfigError, tell_where
from datarax.core.tree import check_plain
from datarax.loader.recipe import HostRows

_MAX_BYTES = 1024


class RunningMeans:
    """The mean of each statistic over all rows so far; a value.

    Args:
        means: the means over `rows` rows, as `values` gave them; with 0 rows whatever was set in their place, of which nothing
            goes into later means.
        rows: rows so far.

    Raises:
        ConfigError: if a mean is not a number or an array of at most 1 KB.
    """

    def __init__(self, means: Any = None, rows: int = 0) -> None:
        self.rows = rows
        self._means = {key: _as_float64(key, value) for key, value in means.items()} if rows else means

    def after(self, statistics: Mapping[str, Any], rows: int) -> RunningMeans:
        """The means once the statistics of `rows` more rows, of a batch or of another process, are weighed in.

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
        means = self._means if self.rows else {key: np.zeros_like(value) for key, value in arrays.items()}
        for key, value in arrays.items():
            if value.shape != means[key].shape:
                raise ConfigError(
                    f"batch_stats_fn: {key!r} has the shape {value.shape}, but {means[key].shape} before; a mean needs "
                    f"one shape in every batch"
                )
        return RunningMeans(
            {key: mean + (arrays[key] - mean) * (rows / total) for key, mean in means.items()}, total
        )

    def values(self) -> Any:
        """Means so far: Python floats for scalars, float64 arrays otherwise; with 0 rows what was set."""
        if not self.rows:
            return self._means
        return {key: float(mean) if mean.ndim == 0 else mean.copy() for key, mean in self._means.items()}


class Statistics(NamedTuple):
    """The statistics of one process at one moment: means of what all share and of what this one has added."""

    base: RunningMeans = RunningMeans()
    """The means that all processes began with."""
    added: RunningMeans = RunningMeans()
    """The means of what this process has seen since."""
    total: RunningMeans = RunningMeans()
    """The means of both, as this process alone would go on; or what was set from outside, until the next batch."""

    @staticmethod
    def restored(values: Any, rows: int) -> Statistics:
        """Those that a state holds: means over `rows` rows, or with 0 rows what was set."""
        total = RunningMeans(values, rows)
        return Statistics(total if rows else RunningMeans(), RunningMeans(), total)

    def after(self, function: Callable[..., Any], rows: HostRows, step: int) -> Statistics:
        """Once what a `batch_stats_fn` says of one more batch of this process is weighed in.

        Raises:
            Exception: what the function raised, and as `RunningMeans.after`, with a note that names the step.
        """
        try:
            owned = (
                rows.batch if rows.owned is None else jax.tree.map(lambda leaf: leaf[rows.owned], rows.batch)
            )
            means = function(owned)
            return Statistics(
                self.base, self.added.after(means, rows.counted), self.total.after(means, rows.counted)
            )
        except BaseException as error:
            tell_where(error, f"in batch_stats_fn, on the batch of step {step}")
            raise


def _as_float64(key: str, value: Any) -> np.ndarray:
    for leaf in jax.tree.leaves(value):
        check_plain(type(leaf), f"batch_stats_fn: {key!r}")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size * 8 > _MAX_BYTES:
        raise ConfigError(
            f"batch_stats_fn: {key!r} is {array.dtype} {array.shape}; "
            f"a statistic is a number or a numeric array of at most {_MAX_BYTES // 8} values"
        )
    return array.astype(np.float64)
