"""What a config will do, before anything runs: lengths, steps, and fit with an existing run.

Reads no record and writes nothing. Which records are in which steps is for `audit/rows.py` to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datarax.audit.history import History, history_by_config
from datarax.checkpoint import list_steps
from datarax.checkpoint.layout import place_of
from datarax.core.errors import ConfigError
from datarax.core.tree import digest
from datarax.loader import DataLoader
from datarax.order import changed_algorithms
from datarax.run_config import MeshSection, RunConfig, mesh_sizes
from datarax.training import LOADER_NAME, total_steps
from datarax.training.unlisted_files import unlisted_note


@dataclass(frozen=True)
class ExistingRun:
    """What is in the run directory already."""

    newest_step: int
    """Its newest snapshot."""
    snapshots: list[int]
    """All its committed snapshots."""
    changes: list[str] = field(default_factory=list)
    """Differences from the config that `resume.allow_changed` or `resume.warn_changed` accepts."""
    warned: list[str] = field(default_factory=list)
    """Those of them that `resume.warn_changed` wants a person to see."""


@dataclass(frozen=True)
class Plan:
    """The answer of `plan_run`."""

    directory: str
    """Where the run lives."""
    records: int
    """Records of the source: one epoch."""
    batch_size: int
    """Rows of a global batch."""
    processes: int
    """Of how many processes."""
    rows_per_process: int
    """Rows of a global batch that one of them reads; the most, where some read fewer."""
    steps_per_epoch: float
    """Batches in one pass over the records."""
    steps: int
    """Steps of the whole run."""
    epochs: float
    """Passes over the records in the whole run."""
    identity: str
    """SHA-256 of the identity: the same for every config that delivers the same batches."""
    warnings: list[str]
    """What to know before starting."""
    existing_run: ExistingRun | None
    """The run that is there; None if there is none."""
    mismatches: list[str]
    """Why it would be refused; [] if it would not."""
    advice: list[str] = field(default_factory=list)
    """For each of `mismatches` the nearest thing to do; "" where that was said already."""


def plan_run(
    config: RunConfig, loader: DataLoader, *, processes: int = 1, devices: int | None = None
) -> Plan:
    """What `config` will do; `loader` is its loader.

    Args:
        config: the run.
        loader: its loader.
        processes: how many it will have.
        devices: of all of them together; by default as many as the mesh says, or one for each process.

    Raises:
        ConfigError: if nothing says when the run ends, or processes, devices, mesh and batch do not fit each other.
        SnapshotDamagedError: if the newest snapshot of the existing run cannot be read.
        InputError: if no run directory can be made there, the recorded recipe of an earlier step of the existing run cannot be
            computed, or a new run would be refused because files lie beside the data that its manifest does not list.
        MismatchError: if the records of the existing run contradict each other.
    """
    history = history_by_config(config, loader)
    schedule, records = loader.timeline.last, loader.order.num_records
    steps = total_steps(config.run.steps, history.available, ends="run.steps or loader.num_epochs")
    existing, mismatches, advice = _existing(config, history, steps)
    unlisted = unlisted_note(loader.source, new=existing is None)
    return Plan(
        directory=config.run.directory,
        records=records,
        batch_size=schedule.batch_size,
        processes=processes,
        rows_per_process=rows_per_process(config.mesh, schedule.batch_size, processes, devices),
        steps_per_epoch=records / schedule.batch_size,
        steps=steps,
        epochs=history.timeline.position_of(steps) / records,
        identity=digest({LOADER_NAME: loader.identity()}),
        warnings=[
            *loader.order.warnings(),
            *changed_algorithms(),
            *history.unknown_fields,
            *([unlisted] if unlisted else []),
            *loader.impurities(),
        ],
        existing_run=existing,
        mismatches=mismatches,
        advice=advice,
    )


def rows_per_process(
    section: MeshSection | None, batch_size: int, processes: int, devices: int | None = None
) -> int:
    """The rows that one of many processes holds of a batch, computed without their devices; see `plan_run`.

    Processes have equally many devices each, in the order of the mesh. What `multihost.slots_of` says of real ones is the same.
    """
    if processes < 1:
        raise ConfigError(f"there must be at least 1 process, got {processes}")
    if processes == 1 and devices is None:
        return batch_size
    section = section or MeshSection()
    sizes = list(section.axes.values())
    if devices is None:
        devices = processes if -1 in sizes else math.prod(sizes)
    if devices < 1 or devices % processes:
        raise ConfigError(f"{devices} devices are not {processes} processes with equally many devices each")
    axes = mesh_sizes(section, devices)
    device, stride, place = np.arange(devices), devices, {}
    for axis, size in axes.items():  # the slowest first
        stride //= size
        place[axis] = device // stride % size
    row_shard, shards = np.zeros(devices, np.int64), 1
    for axis in section.batch_axes:
        row_shard, shards = row_shard * axes[axis] + place[axis], shards * axes[axis]
    if batch_size % shards:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be split into {shards} row shards (mesh axes "
            f"{', '.join(section.batch_axes)}); `datarax doctor --devices {devices}` lists the numbers of devices that fit"
        )
    return batch_size // shards * max(len(np.unique(held)) for held in row_shard.reshape(processes, -1))


def _existing(
    config: RunConfig, history: History, steps: int
) -> tuple[ExistingRun | None, list[str], list[str]]:
    newest = history.newest_step
    if newest is None:
        place_of(Path(config.run.directory))
        return None, [], []
    mismatches, advice = [str(each) for each in history.refused], list(history.advice)
    if newest > steps:
        mismatches.append(f"steps: the run has {newest} already, the config asks for {steps}")
        advice.append(f"set run.steps to at least {newest}, or go back with datarax run --step")
    existing = ExistingRun(
        newest,
        list_steps(config.run.directory),
        [str(each) for each in history.allowed],
        [str(each) for each in history.warned],
    )
    return existing, mismatches, advice


__all__ = ["ExistingRun", "Plan", "plan_run", "rows_per_process"]
