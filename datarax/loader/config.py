"""What a loader is told: which rows make a batch, and how they are read ahead."""

from dataclasses import dataclass

from datarax.core.config import BatchSize, Checked, DataraxModuleConfig, Natural, Positive
from datarax.order import ORDER_VERSION, GrainStyle, OrderConfig, OrderPolicy, Remainder


@dataclass(frozen=True, kw_only=True)
class DataLoaderConfig(DataraxModuleConfig):
    """Settings of a `DataLoader`.

    `batch_size`, `seed` and the order fields, and whether batches carry a row mask, are identity: they decide which
    records are in batch N. The rest may change between any two starts of a run.

    Raises:
        ConfigError: if a field has the wrong kind or range.
    """

    batch_size: BatchSize
    """Rows of a global batch, over all processes; at most 2^24."""
    seed: Natural = 0
    """Seed of the order and of all randomness in transforms; 0 to 2^63 - 1."""
    order: Checked[OrderPolicy] = OrderPolicy.GLOBAL
    """How records are shuffled."""
    block_size: Positive | None = None
    """Records per block; for the block order only."""
    window_blocks: Positive | None = None
    """Blocks that are shuffled together; for the block order only."""
    grain_style: Checked[GrainStyle | None] = None
    """Which of Grain's shuffles to reproduce; for the grain order only."""
    grain_ops_between: Natural | None = None
    """See `OrderConfig.grain_ops_between`; for the grain order in the style of `MapDataset` only."""
    order_version: int | None = None
    """Which algorithms shuffle; None: the newest. The run keeps the number, so that it goes on with them for ever."""
    num_epochs: Positive | None = None
    """Passes over the data in the whole run, however often it is interrupted; None goes on for ever."""
    remainder: Checked[Remainder] = Remainder.DROP
    """What happens to the rows after the last full batch of the last epoch."""
    read_ahead: Natural = 2
    """Batches prepared ahead of the training loop; 0 prepares each one when it is asked for."""
    num_threads: Positive = 1
    """Threads that prepare batches."""
    byte_digest: Checked[bool | None] = None
    """Also hash every delivered byte (2 GB/s and more per core), so that `verify` proves contents, not only keys. None: yes in
    a run that trains a task, where steps take milliseconds and the read-ahead hashes beside them; else no."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order_version is None:
            object.__setattr__(self, "order_version", ORDER_VERSION)
        self.order_config()

    def order_config(self) -> OrderConfig:
        """The part that defines the order."""
        return OrderConfig(
            policy=self.order,
            seed=self.seed,
            block_size=self.block_size,
            window_blocks=self.window_blocks,
            grain_style=self.grain_style,
            grain_ops_between=self.grain_ops_between,
            version=ORDER_VERSION if self.order_version is None else self.order_version,
        )
