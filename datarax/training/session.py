"""Restore -> loop -> save -> leave: the only place where loader and checkpoints meet.

A snapshot of step s is taken after step s and holds exactly the batches up to s. Signals are noted and acted on between
two steps; a failed save is shown, tried again at the next due step, and ends the run after too many. Read next: `resume.py`,
where a run goes on; `metrics.py`, how far the loop is ahead of the device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import jax

from datarax.checkpoint import (
    Checkpointer,
    Restored,
    SaveConfig,
    describe_model,
)
from datarax.checkpoint.protocols import BatchStream, ShowsImpurities, is_addressable
from datarax.core.errors import (
    ConfigError,
    InputError,
    MismatchError,
    SaveError,
    exits_are_errors,
    tell_where,
)
from datarax.multihost import Processes, agree_on_slots, current
from datarax.multihost.peers import Peers, deadline
from datarax.multihost.signals import StopSignals
from datarax.training.metrics import STEPS_AHEAD, MetricsAhead, NonFiniteError
from datarax.training.moved_files import FileWatch
from datarax.training.progress import LogConfig, RunProgress
from datarax.training.provenance import provenance
from datarax.training.recorded import LOADER_NAME, check_position
from datarax.training.resume import ResumeConfig, newest_step, restore_or_go_back, total_steps, what_stays
from datarax.training.task import Iterate, Task, check_state, shared_state, state_and_metrics
from datarax.training.unlisted_files import check_unlisted_files


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done, over all starts."""
    complete: bool
    """Whether that is all of them; False after a signal."""
    state: Any = field(repr=False)
    """The task's state after `step` steps; None if a signal came before it was made."""
    ran: int = 0
    """Steps done by this start."""


_AFTER_NONFINITE = (
    "it will come to the same as long as task, data and config are the same. A state may be ruined before a metric shows it: "
    "`datarax verify RUN --require-finite` looks into the snapshots, and --step goes back to an earlier one"
)


class _DataEndedError(InputError):
    """A stream that did not know its end came to it before the run did."""


class TrainingSession:
    """One training run in one directory: run it again and it continues exactly.

    Args:
        directory: the run's directory, a local path; made if missing.
        loader: where batches come from, a `DataLoader` or another `BatchStream`. The session advances it and snapshots it;
            with a task it has a `DataLoader` digest bytes too, where the config leaves that open.
        task: what to train; None only takes the batches.
        parameters: handed to `task.init` as they are.
        steps: steps of the whole run; None: as many as the loader has.
        mesh: handed to `task.init`; default: all devices on one axis named "data".
        processes: those of the run, by default what `datarax.multihost.current` says. All run the same session; process 0
            prints and writes what is written once.
        save: when to save, what to keep.
        resume: which changes are accepted.
        log: how often to report.
        on_nonfinite: what a metric that is inf or NaN means: "warn" says so once by name, with the step; "stop" ends the run.
        config_text: the resolved config (TOML) to keep with the run, so that it can be verified on its own.
        stream: where progress is printed; "stderr" is the standard error of the moment, None prints nothing.

    Attributes:
        task_failed: whether `run` was ended by an exception of the task's own code.

    Raises:
        ConfigError: if neither `steps` nor the loader says when the run ends, or `on_nonfinite` is something else.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        loader: BatchStream,
        task: Task | None = None,
        parameters: Mapping[str, Any] | None = None,
        steps: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        save: SaveConfig | None = None,
        resume: ResumeConfig | None = None,
        log: LogConfig | None = None,
        on_nonfinite: Literal["warn", "stop"] = "warn",
        config_text: str | None = None,
        stream: TextIO | Literal["stderr"] | None = "stderr",
        processes: Processes | None = None,
    ) -> None:
        self._directory = directory
        self._loader = loader
        self._task = task if task is not None else Iterate()
        self._parameters = dict(parameters or {})
        self._steps = steps
        self._mesh = mesh
        self._processes = processes or current()
        self._save_config = save or SaveConfig()
        self._resume = resume or ResumeConfig()
        self._log = log or LogConfig()
        self._config_text = config_text
        self._stream = stream
        self._total = self._total_steps()
        if on_nonfinite not in ("warn", "stop"):
            raise ConfigError(f"run.on_nonfinite must be one of 'warn', 'stop', got {on_nonfinite!r}")
        self._on_nonfinite = on_nonfinite
        self.task_failed = False

    def run(self, *, from_step: int | None = None) -> Outcome:
        """Runs to the last step, or until a signal.

        While this runs the signals of `save.signals` are taken, each unless it is ignored or has a handler of yours.

        Args:
            from_step: go back to this step instead of the newest; the newer ones are set aside.

        Raises:
            MismatchError: the newest snapshot does not belong to this loader or task, or data files were rewritten since an
                earlier start and are not what their manifest says; nothing was changed.
            SnapshotNotFoundError: there is no snapshot of `from_step`.
            SnapshotDamagedError: the snapshot to continue from fails its checks.
            ConfigError: the run has more steps already than it is to have.
            InputError: the run starts at step 0, but the loader has handed over batches before; or files lie beside the data
                that its manifest does not list.
            RunLockedError: another process is writing to the directory.
            SaveError: saving failed `save.max_failures` times in a row.
            PeerError: something failed on some of many processes; all raise this.
            DisagreementError: the processes do not hold the same; all raise this.
            NonFiniteError: a metric is inf or NaN, and `on_nonfinite` is "stop"; no snapshot of that step was begun.
            Exception: what the task or a read raised; the newest snapshot stays what it is.
        """
        stream = sys.stderr if self._stream == "stderr" else self._stream
        peers = Peers(self._processes, lambda: newest_step(self._directory))
        signals = StopSignals(self._save_config.signals, many=self._processes.count > 1)
        progress = RunProgress(
            every_seconds=self._log.every_seconds, stream=stream if self._processes.first else None
        )
        try:
            with signals, peers.listening(), exits_are_errors(), progress:
                return self._run(from_step, signals, peers, progress)
        except Exception as error:
            if self.task_failed or isinstance(error, (_DataEndedError, NonFiniteError)):
                error.add_note(what_stays(self._directory))
            if isinstance(error, NonFiniteError):
                error.add_note(_AFTER_NONFINITE)
            raise

    def _run(
        self, from_step: int | None, signals: StopSignals, peers: Peers, progress: RunProgress
    ) -> Outcome:
        self._progress = progress
        self._save_failures = 0
        self.task_failed = False
        if signals.foreign:
            names = " and ".join(signals.foreign)
            progress.say(
                f"warning: {names} has a handler already, which stays: this run will not save and stop on it"
            )
        watch = None
        if is_addressable(self._loader):
            check_unlisted_files(self._loader.source, self._directory, self._processes, progress.say)
            if self._resume.check_moved_files:
                watch = FileWatch(self._loader.source, self._directory, progress.say)
        self._checkpointer = checkpointer = Checkpointer(
            self._directory,
            config=self._save_config,
            identity={LOADER_NAME: self._loader.identity()},
            config_text=self._config_text,
            allow_changed=self._resume.allow_changed,
            warn_changed=self._resume.warn_changed,
            provenance=provenance(self._processes.count),
            processes=self._processes,
        )
        if is_addressable(self._loader) and not isinstance(self._task, Iterate):
            self._loader.keep_byte_digests()
        # A failure is told to the others before the checkpointer waits for its save, which needs them.
        with checkpointer, peers.ending():
            if is_addressable(self._loader):
                agree_on_slots(self._processes, self._loader.slots, self._loader.timeline.last.batch_size)
            if checkpointer.agreed_to_stop():
                progress.say(f"stopped by {signals.name}; nothing was running yet, run again to continue")
                return Outcome(checkpointer.latest_step() or 0, False, None)
            start, state = self._start(from_step)
            progress.begin(
                Path(self._directory) / "metrics.jsonl" if self._processes.first else None,
                start=start,
                total=self._total,
                metrics=self._loader.metrics,
            )
            outcome = self._loop(start, state, signals, peers)
            if watch is not None and watch.stamps():
                checkpointer.record_file_stamps(watch.stamps())
            return outcome

    # Restore.

    def _start(self, from_step: int | None) -> tuple[int, Any]:
        """After which step to go on, and with which state."""
        state = self._initial_state()
        self._leaves = describe_model(state)
        # Process 0 says: what a shared file system shows may lag behind on the others.
        latest = self._processes.exchange("newest", self._checkpointer.latest_step, lambda parts: parts[0])
        step = from_step if from_step is not None else latest
        self._check_memory(new=step is None)
        if step is None:
            delivered = self._loader.idx.get_value()
            if delivered:
                raise InputError(
                    f"the run in {self._directory} starts at step 0, but its loader has handed over {delivered} batches "
                    f"already, which would never be trained on; give a loader at its beginning, such as loader.copy()"
                )
            return 0, state
        restored = restore_or_go_back(
            self._checkpointer,
            step,
            model=state,
            data={LOADER_NAME: self._loader},
            go_back=from_step is None and self._resume.on_damage == "previous",
            say=self._progress.say,
        )
        self._check_fits(restored)
        if latest != restored.step:
            moved = self._checkpointer.set_aside_after(restored.step)
            if moved:
                self._progress.say(f"set aside, not deleted: snapshots {', '.join(map(str, moved))}")
        if restored.step < self._total:
            self._progress.say(f"continuing after step {restored.step} of {self._total}")
        return restored.step, restored.model

    def _initial_state(self) -> Any:
        mesh = self._mesh
        if mesh is None:
            mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        with self._blaming_task("init"):
            state = self._task.init(self._parameters, mesh)
        # One host may compile far longer than another.
        return shared_state(state, mesh, self._processes, self._save_config.timeout_seconds)

    def _check_memory(self, *, new: bool) -> None:
        """Whether functions keep something between their calls: a new run may not, and one that goes on says so."""
        found = self._loader.impurities() if isinstance(self._loader, ShowsImpurities) else ()
        if not found:
            return
        text = (
            "what these functions give depends on what they gave before, so no resume can make it again: "
            f"{'; '.join(found)}. Draw from the row's own seed (random_map_records, random_map_batch) and write to nothing "
            f"outside; or declare it (impure = true), if batches may be others after a resume"
        )
        if new:
            raise ConfigError(text)
        self._progress.say(f"warning: {text}")

    def _check_fits(self, restored: Restored) -> None:
        """Whether the loader is where the snapshot says, and the run has steps for it; nothing was moved yet."""
        delivered = self._loader.idx.get_value()
        if delivered != restored.step:
            raise MismatchError(
                f"snapshot {restored.step} holds a loader that had handed over {delivered} batches (idx); "
                f"a snapshot of step s must hold exactly s"
            )
        if is_addressable(self._loader):
            check_position(self._directory, restored)
        # Only now: where a batch size was changed on purpose, the steps that are left count from the change.
        self._total = self._total_steps()
        if restored.step > self._total:
            raise ConfigError(
                f"the run in {self._directory} has {restored.step} steps already, but is to have only {self._total} "
                f"(run.steps, or the end of loader.num_epochs); ask for more, go back with --step, "
                f"or use another run.directory"
            )

    def _total_steps(self) -> int:
        ends = "run.steps or loader.num_epochs" if is_addressable(self._loader) else "run.steps"
        return total_steps(self._steps, self._loader.num_steps, ends=ends)

    # Loop.

    def _loop(self, start: int, state: Any, signals: StopSignals, peers: Peers) -> Outcome:
        """One step after the other, to the last one or to a signal; what is saved after step s holds the batches up to s."""
        checkpointer, progress = self._checkpointer, self._progress
        many = self._processes.count > 1
        ahead = MetricsAhead(stop=self._on_nonfinite == "stop", say=progress.say)
        step = start
        stopping = self._asked_to_stop(signals, peers)
        self._goes_well(checkpointer.poll)
        while step < self._total and not stopping:
            batch = self._next(step)
            with self._blaming_task(f"step, at step {step + 1}"):
                state, metrics = state_and_metrics(self._task.step(state, batch))
                ahead.wait(step + 1 - STEPS_AHEAD)
                if step == start:
                    check_state(self._leaves, state)
            step += 1
            ahead.handed_over(step, metrics)
            ahead.look(step - STEPS_AHEAD)
            # Read once: a signal that arrives from here on belongs to the next step.
            stopping = self._asked_to_stop(signals, peers)
            is_last = stopping or step == self._total
            if checkpointer.asks_others(step):
                jax.block_until_ready(metrics)  # the others wait for an answer only, not for the device
            if is_last or checkpointer.should_save(step):
                ahead.look(step)
                if many:
                    jax.block_until_ready(state)
                self._save(step, state, insist=is_last, in_time=stopping and many)
            self._goes_well(checkpointer.poll)
            progress.step(step, metrics, last=is_last)
        if step < self._total:
            progress.say(f"stopped by {signals.name} after step {step}; run again to continue exactly here")
        return Outcome(step, step == self._total, state, step - start)

    def _next(self, step: int) -> Any:
        try:
            return next(self._loader)
        except StopIteration:  # of a stream that did not know its end
            raise _DataEndedError(
                f"the data ended after {step} steps, but the run is to have {self._total}; set run.steps = {step}"
            ) from None

    def _asked_to_stop(self, signals: StopSignals, peers: Peers) -> bool:
        """Whether to save and stop here: by a signal to this process, or with many processes where all have agreed to."""
        if self._processes.count == 1:
            return signals.requested
        peers.warn_of_lost_notice()
        agreed = self._checkpointer.agreed_to_stop()
        if agreed:
            signals.leave_on_next()
        return agreed

    # Save.

    def _save(self, step: int, state: Any, *, insist: bool, in_time: bool) -> None:
        """Saves; with `insist` (there is no later step to try again) until it is committed or fails for good.

        `in_time`: after a SIGTERM the machine will be gone soon, and so must be this process.
        """
        checkpointer, seconds = self._checkpointer, self._save_config.preemption_seconds

        def save() -> Sequence[int]:
            if checkpointer.latest_step() != step:
                checkpointer.save(step, model=state, data={LOADER_NAME: self._loader})
            return checkpointer.wait() if insist else []

        def too_late() -> str:
            return (
                f"the save of step {step} was not committed within {seconds} seconds after SIGTERM "
                f"(save.preemption_seconds). {what_stays(self._directory)}"
            )

        with self._blaming_task(f"step, at step {step}"):
            check_state(self._leaves, state)
        with deadline(seconds if in_time else None, too_late):
            while True:
                # First what is still on its way: it may be this very step, begun as an earlier failure was raised.
                self._goes_well(checkpointer.wait)
                if self._goes_well(save) or not insist:
                    return

    def _goes_well(self, look_after: Callable[[], Sequence[int]]) -> bool:
        """Whether no save has failed, as far as can be seen; `look_after` returns the steps that are committed by now."""
        try:
            if look_after():
                self._save_failures = 0
                self._progress.snapshot_committed()
            return True
        except SaveError as error:
            self._save_failures += 1
            allowed = self._save_config.max_failures
            self._progress.say(f"save failed ({self._save_failures} of {allowed}): {error}")
            if self._save_failures >= allowed:
                raise
            return False
        finally:
            while self._checkpointer.notes:
                self._progress.say(self._checkpointer.notes.pop(0))

    def _blaming_task(self, where: str) -> contextlib.ExitStack:
        """Lets an exception of the task's own go on, with a note that says where it came from."""

        def blame(kind: Any, error: BaseException | None, trace: Any) -> None:
            if error is not None:
                self.task_failed = True
                tell_where(error, f"raised by the task's {where}")

        stack = contextlib.ExitStack()
        stack.push(blame)  # a generator with `yield` would take a StopIteration of the task for its own
        return stack
