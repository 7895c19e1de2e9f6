"""The run that is there: who writes to it, what was left behind, its newest snapshot, and whether the config continues it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, Snapshot, list_steps, newest_good_step, restore_snapshot
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.handler import TEMPORARY_SUFFIX
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.lock import is_held_on_this_machine, read_holder, start_numbers
from datarax.checkpoint.policy import identity_differences
from datarax.checkpoint.protocols import BatchStream
from datarax.checkpoint.retention import temporary_steps
from datarax.core.errors import Difference, SnapshotDamagedError, difference_lines
from datarax.core.tree import differences, digest
from datarax.doctor.checks import Finding, failure, warning
from datarax.run_config import BaseRunConfig, RunConfig, build_loader
from datarax.sources import RangeConfig, RangeSource
from datarax.store.files import parse_json
from datarax.training import LOADER_NAME, total_steps
from datarax.training.provenance import provenance

# A running session writes a line of its log every second.
_JUST_NOW_SECONDS = 30


def writer(directory: Path) -> Finding:
    """Whether another process holds the lock; it is not taken, and not tried."""
    lock = RunLayout(directory).lock
    holder = read_holder(lock)
    held = is_held_on_this_machine(lock)
    if not lock.exists():
        return Finding(found="nobody has written to this run yet")
    who = f"process {holder.get('pid')} on host {holder.get('host')} (start {holder.get('start')})"
    numbers = {"held": held, **holder}
    if held:
        return failure(
            f"the run is being written by {who}",
            "wait for it to end, stop it, or use another directory",
            numbers=numbers,
        )
    age = _seconds_since_change(directory)
    if (holder.get("host") != socket.gethostname() or held is None) and age < _JUST_NOW_SECONDS:
        # A clock that was set back says nothing of how long ago it was: then too somebody may be writing.
        when = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s in the future of this machine's clock"
        return warning(
            f"{who} may still be writing: the run changed {when}, and a lock held there cannot be seen here",
            "make sure that it has ended",
            numbers=numbers,
        )
    return Finding(found=f"free; the last writer was {who}", numbers=numbers)


def _seconds_since_change(directory: Path) -> float:
    changes = [
        path.stat().st_mtime for path in (directory / "metrics.jsonl", directory / "lock") if path.exists()
    ]
    return time.time() - max(changes)


def leftovers(directory: Path) -> Finding:
    """What killed writers left, and directories that look like snapshots and are none."""
    layout = RunLayout(directory)
    left = [path.name for path in temporary_steps(layout, TEMPORARY_SUFFIX)]
    for place in (layout.parts, layout.trash):
        if place.is_dir():
            left += [f"{place.name}/{name}" for name in sorted(os.listdir(place))]
    uncommitted = sorted({*layout.numbered()} - {*layout.committed()})
    numbers = {"left": left, "uncommitted": uncommitted}
    if uncommitted:
        return warning(
            f"{', '.join(map(str, uncommitted))} hold no manifest.json and are no snapshots: they are skipped",
            "if one of them should be a snapshot, restore it whole from a copy",
            details=[f"{name} (removed by the next start)" for name in left],
            numbers=numbers,
        )
    if left:
        return Finding(found=f"{', '.join(left)}: removed by the next start", numbers=numbers)
    return Finding(found="none", numbers=numbers)


def newest_snapshot(config: BaseRunConfig) -> Finding:
    """The newest snapshot with every file of it as it was written; the newest good one if it is not."""
    directory = config.run.directory
    steps = list_steps(directory)
    if not steps:
        return Finding(found="none yet: a launch starts at step 0", numbers={"step": None})
    try:
        snapshot = Snapshot.open(directory)
        problems = snapshot.check()
        if problems:
            raise snapshot.damaged(problems)
    except SnapshotDamagedError as error:
        return _damaged(config, error)
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


def identity(config: BaseRunConfig, stream: BatchStream, snapshot: Snapshot | None) -> Finding:
    """The config, data and code of now against those of the snapshot, field by field."""
    now = {LOADER_NAME: stream.identity()}
    if snapshot is None:
        found = f"{digest(now)[:16]}… (no snapshot to compare with)"
        return Finding(found=found, numbers={"digest": digest(now)})
    same = f"{digest(now)[:16]}…, that of the snapshot of step {snapshot.step:,}"
    return _compared(config, snapshot, identity_differences(snapshot.identity, now), same)


def identity_without_source(config: RunConfig, snapshot: Snapshot) -> Finding:
    """The same for everything but data that cannot be opened: a range of as many numbers stands in for them."""
    was = dict(snapshot.identity[LOADER_NAME])
    name = config.source.name
    recorded = was.pop("sources")
    if name not in recorded:
        return failure(
            f"the run reads source {', '.join(recorded)}, the config {name!r}",
            "correct source.name",
            usable=True,
        )
    stand_in = RangeSource(RangeConfig(name=name, stop=recorded[name]["num_records"]))
    with build_loader(config, stand_in) as loader:
        now = {field: value for field, value in loader.identity().items() if field != "sources"}
    same = f"that of the snapshot of step {snapshot.step:,} in all but the source, which cannot be opened"
    return _compared(config, snapshot, identity_differences({LOADER_NAME: was}, {LOADER_NAME: now}), same)


def _compared(config: BaseRunConfig, snapshot: Snapshot, found: Sequence[Difference], same: str) -> Finding:
    policy = config.resume.policy()
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


def restored(
    config: BaseRunConfig, stream: BatchStream, snapshot: Snapshot, *, place: Callable[[], str]
) -> Finding:
    """The state of the data put back as a launch would do it, without a lock.

    Args:
        config: the run.
        stream: where its batches come from.
        snapshot: what to put back.
        place: says, after that, where the stream is.
    """
    started = time.perf_counter()
    restore_snapshot(snapshot, data={LOADER_NAME: stream}, policy=config.resume.policy())
    seconds = time.perf_counter() - started
    delivered = stream.idx.get_value()
    if delivered != snapshot.step:
        return failure(
            f"snapshot {snapshot.step:,} holds a loader that had handed over {delivered} batches",
            "go back to another snapshot with datarax run … --step N",
        )
    return Finding(
        found=place(),
        numbers={"restore_seconds": seconds},
    )


def steps_left(
    config: BaseRunConfig, stream: BatchStream, snapshot: Snapshot | None, *, ends: str
) -> Finding:
    """How many steps a launch has to do.

    Args:
        config: the run.
        stream: where its batches come from.
        snapshot: where it is now.
        ends: the keys of the config that say where it ends.
    """
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


def versions(directory: Path) -> Finding:
    """With what the last start was made, against today: a note, for nothing of it is identity."""
    found = _last_start(directory)
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


def cpu_threads(config: BaseRunConfig) -> Finding:
    """Whether parameters on CPU will be the same bit for bit: XLA splits sums by its number of threads."""
    if config.task is None:
        return Finding(found="no matter here: nothing is trained")
    now = provenance()
    found = _last_start(Path(config.run.directory))
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


def saves(config: BaseRunConfig, left: int) -> Finding:
    """When snapshots will be taken: how much a loss can cost."""
    save = config.save
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


def start_of(snapshot: Snapshot | None) -> tuple[int, int]:
    """The step that a launch begins with, and the global row at which it begins."""
    if snapshot is None:
        return 0, 0
    return snapshot.step, int(snapshot.states()[LOADER_NAME]["position"])


__all__ = [
    "cpu_threads",
    "identity",
    "leftovers",
    "newest_snapshot",
    "restored",
    "saves",
    "start_of",
    "steps_left",
    "versions",
    "writer",
]
