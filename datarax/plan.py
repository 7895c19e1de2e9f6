"""What a config will do, before anything runs: lengths, steps, and fit with an existing run.

Reads no record and writes nothing. Which records are in which steps is for `audit/rows.py` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datarax.audit.history import History, history_by_config
from datarax.checkpoint import list_steps
from datarax.core.tree import digest
from datarax.loader import DataLoader
from datarax.order import changed_algorithms
from datarax.run_config import RunConfig
from datarax.training import LOADER_NAME, total_steps


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
        InputError: if the recorded recipe of an earlier step of the existing run cannot be computed.
        MismatchError: if the records of the existing run contradict each other.
    """
    history = history_by_config(config, loader)
    schedule, records = loader.timeline.last, loader.order.num_records
    steps = total_steps(config.run.steps, history.available, ends="run.steps or loader.num_epochs")
    existing, mismatches, advice = _existing(config, history, steps)
    return Plan(
        directory=config.run.directory,
        records=records,
        batch_size=schedule.batch_size,
        rows_per_process=schedule.batch_size,
        steps_per_epoch=records / schedule.batch_size,
        steps=steps,
        epochs=history.timeline.position_of(steps) / records,
        identity=digest({LOADER_NAME: loader.identity()}),
        warnings=[*loader.order.warnings(), *changed_algorithms(), *history.unknown_fields],
        existing_run=existing,
        mismatches=mismatches,
        advice=advice,
    )


def _existing(
    config: RunConfig, history: History, steps: int
) -> tuple[ExistingRun | None, list[str], list[str]]:
    newest = history.newest_step
    if newest is None:
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


__all__ = ["ExistingRun", "Plan", "plan_run"]
