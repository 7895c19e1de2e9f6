"""Plain facts, for people and for tools that read JSON: what a config will do before anything runs, what is in a snapshot.

Reads no record of the data and writes nothing. Which records are in which steps is for `rows.py` to say.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from datarax.audit.history import history_by_config
from datarax.checkpoint import Snapshot, ledger_steps, list_steps
from datarax.checkpoint.layout import place_of
from datarax.core.errors import ConfigError
from datarax.core.tree import digest
from datarax.loader import DataLoader
from datarax.order import changed_algorithms
from datarax.run_config import MeshSection, RunConfig, mesh_sizes
from datarax.training import LOADER_NAME, total_steps
from datarax.training.unlisted_files import unlisted_note


def plan_run(
    config: RunConfig, loader: DataLoader, *, processes: int = 1, devices: int | None = None
) -> dict[str, Any]:
    """What `config` will do, as facts with JSON.

    `records` (of the source: one epoch), `batch_size` (rows of a global batch) and `rows_per_process` (those that one of the
    `processes` reads; the most, where some read fewer), `steps` and `epochs` of the whole run, `steps_per_epoch`, `identity`
    (the same for every config that delivers the same batches), `warnings`; of the run that is there `existing_run` (None if
    there is none), `mismatches` (why it would be refused) and, for each of them, `advice`.

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
    batch_size, records = loader.timeline.last.batch_size, loader.order.num_records
    steps = total_steps(config.run.steps, history.available, ends="run.steps or loader.num_epochs")
    newest, existing = history.newest_step, None
    mismatches, advice = [str(each) for each in history.refused], list(history.advice)
    if newest is None:
        place_of(Path(config.run.directory))
    else:
        existing = {
            "newest_step": newest,
            "snapshots": list_steps(config.run.directory),
            "changes": [str(each) for each in history.allowed],
            "warned": [str(each) for each in history.warned],
        }
        if newest > steps:
            mismatches.append(f"steps: the run has {newest} already, the config asks for {steps}")
            advice.append(f"set run.steps to at least {newest}, or go back with datarax run --step")
    unlisted = unlisted_note(loader.source, new=existing is None)
    unlisted_notes = [unlisted] if unlisted else []
    return {
        "directory": config.run.directory,
        "records": records,
        "batch_size": batch_size,
        "processes": processes,
        "rows_per_process": rows_per_process(config.mesh, batch_size, processes, devices),
        "steps_per_epoch": records / batch_size,
        "steps": steps,
        "epochs": history.timeline.position_of(steps) / records,
        "identity": digest({LOADER_NAME: loader.identity()}),
        "warnings": [
            *loader.order.warnings(),
            *loader.impurities(),
            *changed_algorithms(),
            *history.unknown_fields,
            *unlisted_notes,
        ],
        "existing_run": existing,
        "mismatches": mismatches,
        "advice": advice,
    }


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
    grid = np.indices(tuple(axes.values())).reshape(
        len(axes), devices
    )  # where each device is; the slowest axis first
    place = dict(zip(axes, grid, strict=True))
    sizes = [axes[axis] for axis in section.batch_axes]
    shards = math.prod(sizes)
    row_shard = np.zeros(devices, np.int64)
    for axis, size in zip(section.batch_axes, sizes, strict=True):
        row_shard = row_shard * size + place[axis]
    if batch_size % shards:
        raise ConfigError(
            f"a batch of {batch_size} rows cannot be split into {shards} row shards (mesh axes "
            f"{', '.join(section.batch_axes)}); `datarax doctor --devices {devices}` lists the numbers of devices that fit"
        )
    return batch_size // shards * max(len(np.unique(held)) for held in row_shard.reshape(processes, -1))


def inspect_run(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """The facts of a snapshot, by default the newest; `problems` names each file that is not as it was written.

    Of a damaged snapshot there are no facts beyond its problems.

    Raises:
        SnapshotNotFoundError: if there is no such committed step.
        SnapshotDamagedError: if not even its manifest can be read.
    """
    snapshot = Snapshot.open(directory, step)
    problems = snapshot.check()
    facts: dict[str, Any] = {
        "directory": str(snapshot.directory),
        "step": snapshot.step,
        "committed_steps": list_steps(directory),
        "ledger_steps": ledger_steps(directory),
        "problems": problems,
    }
    if problems:
        return facts
    record, parts = snapshot.record, snapshot.process_parts()
    loaders = {
        name: {
            # Of a module whose state is each process's own: that of each.
            "state": snapshot.state(name)
            if loader.scope == "global"
            else {f"process {index}": snapshot.state(name, int(index)) for index in parts},
            "digest": loader.digest,
        }
        for name, loader in record.loaders.items()
    }
    return {
        **facts,
        "identity": snapshot.identity,
        "identity_digest": record.identity,
        "start": record.start,
        "previous_step": record.previous,
        "history": [vars(entry) for entry in snapshot.history],
        "loaders": loaders,
        "model": {leaf.path: str(leaf) for leaf in snapshot.leaves or ()},
    }


__all__ = ["inspect_run", "plan_run", "rows_per_process"]
