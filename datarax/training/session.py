"""Restore -> loop -> save -> leave: the only place where loader and checkpoints meet.

A snapshot of step s is taken after step s and holds exactly the batches up to s. Signals are noted and acted on between
two steps; a failed save is shown, tried again at the next due step, and ends the run after too many.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import jax

from datarax.checkpoint import Checkpointer, Restored, SaveConfig
from datarax.core.errors import ConfigError, MismatchError, SaveError, SnapshotDamagedError
from datarax.loader import DataLoader
from datarax.signals import StopSignals
from datarax.training.progress import RunProgress
from datarax.training.provenance import provenance
from datarax.training.task import Iterate, Task

LOADER_NAME = "train"
"""Name of the training loader in a snapshot's record."""


@dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """How a run continues from what is in its directory."""

    allow_changed: Sequence[str] = ()
    """Identity fields (dotted, a prefix covers all below it) whose change is accepted and recorded in the history."""
    on_damage: Literal["stop", "previous"] = "stop"
    """When the newest snapshot fails its checks: stop and say so, or go back to the newest good one (unattended jobs)."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run reports."""

    every_seconds: float = 1.0
    """Time between two reports, in seconds."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done, over all starts."""
    complete: bool
    """Whether that is all of them; False after a signal."""
    state: Any = field(repr=False)
    """The task's state after `step` steps."""
    ran: int = 0
    """Steps done by this start."""


class TrainingSession:
    """One training run in one directory: run it again and it continues exactly.

    Args:
        directory: the run's directory, a local path; made if missing.
        loader: where batches come from. The session advances it and snapshots it.
        task: what to train; None only takes the batches.
        parameters: handed to `task.init` as they are.
        steps: steps of the whole run; None: as many as the loader has.
        mesh: handed to `task.init`; default: all devices on one axis named "data".
        save: when to save, what to keep.
        resume: which changes are accepted.
        log: how often to report.
        config_text: the resolved config (TOML) to keep with the run, so that it can be verified on its own.
        stream: where progress is printed; None prints nothing.

    Raises:
        ConfigError: if neither `steps` nor the loader says when the run ends.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        loader: DataLoader,
        task: Task | None = None,
        parameters: Mapping[str, Any] | None = None,
        steps: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        save: SaveConfig | None = None,
        resume: ResumeConfig | None = None,
        log: LogConfig | None = None,
        config_text: str | None = None,
        stream: TextIO | None = sys.stderr,
    ) -> None:
        self._directory = directory
        self._loader = loader
        self._task = task if task is not None else Iterate()
        self._parameters = dict(parameters or {})
        self._total = total_steps(loader, steps)
        self._mesh = mesh
        self._save_config = save or SaveConfig()
        self._resume = resume or ResumeConfig()
        self._log = log or LogConfig()
        self._config_text = config_text
        self._stream = stream
        self._save_failures = 0

    def run(self, *, from_step: int | None = None, signals: StopSignals | None = None) -> Outcome:
        """Runs to the last step, or until a signal.

        Args:
            from_step: go back to this step instead of the newest; the newer ones are set aside.
            signals: already installed signal handling; by default SIGTERM and SIGINT are taken while this runs.

        Raises:
            MismatchError: the newest snapshot does not belong to this loader or task; nothing was changed.
            SnapshotDamagedError: the snapshot to continue from fails its checks.
            RunLockedError: another process is writing to the directory.
            SaveError: saving failed `save.max_failures` times in a row.
            Exception: what the task or a read raised; the newest snapshot stays what it is.
        """
        if signals is None:
            with StopSignals() as own:
                return self.run(from_step=from_step, signals=own)
        signals.defer()
        with Checkpointer(
            self._directory,
            config=self._save_config,
            identity={LOADER_NAME: self._loader.identity()},
            config_text=self._config_text,
            allow_changed=self._resume.allow_changed,
            provenance=provenance(),
        ) as checkpointer:
            start, state = self._start(checkpointer, from_step)
            with RunProgress(
                Path(self._directory) / "metrics.jsonl",
                total=self._total,
                start=start,
                metrics=self._loader.metrics,
                every_seconds=self._log.every_seconds,
                stream=self._stream,
            ) as progress:
                return self._loop(checkpointer, progress, signals, start, state)

    # Restore.

    def _start(self, checkpointer: Checkpointer, from_step: int | None) -> tuple[int, Any]:
        mesh = self._mesh if self._mesh is not None else jax.make_mesh((jax.device_count(),), ("data",))
        state = self._task.init(self._parameters, mesh)
        step = from_step if from_step is not None else checkpointer.latest_step()
        if step is None:
            return 0, state
        restored = self._restore(checkpointer, step, state)
        if checkpointer.latest_step() != restored.step:
            moved = checkpointer.set_aside_after(restored.step)
            self._say(f"set aside, not deleted: snapshots {', '.join(map(str, moved))}")
        if self._loader.idx.get_value() != restored.step:
            raise MismatchError(
                f"snapshot {restored.step} holds a loader that had handed over "
                f"{self._loader.idx.get_value()} batches; a snapshot of step s must hold exactly s"
            )
        if restored.step > self._total:
            raise ConfigError(
                f"the run has {restored.step} steps already, but run.steps is {self._total}; raise it, "
                f"or go back with --step"
            )
        self._say(f"continuing after step {restored.step} of {self._total}")
        return restored.step, restored.model

    def _restore(self, checkpointer: Checkpointer, step: int, state: Any) -> Restored:
        try:
            return checkpointer.restore(step, model=state, data={LOADER_NAME: self._loader})
        except SnapshotDamagedError as error:
            if self._resume.on_damage != "previous" or error.newest_good_step is None:
                raise
            self._say(str(error))
            self._say(f"resume.on_damage = 'previous': going back to step {error.newest_good_step}")
            return checkpointer.restore(error.newest_good_step, model=state, data={LOADER_NAME: self._loader})

    # Loop.

    def _loop(
        self, checkpointer: Checkpointer, progress: RunProgress, signals: StopSignals, start: int, state: Any
    ) -> Outcome:
        step, stopping = start, signals.requested
        while step < self._total and not stopping:
            state, metrics = self._task.step(state, next(self._loader))
            step += 1
            # Read once: a signal that arrives from here on belongs to the next step.
            stopping = signals.requested
            insist = stopping or step == self._total
            if insist or checkpointer.should_save(step):
                self._save(checkpointer, progress, step, state, insist=insist)
            self._poll(checkpointer, progress)
            progress.step(step, metrics, last=insist)
        if step < self._total:
            self._say(f"stopped by {signals.name} after step {step}; run again to continue exactly here")
        return Outcome(step, step == self._total, state, step - start)

    # Save.

    def _save(
        self, checkpointer: Checkpointer, progress: RunProgress, step: int, state: Any, *, insist: bool
    ) -> None:
        """Saves; with `insist` (there is no later step to try again) until it is committed or fails for good."""
        while True:
            try:
                if checkpointer.latest_step() != step:
                    checkpointer.save(step, model=state, data={LOADER_NAME: self._loader})
                if insist:
                    self._committed(progress, checkpointer.wait())
                return
            except SaveError as error:
                self._save_failed(progress, error)
                if not insist:
                    return

    def _poll(self, checkpointer: Checkpointer, progress: RunProgress) -> None:
        try:
            self._committed(progress, checkpointer.poll())
        except SaveError as error:
            self._save_failed(progress, error)
        while checkpointer.notes:
            progress.say(checkpointer.notes.pop(0))

    def _committed(self, progress: RunProgress, steps: Sequence[int]) -> None:
        if steps:
            self._save_failures = 0
            progress.snapshot_committed()

    def _save_failed(self, progress: RunProgress, error: SaveError) -> None:
        self._save_failures += 1
        allowed = self._save_config.max_failures
        progress.say(f"save failed ({self._save_failures} of {allowed}): {error}")
        if self._save_failures >= allowed:
            raise error

    def _say(self, text: str) -> None:
        if self._stream is not None:
            print(text, file=self._stream, flush=True)


def total_steps(loader: DataLoader, steps: int | None) -> int:
    """Steps of the whole run: the smaller of what is asked for and what the loader has.

    Raises:
        ConfigError: if neither says, or the loader has fewer than asked for.
    """
    available = loader.schedule.num_steps
    if steps is None and available is None:
        raise ConfigError("nothing says when the run ends: set run.steps or loader.num_epochs")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"run.steps must be an integer of at least 1, got {steps!r}")
    if steps is None or (available is not None and available < steps):
        assert available is not None
        return available
    return steps


__all__ = [
    "LOADER_NAME",
    "LogConfig",
    "Outcome",
    "ResumeConfig",
    "TrainingSession",
    "total_steps",
]
