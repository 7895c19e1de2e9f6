"""Statistics of batches: running means of what `batch_stats_fn` returns, and the identity of precomputed ones.

Means are row-weighted, in float64, reported beside a run, and outside digest and identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datarax.core.errors import ConfigError
from datarax.core.tree import digest, with_spelled_arrays

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

    @staticmethod
    def merged(parts: Sequence[RunningMeans]) -> RunningMeans:
        """The means over the rows of all parts, in float64.

        Raises:
            ValueError: if the parts have other keys or shapes.
        """
        parts = [part for part in parts if part.rows]
        rows = sum(part.rows for part in parts)
        for part in parts[1:]:
            if {k: v.shape for k, v in part._means.items()} != {
                k: v.shape for k, v in parts[0]._means.items()
            }:
                raise ValueError("the statistics of the processes have other keys or shapes")
        keys = parts[0]._means if parts else ()
        return RunningMeans({k: sum(p._means[k] * (p.rows / rows) for p in parts) for k in keys}, rows)

    def to_tree(self) -> dict[str, Any]:
        """With JSON, exact."""
        means = {
            key: {"shape": list(m.shape), "values": m.ravel().tolist()} for key, m in self._means.items()
        }
        return {"rows": self.rows, "means": means}

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> RunningMeans:
        """The inverse of `to_tree`."""
        means = {
            key: np.array(m["values"], np.float64).reshape(m["shape"]) for key, m in tree["means"].items()
        }
        return RunningMeans(means, tree["rows"])

    def values(self) -> dict[str, Any]:
        """Means so far: Python floats for scalars, float64 arrays otherwise."""
        return {key: float(mean) if mean.ndim == 0 else mean.copy() for key, mean in self._means.items()}


@dataclass(frozen=True)
class Statistics:
    """The statistics of one process at one moment: those that were given, or means of what all share and this one has added."""

    given: Any = None
    """Statistics that were set from outside; the means of later batches take their place."""
    base: RunningMeans = field(default_factory=RunningMeans)
    """The means that all processes began with."""
    added: RunningMeans = field(default_factory=RunningMeans)
    """The means of what this process has seen since."""
    total: RunningMeans = field(default_factory=RunningMeans)
    """The means of both, as this process alone would go on."""

    @staticmethod
    def restored(values: Any, rows: int) -> Statistics:
        """Those that a state holds: means over `rows` rows, or with 0 rows what was set."""
        if not rows:
            return Statistics(values)
        base = RunningMeans(values, rows)
        return Statistics(None, base, RunningMeans(), base)

    def after(self, statistics: Mapping[str, Any], rows: int) -> Statistics:
        """Once the statistics of one more batch of this process are weighed in. See `RunningMeans.after`."""
        return Statistics(
            None, self.base, self.added.after(statistics, rows), self.total.after(statistics, rows)
        )

    def values(self) -> Any:
        """What `get_statistics` says."""
        return self.total.values() if self.total.rows else self.given


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
    return digest(with_spelled_arrays(statistics))
