"""This installation and its devices: can what the config names be imported, and which numbers of devices does it fit.

The rules of meshes are those of `run_config.mesh_sizes` and `multihost.fitting_row_shards`; this file only tries numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import jax

from datarax.core.errors import ConfigError
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, warning
from datarax.multihost import fitting_row_shards
from datarax.run_config import BaseRunConfig, MeshSection, RunConfig, build_mesh, mesh_sizes
from datarax.run_config.build import named_code
from datarax.training import load_task
from datarax.trust import load_attribute, only_in_working_directory

_MOST_DEVICES = 4096
_SHOWN = 16


def imports(rehearsal: Rehearsal) -> Finding:
    """Imports every name that the config calls by `use`, so that one that fails hides no other."""
    named, problems = named_code(rehearsal.config), []
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
    found = ", ".join(dict.fromkeys(use for _, use in named)) or "the config names no code"
    modules = {use.partition(":")[0].partition(".")[0] for _, use in named}
    here = sorted(filter(only_in_working_directory, modules))
    if here:
        return warning(
            f"{', '.join(here)} can be imported only because it lies in the working directory {os.getcwd()}",
            "install it, or start every process of the launch in this directory, on a disk that all of them see",
        )
    return Finding(found=found, numbers={"names": len(named)})


def fitting_devices(config: BaseRunConfig, batch_size: int | None) -> list[int]:
    """All numbers of devices, up to 4,096 or to what the axes fix, over which this mesh and batch can be laid.

    Args:
        config: the run.
        batch_size: rows to divide among them; None if batches stay as they are.
    """
    section = config.mesh or MeshSection()
    fixed = math.prod(size for size in section.axes.values() if size != -1)
    row_shards = None if batch_size is None else set(fitting_row_shards(batch_size))
    shards = {
        devices: _shards(section, devices) for devices in range(fixed, max(_MOST_DEVICES, fixed) + 1, fixed)
    }
    return [
        devices
        for devices, count in shards.items()
        if count is not None and (row_shards is None or count in row_shards)
    ]


def _shards(section: MeshSection, devices: int) -> int | None:
    """Row shards over this many devices; None if the axes do not fit them."""
    try:
        sizes = mesh_sizes(section, devices)
    except ConfigError:
        return None
    return math.prod(sizes[name] for name in section.batch_axes)


def mesh(rehearsal: Rehearsal) -> Finding:
    """Whether the config fits the devices that are here, or as many as the launch is said to have."""
    config, asked = rehearsal.config, rehearsal.num_devices
    # Of a Grain pipeline batches stay as they are, NumPy arrays of one process.
    batch_size = config.loader.batch_size if isinstance(config, RunConfig) else None
    fit, here = fitting_devices(config, batch_size), jax.device_count()
    section = config.mesh or MeshSection()
    shown = ", ".join(f"{name} = {size}" for name, size in section.axes.items()) or "no axes"
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
            f"launch on one of {listed(fit)} devices, or change mesh.axes",
            numbers=numbers,
        )
    if config.mesh is None and jax.local_device_count() == here and asked is None:
        none = (
            "its elements are NumPy arrays, on each process its own"
            if batch_size is None
            else f"one process gets NumPy batches, many one axis 'data' over {listed(fit)} devices"
        )
        return Finding(found=f"none: {none}", numbers=numbers)
    there = f"{here:,} device{'s' * (here > 1)}"
    if here in fit:
        return Finding(
            found=f"{shown}: fits the {there} here; {listed(fit)} would fit",
            numbers=numbers,
            value=build_mesh(config),
        )
    if asked is not None:
        return Finding(found=f"{shown}: fits {asked:,} devices; {listed(fit)} would fit", numbers=numbers)
    return warning(
        f"mesh.axes ({shown}){rows} do not fit {there} here",
        f"launch on one of {listed(fit)} devices; --devices N asks about a launch elsewhere",
        numbers=numbers,
    )


def processes(rehearsal: Rehearsal) -> Finding:
    """How many processes the run can have, each with as many devices as this one."""
    config, asked = rehearsal.config, rehearsal.num_devices
    each, fit = jax.local_device_count(), fitting_devices(config, config.loader.batch_size)
    counts = [devices // each for devices in fit if devices % each == 0]
    if config.mesh is None and 1 not in counts:
        counts = [1, *counts]  # one process needs no mesh
    of = f"processes of {each} device{'s' * (each > 1)} each, like this one"
    numbers = {"devices_each": each, "process_counts": counts}
    if not counts:
        advice = (
            ""
            if asked is None
            else f" (the launch has {asked:,} devices: see 'mesh' for whether they fit together)"
        )
        return warning(
            f"no number of {of}, fits{advice}",
            f"use processes whose devices together are {listed(fit)}",
            numbers=numbers,
        )
    return Finding(found=f"{listed(counts)} {of}", numbers=numbers)


def listed(counts: Sequence[int]) -> str:
    """The first of many numbers, and the largest."""
    if len(counts) <= _SHOWN:
        return ", ".join(map(str, counts))
    return f"{', '.join(map(str, counts[:_SHOWN]))}, … {counts[-1]}"
