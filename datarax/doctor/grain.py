"""A run over a Grain pipeline: whether it can be made and resumed, by this number of processes."""

from __future__ import annotations

from datarax.core.errors import SnapshotDamagedError
from datarax.doctor import run
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, skipped, warning
from datarax.multihost import current
from datarax.run_config import build_grain_pipeline


def pipeline(rehearsal: Rehearsal) -> Finding:
    """The pipeline, for the first of the processes."""
    count = current().count
    made = rehearsal.opened.enter_context(
        build_grain_pipeline(rehearsal.config, process_index=0, process_count=count)
    )
    stages, elements = list(made.identity()["pipeline"]), made.num_steps
    length = "it has no end, or does not say where" if elements is None else f"it has {elements:,} elements"
    found = f"{made.name!r} for process 0 of {count}, {' → '.join(stages)}; {length}"
    numbers = {"process_count": count, "stages": stages, "elements": elements}
    told = made.warnings()
    if told:
        do = "make sure that this is wanted; what to change is said there (identity: before the first start)"
        return warning(found, do, details=told, numbers=numbers, value=made)
    return Finding(found=found, numbers=numbers, value=made)


def restored(rehearsal: Rehearsal) -> Finding | None:
    """The state of the pipeline put back; None if there is none."""
    snapshot, count = rehearsal.snapshot, current().count
    if snapshot is None:
        return None
    try:
        saved_by = len(snapshot.process_parts())
    except SnapshotDamagedError:
        saved_by = 0
    if saved_by not in (0, count):  # to be said even where the identity differs, as it may do for each number
        return failure(
            f"the snapshot of step {snapshot.step:,} was saved by {saved_by:,} processes and continues on that number only; "
            f"here the run has {count:,}",
            f"launch with {saved_by:,} processes, or use another run directory",
            numbers={"saved_by": saved_by, "process_count": count},
        )
    place = f"the pipeline continues at element {snapshot.step:,}, as process 0 of {count}"
    return rehearsal.blocked("pipeline", "identity") or run.restored(rehearsal, snapshot, lambda: place)


def files(rehearsal: Rehearsal) -> Finding:
    """Nothing: it is not known which they are."""
    return skipped(
        "Grain does not say which records it will read, so nobody knows which files the next steps need",
        "nothing: 'batches' reads the first elements",
    )
