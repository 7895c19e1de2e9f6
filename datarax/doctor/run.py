"""The run that is there: its newest snapshot, whether the config continues it, and how far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, Snapshot, list_steps, newest_good_step, restore_snapshot
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.lock import start_numbers
from datarax.checkpoint.policy import identity_differences
from datarax.core.errors import Difference, SnapshotDamagedError, difference_lines
from datarax.core.tree import differences, digest
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, warning
from datarax.run_config import BaseRunConfig, RunConfig, build_loader
from datarax.sources import RangeConfig, RangeSource
from datarax.store.files import parse_json
from datarax.training import LOADER_NAME, total_steps
from datarax.training.provenance import provenance


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
        return _damaged(rehearsal.config, error)
    sizes = [entry.size for files in snapshot.manifest.items.values() for entry in files.values()]
    return Finding(
        found=f"step {snapshot.step:,}: {len(sizes):,} files, {sum(sizes):,} bytes, all as they were written",
        numbers={"step": snapshot.step, "bytes": sum(sizes), "all": steps},
        value=snapshot,
    )


def _damaged(config: BaseRunConfig, error: SnapshotDamagedError) -> Finding:
    # What the error names may be older: a file that several snapshots share is of none of them.
    good = newest_good_step(config.run.directory, below=error.step)
    found = f"step {error.step:,} is damaged; the newest good one is " + (
        "none" if good is None else f"step {good:,}"
    )
    rest: dict[str, Any] = {
        "details": error.problems,
        "numbers": {"step": error.step, "newest_good_step": good},
        "value": None if good is None else Snapshot.open(config.run.directory, good),
        "usable": good is not None,
    }
    if good is None:
        return failure(found, "restore a snapshot from a copy, or use another run directory", **rest)
    if config.resume.on_damage == "previous":
        do = f'nothing, or repair it: resume.on_damage = "previous" goes back to step {good:,} by itself'
        return warning(found, do, **rest)
    do = f"repair it, or go back with datarax run … --step {good}; the checks below look at step {good:,}"
    return failure(found, do, **rest)


def identity(rehearsal: Rehearsal) -> Finding:
    """The config, data and code of now against those of the snapshot, field by field."""
    now, snapshot = {LOADER_NAME: rehearsal.stream.identity()}, rehearsal.snapshot
    if snapshot is None:
        found = f"{digest(now)[:16]}… (no snapshot to compare with)"
        return Finding(found=found, numbers={"digest": digest(now)})
    same = f"{digest(now)[:16]}…, that of the snapshot of step {snapshot.step:,}"
    both = snapshot.comparable(now, {LOADER_NAME: rehearsal.stream})
    return _compared(rehearsal, snapshot, identity_differences(both.was, both.now), same)


def identity_of_loader(rehearsal: Rehearsal) -> Finding:
    """The same; where the data cannot be opened, for all but these: a range of as many numbers stands in for them."""
    config, snapshot = rehearsal.config, rehearsal.snapshot
    if rehearsal.stream is not None or snapshot is None:
        return rehearsal.blocked("loader") or identity(rehearsal)
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
    return _compared(rehearsal, snapshot, identity_differences({LOADER_NAME: was}, {LOADER_NAME: now}), same)


def _compared(rehearsal: Rehearsal, snapshot: Snapshot, found: Sequence[Difference], same: str) -> Finding:
    policy = rehearsal.config.resume.policy()
    refused, allowed = policy.select(found, Change.REFUSE), policy.select(found, Change.ACCEPT, Change.WARN)
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


def restored_loader(rehearsal: Rehearsal) -> Finding | None:
    """The state of the data put back as a launch would do it, without a lock; None if there is none."""
    snapshot = rehearsal.snapshot
    if snapshot is None:
        return None

    def place() -> str:
        return (
            f"the loader continues at step {snapshot.step:,}, row {rehearsal.stream.position.get_value():,}"
        )

    return rehearsal.blocked("loader", "identity") or restored(rehearsal, snapshot, place)


def restored(rehearsal: Rehearsal, snapshot: Snapshot, place: Callable[[], str]) -> Finding:
    """The state of the data put back as a launch would do it, without a lock; `place` says where the stream is then."""
    started, stream = time.perf_counter(), rehearsal.stream
    restore_snapshot(snapshot, data={LOADER_NAME: stream}, policy=rehearsal.config.resume.policy())
    seconds = time.perf_counter() - started
    delivered = stream.idx.get_value()
    if delivered != snapshot.step:
        return failure(
            f"snapshot {snapshot.step:,} holds a loader that had handed over {delivered} batches",
            "go back to another snapshot with datarax run … --step N",
        )
    return Finding(found=place(), numbers={"restore_seconds": seconds})


def steps_left(rehearsal: Rehearsal) -> Finding:
    """How many steps a launch has to do."""
    config, stream, snapshot = rehearsal.config, rehearsal.stream, rehearsal.snapshot
    ends = "run.steps or loader.num_epochs" if isinstance(config, RunConfig) else "run.steps"
    if config.run.steps is None and stream.num_steps is None:
        return failure("nothing says when the run ends", f"set {ends}")
    total = total_steps(config.run.steps, stream.num_steps, ends=ends)
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


def versions(rehearsal: Rehearsal) -> Finding:
    """With what the last start was made, against today: a note, for nothing of it is identity."""
    found = _last_start(rehearsal.directory)
    now = provenance()
    if found is None:
        shown = ", ".join(f"{name} {now[name]}" for name in ("python", "jax", "orbax-checkpoint", "grain"))
        return Finding(found=f"{shown}; no earlier start to compare with", numbers={"now": now})
    number, then = found
    changed = [str(each) for each in differences(then, now) if each.path != "process_count"]
    return Finding(
        found=f"{_count(len(changed), 'change')} since start {number}"
        if changed
        else f"the same as at start {number}",
        details=changed,
        numbers={"now": now, "then": then, "start": number},
    )


def cpu_threads(rehearsal: Rehearsal) -> Finding:
    """Whether parameters on CPU will be the same bit for bit: XLA splits sums by its number of threads."""
    config = rehearsal.config
    if config.task is None:
        return Finding(found="no matter here: nothing is trained")
    now = provenance()
    found = _last_start(rehearsal.directory)
    if now["device_kind"] != "cpu" or found is None:
        return Finding(found="no matter here" if found else "no earlier start whose sums must be repeated")
    then = found[1].get("xla_cpu_threads")
    if config.run.cpu_threads is None:
        return warning(
            f"run.cpu_threads is not set (start {found[0]} had {then}): parameters may differ in their last bits",
            f"set run.cpu_threads = {then}"
            if str(then).isdigit()
            else "set run.cpu_threads, also for later starts",
        )
    if str(config.run.cpu_threads) != then:
        return warning(
            f"run.cpu_threads is {config.run.cpu_threads}, start {found[0]} had {then}: parameters may differ in bits",
            "use the same number at every start",
        )
    return Finding(found=f"{then}, as at start {found[0]}")


def _last_start(directory: Path) -> tuple[int, dict[str, Any]] | None:
    """Number and provenance of the last start that can be read."""
    layout = RunLayout(directory)
    for number in sorted(start_numbers(layout), reverse=True):
        try:
            tree = parse_json(layout.read(layout.starts / f"{number}.json"))
            return number, dict(tree["provenance"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def saves(rehearsal: Rehearsal) -> Finding:
    """When snapshots will be taken: how much a loss can cost."""
    save, left = rehearsal.config.save, rehearsal.values.get("steps") or 0
    by_time = save.every_seconds is not None and save.every_seconds != float("inf")
    intervals = [f"every {save.every_steps:,} steps"] if save.every_steps is not None else []
    intervals += [f"every {save.every_seconds:g} s"] if by_time else []
    if not by_time and (save.every_steps is None or save.every_steps > left > 0):
        return warning(
            "no snapshot is taken before the last step: a loss costs everything since the start",
            "set save.every_steps or save.every_seconds",
        )
    signals = f", and on {', '.join(save.signals)}" if save.signals else ""
    return Finding(found=" and ".join(intervals) + ", at the last step" + signals)
