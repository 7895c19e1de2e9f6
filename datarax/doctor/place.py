"""The place of the run: may this user write there, durably and with locks, who else does, and is there room."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from datarax.checkpoint import SaveConfig, Snapshot, list_steps
from datarax.checkpoint.layout import RunLayout, place_of, refuse_wildcards
from datarax.checkpoint.lock import is_held_on_this_machine, read_holder
from datarax.checkpoint.orbax import TEMPORARY_SUFFIX
from datarax.checkpoint.retention import temporary_steps
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, warning
from datarax.store.files import sync, write_new

_PROBE_BYTES = 4096
_CLOCK_TOLERANCE_SECONDS = 30.0
# What a snapshot of the data alone takes: record, digests of steps, manifest.
_DATA_ITEM_BYTES = 16 << 10
_STEP_DIGEST_BYTES = 16
# Files and directories: of a snapshot besides its items' files, and of an entry in the ledger.
_SNAPSHOT_INODES = 8
_LEDGER_INODES = 4


def run_directory(rehearsal: Rehearsal) -> Finding:
    """Whether the run can be read, or nothing is in the way of making it."""
    directory = rehearsal.directory
    place = place_of(directory)
    if place == directory:
        os.listdir(directory)
        return Finding(found=str(directory), numbers={"exists": True}, value=place)
    return Finding(found=f"{directory} will be made below {place}", numbers={"exists": False}, value=place)


def writing(rehearsal: Rehearsal) -> Finding:
    """Writes, syncs, locks, renames and removes a small file."""
    refuse_wildcards(rehearsal.directory)
    closed = [path for path in _written_again(RunLayout(rehearsal.directory)) if not os.access(path, os.W_OK)]
    if closed:
        return failure(
            f"{closed[0]} cannot be written by this user (uid {os.getuid()})",
            "give it to this user, or start the launch as its owner",
            details=[str(path) for path in closed[1:]],
        )
    started = time.perf_counter()
    offset = _probe(rehearsal.values["directory"])
    seconds = time.perf_counter() - started
    return Finding(
        found=f"a small file was written, synced, locked, renamed and removed in {1000 * seconds:.0f} ms",
        numbers={"probe_seconds": seconds},
        value=offset,
    )


def _written_again(layout: RunLayout) -> list[Path]:
    """What a launch writes to and another user may have made."""
    names = (
        "lock",
        "metrics.jsonl",
        "starts",
        "identity",
        "configs",
        "history",
        "ledger",
        "parts",
        "trash",
        "set_aside",
    )
    steps = [layout.step(step) for step in layout.committed()]
    return [path for path in [*(layout.directory / name for name in names), *steps] if path.exists()]


def _probe(place: Path) -> float:
    """How much the file system's clock is ahead."""
    written = place / f".datarax-doctor-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    renamed = written.with_suffix(".renamed")
    try:
        now = time.time()
        write_new(written, b"\0" * _PROBE_BYTES)
        descriptor = os.open(written, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            offset = os.fstat(descriptor).st_mtime - now
        finally:
            os.close(descriptor)
        os.replace(written, renamed)
        sync(place)
    finally:
        for path in (written, renamed):
            path.unlink(missing_ok=True)
    return offset


# A running session writes a line of its log every second.
_JUST_NOW_SECONDS = 30


def writer(rehearsal: Rehearsal) -> Finding:
    """Whether another process holds the lock; it is not taken, and not tried."""
    lock = RunLayout(rehearsal.directory).lock
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
    age = _seconds_since_change(rehearsal.directory)
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


def leftovers(rehearsal: Rehearsal) -> Finding:
    """What killed writers left, and directories that look like snapshots and are none."""
    layout = RunLayout(rehearsal.directory)
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


def clock(rehearsal: Rehearsal) -> Finding:
    """Whether this machine, the file system and the run's last writer agree on the time: logs, and people, go by it."""
    offset, snapshot = rehearsal.values["writing"], rehearsal.snapshot
    if abs(offset) > _CLOCK_TOLERANCE_SECONDS:
        return warning(
            f"the file system's clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} this machine's",
            "set the clocks; times in logs and in the run will not fit together",
            numbers={"offset_seconds": offset},
        )
    ahead = 0.0 if snapshot is None else snapshot.manifest.written_unix_seconds - time.time()
    if ahead > _CLOCK_TOLERANCE_SECONDS:
        return warning(
            f"the newest snapshot was written {ahead:.0f} s in the future of this machine's clock",
            "set the clock of this machine, or that of its writer",
            numbers={"offset_seconds": offset, "snapshot_ahead_seconds": ahead},
        )
    return Finding(
        found="this machine, the file system and the newest snapshot agree",
        numbers={"offset_seconds": offset},
    )


@dataclass(frozen=True)
class Need:
    """What a launch will write, beyond what is there."""

    snapshot_bytes: int
    """One snapshot."""
    soon_bytes: int
    """Until as many snapshots are there as are kept, and one more is being written."""
    whole_bytes: int | None
    """To the end of the run; None if nothing says how many snapshots will stay."""
    soon_inodes: int
    """Files and directories of the same time as `soon_bytes`."""


def need(save: SaveConfig, snapshot: Snapshot | None, model_bytes: int, *, committed: int, left: int) -> Need:
    """What a launch will write.

    Args:
        save: what is kept.
        snapshot: the newest.
        model_bytes: of the model as it is in memory; 0 if that is not known.
        committed: snapshots that are there.
        left: steps that are left.
    """
    files = 1
    size = model_bytes + _DATA_ITEM_BYTES
    if snapshot is not None:
        entries = [entry for item in snapshot.manifest.items.values() for entry in item.values()]
        # Arrays are stored compressed, and those of a young model much better than later ones.
        files, size = len(entries), max(model_bytes, sum(entry.size for entry in entries)) + _DATA_ITEM_BYTES
    by_steps = 1 if save.every_steps is None else -(-left // save.every_steps)
    # Where time decides as well, nobody knows how many there will be.
    coming = by_steps if save.every_seconds is None or math.isinf(save.every_seconds) else None
    kept = save.keep_latest
    more = by_steps
    if kept is not None:
        more = max(0, kept - committed) + 1  # the one being written stands beside those that are kept
        more = more if coming is None else min(more, coming)
    ledger = left * _STEP_DIGEST_BYTES + by_steps * _DATA_ITEM_BYTES
    stay = coming if kept is None else more + (left // save.keep_every if save.keep_every is not None else 0)
    return Need(
        snapshot_bytes=size,
        soon_bytes=more * size,
        whole_bytes=None if stay is None else stay * size + ledger,
        soon_inodes=more * (files + _SNAPSHOT_INODES) + by_steps * _LEDGER_INODES,
    )


def space(rehearsal: Rehearsal) -> Finding:
    """Free bytes and inodes against what will be written."""
    snapshot, save = rehearsal.snapshot, rehearsal.config.save
    # A snapshot says how large the next will be, whether or not the model can be looked at.
    if snapshot is None and (blocked := rehearsal.blocked("model")):
        return blocked
    left = rehearsal.values.get("steps")
    wanted = need(
        save,
        snapshot,
        rehearsal.values.get("model") or 0,
        committed=len(list_steps(rehearsal.directory)),
        left=rehearsal.num_steps if left is None else left,
    )
    found = os.statvfs(rehearsal.values["directory"])
    free, inodes = found.f_bavail * found.f_frsize, found.f_favail
    numbers = {**vars(wanted), "free_bytes": free, "free_inodes": inodes if found.f_files else None}
    shown = (
        f"{_size(wanted.snapshot_bytes)} a snapshot, {_size(wanted.soon_bytes)} soon; {_size(free)} are free"
    )
    if free < wanted.soon_bytes:
        return failure(
            f"not enough space: {shown}",
            f"free {_size(wanted.soon_bytes - free)}, lower save.keep_latest, or use another disk",
            numbers=numbers,
        )
    # Some file systems make inodes as they need them and say 0.
    if found.f_files and inodes < wanted.soon_inodes:
        return failure(
            f"not enough inodes: {wanted.soon_inodes:,} files and directories will be made, {inodes:,} are free",
            "remove small files, or use another disk",
            numbers=numbers,
        )
    if save.keep_latest is None and wanted.whole_bytes is None:
        return warning(
            f"save.keep_latest is not set, so every snapshot stays: {shown}, enough for {free // wanted.snapshot_bytes:,}",
            "set save.keep_latest, and save.keep_every for those that shall stay",
            numbers=numbers,
        )
    if wanted.whole_bytes is not None and free < wanted.whole_bytes:
        return warning(
            f"enough to begin, not for the whole run: {_size(wanted.whole_bytes)} to its end, {_size(free)} are free",
            "keep fewer snapshots (save.keep_latest, save.keep_every), or free space before it fills",
            numbers=numbers,
        )
    return Finding(found=shown, numbers=numbers)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"
