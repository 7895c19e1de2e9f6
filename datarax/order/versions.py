"""Which algorithms each `ORDER_VERSION` names: one entry for each version that ever was, and none is ever changed.

A run keeps the version it was begun with, so every version must stay callable for ever. A new version is a new entry
made of new functions: what an old entry calls, golden files pin. Knows nothing of positions; `order.py` asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from datarax.order.block import BlockPermutations
from datarax.order.grain import GrainPermutations, derived_shuffle_seed, epoch_seeds
from datarax.order.permutation import Permutations, keyed_permutations
from datarax.order.policy import GrainStyle, OrderConfig, OrderPolicy
from datarax.order.seeds import derive_seed, row_seeds


@dataclass(frozen=True)
class Algorithms:
    """What one version of the order is made of."""

    permutations: Callable[[OrderConfig, str, int, tuple[int, ...]], Permutations]
    """(config, source name, number of records, epochs) -> where each record of these epochs goes; not for the policy
    `none`, nor for one record, which every version leaves where they are."""
    row_seeds: Callable[[int, str, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(seed, transform, source ids, index, epoch) -> one seed for each row; see `seeds.row_seeds`."""


def _permutations_v1(
    config: OrderConfig, source: str, num_records: int, epochs: tuple[int, ...]
) -> Permutations:
    def seeds(purpose: str) -> np.ndarray:
        return np.array([derive_seed(config.seed, purpose, source, epoch) for epoch in epochs], np.uint64)

    if config.policy is OrderPolicy.GRAIN:
        seed = config.seed
        if config.grain_style is GrainStyle.MAP_DATASET:
            seed = derived_shuffle_seed(seed, config.grain_ops_between or 0)
        return GrainPermutations(num_records, epoch_seeds(seed, epochs))
    if config.policy is OrderPolicy.BLOCK:
        assert config.block_size is not None
        assert config.window_blocks is not None
        return BlockPermutations(
            num_records,
            config.block_size,
            config.window_blocks,
            block_seeds=seeds("shuffle blocks"),
            window_seeds=seeds("shuffle windows"),
        )
    return keyed_permutations(num_records, seeds("shuffle"))


ALGORITHMS: Mapping[int, Algorithms] = {1: Algorithms(_permutations_v1, row_seeds)}
"""`ORDER_VERSION` -> its algorithms, for every version from 1 on."""
