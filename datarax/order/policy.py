"""Which order: the policies, and the config that chooses one. Every field here is identity.

Knows nothing of sources or positions; `order.py` makes an order of a config.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from datarax.core.config import Checked, Natural, Positive, check_fields
from datarax.core.errors import ConfigError

ORDER_VERSION = 1
"""Raise this when any policy gives another key for any position, add an entry to `versions.ALGORITHMS` and a golden file."""


class OrderPolicy(enum.StrEnum):
    """How the records of one epoch are arranged."""

    NONE = "none"
    """As they stand in the source, every epoch alike."""
    GLOBAL = "global"
    """A keyed permutation of all records, another one each epoch."""
    BLOCK = "block"
    """Storage blocks in a permuted order, their records mixed inside windows of blocks: reads stay long."""
    GRAIN = "grain"
    """What Grain's global shuffle makes of it, bit for bit; for runs that move over from Grain."""


class GrainStyle(enum.StrEnum):
    """How the Grain run that is moved over was given its seed."""

    INDEX_SAMPLER = "index_sampler"
    """`IndexSampler(shuffle=True, seed=seed)`, and also `MapDataset.shuffle(seed=seed)`."""
    MAP_DATASET = "map_dataset"
    """`MapDataset.seed(seed)` and later `.shuffle()`, which hashes the seed with its distance from `seed`."""


_FIELD_OF_POLICY = {
    "block_size": OrderPolicy.BLOCK,
    "window_blocks": OrderPolicy.BLOCK,
    "grain_style": OrderPolicy.GRAIN,
}


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """Which order, with its seed; every field that matters for the policy is identity."""

    policy: Checked[OrderPolicy] = OrderPolicy.GLOBAL
    """How the records of one epoch are arranged."""
    seed: Natural = 0
    """0 <= seed < 2^63. The key of the shuffle, hashed with the source's name and the epoch; never added."""

    block_size: Positive | None = None
    """Consecutive records that stay together in storage; needed for, and only for, the block policy."""
    window_blocks: Positive | None = None
    """Blocks whose records are mixed with each other; needed for, and only for, the block policy."""
    grain_style: Checked[GrainStyle | None] = None
    """How the Grain run got its seed; needed for, and only for, the grain policy."""
    grain_ops_between: Natural | None = None
    """Operations between `seed` and `shuffle` of the Grain pipeline (None: 0); only for `map_dataset`."""
    version: int = ORDER_VERSION
    """Which algorithms: every version that ever was can be asked for, so that a run keeps the one it was begun with."""

    def __post_init__(self) -> None:
        check_fields(self, "the order")
        self._check_version()
        self._check_fields_fit_policy()
        # Grain takes no more there; everywhere else the limit is TOML's.
        if self.grain_style is GrainStyle.INDEX_SAMPLER and self.seed >= 2**32:
            raise ConfigError(
                f"seed of the order must be below 2^32 for Grain's IndexSampler, got {self.seed}"
            )
        if self.grain_ops_between is not None and self.grain_ops_between >= 2**31:
            raise ConfigError(
                f"grain_ops_between of the order must be below 2^31, got {self.grain_ops_between}"
            )

    def _check_version(self) -> None:
        if type(self.version) is not int or not 1 <= self.version <= ORDER_VERSION:
            raise ConfigError(
                f"order.version is {self.version!r}; this version of datarax has the orders 1 to {ORDER_VERSION}: use one of "
                "them, or a later datarax if the run was made by one"
            )

    def _check_fields_fit_policy(self) -> None:
        for field, policy in _FIELD_OF_POLICY.items():
            value = getattr(self, field)
            if self.policy is policy and value is None:
                choices = f", one of: {', '.join(GrainStyle)}" if field == "grain_style" else ""
                raise ConfigError(f"order.policy {policy.value!r} needs order.{field}{choices}")
            if self.policy is not policy and value is not None:
                raise ConfigError(
                    f"order.{field} is {value!r} but order.policy is {self.policy.value!r}; it is for "
                    f"{policy.value!r} only: leave it out or change the policy"
                )
        if self.grain_ops_between is not None and self.grain_style is not GrainStyle.MAP_DATASET:
            raise ConfigError(
                f"order.grain_ops_between is {self.grain_ops_between!r}; it is for order.grain_style "
                "'map_dataset' only: leave it out or change the style"
            )
