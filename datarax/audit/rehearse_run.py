"""The run that is there: its newest snapshot, whether config and model continue it, how far, and with what it was made."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.errors
import jax
import numpy as np

from datarax.audit.rehearsal import Finding, Rehearsal, failure, raised, skipped, warning
from datarax.checkpoint import Change, Snapshot, list_steps, newest_good_step, restore_snapshot
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.lock import start_numbers
from datarax.checkpoint.model_item import LeafKind, LeafSpec, compare_template, named_leaves
from datarax.checkpoint.policy import identity_differences
from datarax.core.errors import Difference, SnapshotDamagedError, difference_lines
from datarax.core.tree import differences, digest
from datarax.multihost import current
from datarax.run_config import RunConfig, build_loader
from datarax.sources import RangeConfig, RangeSource
from datarax.store.files import parse_json
from datarax.training import LOADER_NAME, load_task, total_steps
from datarax.training.provenance import provenance

# What a function raises that is all right with values and cannot do without them.
_NEEDS_VALUES = (jax.errors.JAXTypeError, jax.errors.JAXIndexError, flax.errors.TraceContextError)
_TOLD_BY_SHAPES = (LeafKind.JAX, LeafKind.KEY, LeafKind.NONE)


def newest_snapshot(rehearsal: Rehearsal) -> Finding:
    """The newest snapshot with every file of it as it was written; the newest good one if it is not."""
    directory = rehearsal.directory
    steps = list_steps(directory)
    if not steps:
        return Finding(found="none yet: a launch starts at step 0", numbers={"step": None})
    try:
        snapshot = Snapshot.open(directory)
        problems = snapshot.check()
        if problems:
            raise snapshot.damaged(problems)
    except SnapshotDamagedError as error:
        return _damaged(rehearsal, error)
    sizes = [entry.size for files in snapshot.manifest.items.values() for entry in files.values()]
    return Finding(
        found=f"step {snapshot.step:,}: {len(sizes):,} files, {sum(sizes):,} bytes, all as they were written",
        numbers={"step": snapshot.step, "bytes": sum(sizes), "all": steps},
        value=snapshot,
    )


def _damaged(rehearsal: Rehearsal, error: SnapshotDamagedError) -> Finding:
    # What the error names may be older: a file that several snapshots share is of none of them.
    good = newest_good_step(rehearsal.directory, below=error.step)
    shown = "none" if good is None else f"step {good:,}"
    found = f"step {error.step:,} is damaged; the newest good one is {shown}"
    rest: dict[str, Any] = {
        "details": error.problems,
        "numbers": {"step": error.step, "newest_good_step": good},
        "value": None if good is None else Snapshot.open(rehearsal.directory, good),
        "usable": good is not None,
    }
    if good is None:
        return failure(found, "restore a snapshot from a copy, or use another run directory", **rest)
    if rehearsal.config.resume.on_damage == "previous":
        do = f'nothing, or repair it: resume.on_damage = "previous" goes back to step {good:,} by itself'
        return warning(found, do, **rest)
    do = f"repair it, or go back with datarax run … --step {good}; the checks below look at step {good:,}"
    return failure(found, do, **rest)


def identity(rehearsal: Rehearsal) -> Finding | None:
    """The config, data and code of now against those of the snapshot, field by field.

    Where the data cannot be opened, all but these: a range of as many numbers stands in for them.
    """
    config, snapshot, stream = rehearsal.config, rehearsal.snapshot, rehearsal.stream
    if stream is None and (snapshot is None or not isinstance(config, RunConfig)):
        return rehearsal.blocked("loader", "pipeline")
    if snapshot is None:
        own = digest({LOADER_NAME: stream.identity()})
        return Finding(found=f"{own[:16]}… (no snapshot to compare with)", numbers={"digest": own})
    if stream is not None:
        now = {LOADER_NAME: stream.identity()}
        same = f"{digest(now)[:16]}…, that of the snapshot of step {snapshot.step:,}"
        both = snapshot.comparable(now, {LOADER_NAME: stream})
        return _compared(rehearsal, snapshot, both.was, both.now, same)
    name = config.source.name
    recorded = snapshot.identity[LOADER_NAME]["sources"]
    if name not in recorded:
        return failure(
            f"the run reads source {', '.join(recorded)}, the config {name!r}",
            "correct source.name",
            usable=True,
        )
    stand_in = RangeSource(RangeConfig(name=name, stop=recorded[name]["num_records"]))
    with build_loader(config, stand_in) as loader:
        both = snapshot.comparable({LOADER_NAME: loader.identity()}, {LOADER_NAME: loader})
    was, now = ({**each[LOADER_NAME], "sources": None} for each in (both.was, both.now))
    same = f"that of the snapshot of step {snapshot.step:,} in all but the source, which cannot be opened"
    return _compared(rehearsal, snapshot, {LOADER_NAME: was}, {LOADER_NAME: now}, same)


def _compared(
    rehearsal: Rehearsal, snapshot: Snapshot, was: Mapping[str, Any], now: Mapping[str, Any], same: str
) -> Finding:
    policy = rehearsal.config.resume.policy()
    found = identity_differences(was, now)
    refused = policy.select(found, Change.REFUSE)
    allowed = policy.select(found, Change.ACCEPT, Change.WARN)
    details = [line.strip() for line in difference_lines(refused, all_advice(refused, snapshot.identity))]
    details += [f"{each} (accepted by resume.{policy.list_of(each.path)})" for each in allowed]
    numbers = {"refused": list(map(str, refused)), "accepted": list(map(str, allowed))}
    if refused:
        return failure(
            f"{_count(len(refused), 'field')} not as in the snapshot of step {snapshot.step:,}",
            "make them what they were, use another run directory, or list them in resume.allow_changed",
            details=details,
            numbers=numbers,
        )
    if allowed:
        return warning(
            f"{_count(len(allowed), 'change')} accepted by the config's [resume], in effect after step {snapshot.step:,}",
            "make sure that this is wanted: it becomes part of the run's history",
            details=details,
            numbers=numbers,
        )
    return Finding(found=same, numbers=numbers)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def restored(rehearsal: Rehearsal) -> Finding | None:
    """The state of the data put back as a launch would do it, without a lock; None if there is none."""
    snapshot, stream, count = rehearsal.snapshot, rehearsal.stream, current().count
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
    blocked = rehearsal.blocked("loader", "pipeline", "identity")
    if blocked is not None:
        return blocked
    started = time.perf_counter()
    restore_snapshot(snapshot, data={LOADER_NAME: stream}, policy=rehearsal.config.resume.policy())
    seconds = time.perf_counter() - started
    delivered = stream.idx.get_value()
    if delivered != snapshot.step:
        return failure(
            f"snapshot {snapshot.step:,} holds a loader that had handed over {delivered} batches",
            "go back to another snapshot with datarax run … --step N",
        )
    found = f"the pipeline continues at element {snapshot.step:,}, as process 0 of {count}"
    if isinstance(rehearsal.config, RunConfig):
        found = f"the loader continues at step {snapshot.step:,}, row {stream.position.get_value():,}"
    return Finding(found=found, numbers={"restore_seconds": seconds})


def steps_left(rehearsal: Rehearsal) -> Finding:
    """How many steps a launch has to do."""
    run, stream, snapshot = rehearsal.config.run, rehearsal.stream, rehearsal.snapshot
    ends = "run.steps or loader.num_epochs" if isinstance(rehearsal.config, RunConfig) else "run.steps"
    if run.steps is None and stream.num_steps is None:
        return failure("nothing says when the run ends", f"set {ends}")
    total = total_steps(run.steps, stream.num_steps, ends=ends)
    done = 0 if snapshot is None else snapshot.step
    numbers = {"done": done, "total": total, "left": max(0, total - done)}
    if done > total:
        return failure(
            f"the run has {done:,} steps already, the config asks for {total:,}",
            f"raise {ends}, go back with --step, or use another run directory",
            numbers=numbers,
        )
    if done == total:
        return warning(
            f"already complete: it has all {total:,} steps, and a launch would do nothing",
            "raise run.steps, or use another run directory",
            numbers=numbers,
            value=0,
        )
    return Finding(found=f"{total - done:,} of {total:,} are left", numbers=numbers, value=total - done)


def model(rehearsal: Rehearsal) -> Finding:
    """The state of the task, its shapes alone, against the leaves of the snapshot; gives its bytes. Nothing is computed."""
    task, snapshot, mesh = rehearsal.config.task, rehearsal.snapshot, rehearsal.value("mesh")
    recorded = None if snapshot is None else snapshot.leaves
    if task is None and recorded is not None:
        return failure(
            f"the snapshot holds a model of {len(recorded):,} leaves, the config has no [task]",
            "name the task, or use another run directory",
        )
    if task is None:
        return Finding(found="no [task]: snapshots hold the place in the data only", value=0)
    if mesh is None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    try:
        init = load_task(task.use).init
        abstract = jax.eval_shape(lambda: init(dict(task.parameters), mesh))
        leaves = [leaf for _, leaf in named_leaves(abstract)[0]]
    except _NEEDS_VALUES as error:
        return skipped(
            f"init of {task.use} cannot be evaluated without values ({type(error).__name__})",
            "nothing: a launch calls it with values",
        )
    except (OSError, ImportError) as error:
        return raised(error, f"make what init of {task.use} reads available")
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return warning(
            f"init of {task.use}, evaluated without values, raised {type(error).__name__}: {first}",
            "if it would also raise with values, correct it",
        )
    num_bytes = sum(_num_bytes(leaf) for leaf in leaves if leaf is not None)
    numbers = {"leaves": len(leaves), "bytes": num_bytes}
    found = f"{len(leaves):,} leaves, {num_bytes:,} bytes"
    if snapshot is None:
        return Finding(found=found, numbers=numbers, value=num_bytes)
    differing = _differing(recorded or (), abstract)
    if differing:
        return failure(
            f"{len(differing)} leaves differ from the snapshot of step {snapshot.step:,}",
            "build the model as it was, or use another run directory",
            details=differing,
            numbers=numbers,
            value=num_bytes,
            usable=True,
        )
    found = f"{found}, as in the snapshot of step {snapshot.step:,}"
    return Finding(found=found, numbers=numbers, value=num_bytes)


def _num_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _differing(recorded: Sequence[LeafSpec], abstract: Any) -> list[str]:
    """What a restore would say of the leaves, as far as it can be said without values.

    Python numbers and NumPy arrays look like JAX arrays then: of them only what cannot change is compared.
    """
    was = {spec.path: spec for spec in recorded}

    def is_told(each: Difference) -> bool:
        spec = was.get(each.path.removeprefix("model").removeprefix("."))
        now = str(each.now)
        if spec is None or spec.kind in _TOLD_BY_SHAPES or not now.startswith("array "):
            return True
        return spec.kind is LeafKind.NUMPY and now.partition("[")[2] != str(spec).partition("[")[2]

    return [str(each) for each in compare_template(recorded, abstract) if is_told(each)]


def versions(rehearsal: Rehearsal) -> Finding:
    """With what the last start was made, against today: a note, for nothing of it is identity. Gives start and provenance."""
    now = provenance()
    layout = RunLayout(rehearsal.directory)
    for number in sorted(start_numbers(layout), reverse=True):
        try:
            then = dict(parse_json(layout.read(layout.starts / f"{number}.json"))["provenance"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # the one before may be readable
        changed = [str(each) for each in differences(then, now) if each.path != "process_count"]
        since = f"{_count(len(changed), 'change')} since start {number}"
        return Finding(
            found=since if changed else f"the same as at start {number}",
            details=changed,
            numbers={"now": now, "then": then, "start": number},
            value=(number, then),
        )
    shown = ", ".join(f"{name} {now[name]}" for name in ("python", "jax", "orbax-checkpoint", "grain"))
    return Finding(found=f"{shown}; no earlier start to compare with", numbers={"now": now})


def cpu_threads(rehearsal: Rehearsal) -> Finding:
    """Whether parameters on CPU will be the same bit for bit: XLA splits sums by its number of threads."""
    config, last = rehearsal.config, rehearsal.value("versions")
    if config.task is None:
        return Finding(found="no matter here: nothing is trained")
    if last is None:
        return Finding(found="no earlier start whose sums must be repeated")
    if provenance()["device_kind"] != "cpu":
        return Finding(found="no matter here")
    number, then = last[0], last[1].get("xla_cpu_threads")
    if config.run.cpu_threads is None:
        known = f"set run.cpu_threads = {then}"
        return warning(
            f"run.cpu_threads is not set (start {number} had {then}): parameters may differ in their last bits",
            known if str(then).isdigit() else "set run.cpu_threads, also for later starts",
        )
    if str(config.run.cpu_threads) != then:
        return warning(
            f"run.cpu_threads is {config.run.cpu_threads}, start {number} had {then}: parameters may differ in bits",
            "use the same number at every start",
        )
    return Finding(found=f"{then}, as at start {number}")


def saves(rehearsal: Rehearsal) -> Finding:
    """When snapshots will be taken: how much a loss can cost."""
    save, left = rehearsal.config.save, rehearsal.value("steps") or 0
    by_time = save.every_seconds is not None and save.every_seconds != float("inf")
    if not by_time and (save.every_steps is None or save.every_steps > left > 0):
        return warning(
            "no snapshot is taken before the last step: a loss costs everything since the start",
            "set save.every_steps or save.every_seconds",
        )
    intervals = [f"every {save.every_steps:,} steps"] if save.every_steps is not None else []
    intervals += [f"every {save.every_seconds:g} s"] if by_time else []
    signals = f", and on {', '.join(save.signals)}" if save.signals else ""
    return Finding(found=f"{' and '.join(intervals)}, at the last step{signals}")
