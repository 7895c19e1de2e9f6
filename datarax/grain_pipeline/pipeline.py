"""An existing Grain pipeline as a module: its elements, and a state that continues it exactly.

Owns when an element counts as delivered, and what its state is. What the pipeline is made of and how it is restored live
in `graph.py` and `iterators.py`; knows nothing of snapshots and processes.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, cast

import numpy as np
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.held import Held
from datarax.core.module import CheckpointableIteratorModule, HostInt, IterationCount
from datarax.core.protocols import StepDigests
from datarax.core.step_log import MAX_STEPS
from datarax.grain_pipeline.config import GrainPipelineConfig
from datarax.grain_pipeline.element import num_rows
from datarax.grain_pipeline.runtime import Delivered, Runtime
from datarax.grain_pipeline.states import frozen
from datarax.metrics import LoaderMetrics
from datarax.order import Digest


class GrainPipeline(CheckpointableIteratorModule[Any]):
    """The elements of a Grain pipeline, one after the other, with a state that a snapshot can hold.

    `idx` and `position` are the number of elements handed over, for Grain does not say how many rows an element holds;
    `epoch` stays None, for Grain has none that all pipelines share; `current` is the last element. Grain's own state is
    `grain_state`, as it was when the last element was handed over, None before the first. State belongs to one process.

    A restore never goes into an iterator that was used: it makes a fresh one, checks what Grain makes of the state, and only
    then takes it.

    Args:
        config: name, version, number of steps.
        dataset: a `grain.MapDataset`, `grain.IterDataset` or `grain.DataLoader`; not an iterator.
        rngs: NNX random streams; part of the state, not used by the module itself.
        name: another name than the config's.

    Raises:
        TypeError: if `dataset` is something else.
        ConfigError: if the pipeline cannot be described, or is one that Grain cannot resume; says which stage and why.
    """

    state_scope: ClassVar[str] = "process"
    free_state: ClassVar[frozenset[str]] = frozenset({"grain_state", "shards"})
    # An element is data: the state says None in its place and takes nothing else.
    unsaved_state: ClassVar[frozenset[str]] = frozenset({"current"})

    def __init__(
        self,
        config: GrainPipelineConfig,
        dataset: Any,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(config, GrainPipelineConfig):
            raise TypeError(f"config must be a GrainPipelineConfig, got {type(config).__name__}")
        super().__init__(config, rngs=rngs, name=config.name if name is None else name)
        self._show(Runtime(config, cast(str, self.name), dataset))
        self._applied_count = IterationCount(np.asarray(0, np.int64))
        self._skipped_count = IterationCount(np.asarray(0, np.int64))
        self.digest_rows = HostInt(0)
        self.digest_keys = HostInt(0)
        self.digest_bytes = HostInt(0)
        self._write_mirrors()

    def _show(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.current = Held(runtime, "current")
        self.grain_state = Held(runtime, "grain_state")
        self.shards = Held(runtime, "shards")

    # Iteration.

    def __iter__(self) -> GrainPipeline:
        return self

    def __len__(self) -> int:
        """Elements of the whole run.

        Raises:
            TypeError: if that is not known.
        """
        if self.num_steps is None:
            raise TypeError(
                f"Grain pipeline {self.name!r} has no length that is known; say num_steps in its config"
            )
        return self.num_steps

    def __bool__(self) -> bool:
        """True: a pipeline without a known length has none to ask."""
        return True

    def __next__(self) -> Any:
        """The next element; only now does the state count it.

        Raises:
            StopIteration: at the end of the pipeline, or after `num_steps` elements.
            InputError: if the element, or Grain's state after it, cannot be recorded.
            Exception: what Grain or the user's functions raised, with a note that names the element; the state has not
                moved, so the same element may be asked for again.
        """
        runtime = self._runtime
        self._check_mirrors()
        asked = time.perf_counter()
        element, grain_state, after = runtime.next()
        runtime.metrics.wait_seconds += time.perf_counter() - asked
        self._hand_over(element, grain_state, after)
        return element

    def _hand_over(self, element: Any, grain_state: Any, after: Delivered) -> None:
        runtime = self._runtime
        before, state_before, shown = runtime.delivered, runtime.grain_state, runtime.current
        try:
            keys, content = _added(before.digest, after.digest)
            runtime.log.append(keys, content)
            if after.idx % MAX_STEPS == 0:  # nobody may ever say "committed"
                runtime.log.forget_before(after.idx - MAX_STEPS)
            runtime.delivered, runtime.grain_state, runtime.current = after, grain_state, element
            self._write_mirrors()
            runtime.metrics.batches += 1
            runtime.metrics.rows += num_rows(element)
            runtime.handed_over()
        except BaseException:
            # Ctrl-C can break off any of these lines; an element that the loop never got must not be half counted.
            runtime.delivered, runtime.grain_state, runtime.current = before, state_before, shown
            runtime.log.take_back(before.idx)
            runtime.drop()
            self._write_mirrors()
            raise

    # What it is, and what it did.

    @property
    def num_steps(self) -> int | None:
        """Elements of the whole run; None if the pipeline is endless or does not say.

        A map that returns None, which a `MapDataset` leaves out, cannot be seen here: say `num_steps` in the config then.
        """
        return self._runtime.num_steps

    @property
    def dataset(self) -> Any:
        """The pipeline as it was given."""
        return self._runtime.pipeline

    @property
    def metrics(self) -> LoaderMetrics:
        """Live counters: elements, rows (the leading axis of their arrays), seconds waited."""
        return self._runtime.metrics

    @property
    def digest(self) -> Digest:
        """Digest of everything handed over by this process; an element is one row of it."""
        return self._runtime.delivered.digest

    def warnings(self) -> list[str]:
        """What the user of this pipeline should know before a run, one sentence each."""
        return list(self._runtime.warnings)

    def identity(self) -> dict[str, Any]:
        """Everything that can change an element, as a tree of named values; the same on all processes."""
        return self._runtime.identity()

    def take_step_digests(self) -> StepDigests:
        """Per-element digests since the last committed snapshot: see `KeepsStepDigests`."""
        return self._runtime.log.arrays(self._runtime.delivered.idx)

    def committed(self, step: int) -> None:
        """Told by the checkpointer once the snapshot after `step` steps is safe: older digests may go."""
        self._runtime.log.forget_before(step)

    # State.

    def _state_asked(self) -> None:
        self._check_mirrors()

    def _validate_state(self, state: dict[str, Any]) -> None:
        for field in ("idx", "position", "digest_rows", "digest_keys", "digest_bytes"):
            if state[field] is None:
                raise ValueError(f"{field}: expected an int, got None")
        idx = state["idx"]
        if state["position"] != idx:
            raise ValueError(
                f"position: {state['position']} is not idx ({idx}), the number of elements handed over"
            )
        if state["epoch"] is not None:
            raise ValueError(f"epoch: a Grain pipeline has none, got {state['epoch']}")
        for field in ("digest_keys", "digest_bytes"):
            if state[field] >= 1 << 64:
                raise ValueError(f"{field}: {state[field]} does not fit 64 bits")
        self._check_shards(state["shards"])
        if (idx == 0) != (state["grain_state"] is None):
            raise ValueError(
                f"grain_state: after {idx} elements it must be {'None' if idx == 0 else 'a dict'}, got {state['grain_state']!r}"
            )
        if idx and not isinstance(state["grain_state"], dict):
            raise ValueError(f"grain_state: expected a dict, got {state['grain_state']!r}")
        self._runtime.prepare(state["grain_state"])

    def _check_shards(self, given: Any) -> None:
        own = self._runtime.shards
        if not isinstance(given, dict) or set(given) != set(own):
            raise ValueError(
                f"shards: this pipeline is sharded at {sorted(own)}, the state says {given!r}; it belongs to another pipeline"
            )
        for path, (index, count) in own.items():
            if given[path] != (index, count):
                was = given[path]
                told = (
                    f"shard {was[0]} of {was[1]}" if isinstance(was, tuple) and len(was) == 2 else repr(was)
                )
                raise ValueError(
                    f"shards.{path}: this is the state of {told}, but this process reads shard {index} of {count}; give each "
                    f"process the state of its own shard"
                )

    def _state_restored(self) -> None:
        runtime = self._runtime
        idx, rows, keys, content = (
            each.get_value() or 0
            for each in (self.idx, self.digest_rows, self.digest_keys, self.digest_bytes)
        )
        delivered = Delivered(idx, int(self._applied_count.get_value()), Digest(rows, keys, content))
        runtime.go_to(delivered, frozen(runtime.grain_state))
        self._write_mirrors()

    def _write_mirrors(self) -> None:
        now = self._runtime.delivered
        self.idx.set_raw_value(now.idx)
        self.position.set_raw_value(now.idx)
        self._applied_count.set_raw_value(np.asarray(now.applied, np.int64))
        self.digest_rows.set_raw_value(now.digest.rows)
        self.digest_keys.set_raw_value(now.digest.keys)
        self.digest_bytes.set_raw_value(now.digest.bytes)

    def _check_mirrors(self) -> None:
        now = self._runtime.delivered
        if self.idx.get_value() != now.idx or self.position.get_value() != now.idx:
            raise RuntimeError(
                f"this pipeline has handed over {now.idx} elements, but its variables say {self.idx.get_value()}: they were "
                f"written from outside, or a merged copy shares this pipeline; use set_state(), reset() or clone()"
            )

    # Lifecycle.

    def reset(self) -> None:
        """Back to the first element, with a fresh iterator. Counters, statistics and digest stay, as in the base class."""
        runtime = self._runtime
        runtime.go_to(Delivered(0, runtime.delivered.applied, runtime.delivered.digest), None)
        self._write_mirrors()

    def clone(self) -> GrainPipeline:
        """An independent module at the same place, with an iterator of its own; the Grain pipeline is shared."""
        return cast(GrainPipeline, super().clone())

    def _cloned(self) -> None:
        self._check_mirrors()
        self._show(self._runtime.reopened())

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> GrainPipeline:
        """A new module over the same Grain pipeline at its beginning, with optional changes; carries no state."""
        return type(self)(
            cast(GrainPipelineConfig, self.config if config is None else config),
            self._runtime.pipeline,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )

    def close(self) -> None:
        """Ends Grain's threads and processes. An element asked for later starts them again at the same place."""
        self._runtime.close()

    def __enter__(self) -> GrainPipeline:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _added(before: Digest, after: Digest) -> tuple[int, int]:
    """The hashes that one element has added to a digest."""
    wrap = (1 << 64) - 1
    return (after.keys - before.keys) & wrap, (cast(int, after.bytes) - cast(int, before.bytes)) & wrap
