"""The block policy: permute storage blocks, then the records inside a window of blocks, for long reads.

A window of W blocks is read as W runs of consecutive records, while every record may stand at any place of
its window. Knows nothing of epochs or files. A change to what any index maps to needs a new
`ORDER_VERSION`.
"""

from __future__ import annotations

import numpy as np

from datarax.order.permutation import keyed_permutations
from datarax.order.seeds import GOLDEN, mix64


class BlockPermutations:
    """Permutations of range(n) that keep blocks of consecutive records together in windows, one a seed.

    Record i is in block i // block_size. The full blocks are permuted by `keyed_permutations` under the
    block seed; a short last block stays last. The resulting sequence of records is cut into windows of
    window_blocks * block_size, the last one maybe shorter, and window w is permuted by `keyed_permutations`
    of its length under the seed mix64(window seed + (w + 1) * GOLDEN).

    Args:
        n: Number of records, 1 <= n < 2^63.
        block_size: Records per block, >= 1.
        window_blocks: Blocks per window, >= 1.
        block_seeds: uint64[k], the key of the blocks' permutation.
        window_seeds: uint64[k], the key of the permutations inside windows.
    """

    def __init__(
        self, n: int, block_size: int, window_blocks: int, block_seeds: np.ndarray, window_seeds: np.ndarray
    ) -> None:
        self._block_size = min(block_size, n)
        self._num_full = n // self._block_size
        self._blocks = keyed_permutations(self._num_full, block_seeds)
        self._window_seeds = np.asarray(window_seeds, np.uint64)
        self._window_size = min(window_blocks * block_size, n)
        self._last_window = (n - 1) // self._window_size
        self._last_window_size = n - self._last_window * self._window_size

    def __call__(self, index: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Where each index goes: int64[m] -> int64[m]; `member` says which of the k permutations."""
        return self._move_blocks(self._move_in_windows(index, member, inverse=False), member, inverse=False)

    def inverse(self, value: np.ndarray, member: np.ndarray | None = None) -> np.ndarray:
        """Which index goes to each value: the inverse of calling, same shapes."""
        return self._move_in_windows(self._move_blocks(value, member, inverse=True), member, inverse=True)

    def preimages(self, values: np.ndarray) -> np.ndarray:
        """The one index that the first permutation sends to each of `values`."""
        return self.inverse(values)

    def _move_blocks(self, record: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        block = record // self._block_size
        moved = record - block * self._block_size
        moved += self._block_moves(block, member, inverse) * self._block_size
        return moved

    def _block_moves(self, block: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        if member is None and len(block):
            # A sequence of positions names few blocks many times: one evaluation each, not one a record.
            first = int(block.min())
            span = int(block.max()) - first + 1
            if span < len(block):
                return self._permute_blocks(np.arange(first, first + span), None, inverse).take(block - first)
        return self._permute_blocks(block, member, inverse)

    def _permute_blocks(self, block: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        permute = self._blocks.inverse if inverse else self._blocks
        full = block < self._num_full
        if full.all():
            return permute(block, member)
        moved = block.copy()  # the short last block stays where it is
        moved[full] = permute(block[full], None if member is None else member[full])
        return moved

    def _move_in_windows(self, record: np.ndarray, member: np.ndarray | None, inverse: bool) -> np.ndarray:
        window = record // self._window_size
        first = window * self._window_size
        offset = record - first
        in_last = window == self._last_window
        if self._last_window_size == self._window_size or not in_last.any():
            return first + self._permuted(self._window_size, offset, window, member, inverse)
        moved = np.empty_like(record)
        for lanes, size in ((~in_last, self._window_size), (in_last, self._last_window_size)):
            members = None if member is None else member[lanes]
            moved[lanes] = self._permuted(size, offset[lanes], window[lanes], members, inverse)
        return first + moved

    def _permuted(
        self, size: int, offset: np.ndarray, window: np.ndarray, member: np.ndarray | None, inverse: bool
    ) -> np.ndarray:
        starts, run = _runs(window, member)
        seeds = self._window_seeds[0 if member is None else member[starts]]
        steps = (window[starts].view(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        windows = keyed_permutations(size, mix64(seeds + steps))
        return (windows.inverse if inverse else windows)(offset, None if len(starts) == 1 else run)


def _runs(value: np.ndarray, member: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The first lane of each run of equal (value, member), and the run of each lane: int[runs], int[m]."""
    changes = np.empty(len(value), bool)
    changes[:1] = True
    np.not_equal(value[1:], value[:-1], out=changes[1:])
    if member is not None:
        changes[1:] |= member[1:] != member[:-1]
    return np.flatnonzero(changes), np.cumsum(changes) - 1
