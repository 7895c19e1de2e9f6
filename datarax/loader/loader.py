"""Order + source + transforms -> batches, with a state that counts what the training loop has received.

Owns: where a run is. Read-ahead, order and content are pure functions of the step and live in `prefetch.py`,
`plan.py` and `reader.py`; this file decides only when a batch counts as delivered. Knows nothing of files,
snapshots or processes: which rows are read here is an argument.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import numpy as np
from flax import nnx
from flax.errors import TraceContextError

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import ConfigError
from datarax.core.held import Held
from datarax.core.module import CheckpointableIteratorModule, HostInt, IterationCount
from datarax.core.step_log import MAX_STEPS
from datarax.core.variables import on_host
from datarax.loader.config import DataLoaderConfig
from datarax.loader.delivered import Delivered
from datarax.loader.reader import PreparedBatch
from datarax.loader.runtime import Runtime
from datarax.loader.shares import combined, contribution
from datarax.loader.slots import chosen_slots
from datarax.loader.state import check_state, schedule_base
from datarax.loader.statistics import RunningMeans, SharedMeans, statistics_identity
from datarax.metrics import LoaderMetrics
from datarax.multihost import Slots
from datarax.order import Digest, Order, RecordKeys, Remainder, Schedule
from datarax.sources import DataSource
from datarax.transforms import Transform, check_pipeline


class DataLoader(CheckpointableIteratorModule[Any]):
    """Batches of transformed records in a resumable, addressable order.

    Batch `s` is a pure function of `s`: it never depends on read-ahead, threads, or what was run before. The state
    (`get_state`, `set_state`) counts what was handed over, so a snapshot taken at any moment loses and repeats nothing.
    `position` is the number of global rows handed over, `idx` the number of batches, `epoch` the epoch of the next row,
    `current` the last batch (host arrays).

    Args:
        config: batch size, seed, order, epochs, read-ahead.
        source: where the records are; it stays open when the loader is closed.
        transforms: stages applied in turn, see `datarax.transforms`.
        rows: int64[rows], sorted slots of the global batch [0, batch_size) to read here; by default those that the sharding's
            devices hold in this process, and without a sharding all of them.
        owned: int64[...], sorted, a subset of `rows`: the slots that count here, in digests, counters and statistics, where
            several processes read the same; by default those that the sharding gives to no lower process, without one all rows.
        sharding: if given, batches are global `jax.Array`s under it; else NumPy arrays.
        rngs: NNX random streams; part of the state, not used by the loader itself.
        name: used in messages.

    Raises:
        ConfigError: if the settings contradict each other or the source, for instance a batch larger than the source.
    """

    state_scope: ClassVar[str] = "global"
    # A batch is data: the state says None in its place and takes nothing else.
    unsaved_state: ClassVar[frozenset[str]] = frozenset({"current"})

    def __init__(
        self,
        config: DataLoaderConfig,
        source: DataSource,
        *,
        transforms: Sequence[Transform] = (),
        rows: np.ndarray | Sequence[int] | None = None,
        owned: np.ndarray | Sequence[int] | None = None,
        sharding: jax.sharding.Sharding | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(config, DataLoaderConfig):
            raise TypeError(f"config must be a DataLoaderConfig, got {type(config).__name__}")
        if not isinstance(source, DataSource):
            raise TypeError(
                f"source must be a datarax source (wrap other random-access objects in GrainSource), "
                f"got {type(source).__name__}"
            )
        if config.batch_size > len(source):
            raise ConfigError(
                f"batch_size is {config.batch_size}, but source {source.name!r} has only {len(source)} records; "
                f"a batch may not hold a record twice"
            )
        super().__init__(config, rngs=rngs, name=name)
        stages = check_pipeline(transforms)
        slots = chosen_slots(rows, owned, sharding, config.batch_size)
        self._runtime = Runtime(config, source, stages, slots.rows, slots.owned, sharding)
        self.current = Held(self._runtime, "current")
        self._applied_count = IterationCount(np.asarray(0, np.int64))
        self._skipped_count = IterationCount(np.asarray(0, np.int64))
        self.digest_rows = HostInt(0)
        self.digest_keys = HostInt(0)
        self.digest_bytes = HostInt(None)
        self.stats_rows = HostInt(0)
        self._show()

    # Iteration.

    def __iter__(self) -> DataLoader:
        return self

    def __len__(self) -> int:
        """Batches in the whole run.

        Raises:
            TypeError: if `num_epochs` is None: the stream has no end, only steps.
        """
        steps = self._runtime.schedule.num_steps
        if steps is None:
            raise TypeError("this loader has no length: num_epochs is None, so it goes on for ever")
        return steps

    def __bool__(self) -> bool:
        """True: an endless loader has no length to ask."""
        return True

    def __next__(self) -> Any:
        """The next batch; only now does the state count it.

        Raises:
            StopIteration: after the last batch of the last epoch.
            TraceContextError: inside a jax transform, which would see one and the same batch for ever.
            Exception: what a read or a transform raised, with notes naming step and record; the state has not moved,
                so the same batch may be asked for again.
        """
        runtime = self._runtime
        contents = runtime.shown.contents
        # Two of eight, because looks at all of them would cost a batch more than its digest.
        if (
            self.idx.get_raw_value() is not contents["idx"]
            or self.position.get_raw_value() is not contents["position"]
        ):
            self._check_shown()
        if not on_host():
            raise TraceContextError("a batch cannot be taken inside a jax transform; take it before the call")
        step, stop = runtime.shown.idx, runtime.schedule.num_steps
        if stop is not None and step >= stop:
            raise StopIteration
        if step % MAX_STEPS == 0:
            runtime.bound_log(step)
        asked = time.perf_counter()
        batch = runtime.take(step)
        runtime.metrics.wait_seconds += time.perf_counter() - asked
        self._hand_over(batch, step, self._means_after(batch, step))
        return batch.placed

    def _hand_over(self, batch: PreparedBatch, step: int, means: SharedMeans) -> None:
        runtime = self._runtime
        metrics, current = runtime.metrics, runtime.current
        means_before = None if means is runtime.means else self._means_kept()
        try:
            runtime.log.append(batch.keys_digest, batch.bytes_digest)
            runtime.current = batch.host
            if means_before is not None:
                self._keep_means(means)
            metrics.batches += 1
            metrics.rows += runtime.schedule.rows_in(step)
            # Only this line, the last, counts the batch.
            runtime.shown.idx = step + 1
        except BaseException:
            # Ctrl-C can break off any of these lines; a batch that the loop never got must not be half counted.
            runtime.log.take_back(step)
            runtime.current = current
            if means_before is not None:
                self._take_means_back(*means_before)
            raise

    def _means_after(self, batch: PreparedBatch, step: int) -> SharedMeans:
        means = self._runtime.means
        if self.config.batch_stats_fn is None or batch.rows == 0:
            return means
        try:
            owned = batch.owned
            host = batch.host if owned is None else jax.tree.map(lambda leaf: leaf[owned], batch.host)
            return means.after(self.config.batch_stats_fn(host), batch.rows)
        except Exception as error:
            error.add_note(f"in batch_stats_fn, on the batch of step {step}")
            raise

    def _keep_means(self, means: SharedMeans) -> None:
        self._runtime.means = means
        super().set_statistics(means.total.values() if means.total.rows else None)
        self.stats_rows.set_value(means.total.rows)

    def _means_kept(self) -> tuple[SharedMeans, Any, bool]:
        return self._runtime.means, self._computed_stats.get_raw_value(), self._is_stats_reset.get_value()

    def _take_means_back(self, means: SharedMeans, stats: Any, is_reset: bool) -> None:
        self._keep_means(means)
        self._computed_stats.set_raw_value(stats)
        self._is_stats_reset.set_value(is_reset)

    def set_statistics(self, stats: dict[str, Any] | None) -> None:
        """Keep `stats`, as in the base class; the running means start anew with the next batch."""
        super().set_statistics(stats)
        self._restart_means()

    def reset_statistics(self) -> None:
        """Have no statistics, as in the base class; the running means start anew with the next batch."""
        super().reset_statistics()
        self._restart_means()

    def reset_operation_stats(self) -> None:
        """Set both counters to zero; the digest keeps all rows."""
        runtime = self._runtime
        self._check_shown()
        runtime.base = runtime.base._replace(applied=0, skipped=0)
        runtime.show(runtime.delivered._replace(applied=0, skipped=0))
        self._show()

    def _restart_means(self) -> None:
        self._runtime.means = SharedMeans()
        self.stats_rows.set_value(0)

    # Random access.

    def batch_at(self, step: int) -> Any:
        """The batch of any step, in this loader's form; the state does not move.

        Raises:
            IndexError: if there is no such step.
        """
        return self._runtime.reader.prepare(_checked_step(step)).placed

    def record_keys(self, step: int) -> RecordKeys:
        """Which record each row of `step` is: source int32[rows], index int64[rows], epoch int64[rows].

        Padding has (-1, -1, -1). Reads no data.

        Raises:
            IndexError: if there is no such step.
        """
        return self._runtime.reader.plan.step(_checked_step(step)).keys

    def step_digest(self, step: int, *, with_bytes: bool = False) -> tuple[int, int | None, int]:
        """Digest of one step: sum of key hashes, sum of row hashes (None without `with_bytes`), and rows.

        With `with_bytes` the batch is read and transformed.
        """
        runtime = self._runtime
        if not with_bytes:
            step_keys = runtime.reader.plan.step(_checked_step(step))
            return step_keys.digest, None, int(np.count_nonzero(step_keys.counted))
        reader = dataclasses.replace(runtime.reader, byte_digest=True, sharding=None)
        batch = reader.prepare(_checked_step(step))
        return batch.keys_digest, batch.bytes_digest, batch.rows

    def position_of(self, step: int) -> int:
        """The global row at which the batch of `step` begins; at the end of the run the number of all rows.

        Raises:
            IndexError: if `step` is negative or beyond the end (the end itself is allowed).
        """
        schedule, step = self._runtime.schedule, _checked_step(step)
        if step < schedule.base_step or (schedule.num_steps is not None and step > schedule.num_steps):
            raise IndexError(
                f"step {step} is outside this loader's steps {schedule.base_step} … {schedule.num_steps}"
            )
        return schedule.first_position(step)

    def seek(self, step: int) -> None:
        """Continues with the batch of `step`; counters and digest stay what was really delivered.

        Raises:
            IndexError: if `step` is negative or beyond the end (the end itself is allowed).
        """
        runtime, position = self._runtime, self.position_of(step)
        runtime.go_on_from(runtime.delivered._replace(idx=int(step), position=position))
        runtime.drop()
        runtime.current = None
        self._show()

    # What it is, and what it did.

    @property
    def source(self) -> DataSource:
        """The source that this loader reads."""
        return self._runtime.source

    @property
    def slots(self) -> Slots:
        """The slots of the global batch that are read here, and those that count here."""
        return Slots(self._runtime.rows, self._runtime.owned)

    @property
    def order(self) -> Order:
        """The order of this loader's records."""
        return self._runtime.order

    @property
    def schedule(self) -> Schedule:
        """Which positions each step covers."""
        return self._runtime.schedule

    @property
    def num_steps(self) -> int | None:
        """Batches of the whole run; None if it is endless."""
        return self._runtime.schedule.num_steps

    @property
    def metrics(self) -> LoaderMetrics:
        """Live counters: batches, rows, seconds waited."""
        return self._runtime.metrics

    @property
    def digest(self) -> Digest:
        """Digest of everything handed over: up to the last restore by all processes, since then of the rows that count here."""
        return self._runtime.delivered.digest

    def keep_byte_digests(self) -> None:
        """From now on hash every delivered byte, unless the config says whether to.

        For whoever knows that it costs nothing worth naming: a session that trains a task. Call it before the first batch or a
        restore; a digest of a stretch that was delivered without stays without.
        """
        runtime = self._runtime
        if runtime.config.byte_digest is None:
            self._check_shown()
            runtime.hash_bytes()
            self._show()

    def identity(self, *, sample: bool = True) -> dict[str, Any]:
        """Everything that can change a batch, as a tree of named values; nothing that cannot.

        Args:
            sample: whether to read the sampled records of the source; without, `sources.<name>.sample` is left out.
        """
        runtime, config = self._runtime, self._runtime.config
        source = runtime.source
        identity: dict[str, Any] = {
            "batch_size": config.batch_size,
            "order": runtime.order.identity(),
            "row_mask": config.remainder is Remainder.PAD,
            "seed": config.seed,
            "sources": {source.name: dict(source.identity() if sample else source.outline())},
            "pipeline": runtime.pipeline_identity,
        }
        if config.precomputed_stats is not None:
            identity["precomputed_stats"] = statistics_identity(config.precomputed_stats)
        return identity

    def take_step_digests(self) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """Per-step digests since the last committed snapshot.

        Returns:
            The first step, uint64[steps] sums of key hashes, uint64[steps] sums of row hashes (0 where bytes were not
            digested), and whether every one of the steps has its bytes digested.
        """
        return self._runtime.log.arrays(self._runtime.shown.idx)

    def committed(self, step: int) -> None:
        """Told by the checkpointer once the snapshot after `step` steps is safe: older digests may go."""
        self._runtime.committed(step)

    # Many processes.

    def contribution(self) -> dict[str, Any]:
        """What this process has added since the last restore or the beginning; see `combined`."""
        self._check_shown()
        return contribution(self._runtime, self.get_state())

    def combined(
        self, contributions: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        """The state and the digest as if one process had read all rows.

        Counters and digests are sums over the rows that each process owns, so they are exact whoever read what; running means
        agree with those of one process within rounding.

        Args:
            contributions: one of each process, in the order of processes.

        Raises:
            ValueError: if they are not of one moment, naming what differs.
        """
        state = self.get_state()
        return combined(self._runtime, state, contributions)

    # State.

    def _state_asked(self) -> None:
        self._check_shown()
        means = self._runtime.means.total
        if means.rows:
            # A transform may have made 32-bit numbers of those in the Variable.
            self._computed_stats.set_raw_value(means.values())

    def _validate_state(self, state: dict[str, Any]) -> None:
        check_state(state, self._runtime.schedule, self._runtime.order.num_records)

    def _state_restored(self) -> None:
        runtime = self._runtime
        # `_validate_state` has seen to it that none of these is None.
        idx, position, rows, keys, stats_rows = (
            each.get_value() or 0
            for each in (self.idx, self.position, self.digest_rows, self.digest_keys, self.stats_rows)
        )
        digest = Digest(rows, keys, self.digest_bytes.get_value() if runtime.config.byte_digest else None)
        applied, skipped = int(self._applied_count.get_value()), int(self._skipped_count.get_value())
        base = schedule_base(runtime.schedule, idx, position)
        if base != (runtime.schedule.base_step, runtime.schedule.base_position):
            runtime.open_at(*base)
        runtime.drop()
        runtime.go_on_from(Delivered(idx, position, applied, skipped, digest))
        runtime.share_from_here(
            RunningMeans(self._computed_stats.get_value() if stats_rows else None, stats_rows)
        )
        runtime.current = None
        self._show()

    def _show(self) -> None:
        """Has the variables look up what was delivered."""
        for name, content in self._runtime.shown.contents.items():
            vars(self)[name].set_raw_value(content)

    def _check_shown(self) -> None:
        """Sees to it that the variables show what was delivered.

        Raises:
            RuntimeError: if they say something else.
        """
        runtime, held = self._runtime, vars(self)
        if all(held[name].get_raw_value() is content for name, content in runtime.shown.contents.items()):
            return
        # A transform brings the same numbers back; a merged copy of this loader has variables of its own.
        now = runtime.delivered
        if self.idx.get_value() != now.idx or self.position.get_value() != now.position:
            raise RuntimeError(
                f"this loader has handed over {now.idx} batches, but its variables say {self.idx.get_value()}: they were "
                f"written from outside, or a merged copy shares this loader; use seek(), set_state() or clone()"
            )
        runtime.show(now)
        self._show()

    # Lifecycle.

    def reset(self) -> None:
        """Back to the first batch; drops the read-ahead. Counters, statistics and digest stay, as in the base class."""
        self._runtime.open_at(0, 0)
        self.seek(0)

    def clone(self) -> DataLoader:
        """An independent loader at the same position, with threads of its own; the source is shared."""
        return cast(DataLoader, super().clone())

    def _cloned(self) -> None:
        shared = self._runtime
        self._check_shown()
        self._runtime = shared.reopened()
        self.current = Held(self._runtime, "current")
        self._state_restored()
        self._runtime.base = shared.base
        self._runtime.means = shared.means
        if shared.means.total.rows:
            self._keep_means(shared.means)

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> DataLoader:
        """A new loader over the same source at step 0, with optional changes; carries no state."""
        runtime = self._runtime
        return type(self)(
            config if config is not None else self.config,  # type: ignore[arg-type]
            runtime.source,
            transforms=runtime.transforms,
            rows=runtime.rows,
            owned=runtime.owned,
            sharding=runtime.sharding,
            rngs=rngs if rngs is not None else self.rngs,
            name=name if name is not None else self.name,
        )

    def close(self) -> None:
        """Ends the read-ahead threads. The source stays open; it belongs to whoever made it."""
        self._runtime.close()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _checked_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
        raise TypeError(f"a step is an int, got {step!r}")
    if step < 0:
        raise IndexError(f"step {step} is negative; steps count from 0")
    return int(step)
