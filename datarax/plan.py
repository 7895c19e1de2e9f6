"""What a config will do, before anything runs: lengths, steps, fit with an existing run, and which records are in which steps.

Reads no record and writes nothing. Where a run was changed on purpose, each step is answered by the recipe that made it
(`lineage.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from datarax.checkpoint import list_steps
from datarax.core.errors import InputError
from datarax.core.fingerprint import digest
from datarax.lineage import Lineage, trace
from datarax.loader import DataLoader
from datarax.order import Schedule, changed_algorithms
from datarax.run_config import RunConfig
from datarax.training import LOADER_NAME, total_steps


@dataclass(frozen=True)
class Row:
    """One row of one batch."""

    step: int
    """Counted from 0."""
    row: int
    """Slot of the global batch."""
    source: str | None
    """Name of the source; None for padding."""
    index: int
    """Record of that source; -1 for padding."""
    epoch: int
    """Pass over the source; -1 for padding."""


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
    rows_per_process: int
    """Rows of it that one process reads."""
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


def plan_run(config: RunConfig, loader: DataLoader) -> Plan:
    """What `config` will do; `loader` is its loader.

    Raises:
        ConfigError: if nothing says when the run ends.
        SnapshotDamagedError: if the newest snapshot of the existing run cannot be read.
        InputError: if an earlier config of the existing run was not kept, or its data cannot be opened.
    """
    with ExitStack() as opened:
        lineage = trace(config, loader, opened)
    schedule, records = loader.schedule, loader.order.num_records
    steps = total_steps(loader, config.run.steps)
    existing, mismatches, advice = _existing(config, lineage, steps)
    return Plan(
        directory=config.run.directory,
        records=records,
        batch_size=schedule.batch_size,
        rows_per_process=schedule.batch_size,
        steps_per_epoch=records / schedule.batch_size,
        steps=steps,
        epochs=_first_position(schedule, steps) / records,
        identity=digest({LOADER_NAME: loader.identity()}),
        warnings=[*loader.order.warnings(), *changed_algorithms(), *lineage.unknown_fields],
        existing_run=existing,
        mismatches=mismatches,
        advice=advice,
    )


def _existing(
    config: RunConfig, lineage: Lineage, steps: int
) -> tuple[ExistingRun | None, list[str], list[str]]:
    newest = lineage.newest_step
    if newest is None:
        return None, [], []
    mismatches, advice = [str(each) for each in lineage.refused], list(lineage.advice)
    if newest > steps:
        mismatches.append(f"steps: the run has {newest} already, the config asks for {steps}")
        advice.append(f"set run.steps to at least {newest}, or go back with datarax run --step")
    existing = ExistingRun(
        newest,
        list_steps(config.run.directory),
        [str(each) for each in lineage.allowed],
        [str(each) for each in lineage.warned],
    )
    return existing, mismatches, advice


def parse_interval(text: str, num_steps: int | None) -> range:
    """The steps that `A:B`, `A:`, `:B` or `A` names.

    Args:
        text: what the user wrote.
        num_steps: steps of the run; None if it is endless.

    Raises:
        InputError: if it names none, or some that the run does not have.
    """
    first, colon, last = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(last) if last else (num_steps if colon else start + 1)
    except ValueError:
        raise InputError(f"--steps needs A:B with whole numbers, got {text!r}") from None
    if stop is None:
        raise InputError(f"--steps {text} has no end, and neither has this run; give A:B")
    if start < 0 or stop <= start:
        raise InputError(f"--steps {text} holds no step: steps count from 0, and B must be above A")
    if num_steps is not None and stop > num_steps:
        raise InputError(f"--steps {text}: this run has only {num_steps} steps")
    return range(start, stop)


def parse_record(text: str, loader: DataLoader) -> tuple[str, int]:
    """Source and index that `SOURCE:INDEX` names.

    Raises:
        InputError: if it has another form. Whether there is such a record is for the order to say.
    """
    name, _, index = text.rpartition(":")
    if not name or not (index.isascii() and index.isdigit()):
        example = f"{loader.order.source_names[0]}:17"
        raise InputError(f"--find needs SOURCE:INDEX, for instance {example}; got {text!r}")
    return name, int(index)


def rows_of_steps(lineage: Lineage, steps: range) -> Iterator[Row]:
    """Every row of these steps, in order."""
    for step in steps:
        loader = next(stretch.loader for stretch in lineage.stretches if step in stretch)
        names = loader.order.source_names
        for slot, (source, index, epoch) in enumerate(loader.record_keys(step).rows()):
            yield Row(step, slot, names[source] if source >= 0 else None, index, epoch)


def find_record(lineage: Lineage, source: str, index: int, steps: int | None) -> Iterator[Row]:
    """Every row in which a record is delivered, in order.

    Args:
        lineage: of the run.
        source: name of the source.
        index: record of that source.
        steps: `run.steps`; None: as many as the loader has.

    Raises:
        InputError: if there is no such source or record.
        ConfigError: if nothing says when the run ends.
    """
    total = total_steps(lineage.last.loader, steps)
    for stretch in lineage.stretches:
        order, schedule = stretch.loader.order, stretch.loader.schedule
        end = total if stretch.end is None else min(stretch.end, total)
        first = _first_position(schedule, stretch.first_step)
        last = _first_position(schedule, end) - 1
        for epoch in range(first // order.num_records, last // order.num_records + 1):
            for position in order.positions(source, index, epoch):
                if first <= position <= last:
                    yield Row(*schedule.step_of(position), source, index, epoch)


def _first_position(schedule: Schedule, step: int) -> int:
    """The global row at which a step begins; the end of the run is the end of its rows."""
    position = schedule.base_position + (step - schedule.base_step) * schedule.batch_size
    return position if schedule.num_rows is None else min(position, schedule.num_rows)


__all__ = [
    "ExistingRun",
    "Plan",
    "Row",
    "find_record",
    "parse_interval",
    "parse_record",
    "plan_run",
    "rows_of_steps",
]
