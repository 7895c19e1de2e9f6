"""The checks of a run over a Grain pipeline: whether it can be made and resumed, by this number of processes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from datarax.checkpoint import Snapshot
from datarax.checkpoint.protocols import BatchStream
from datarax.core.errors import SnapshotDamagedError
from datarax.doctor import batches, devices, run
from datarax.doctor.checks import Checklist, Finding, failure, skipped, warning
from datarax.doctor.examination import Examination
from datarax.multihost import current
from datarax.run_config import GrainRunConfig, build_grain_pipeline

# Grain may have hundreds of elements ready by the time that it gives the first.
_MOST_ELEMENTS = 10_000


class GrainExamination(Examination):
    """See `Examination`."""

    _stream_check = "pipeline"
    _ends = "run.steps"

    def __init__(
        self,
        config: GrainRunConfig,
        checklist: Checklist,
        opened: ExitStack,
        steps: int,
        num_devices: int | None,
    ) -> None:
        super().__init__(config, checklist, opened, steps, num_devices)
        self._config = config
        self._process_count = current().count

    def _devices(self) -> Any:
        return self._check(
            "mesh",
            lambda: devices.mesh(self._config, self._num_devices, None),
            otherwise="correct [mesh], or the environment that JAX starts with",
        )

    def _stream(self, mesh: Any) -> Any:
        started = time.perf_counter()
        pipeline = self._check(
            "pipeline",
            self._pipeline,
            needs=["imports"],
            otherwise="correct the function that [grain_pipeline] names, or its parameters",
        )
        self._before_seconds += time.perf_counter() - started
        return pipeline

    def _pipeline(self) -> Finding:
        count = self._process_count
        pipeline = self._opened.enter_context(
            build_grain_pipeline(self._config, process_index=0, process_count=count)
        )
        stages = list(pipeline.identity()["pipeline"])
        elements = pipeline.num_steps
        length = (
            "it has no end, or does not say where" if elements is None else f"it has {elements:,} elements"
        )
        found = f"{pipeline.name!r} for process 0 of {count}, {' → '.join(stages)}; {length}"
        numbers = {"process_count": count, "stages": stages, "elements": elements}
        told = pipeline.warnings()
        if told:
            do = "make sure that this is wanted; what to change is said there (identity: before the first start)"
            return warning(found, do, details=told, numbers=numbers, value=pipeline)
        return Finding(found=found, numbers=numbers, value=pipeline)

    def _identity(self, stream: Any, snapshot: Snapshot | None) -> None:
        self._check(
            "identity",
            lambda: run.identity(self._config, stream, snapshot),
            needs=["snapshot", "pipeline"],
            otherwise="make every record readable; what cannot be fingerprinted needs a version",
        )

    def _restore(self, stream: Any, snapshot: Snapshot) -> None:
        saved_by = _saved_by(snapshot)
        if saved_by in (0, self._process_count):
            look, needs = (lambda: self._restored(stream, snapshot)), ["pipeline", "identity"]
        else:  # to be said even where the identity differs, as it does if the pipeline is another for each number
            look, needs = (lambda: self._of_others(snapshot, saved_by)), []
        self._check(
            "restore",
            look,
            needs=needs,
            otherwise="make the pipeline what it was, or go back to another snapshot",
        )

    def _restored(self, stream: Any, snapshot: Snapshot) -> Finding:
        place = f"the pipeline continues at element {snapshot.step:,}, as process 0 of {self._process_count}"
        return run.restored(self._config, stream, snapshot, place=lambda: place)

    def _of_others(self, snapshot: Snapshot, saved_by: int) -> Finding:
        return failure(
            f"the snapshot of step {snapshot.step:,} was saved by {saved_by:,} processes and continues on that number only; "
            f"here the run has {self._process_count:,}",
            f"launch with {saved_by:,} processes, or use another run directory",
            numbers={"saved_by": saved_by, "process_count": self._process_count},
        )

    def _files(self, snapshot: Snapshot | None) -> None:
        self._check(
            "files",
            lambda: skipped(
                "Grain does not say which records it will read, so nobody knows which files the next steps need",
                "nothing: 'batches' reads the first elements",
            ),
            otherwise="see 'pipeline'",
        )

    def _first_batches(self, stream: BatchStream, left: int | None) -> Finding:
        return batches.first_batches(
            stream,
            left=left,
            before_seconds=self._before_seconds,
            most=_MOST_ELEMENTS,
            made_ahead=None,
            called="elements",
        )


def _saved_by(snapshot: Snapshot) -> int:
    """How many processes have a state of their own in a snapshot; 0 if none has, or that cannot be read."""
    try:
        return len(snapshot.process_parts())
    except SnapshotDamagedError:
        return 0
