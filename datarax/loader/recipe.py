"""Unit of work -> host rows: keys, one batched read, transforms, padding, digests. Pure: who computes it is a detail.

A `Recipe` is a value that pickles, so another thread or process can make the same rows of any step. Knows no device, no
position and no state. Read `order/timeline.py` first (which records a step has); next: `stream.py`, which counts deliveries.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from datarax.core.errors import ConfigError, InputError, tell_where
from datarax.multihost import Slots
from datarax.order import Order, RecordKeys, Remainder, Rows, Timeline, row_hashes
from datarax.sources import DataSource
from datarax.transforms import Transform, apply_transforms

ROW_MASK = "row_mask"
"""Key under which batches carry their row mask (bool[rows], False for padding) when the remainder is padded."""

# Rows per block of keys: from about 16,000 on, the fixed cost of the vectorised permutation no longer shows.
_BLOCK_ROWS = 1 << 14
# A block under the reader's feet, the one that read-ahead has moved on to, and one for a look back.
_KEPT_BLOCKS = 3


class _Keys(NamedTuple):
    """The rows of a block of steps of one segment, as far as they are read here."""

    rows: Rows
    """Step by step."""
    steps: range
    """The steps."""
    digests: list[int]
    """For each step the sum mod 2^64 of the key hashes of the rows that count here."""
    owned: np.ndarray | None
    """bool[slots]: rows of a step that count here; None if all do."""
    last_real: int
    """Rows of the whole global batch of the last step that are no padding; all steps before it have none."""

    def of(self, step: int) -> tuple[np.ndarray, RecordKeys, int]:
        """Positions, keys and digest of one step."""
        offset = step - self.steps.start
        size = len(self.rows.position) // len(self.steps)
        part = slice(offset * size, (offset + 1) * size)
        return self.rows.position[part], self.rows.keys[part], self.digests[offset]


class HostRows(NamedTuple):
    """What was made of one unit of work, before anybody counted it."""

    batch: Any
    """PyTree of NumPy arrays [rows, ...]."""
    counted: int
    """Rows that count here and are not padding."""
    keys: int
    """Sum mod 2^64 of their key hashes."""
    bytes: int | None
    """Sum mod 2^64 of their row hashes; None if they were not hashed."""
    owned: np.ndarray | None
    """bool[rows]: rows that count here; None if all do."""
    size: int
    """Rows of the whole global batch, over all processes."""
    real: int
    """Those of them that are not padding."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """All that decides the rows of every step in one process: timeline, sources, transforms, and the slots that are read here.

    It pickles if its transforms' functions can be imported and what it reads pickles.
    """

    timeline: Timeline
    """Which records each step has."""
    sources: tuple[DataSource, ...]
    """In the order of the keys' source numbers; one for now."""
    transforms: tuple[Transform, ...]
    """The stages, in turn."""
    slots: Mapping[int, Slots]
    """Batch size -> the slots of such a batch that are read here, and those that count here."""
    byte_digest: bool
    """Whether every row is hashed."""
    not_again: tuple[tuple[range, str], ...] = ()
    """Steps that were made by other sources or transforms, and which: they have keys, but cannot be read."""

    def open(self) -> Reader:
        """What makes rows by this recipe; reads from the sources as they are, open or to be opened."""
        return Reader(self)

    def slots_of(self, batch_size: int) -> Slots:
        """The slots of a batch of this size that are read here, and those that count here.

        Raises:
            InputError: if nobody said which.
        """
        if batch_size not in self.slots:
            known = ", ".join(map(str, self.slots))
            raise InputError(
                f"which rows of a batch of {batch_size} are read here is not known: rows were given for batches of {known}"
            )
        return self.slots[batch_size]

    def counted_in(self, steps: range) -> int:
        """Rows of these steps that count here and are no padding."""
        return sum(
            self.timeline.num_real(part, self.slots_of(each.batch_size).owned)
            for each, part in self.timeline.parts(steps)
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for kind in ("sources", "transforms"):
            state[kind] = tuple(_pickled(kind.removesuffix("s"), part) for part in state[kind])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for kind in ("sources", "transforms"):
            vars(self)[kind] = tuple(map(pickle.loads, state[kind]))


def _pickled(kind: str, part: Any) -> bytes:
    try:
        return pickle.dumps(part)
    except Exception as error:  # what cannot be pickled raises errors of many kinds
        raise pickle.PicklingError(
            f"{kind} {part.name!r} cannot be sent to another process: {error}; define its functions at the top level of a "
            f"module that can be imported, and give it objects that pickle"
        ) from error


class Reader:
    """Makes the rows of any step; thread-safe. Keeps the last few blocks of keys, which cost far less in large blocks."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._blocks: tuple[_Keys, ...] = ()

    def __call__(self, step: int) -> HostRows:
        """Reads, transforms and digests the rows of `step`.

        Raises:
            IndexError: if there is no such step.
            InputError: if it was made by other sources or transforms than these.
            Exception: what the source or a transform raised, with notes that name the step and the record.
        """
        block = self._block(step)
        for steps, why in self.recipe.not_again:
            if step in steps:
                raise InputError(f"the batch of step {step} cannot be made again: {why}")
        try:
            return self._made(step, block)
        except BaseException as error:
            tell_where(
                error, f"while preparing the batch of step {step} ({self._described(block.of(step)[1])})"
            )
            raise

    def keys(self, step: int) -> tuple[RecordKeys, int]:
        """Which records the rows of `step` are, and the sum of their key hashes; reads nothing.

        Raises:
            IndexError: if there is no such step.
            InputError: if nobody said which rows of a batch of its size are read here.
        """
        return self._block(step).of(step)[1:]

    # Inside

    def _block(self, step: int) -> _Keys:
        for kept in self._blocks:  # no generator: an interrupt while one is closed would be lost
            if step in kept.steps:
                return kept
        timeline = self.recipe.timeline
        ((segment, _),) = timeline.parts(range(step, step + 1))
        slots = self.recipe.slots_of(segment.batch_size)
        steps = timeline.block_of(step, max(1, _BLOCK_ROWS // len(slots.rows)))
        rows = timeline.rows_at(np.arange(steps.start, steps.stop), slots.rows)
        hashes = rows.hashes().reshape(len(steps), -1)
        # None where all count: the common case does no work for it.
        owned = None if len(slots.owned) == len(slots.rows) else np.isin(slots.rows, slots.owned)
        digests = (hashes if owned is None else hashes[:, owned]).sum(axis=1, dtype=np.uint64)
        last_real = timeline.num_real(steps[-1:], np.arange(segment.batch_size))
        made = _Keys(rows, steps, digests.tolist(), owned, last_real)
        # Replaced, never changed: threads need no lock, and an interrupt leaves none held. What two of them make at
        # once, or one loses to the other, is made again.
        self._blocks = (made, *self._blocks[: _KEPT_BLOCKS - 1])
        return made

    def _made(self, step: int, block: _Keys) -> HostRows:
        segment, owned = block.rows.segment, block.owned
        all_positions, keys, digest = block.of(step)
        real = block.last_real if step == block.steps[-1] else segment.batch_size
        positions, among = all_positions, owned  # of the rows that are no padding, those that count here
        if real < segment.batch_size:
            is_real = positions >= 0
            positions, keys = positions[is_real], keys[is_real]
            among = None if owned is None else owned[is_real]
        if len(positions):
            batch = self._rows(keys, segment.order)
        else:
            # Nothing of the last batch is ours; any record tells the shapes that the zeros must have.
            some = self._rows(segment.order.keys(np.zeros(1, np.int64)), segment.order)
            batch = jax.tree.map(lambda leaf: leaf[:0], some)
        counted = len(positions) if among is None else int(np.count_nonzero(among))
        hashed = None
        if self.recipe.byte_digest:
            flat, _ = jax.tree_util.tree_flatten_with_path(batch)
            leaves = sorted([(jax.tree_util.keystr(path), leaf) for path, leaf in flat])  # in path order
            if counted < len(positions):
                positions, leaves = positions[among], [(path, leaf[among]) for path, leaf in leaves]
            hashed = int(row_hashes(positions, leaves).sum(dtype=np.uint64)) if counted else 0
        if self.recipe.timeline.remainder is Remainder.PAD:
            batch = _pad(batch, all_positions >= 0)
        return HostRows(batch, counted, digest, hashed, owned, segment.batch_size, real)

    def _rows(self, keys: RecordKeys, order: Order) -> Any:
        """The transformed rows of `keys`, a PyTree of arrays [len(keys), ...]."""
        (source,) = self.recipe.sources
        try:
            records = source.read(keys.index)
        except Exception as error:
            # Only now is it worth a call per record: to name the one that cannot be read.
            for i in range(len(keys)):
                try:
                    source.read(keys.index[i : i + 1])
                except Exception:
                    error.add_note(f"while reading record {self._name(keys, i)}")
                    break
            raise
        return apply_transforms(
            self.recipe.transforms,
            records,
            seeds_for=lambda transform: order.row_seeds(transform.name, keys),
            keys_text=lambda i: self._name(keys, i),
        )

    def _name(self, keys: RecordKeys, i: int) -> str:
        source = self.recipe.sources[int(keys.source[i])].name
        return f"{source}:{int(keys.index[i])} (epoch {int(keys.epoch[i])})"

    def _described(self, keys: RecordKeys) -> str:
        real = np.flatnonzero(keys.source >= 0)
        if len(real) == 0:
            return "padding only"
        return f"{len(real)} records, {self._name(keys, int(real[0]))} … {self._name(keys, int(real[-1]))}"


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

    return {**jax.tree.map(spread, batch), ROW_MASK: real}
