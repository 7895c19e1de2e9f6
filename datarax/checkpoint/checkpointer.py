"""The writer of a run: saves, retention, rollback, and restores that later saves continue from.

The background of a save is in `datarax.checkpoint.saver`, the checks of a restore in `datarax.checkpoint.restore`; here is
what holds them together: the lock, the order of steps, the history. Knows nothing of loaders, batches and signals.

With many processes each has a `Checkpointer` of the same run and calls the same methods in the same order. They agree before
anything is done; process 0 holds the lock and writes what is written once; what one of them cannot do, none does.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from datarax.checkpoint.compose import Modules, named_modules
from datarax.checkpoint.file_stamps import FileStamps, newest_file_stamps, record_file_stamps
from datarax.checkpoint.layout import MOST_STEP, RunLayout, local_directory, refuse_wildcards
from datarax.checkpoint.lock import RunLock
from datarax.checkpoint.orbax import TEMPORARY_SUFFIX
from datarax.checkpoint.policy import ChangePolicy
from datarax.checkpoint.protocols import KeepsStepDigests, Stateful
from datarax.checkpoint.recorder import Fixed, Recorder
from datarax.checkpoint.restore import Restored, restore_snapshot
from datarax.checkpoint.retention import clean_up, set_aside
from datarax.checkpoint.save_config import SaveConfig
from datarax.checkpoint.save_pace import SavePace
from datarax.checkpoint.saver import SaveJob, Saver, reason
from datarax.checkpoint.snapshot import Snapshot, newest_good_step
from datarax.core.errors import ConfigError, DataraxError, Difference, InputError, PeerError, SaveError
from datarax.core.tree import EncodingError
from datarax.multihost import Processes, check_agreement, current

_SHARED_SECONDS = 20.0


class Checkpointer:
    """Snapshots of model and data in one run directory, one commit per step.

    Use it as a context manager: entering takes the run's lock and removes what killed writers left; leaving waits for
    the save in progress. Reading (`steps`, `latest_step`, `newest_good_step`, `restore`) works outside as well.

    Args:
        directory: the run; a local path, relative or absolute.
        config: when to save and what to keep.
        identity: identity tree of each data module by name; by default what the modules themselves say.
        config_text: the fully resolved run config (TOML), stored once and named by each snapshot.
        allow_changed: fields of the identity that a restore lets differ: paths, each with all below it.
        warn_changed: likewise, and a restore at which one differs leaves a warning in `notes`.
        provenance: what is recorded of this start: versions, devices.
        processes: those of the run; by default what `datarax.multihost.current` says.

    Attributes:
        config: the settings.
        notes: sentences that a person should see, oldest first; whoever shows them may clear the list.
        skipped_directories: numbered directories without a manifest, found on entering; they never were steps.

    Raises:
        ConfigError: if the directory is not a local path or has a wildcard in it, the identity has no canonical JSON, or a
            field is in both lists.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        config: SaveConfig | None = None,
        identity: Mapping[str, Any] | None = None,
        config_text: str | None = None,
        allow_changed: Sequence[str] = (),
        warn_changed: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config = config or SaveConfig()
        if config is not None and not isinstance(config, SaveConfig):
            raise ConfigError(f"config must be a SaveConfig, not a {type(config).__name__}")
        self.notes: list[str] = []
        self.skipped_directories: list[str] = []
        self._layout = RunLayout(local_directory(directory))
        refuse_wildcards(self._layout.directory)
        self._recorder = Recorder(self._layout, identity, config_text, self.notes)
        self._policy = ChangePolicy(accepted=allow_changed, warned=warn_changed)
        self._provenance = provenance
        self._processes = processes or current()
        self._pace = SavePace(self.config, self._processes)
        self._start: int | None = None
        self._lock: RunLock | None = None
        self._saver: Saver | None = None
        self._latest: int | None = None
        self._continues_from: int | None = None
        self._failures: list[DataraxError] = []
        self._committed: list[int] = []

    @property
    def directory(self) -> str:
        """Absolute path of the run."""
        return str(self._layout.directory)

    @property
    def start(self) -> int:
        """Number of this start of the run, 1 for the first."""
        self._opened("start")
        assert self._start is not None
        return self._start

    def __enter__(self) -> Checkpointer:
        if self._saver is not None:
            raise InputError(f"this Checkpointer of {self.directory} has been entered already")
        layout = self._layout
        about = f"opening the run {layout.directory}"
        try:
            opened = self._processes.exchange("open", self._open, self._agree_to_open, about=about)
            self._start = opened["start"]
            self._processes.exchange("shared", self._check_shared, lambda parts: None, about=about)
            self._saver = Saver(layout, self.config, self._lock, self._processes)
        except BaseException:
            self._release()
            raise
        committed = opened["committed"]
        self._latest = committed[-1] if committed else None
        self.skipped_directories = [str(step) for step in opened["numbered"] if step not in committed]
        for name in self.skipped_directories:
            self.notes.append(
                f"{layout.directory / name} has no manifest: it never was a snapshot and is skipped"
            )
        if self._latest is None and self._recorder.identity is not None:
            self.notes += self._policy.unknown_fields(self._recorder.identity)
        self._pace.begun(self._latest)
        return self

    def _open(self) -> dict[str, Any]:
        """What this process does to open the run, and what it says of itself: process 0 takes the lock."""
        facts = {
            **self._recorder.facts(),
            "the changes that are allowed": list(self._policy.accepted),
            "the changes that are warned of": list(self._policy.warned),
            "the save settings": dataclasses.asdict(self.config),
        }
        if not self._processes.first:
            return {"facts": facts}
        layout = self._layout
        try:
            layout.store.make()
            self._lock = RunLock(layout, self._provenance)
            self.notes += clean_up(layout, TEMPORARY_SUFFIX, start=self._lock.start)
            self._recorder.store_texts()
        except OSError as error:
            if isinstance(error, DataraxError):
                raise
            raise InputError(
                f"the run directory {layout.directory} cannot be used: {reason(error)}"
            ) from error
        return {
            "facts": facts,
            "start": self._lock.start,
            "committed": layout.committed(),
            "numbered": layout.numbered(),
        }

    def _agree_to_open(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        check_agreement([part["facts"] for part in parts], f"opening the run {self._layout.directory}")
        return parts[0]

    def _check_shared(self) -> None:
        """Whether this process sees in its directory what process 0 has just written there."""
        mark = f"starts/{self._start}.json"
        deadline = time.monotonic() + _SHARED_SECONDS  # a network file system may take a moment
        while self._layout.store.stat(mark) is None:
            if time.monotonic() > deadline:
                raise InputError(
                    f"the run directory {self._layout.directory} is another one here than on process 0, whose "
                    f"{self._start}.json in starts/ is not to be seen; all processes need one shared directory"
                )
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DataraxError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # the error on its way out matters more

    def close(self) -> None:
        """Wait for the save in progress and let the next writer in. Closing twice is allowed.

        Raises:
            SaveError: if a save failed and that has not been reported yet.
        """
        if self._processes.broken:
            return  # a save in progress waits for processes that do not come; this one ends, and with it the lock
        if self._saver is not None:
            self._settle(wait=True)
        self._release()
        self._raise_failure()

    def should_save(self, step: int) -> bool:
        """Whether a save of `step` is due by `SaveConfig.every_steps` or `every_seconds`.

        Never for a step that is not newer than all committed and pending ones. With many processes ask after each step.
        """
        self._opened("should_save")
        newest = self._newest()
        return (newest is None or step > newest) and self._pace.is_due(step)

    def agreed_to_stop(self) -> bool:
        """Whether the processes have agreed to save now and stop, after one of them was told to (SIGTERM).

        With many processes all must ask after each step, and equally often before the first. Always False for one alone, whose
        signals belong to its session.
        """
        return self._opened("agreed_to_stop").agreed_to_stop()

    def asks_others(self, step: int) -> bool:
        """Whether `should_save` of `step` will wait for the other processes: finish what keeps them busy before."""
        return self._pace.asks_others(step)

    def save(self, step: int, *, model: Any = None, data: Stateful | Modules | None = None) -> None:
        """Begin to save; what is on the disk later is what `model` and `data` were at this call.

        The save goes on in the background; `poll` says when it is committed. A save in progress is waited for first. If an
        earlier save has failed and that has not been reported yet, this save begins and then the failure is raised.

        Args:
            step: number of steps done; greater than every committed and pending step.
            model: a PyTree or `nnx.State` of arrays, PRNG keys, Python numbers and None.
            data: one module, recorded as `train`, or a mapping name -> module.

        Raises:
            InputError: outside the `with` block; if `step` is not a new step; if nothing is given; if the run has
                snapshots that this save would not continue; if a model leaf or a state cannot be stored exactly.
            SaveError: if the record would be too large, this save cannot begin, or an earlier one has failed.
            RunLockedError: if a later start has taken over the run.
            DisagreementError: if the processes are not about to save the same.
            PeerError: if another process cannot begin.
            PeerLostError: if another process does not come.
        """
        saver = self._opened("save")
        self._settle(wait=True)
        job = self._prepared(step, model, data)
        self._pace.begun(step)
        saver.start(job)
        self._raise_failure()

    def poll(self) -> list[int]:
        """Look after the save in progress without waiting.

        With many processes a failure is raised by the next `save` or `wait`, at the same step for all.

        Returns:
            The steps committed since the last `poll` or `wait`.

        Raises:
            SaveError: if a save has failed; once for each. The failed step is not listed by `steps`, and it or a later
                one can be saved again.
            RunLockedError: if a later start has taken over the run.
        """
        return self._ended("poll", wait=False)

    def wait(self) -> list[int]:
        """Wait for the save in progress; otherwise like `poll`."""
        return self._ended("wait", wait=True)

    def _ended(self, what: str, *, wait: bool) -> list[int]:
        self._opened(what)
        self._settle(wait=wait)
        if wait or self._processes.count == 1:
            self._raise_failure()
        committed, self._committed = self._committed, []
        return committed

    def restore(
        self, step: int | None = None, *, model: Any = None, data: Stateful | Modules | None = None
    ) -> Restored:
        """Restore from a committed step, all or nothing; later saves continue from there.

        Args:
            step: which step; by default the newest committed one. There is no fall-back to an older one.
            model: template of the model, or None to leave the model alone.
            data: one module, recorded as `train`, or all recorded modules by name; None to leave the data alone.

        Raises:
            SnapshotNotFoundError: if there is no such committed step.
            SnapshotDamagedError: if it is not as it was written; names the files and the newest good step.
            MismatchError: if it does not belong to this identity, these modules or this model, naming every field.
        """
        if self._saver is not None:
            self._settle(wait=True)
        found: list[Snapshot] = []

        def look() -> int:
            found.append(Snapshot.open(self._layout.directory, step))
            return found[0].step

        def same(steps: Sequence[int]) -> None:
            check_agreement([{"the step": each} for each in steps], f"restoring from {self.directory}")

        self._processes.exchange("restore_open", look, same, about=f"restoring from {self.directory}")
        restored = restore_snapshot(
            found[0],
            model=model,
            data=data,
            identity=self._recorder.identity,
            policy=self._policy,
            processes=self._processes,
            timeout_seconds=self.config.timeout_seconds,
        )
        self.notes += [*map(_warning, restored.identity_warned), *restored.unknown_fields]
        if restored.unseen:
            self.notes.append(
                f"warning: snapshot {restored.step} was identified by earlier rules, which did not see "
                f"{', '.join(restored.unseen)}: whether these are what they were is not known; from now on they count"
            )
        self._continues_from = restored.step
        self._recorder.continue_from(restored, {} if data is None else named_modules(data))
        return restored

    def file_stamps(self) -> FileStamps | None:
        """What an earlier start has recorded of the data files; None if none has."""
        return newest_file_stamps(self._layout)

    def record_file_stamps(self, sources: Mapping[str, Any]) -> None:
        """Keep with this start what the data files look like that were opened so far; process 0 does.

        Args:
            sources: name of each source -> its stamp, with canonical JSON.
        """
        if not self._processes.first:
            return
        try:
            record_file_stamps(self._layout, self.start, sources)
        except OSError as error:
            # Then the next start compares with an older stamp, and looks at more than it would have to.
            self.notes.append(f"the state of the data files was not recorded: {reason(error)}")

    def steps(self) -> list[int]:
        """All committed steps, ascending."""
        return self._layout.committed()

    def latest_step(self) -> int | None:
        """The newest committed step, or None.

        Raises:
            RunLostError: on a process that writes to the run, if something else lies in its place.
        """
        try:
            committed = self._layout.committed()
        except InputError:
            if self._lock is not None:
                self._lock.superseded_by()
            raise
        return committed[-1] if committed else None

    def newest_good_step(self, *, below: int | None = None) -> int | None:
        """The newest committed step whose files are all as they were written; reads them all. None if there is none.

        Args:
            below: look only at steps smaller than this.
        """
        return newest_good_step(self._layout.directory, below=below)

    def set_aside_after(self, step: int | None) -> list[int]:
        """Move all steps newer than `step` (None: all steps) out of the run, so that they can be saved again.

        They lie in `set_aside/<number>/` with what the ledger held after `step`; nothing is deleted.

        Returns:
            The committed steps that were moved, ascending.

        Raises:
            SnapshotNotFoundError: if `step` is not a committed step.
            SaveError: if a move fails.
        """
        saver = self._opened("set_aside_after")
        self._settle(wait=True)

        def move() -> list[int]:
            return self._move_after(step) if self._processes.first else []

        about = f"going back to step {step}"
        moved = self._processes.exchange("set_aside", move, lambda parts: parts[0], about=about)
        saver.reload()
        self._latest = step
        if step is None:
            self._continues_from = None
            self._recorder.begin_anew()
        return moved

    def _move_after(self, step: int | None) -> list[int]:
        layout = self._layout
        if step is not None:
            Snapshot.open(layout.directory, step)
        newer = [s for s in layout.numbered() if step is None or s > step]
        moved = [s for s in layout.committed() if s in newer]
        ledger = [s for s in layout.numbered("ledger") if step is None or s > step]
        keys = [*(str(s) for s in reversed(newer)), *(f"ledger/{s}" for s in reversed(ledger))]
        try:
            set_aside(layout, keys, start=self.start, reason=f"rolled back to step {step}")
        except OSError as error:
            raise SaveError(f"the steps after {step} could not be set aside: {reason(error)}") from error
        return moved

    def _opened(self, what: str) -> Saver:
        if self._saver is None:
            raise InputError(
                f"{what} was called outside the `with` block of the Checkpointer of {self.directory}; a save begun there could "
                "be lost at exit. Write `with Checkpointer(...) as checkpointer:` around the training loop"
            )
        return self._saver

    def _release(self) -> None:
        saver, self._saver = self._saver, None
        lock, self._lock = self._lock, None
        try:
            if saver is not None:
                saver.close()
        except Exception:
            if lock is not None:
                lock.release()
            raise
        # After an interrupt the save may still be going on: then the lock stays until the process ends.
        if lock is not None:
            lock.release()

    def _settle(self, *, wait: bool) -> None:
        assert self._saver is not None
        job = self._saver.take(wait=wait)
        if job is None:
            return
        self.notes += job.notes
        if job.error is not None:
            self._failures.append(job.error)
            return
        self._latest = self._continues_from = job.step
        self._committed.append(job.step)
        for module in job.listeners:
            module.committed(job.step)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    def _newest(self) -> int | None:
        pending = None if self._saver is None else self._saver.pending_step
        return self._latest if pending is None else pending

    def _check_step(self, step: int) -> None:
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MOST_STEP:
            raise InputError(f"a step must be an int of at least 0 and below 2**63, not {step!r}")
        if self._latest is not None and step <= self._latest:
            raise InputError(
                f"step {step} cannot be saved in {self.directory}: step {self._latest} is committed. To go back, restore an "
                "older step and call set_aside_after with it"
            )
        if self._latest != self._continues_from:
            raise InputError(
                f"{self.directory} has snapshots up to step {self._latest}, and saving step {step} would not continue them "
                f"(this process continues from {self._continues_from}): restore step {self._latest}, or call set_aside_after"
            )

    def _prepared(self, step: int, model: Any, data: Stateful | Modules | None) -> SaveJob:
        """What each process holds, fixed; on process 0 the data item of all."""
        fixed: list[Fixed] = []
        files: list[Mapping[str, bytes]] = []
        modules = {} if data is None else named_modules(data)

        def fix() -> Mapping[str, Any]:
            self._check_step(step)
            if model is None and data is None:
                raise InputError(
                    f"save of step {step} was given neither a model nor data; pass model=, data= or both"
                )
            try:
                process = None if self._processes.count == 1 else self._processes.index
                fixed.append(self._recorder.fix(step, model, modules, process=process))
            except EncodingError as error:
                raise InputError(f"the snapshot of step {step} cannot be made: {error}") from error
            return fixed[0].part

        def merge(parts: Sequence[Mapping[str, Any]]) -> bool:
            try:
                own, previous = fixed[0], self._latest
                if self._lock is not None:
                    self._lock.superseded_by()  # before anything is made in what may be another directory by now
                if previous is not None and not self._layout.is_committed(previous):
                    self.notes.append(
                        f"{self._layout.step(previous)} was committed and is gone: it was deleted, moved or replaced. The run "
                        "goes on; it cannot go back there, and its steps since the snapshot before cannot be verified"
                    )
                files.append(
                    self._recorder.files(modules, own, parts, step=step, previous=previous, start=self.start)
                )
                return self._make_room(step)
            except EncodingError as error:
                raise InputError(f"the snapshot of step {step} cannot be made: {error}") from error
            except OSError as error:
                if isinstance(error, DataraxError):
                    raise
                raise self._cannot_save(step, reason(error)) from error

        try:
            moved = self._processes.exchange("save", fix, merge, about=f"the save of step {step}")
        except PeerError as error:
            if error.exit_code != SaveError.exit_code:
                raise
            raise self._cannot_save(step, str(error)) from error
        finally:
            for each in fixed:
                each.remove_file()
        if moved:
            self._opened("save").reload()  # Orbax took it for a step
        return SaveJob(
            step=step,
            files=files[0] if files else None,
            model=fixed[0].arrays or None,
            leaves=fixed[0].leaves,
            listeners=[module for module in modules.values() if isinstance(module, KeepsStepDigests)],
        )

    def _cannot_save(self, step: int, why: str) -> SaveError:
        return SaveError(f"the snapshot of step {step} cannot be saved in {self.directory}: {why}")

    def _make_room(self, step: int) -> bool:
        """Move a numbered directory that never was a step out of the way of one that will be; whether there was one."""
        store = self._layout.store
        if store.stat(str(step)) is None:
            return False
        place = set_aside(self._layout, [str(step)], start=self.start, reason="it had no manifest")
        self.notes.append(
            f"{store.path(str(step))} had no manifest and stood in the way of a save; it is now in {store.path(place)}"
        )
        return True


def _warning(difference: Difference) -> str:
    return f"WARNING: the identity has changed and resume.warn_changed accepts it: {difference}"
