"""What an open loader is made of, apart from NNX: its true position, its parts, and its threads.

`Runtime` holds what says the state, a `Shown`, together with what is open. Knows nothing of variables or of state dicts:
`loader.py` shows and restores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from datarax.core.step_log import MAX_STEPS, StepLog
from datarax.loader.config import DataLoaderConfig
from datarax.loader.delivered import Delivered, Shown
from datarax.loader.plan import BatchPlan
from datarax.loader.prefetch import ReadAhead
from datarax.loader.reader import BatchReader, PreparedBatch
from datarax.loader.statistics import RunningMeans, SharedMeans
from datarax.metrics import LoaderMetrics
from datarax.order import Digest, Order, Schedule
from datarax.sources import DataSource
from datarax.transforms import Transform, pipeline_identity


class Runtime:
    """Data, threads and the true position of one loader. NNX sees it as static and compares it by identity."""

    def __init__(
        self,
        config: DataLoaderConfig,
        source: DataSource,
        transforms: tuple[Transform, ...],
        rows: np.ndarray,
        owned: np.ndarray,
        sharding: jax.sharding.Sharding | None,
    ) -> None:
        self.source = source
        self.transforms = transforms
        # Once: what the code says now counts, not what an editor makes of the file in mid-run.
        self.pipeline_identity = pipeline_identity(transforms)
        self.rows = rows
        self.owned = owned
        self.sharding = sharding
        self.order = Order(config.order_config(), {source.name: len(source)})
        self.metrics = LoaderMetrics()
        self.current: Any = None
        self.config = config
        self.read_ahead: ReadAhead[PreparedBatch] | None = None
        self.open_at(0, 0)
        self.go_on_from(Delivered(0, 0, 0, 0, Digest.zero(bool(config.byte_digest))))
        self.share_from_here(RunningMeans())

    def open_at(self, base_step: int, base_position: int) -> None:
        """(Re)builds what depends on where the schedule starts; drops the read-ahead. What was delivered is to be said anew."""
        config = self.config
        num_rows = None if config.num_epochs is None else config.num_epochs * self.order.num_records
        schedule = Schedule(
            batch_size=config.batch_size,
            num_rows=num_rows,
            remainder=config.remainder,
            base_step=base_step,
            base_position=base_position,
        )
        self.reader = BatchReader(
            plan=BatchPlan(self.order, schedule, self.rows, self.owned),
            source=self.source,
            transforms=self.transforms,
            byte_digest=bool(config.byte_digest),
            sharding=self.sharding,
        )
        self.close()
        self.read_ahead = ReadAhead(
            self.reader.prepare, depth=config.read_ahead, num_threads=config.num_threads
        )

    @property
    def delivered(self) -> Delivered:
        """What the training loop has received so far."""
        return self.shown.delivered

    def show(self, delivered: Delivered) -> None:
        """`delivered`, of as many steps as before, is from now on what was received.

        Contents that looked it up before keep what they showed.
        """
        self.shown = Shown(delivered, self.reader.plan, self.log)

    def go_on_from(self, delivered: Delivered) -> None:
        """`delivered` is from now on what was received, wherever that is; the log of steps starts anew."""
        log = StepLog(delivered.idx)
        # At one stroke: an interrupt must not leave the one without the other.
        self.log, self.shown = log, Shown(delivered, self.reader.plan, log)

    def committed(self, step: int) -> None:
        """What the log says of steps before `step` may go, once it is in the sums."""
        self.log.forget_before(min(step, self.delivered.idx))

    def bound_log(self, step: int) -> None:
        """At `step`, a multiple of `MAX_STEPS`: keeps the log from growing for ever where nothing is ever committed."""
        self.committed(step - MAX_STEPS)

    @property
    def schedule(self) -> Schedule:
        """Which positions each step covers."""
        return self.reader.plan.schedule

    def take(self, step: int) -> PreparedBatch:
        """The batch of `step`, from the read-ahead."""
        assert self.read_ahead is not None
        return self.read_ahead.take(step, self.schedule.num_steps)

    def drop(self) -> None:
        """Forgets what was read ahead."""
        assert self.read_ahead is not None
        self.read_ahead.drop()

    def hash_bytes(self) -> None:
        """Has the bytes of all batches from here on hashed; drops the read-ahead."""
        self.config = replace(self.config, byte_digest=True)
        self.open_at(self.schedule.base_step, self.schedule.base_position)
        delivered = self.delivered
        if delivered.idx == 0 and delivered.digest.rows == 0:
            delivered = delivered._replace(digest=Digest.zero(with_bytes=True))
            self.base = delivered
        self.show(delivered)

    def share_from_here(self, means: RunningMeans) -> None:
        """What was delivered so far, with these means, is from now on what all processes have in common."""
        self.base = self.delivered
        self.means = SharedMeans.of(means)

    def reopened(self) -> Runtime:
        """The same parts with threads of their own, at the beginning."""
        made = Runtime(self.config, self.source, self.transforms, self.rows, self.owned, self.sharding)
        made.pipeline_identity = self.pipeline_identity
        return made

    def close(self) -> None:
        """Ends the threads."""
        if self.read_ahead is not None:
            self.read_ahead.close()
