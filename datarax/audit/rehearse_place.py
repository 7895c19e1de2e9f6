"""Where a launch runs and writes: this installation, its devices and its clock; the run's directory, its disk and its writer.

The rules of meshes are those of `run_config.mesh_sizes` and `multihost.fitting_row_shards`; here numbers are tried.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
import uuid
from collections.abc import Sequence

import jax

from datarax.audit.rehearsal import Finding, Rehearsal, failure, warning
from datarax.checkpoint import list_steps
from datarax.checkpoint.layout import RunLayout, place_of, refuse_wildcards
from datarax.checkpoint.lock import is_held_on_this_machine, read_holder
from datarax.checkpoint.orbax import TEMPORARY_SUFFIX
from datarax.checkpoint.retention import temporary_steps
from datarax.core.errors import ConfigError
from datarax.multihost import fitting_row_shards
from datarax.run_config import BaseRunConfig, MeshSection, RunConfig, build_mesh, mesh_sizes
from datarax.run_config.build import named_code
from datarax.store.files import sync, take_lock, write_new
from datarax.training import load_task
from datarax.trust import load_attribute, only_in_working_directory

_MOST_DEVICES = 4096
_SHOWN = 16
_PROBE_BYTES = 4096
_CLOCK_TOLERANCE_SECONDS = 30.0
# A running session writes a line of its log every second.
_JUST_NOW_SECONDS = 30
# What a snapshot of the data alone takes: record, digests of steps, manifest.
_DATA_ITEM_BYTES = 16 << 10
_STEP_DIGEST_BYTES = 16
# Files and directories: of a snapshot besides its items' files, and of an entry in the ledger.
_SNAPSHOT_INODES = 8
_LEDGER_INODES = 4
# What a launch writes to and another user may have made, beside the steps.
_WRITTEN_AGAIN = (
    *("lock", "metrics.jsonl", "starts", "identity", "configs", "history", "ledger", "parts"),
    *("trash", "set_aside"),
)


def imports(rehearsal: Rehearsal) -> Finding:
    """Imports every name that the config calls by `use`, so that one that fails hides no other."""
    named = named_code(rehearsal.config)
    problems = []
    for key, use in named:
        try:
            load_task(use) if key == "task.use" else load_attribute(use, key)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        return failure(
            f"{len(problems)} of {len(named)} names cannot be imported",
            "install what is missing in the environment of the launch, or correct the name",
            details=problems,
        )
    modules = {use.partition(":")[0].partition(".")[0] for _, use in named}
    here = sorted(filter(only_in_working_directory, modules))
    if here:
        return warning(
            f"{', '.join(here)} can be imported only because it lies in the working directory {os.getcwd()}",
            "install it, or start every process of the launch in this directory, on a disk that all of them see",
        )
    found = ", ".join(dict.fromkeys(use for _, use in named)) or "the config names no code"
    return Finding(found=found, numbers={"names": len(named)})


def run_directory(rehearsal: Rehearsal) -> Finding:
    """Whether the run can be read, or nothing is in the way of making it."""
    directory = rehearsal.directory
    place = place_of(directory)
    exists = place == directory
    if exists:
        os.listdir(directory)
    found = str(directory) if exists else f"{directory} will be made below {place}"
    return Finding(found=found, numbers={"exists": exists}, value=place)


def writing(rehearsal: Rehearsal) -> Finding:
    """Writes, syncs, locks, renames and removes a small file; gives how much the file system's clock is ahead."""
    refuse_wildcards(rehearsal.directory)
    layout = RunLayout(rehearsal.directory)
    again = [layout.directory / name for name in _WRITTEN_AGAIN]
    again += map(layout.step, layout.committed())
    closed = [path for path in again if path.exists() and not os.access(path, os.W_OK)]
    if closed:
        return failure(
            f"{closed[0]} cannot be written by this user (uid {os.getuid()})",
            "give it to this user, or start the launch as its owner",
            details=[str(path) for path in closed[1:]],
        )
    written = rehearsal.value("directory") / f".datarax-doctor-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    renamed = written.with_suffix(".renamed")
    started, now = time.perf_counter(), time.time()
    try:
        write_new(written, b"\0" * _PROBE_BYTES)
        descriptor = take_lock(written)
        offset = os.fstat(descriptor).st_mtime - now
        os.close(descriptor)
        os.replace(written, renamed)
        sync(written.parent)
    finally:
        for path in (written, renamed):
            path.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return Finding(
        found=f"a small file was written, synced, locked, renamed and removed in {1000 * seconds:.0f} ms",
        numbers={"probe_seconds": seconds},
        value=offset,
    )


def writer(rehearsal: Rehearsal) -> Finding:
    """Whether another process holds the lock; it is not taken, and not tried."""
    directory = rehearsal.directory
    lock = RunLayout(directory).lock
    if not lock.exists():
        return Finding(found="nobody has written to this run yet")
    holder, held = read_holder(lock), is_held_on_this_machine(lock)
    who = f"process {holder.get('pid')} on host {holder.get('host')} (start {holder.get('start')})"
    numbers = {"held": held, **holder}
    if held:
        return failure(
            f"the run is being written by {who}",
            "wait for it to end, stop it, or use another directory",
            numbers=numbers,
        )
    changes = [path.stat().st_mtime for path in (directory / "metrics.jsonl", lock) if path.exists()]
    age = time.time() - max(changes)
    if (holder.get("host") != socket.gethostname() or held is None) and age < _JUST_NOW_SECONDS:
        # A clock that was set back says nothing of how long ago it was: then too somebody may be writing.
        when = f"{age:.0f} s ago" if age >= 0 else f"{-age:.0f} s in the future of this machine's clock"
        return warning(
            f"{who} may still be writing: the run changed {when}, and a lock held there cannot be seen here",
            "make sure that it has ended",
            numbers=numbers,
        )
    return Finding(found=f"free; the last writer was {who}", numbers=numbers)


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
    return Finding(found=f"{', '.join(left)}: removed by the next start" if left else "none", numbers=numbers)


def fitting_devices(config: BaseRunConfig, batch_size: int | None) -> list[int]:
    """All numbers of devices, up to 4,096 or to what the axes fix, over which this mesh and batch can be laid.

    Args:
        config: the run.
        batch_size: rows to divide among them; None if batches stay as they are.
    """
    section = config.mesh or MeshSection()
    fixed = math.prod(size for size in section.axes.values() if size != -1)
    row_shards = None if batch_size is None else set(fitting_row_shards(batch_size))
    fit = []
    for devices in range(fixed, max(_MOST_DEVICES, fixed) + 1, fixed):
        with contextlib.suppress(ConfigError):  # the axes do not fit so many
            sizes = mesh_sizes(section, devices)
            if row_shards is None or math.prod(sizes[name] for name in section.batch_axes) in row_shards:
                fit.append(devices)
    return fit


def mesh(rehearsal: Rehearsal) -> Finding:
    """Whether the config fits the devices that are here, or as many as the launch is said to have."""
    config, asked, here = rehearsal.config, rehearsal.num_devices, jax.device_count()
    # Of a Grain pipeline batches stay as they are, NumPy arrays of one process.
    batch_size = config.loader.batch_size if isinstance(config, RunConfig) else None
    fit = fitting_devices(config, batch_size)
    axes = (config.mesh or MeshSection()).axes
    shown = ", ".join(f"{name} = {size}" for name, size in axes.items()) or "no axes"
    rows = "" if batch_size is None else f" and batches of {batch_size:,} rows"
    numbers = {"devices_here": here, "devices_asked": asked, "devices_that_fit": fit}
    if not fit:
        return failure(
            f"a batch of {batch_size:,} rows fits no number of devices under mesh.axes ({shown})",
            "change loader.batch_size (identity: before the first start) or mesh.axes",
            numbers=numbers,
        )
    if asked is not None and asked not in fit:
        return failure(
            f"{asked:,} devices do not fit mesh.axes ({shown}){rows}",
            f"launch on one of {_listed(fit)} devices, or change mesh.axes",
            numbers=numbers,
        )
    if config.mesh is None and jax.local_device_count() == here and asked is None:
        many = f"one process gets NumPy batches, many one axis 'data' over {_listed(fit)} devices"
        none = "its elements are NumPy arrays, on each process its own" if batch_size is None else many
        return Finding(found=f"none: {none}", numbers=numbers)
    there = f"{here:,} device{'s' * (here > 1)}"
    if here in fit or asked is not None:
        what = f"the {there} here" if here in fit else f"{asked:,} devices"
        return Finding(
            found=f"{shown}: fits {what}; {_listed(fit)} would fit",
            numbers=numbers,
            value=build_mesh(config) if here in fit else None,
        )
    return warning(
        f"mesh.axes ({shown}){rows} do not fit {there} here",
        f"launch on one of {_listed(fit)} devices; --devices N asks about a launch elsewhere",
        numbers=numbers,
    )


def processes(rehearsal: Rehearsal) -> Finding:
    """How many processes the run can have, each with as many devices as this one."""
    config, asked, each = rehearsal.config, rehearsal.num_devices, jax.local_device_count()
    fit = fitting_devices(config, config.loader.batch_size)
    one = {1} if config.mesh is None else set()  # one process needs no mesh
    counts = sorted({devices // each for devices in fit if devices % each == 0} | one)
    of = f"processes of {each} device{'s' * (each > 1)} each, like this one"
    numbers = {"devices_each": each, "process_counts": counts}
    if counts:
        return Finding(found=f"{_listed(counts)} {of}", numbers=numbers)
    launch = f" (the launch has {asked:,} devices: see 'mesh' for whether they fit together)" if asked else ""
    return warning(
        f"no number of {of}, fits{launch}",
        f"use processes whose devices together are {_listed(fit)}",
        numbers=numbers,
    )


def _listed(counts: Sequence[int]) -> str:
    """The first of many numbers, and the largest."""
    first = ", ".join(map(str, counts[:_SHOWN]))
    return first if len(counts) <= _SHOWN else f"{first}, … {counts[-1]}"


def space(rehearsal: Rehearsal) -> Finding:
    """Free bytes and inodes against what will be written: the next snapshots, and all to the end of the run."""
    snapshot, save = rehearsal.snapshot, rehearsal.config.save
    # A snapshot says how large the next will be, whether or not the model can be looked at.
    blocked = rehearsal.blocked("model") if snapshot is None else None
    if blocked is not None:
        return blocked
    steps = rehearsal.value("steps")
    left: int = rehearsal.num_steps if steps is None else steps
    items = {} if snapshot is None else snapshot.manifest.items
    sizes = [file.size for files in items.values() for file in files.values()]
    # Arrays are stored compressed, and those of a young model much better than later ones.
    size = max(rehearsal.value("model") or 0, sum(sizes)) + _DATA_ITEM_BYTES
    saves = 1 if save.every_steps is None else -(-left // save.every_steps)
    # Where time decides as well, nobody knows how many there will be.
    coming = saves if save.every_seconds is None or math.isinf(save.every_seconds) else None
    more, stay = saves, coming
    if save.keep_latest is not None:
        # The one being written stands beside those that are kept.
        more = max(0, save.keep_latest - len(list_steps(rehearsal.directory))) + 1
        more = more if coming is None else min(more, coming)
        stay = more + (left // save.keep_every if save.keep_every is not None else 0)
    whole = None if stay is None else stay * size + left * _STEP_DIGEST_BYTES + saves * _DATA_ITEM_BYTES
    soon = more * size
    soon_inodes = more * ((len(sizes) or 1) + _SNAPSHOT_INODES) + saves * _LEDGER_INODES
    disk = os.statvfs(rehearsal.value("directory"))
    free = disk.f_bavail * disk.f_frsize
    inodes = disk.f_favail if disk.f_files else None
    shown = f"{_size(size)} a snapshot, {_size(soon)} soon; {_size(free)} are free"
    numbers = {
        "snapshot_bytes": size,
        "soon_bytes": soon,
        "whole_bytes": whole,
        "soon_inodes": soon_inodes,
        "free_bytes": free,
        "free_inodes": inodes,
    }
    if free < soon:
        return failure(
            f"not enough space: {shown}",
            f"free {_size(soon - free)}, lower save.keep_latest, or use another disk",
            numbers=numbers,
        )
    if inodes is not None and inodes < soon_inodes:  # None: made as they are needed
        return failure(
            f"not enough inodes: {soon_inodes:,} files and directories will be made, {inodes:,} are free",
            "remove small files, or use another disk",
            numbers=numbers,
        )
    if save.keep_latest is None and whole is None:
        return warning(
            f"save.keep_latest is not set, so every snapshot stays: {shown}, enough for {free // size:,}",
            "set save.keep_latest, and save.keep_every for those that shall stay",
            numbers=numbers,
        )
    if whole is not None and free < whole:
        return warning(
            f"enough to begin, not for the whole run: {_size(whole)} to its end, {_size(free)} are free",
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


def clock(rehearsal: Rehearsal) -> Finding:
    """Whether this machine, the file system and the run's last writer agree on the time: logs, and people, go by it."""
    offset, snapshot = rehearsal.value("writing"), rehearsal.snapshot
    numbers = {"offset_seconds": offset}
    if abs(offset) > _CLOCK_TOLERANCE_SECONDS:
        return warning(
            f"the file system's clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} this machine's",
            "set the clocks; times in logs and in the run will not fit together",
            numbers=numbers,
        )
    ahead = 0.0 if snapshot is None else snapshot.manifest.written_unix_seconds - time.time()
    if ahead > _CLOCK_TOLERANCE_SECONDS:
        return warning(
            f"the newest snapshot was written {ahead:.0f} s in the future of this machine's clock",
            "set the clock of this machine, or that of its writer",
            numbers={**numbers, "snapshot_ahead_seconds": ahead},
        )
    return Finding(found="this machine, the file system and the newest snapshot agree", numbers=numbers)
