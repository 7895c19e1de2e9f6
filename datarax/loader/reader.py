"""Step -> prepared batch: keys, one batched read per source, transforms, padding, digest, placement.

A pure function of the step, called from read-ahead threads; it holds no position and mutates nothing. Next:
`loader.py`, which decides when a prepared batch counts as delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax.core.errors import ConfigError
from datarax.loader.device import place
from datarax.loader.plan import BatchPlan, StepKeys
from datarax.order import RecordKeys, Remainder, row_hashes
from datarax.sources import DataSource
from datarax.transforms import Transform, apply_transforms

ROW_MASK = "row_mask"
"""Key under which batches carry their row mask (bool[rows], False for padding) when the remainder is padded."""


class PreparedBatch(NamedTuple):
    """A batch that has been read but not yet delivered."""

    host: Any
    """PyTree of NumPy arrays [rows, ...]."""
    placed: Any
    """The same as global jax arrays under the loader's sharding; `host` itself without one."""
    rows: int
    """Rows that count here and are not padding."""
    keys_digest: int
    """Sum mod 2^64 of the key hashes of these rows."""
    bytes_digest: int | None
    """Sum mod 2^64 of their row hashes; None unless bytes are digested."""
    owned: np.ndarray | None = None
    """bool[rows]: the rows of `host` that count here; None if all do."""


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Prepares the batch of any step."""

    plan: BatchPlan
    source: DataSource
    transforms: Sequence[Transform]
    byte_digest: bool
    sharding: jax.sharding.Sharding | None

    def prepare(self, step: int) -> PreparedBatch:
        """Reads, transforms, digests and places the batch of `step`.

        Raises:
            IndexError: if there is no such step.
            BaseException: what the source or a transform raised, with notes that name the step and the record.
        """
        step_keys = self.plan.step(step)
        try:
            return self._prepare(step_keys)
        except BaseException as error:
            error.add_note(f"while preparing the batch of step {step} ({self._describe(step_keys.keys)})")
            raise

    def _prepare(self, step_keys: StepKeys) -> PreparedBatch:
        real = step_keys.positions >= 0
        rows = int(np.count_nonzero(real))
        padded = rows < len(real)
        if rows == 0:
            # Nothing of the last batch is ours; any record tells the shapes that the zeros must have.
            batch = jax.tree.map(
                lambda leaf: leaf[:0], self._rows(self.plan.order.keys(np.zeros(1, np.int64)))
            )
        else:
            batch = self._rows(step_keys.keys[real] if padded else step_keys.keys)
        owned = step_keys.owned
        counted = rows if owned is None else int(np.count_nonzero(owned & real))
        bytes_digest = None
        if self.byte_digest:
            positions = step_keys.positions[real] if padded else step_keys.positions
            leaves = _leaves(batch)
            if counted < rows:
                assert owned is not None
                among = owned[real]
                positions, leaves = positions[among], [(path, leaf[among]) for path, leaf in leaves]
            bytes_digest = int(row_hashes(positions, leaves).sum(dtype=np.uint64)) if counted else 0
        if self.plan.schedule.remainder is Remainder.PAD:
            batch = _pad(batch, real)
        placed = batch
        if self.sharding is not None:
            placed = place(batch, self.sharding, self.plan.schedule.batch_size)
        return PreparedBatch(batch, placed, counted, step_keys.digest, bytes_digest, owned)

    def _rows(self, keys: RecordKeys) -> Any:
        """The transformed rows of `keys`, a PyTree of arrays [len(keys), ...]."""

        def seeds_for(transform: Transform) -> np.ndarray:
            return self.plan.order.row_seeds(transform.name, keys)

        return apply_transforms(
            self.transforms, self._read(keys), seeds_for=seeds_for, keys_text=lambda i: self._name(keys, i)
        )

    def _read(self, keys: RecordKeys) -> Any:
        try:
            return self.source.read(keys.index)
        except Exception as error:
            # Only now is it worth a call per record: to name the one that cannot be read.
            for i in range(len(keys)):
                try:
                    self.source.read(keys.index[i : i + 1])
                except Exception:
                    error.add_note(f"while reading record {self._name(keys, i)}")
                    break
            raise

    def _name(self, keys: RecordKeys, i: int) -> str:
        source = self.plan.order.source_names[int(keys.source[i])]
        return f"{source}:{int(keys.index[i])} (epoch {int(keys.epoch[i])})"

    def _describe(self, keys: RecordKeys) -> str:
        real = np.flatnonzero(keys.source >= 0)
        if len(real) == 0:
            return "padding only"
        return f"{len(real)} records, {self._name(keys, int(real[0]))} … {self._name(keys, int(real[-1]))}"


def _leaves(batch: Any) -> list[tuple[str, np.ndarray]]:
    """The leaves of a batch with their paths, in path order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(batch)
    return sorted((jax.tree_util.keystr(path), leaf) for path, leaf in flat)


def _pad(batch: Any, real: np.ndarray) -> Any:
    """Spreads the rows over the slots that are not padding, zeros elsewhere, and adds the row mask."""
    if not isinstance(batch, dict) or ROW_MASK in batch:
        raise ConfigError(
            f"remainder = 'pad' adds the key {ROW_MASK!r} to every batch, so batches must be dicts without that key; "
            f"this one is a {type(batch).__name__}: let the last transform return a dict, or choose 'drop' or 'error'"
        )

    def spread(leaf: np.ndarray) -> np.ndarray:
        if len(leaf) == len(real):
            return leaf
        out = np.zeros((len(real), *leaf.shape[1:]), leaf.dtype)
        out[real] = leaf
        return out

    return {**jax.tree.map(spread, batch), ROW_MASK: real.copy()}
