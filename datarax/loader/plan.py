"""Step -> the keys of this process's rows, and their digest: everything about a batch except its content.

Pure: an order, a schedule and the slots to read. Knows no files, no threads and no process index. Orders cost far
less per row in large blocks than in small ones, so keys are made for many steps at once and the last few such blocks
are kept. Next: `reader.py`, which turns keys into rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datarax.order import MAX_POSITION, Order, RecordKeys, Schedule, key_hashes, key_hashes_of_pass

# Rows per block of keys: from about 16,000 on, the fixed cost of the vectorised permutation no longer shows.
_BLOCK_ROWS = 1 << 14
# A block under the reader's feet, the one that read-ahead has moved on to, and one for a look back.
_KEPT_BLOCKS = 3


class StepKeys(NamedTuple):
    """The rows of one step that this process reads."""

    positions: np.ndarray
    """int64[rows]; -1 marks padding."""
    keys: RecordKeys
    """Which record each row is."""
    digest: int
    """Sum mod 2^64 of the key hashes of the rows that count here."""
    owned: np.ndarray | None
    """bool[rows]: rows that count here; None if all do."""

    @property
    def counted(self) -> np.ndarray:
        """bool[rows]: rows that count here and are no padding."""
        real = self.positions >= 0
        return real if self.owned is None else real & self.owned


_Block = tuple[np.ndarray, RecordKeys, list[int]]
"""int64[steps, rows] positions, the keys of all of them, and the digest of each step."""


class BatchPlan:
    """Evaluates an order at the slots of one process, in large blocks.

    Args:
        order: the endless sequence of record keys.
        schedule: which positions a step covers.
        slots: int64[rows], the sorted slots of the global batch that are read here.
        owned: int64[...], those of them that count here, where several processes read the same; None: all.
    """

    def __init__(
        self, order: Order, schedule: Schedule, slots: np.ndarray, owned: np.ndarray | None = None
    ) -> None:
        self.order = order
        self.schedule = schedule
        self.slots = slots
        # None where all count: the common case does no work for it.
        self.owned = None if owned is None or len(owned) == len(slots) else np.isin(slots, owned)
        self._source_ids: list[int] = order.source_ids.tolist()
        self._steps_per_block = max(1, _BLOCK_ROWS // max(1, len(slots)))
        self._blocks: dict[int, _Block] = {}

    def step(self, step: int) -> StepKeys:
        """The rows of `step`.

        Raises:
            IndexError: if the schedule has no such step.
        """
        block, offset = divmod(step - self.schedule.base_step, self._steps_per_block)
        positions, keys, digests = self._block(block)
        if step < self.schedule.base_step or offset >= len(positions):
            # The schedule knows how to say why.
            self.schedule.positions(step, self.slots)
            raise IndexError(f"step {step} is outside the plan")
        return StepKeys(
            positions[offset],
            keys[offset * len(self.slots) : (offset + 1) * len(self.slots)],
            digests[offset],
            self.owned,
        )

    def rows_of(self, first: int, stop: int) -> int:
        """Rows that count here and are no padding, in the steps from `first` up to `stop`."""
        counted = self.slots if self.owned is None else self.slots[self.owned]
        rows = len(counted) * (stop - first)
        if first < stop == self.schedule.num_steps:
            rows -= int(np.count_nonzero(self.schedule.positions(stop - 1, counted) < 0))
        return rows

    def _block(self, block: int) -> _Block:
        made = self._blocks.get(block)
        if made is None:
            made = self._make_block(block)
            # Replaced, never changed: threads need no lock, and an interrupt leaves none held. What two of them make at
            # once, or one loses to the other, is made again.
            kept = list(self._blocks.items())[1 - _KEPT_BLOCKS :]
            self._blocks = dict([*kept, (block, made)])
        return made

    def _make_block(self, block: int) -> _Block:
        schedule = self.schedule
        first = schedule.base_step + block * self._steps_per_block
        end = schedule.num_steps
        if end is None:
            end = schedule.base_step + (MAX_POSITION + 1 - schedule.base_position) // schedule.batch_size
        count = min(self._steps_per_block, end - first)
        # int64[steps, rows]; the schedule says where the first step lies and what the last one pads.
        starts = np.arange(count, dtype=np.int64) * schedule.batch_size
        positions = schedule.positions(first, self.slots) + starts[:, None]
        positions[-1] = schedule.positions(first + count - 1, self.slots)
        keys = self.order.keys(positions.reshape(-1))
        return positions, keys, self._digests(positions, keys)

    def _digests(self, positions: np.ndarray, keys: RecordKeys) -> list[int]:
        """The digest of each step; what all rows share goes into the hash as one number, which saves passes."""
        hashes = self._hashes(positions.reshape(-1), keys).reshape(positions.shape)
        if self.owned is not None:
            hashes = hashes[:, self.owned]
        return np.add.reduce(hashes, axis=1).tolist()

    def _hashes(self, positions: np.ndarray, keys: RecordKeys) -> np.ndarray:
        # Positions ascend, and with them epochs; pads, whose epoch is -1, come last.
        first_epoch, last_epoch = int(keys.epoch[0]), int(keys.epoch[-1])
        if len(self._source_ids) == 1 and 0 <= first_epoch == last_epoch:
            return key_hashes_of_pass(positions, self._source_ids[0], keys.index, first_epoch)
        source_id = self.order.source_ids[np.maximum(keys.source, 0)]
        return key_hashes(positions, source_id, keys.index, keys.epoch)
