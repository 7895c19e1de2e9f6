"""What was handed over, as values: the counts, the digests of each step, and running means.

Counts and digests are exact; means are row-weighted, in float64, reported beside a run, and outside digest and identity. Knows
neither modules nor batches, asks no process. Next: `stream.py`, which decides when a batch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax.core.errors import ConfigError
from datarax.core.tree import check_plain
from datarax.order import Digest

_MAX_BYTES = 1024


class Delivered(NamedTuple):
    """What the training loop has received so far. Plain Python ints: exact at any size."""

    idx: int
    """Batches handed over; the step of the next batch."""
    position: int
    """Where that begins: global rows handed over, or whatever the stream counts."""
    applied: int
    """Rows handed over that count here."""
    skipped: int
    """Rows that a stage left out and that count here."""
    digest: Digest
    """Digest of the rows handed over that count here."""


# The digests of each step since the last committed snapshot, so that a divergence can be given an exact step: seventeen bytes a
# step. Without a checkpointer nobody ever says "committed", so a stream keeps a bounded tail.

MAX_STEPS = 1 << 16
"""Steps that are kept if nobody says that older ones may go; up to twice as many for a while."""


class Kept(NamedTuple):
    """What a log holds at one moment, but for steps that are put later."""

    first: int
    keys: np.ndarray  # uint64[capacity]
    row_bytes: np.ndarray  # uint64[capacity]; 0 without
    has_bytes: np.ndarray  # bool[capacity]
    known: Delivered | None = None
    """All that was delivered up to `first` or later; None while nothing was dropped."""

    def tail(self, first: int, capacity: int, known: Delivered | None) -> Kept:
        """The same from `first` on, with room for `capacity` steps."""

        def moved(old: np.ndarray) -> np.ndarray:
            new, rest = np.zeros(capacity, old.dtype), old[first - self.first :][:capacity]
            new[: len(rest)] = rest
            return new

        return Kept(first, moved(self.keys), moved(self.row_bytes), moved(self.has_bytes), known)

    def sums(self, first: int, stop: int) -> tuple[int, int | None]:
        """Sums mod 2^64 over the steps from `first` up to `stop`: of key digests, and of byte digests, None if one has none."""
        part = slice(first - self.first, stop - self.first)
        keys = int(self.keys[part].sum(dtype=np.uint64))
        if not self.has_bytes[part].all():
            return keys, None
        return keys, int(self.row_bytes[part].sum(dtype=np.uint64))


class StepLog:
    """Key and byte digests of consecutive steps. What lies beyond the place of its stream is no part of any answer.

    Args:
        step: the first to come.
    """

    def __init__(self, step: int = 0) -> None:
        self.kept = Kept(step, np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, bool))
        """Looked at once by whoever adds up: another thread may drop steps at any moment."""

    def put(self, step: int, keys: int, row_bytes: int | None) -> None:
        """Keeps the digests of a step, the one after the last that counts; doing it again changes nothing."""
        kept = self.kept
        at = step - kept.first
        if at >= len(kept.keys):
            self.kept = kept = kept.tail(kept.first, max(64, 2 * at), kept.known)
        kept.keys[at] = keys
        kept.row_bytes[at] = row_bytes or 0
        kept.has_bytes[at] = row_bytes is not None

    def forget_before(self, step: int, known: Delivered) -> None:
        """Drops the digests of steps before `step`, which the log has; `known` has their sums, and maybe those of more."""
        kept = self.kept
        if step > kept.first:
            # At one stroke: an interrupt finds either all of it or nothing done.
            self.kept = kept.tail(step, max(0, len(kept.keys) - (step - kept.first)), known)

    def arrays(self, stop: int) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """First step, uint64[steps] keys, uint64[steps] bytes (0 without) up to `stop`, and whether all have bytes."""
        kept = self.kept
        count = stop - kept.first
        return (
            kept.first,
            kept.keys[:count].copy(),
            kept.row_bytes[:count].copy(),
            bool(kept.has_bytes[:count].all()),
        )


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

    def after(self, statistics: Mapping[str, Any], rows: int) -> Statistics:
        """Once the statistics of one more batch of this process are weighed in. See `RunningMeans.after`."""
        return Statistics(self.base, self.added.after(statistics, rows), self.total.after(statistics, rows))


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
