"""One save at a time, in the background: start it, wait for it, know what became of it.

A step without model is given to Orbax on the background thread, so that it costs the caller no more than a hand-over; a step
with a model is given to Orbax on the caller's thread, because its arrays must be read before the caller changes them.
The background thread waits for the commit, makes it durable and applies retention. It takes over the exception of a
failed save, which Orbax would raise in place of the next save.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  its exit hook must be registered before ours
import contextlib
import errno
import functools
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from datarax.checkpoint.layout import DATA_ITEM, MANIFEST_NAME, MODEL_ITEM, RunLayout, sha256_hex
from datarax.checkpoint.lock import RunLock
from datarax.checkpoint.manifest import FileEntry, Manifest, seal_item
from datarax.checkpoint.model_item import LeafSpec
from datarax.checkpoint.orbax import PROCESS_PREFIX, OrbaxWriter, check_model_written
from datarax.checkpoint.protocols import KeepsStepDigests
from datarax.checkpoint.retention import drop, steps_to_drop, throw_away
from datarax.checkpoint.save_config import SaveConfig
from datarax.core.errors import (
    DataraxError,
    PeerError,
    PeerLostError,
    RunLockedError,
    RunLostError,
    SaveError,
)
from datarax.core.tree import canonical_json
from datarax.multihost import Processes
from datarax.store.files import parse_json

_RELOAD_EVERY = 256


@dataclass(eq=False)
class SaveJob:
    """One step on its way to the disk."""

    step: int
    """The step."""
    files: Mapping[str, bytes] | None
    """The data item; None where another process writes it."""
    model: Mapping[str, Any] | None = None
    """The stored leaves of the model, or None for a step without a model item."""
    leaves: Sequence[LeafSpec] | None = None
    """All leaves of the model, or None if no model was given."""
    listeners: Sequence[KeepsStepDigests] = ()
    """Modules to tell of the commit."""
    notes: list[str] = field(default_factory=list)
    """Sentences that a person should see."""
    error: DataraxError | None = None
    """Why it failed, or None."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when it has ended, well or not."""


class Saver:
    """The background of a `Checkpointer`.

    Args:
        layout: the run, which this process or process 0 has locked.
        config: what to keep and check.
        lock: the lock; its start number is compared before each commit. None on other processes than 0.
        processes: those of the run. All of them start the same saves; what is done once, process 0 does.
    """

    def __init__(
        self, layout: RunLayout, config: SaveConfig, lock: RunLock | None, processes: Processes
    ) -> None:
        self._layout = layout
        self._config = config
        self._lock = lock
        self._processes = processes
        self._job: SaveJob | None = None
        self._saved = 0
        self._writer = OrbaxWriter(
            layout,
            timeout_seconds=config.timeout_seconds,
            written=self._seal_own,
            before_commit=self._seal,
            processes=processes,
        )
        self.agreed_to_stop = self._writer.agreed_to_stop
        self.reload = self._writer.reload
        # One thread for all saves: to start one takes the caller a millisecond. It is a daemon, so that it cannot keep the
        # interpreter from exiting; the exit hook waits for its job instead.
        self._queue: queue.SimpleQueue[tuple[SaveJob, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="datarax-save", daemon=True)
        self._thread.start()

    @property
    def pending_step(self) -> int | None:
        """The step that is being saved or was not yet taken."""
        return None if self._job is None else self._job.step

    def start(self, job: SaveJob) -> None:
        """Begin a save; there must be none.

        Raises:
            SaveError: if it cannot even begin; then there is none.
        """
        assert self._job is None
        self._job = job
        _pending.add(self)
        begun = job.model is not None
        if begun:
            try:
                self._writer.start(job.step, job.files, job.model)
            except BaseException as error:
                self._writer.tell_failure(error)
                if not self._abandon(job):  # interrupted so late that Orbax committed it
                    self._queue.put((job, begun))
                if not isinstance(error, Exception):
                    raise
                raise self._save_error(job.step, error) from error
            job.model = None  # held by Orbax as long as it needs it
        self._queue.put((job, begun))

    def take(self, *, wait: bool) -> SaveJob | None:
        """The save that has ended, once; None if there is none or it goes on.

        Args:
            wait: wait for one that goes on.
        """
        job = self._job
        if job is None or not (wait or job.done.is_set()):
            return None
        job.done.wait()
        self._forget_job()
        return job

    def close(self) -> None:
        """Wait for the save in progress and free the threads."""
        if self._job is not None:
            self._job.done.wait()
        _pending.discard(self)
        self._queue.put(None)
        self._thread.join()
        self._writer.close()

    def finish_at_exit(self, timeout_seconds: float | None) -> bool:
        """Wait for the save in progress, and say on stderr what became of it, unless all was well before.

        Args:
            timeout_seconds: for how long; None: as long as a save may take.

        Returns:
            Whether nothing is lost.
        """
        global _reported
        job = self._job
        if job is None or (job.done.is_set() and job.error is None):
            return True
        ended = job.done.wait(self._config.timeout_seconds if timeout_seconds is None else timeout_seconds)
        outcome = "is lost" if not ended else f"failed: {job.error}" if job.error else "is committed"
        _reported = True
        print(
            f"datarax: the interpreter exited while the snapshot of step {job.step} was being saved in "
            f"{self._layout.directory}; it {outcome}. Leave the `with` block of the Checkpointer before exiting",
            file=sys.stderr,
        )
        return ended and job.error is None

    def _forget_job(self) -> None:
        self._job = None
        _pending.discard(self)

    def _abandon(self, job: SaveJob) -> bool:
        with contextlib.suppress(Exception):
            self._writer.wait()
        if self._layout.is_committed(job.step):
            return False
        with contextlib.suppress(OSError):
            self._remove_remains(job.step)
        self._forget_job()
        return True

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            self._finish(*task)

    def _finish(self, job: SaveJob, begun: bool) -> None:
        try:
            if not begun:
                self._writer.start(job.step, job.files, None)
            self._writer.wait()
            self._writer.meet_last(functools.partial(self._make_durable, job.step))
        except BaseException as error:
            self._writer.tell_failure(error)
            job.error = self._job_error(job.step, error)
        try:
            if job.error is not None:
                with contextlib.suppress(
                    OSError
                ):  # of a disk that answers no more; the next start removes them
                    self._remove_remains(job.step)
            elif self._processes.first:
                self._retain(job)
        finally:
            job.done.set()

    def _job_error(self, step: int, error: BaseException) -> DataraxError:
        if isinstance(error, (RunLockedError, RunLostError, PeerLostError)):
            return error
        found = self._save_error(step, error)
        found.__cause__ = error
        return found

    def _remove_remains(self, step: int) -> None:
        try:
            if self._lock is not None and self._lock.superseded_by() is None:
                self._writer.remove_remains(step)
        except RunLostError:
            # TensorStore makes the directories again that it writes to. What a later start has made there is not ours.
            if not self._layout.lock.exists():
                self._writer.remove_remains(step)
                self._layout.directory.rmdir()

    def _seal_own(self, temporary: str) -> list[str]:
        """Hash what this process has written of the model, before Orbax joins what all have written.

        Returns:
            The key of a file with the sizes and digests, for process 0, and the digest of that file; [] for nothing.
        """
        store, index = self._layout.store, self._processes.index
        items = [entry.key for entry in store.list(temporary) if entry.name.partition(".")[0] == MODEL_ITEM]
        own = f"{items[0]}/{PROCESS_PREFIX}{index}" if items else ""
        if self._processes.first or not items or store.stat(own) is None:
            return []
        sealed = seal_item(store, own, limit_bytes=self._config.model_digest_limit_bytes)
        sums = {f"{PROCESS_PREFIX}{index}/{name}": vars(entry) for name, entry in sealed.items()}
        key, content = f"parts/{index}-{uuid.uuid4().hex}.json", canonical_json(sums)
        store.write(key, content, if_absent=True)
        return [key, sha256_hex(content)]

    def _seal(self, temporary: str, parts: Sequence[Sequence[str]]) -> None:
        """Write the manifest into the finished temporary directory; Orbax renames it next."""
        job, store = self._job, self._layout.store
        assert job is not None
        if any(leaf.stored for leaf in job.leaves or ()):
            check_model_written(Path(store.path(f"{temporary}/{MODEL_ITEM}")))
        sums: dict[str, FileEntry] = {}
        for key, sha256 in filter(None, parts):
            content = self._layout.read(key)
            if sha256_hex(content) != sha256:
                raise OSError(errno.EIO, "it does not hold what another process wrote", store.path(key))
            sums |= {name: FileEntry(**entry) for name, entry in parse_json(content).items()}
            store.delete(key)
        limits = {DATA_ITEM: None, MODEL_ITEM: self._config.model_digest_limit_bytes}
        items = {
            name: seal_item(
                store, f"{temporary}/{name}", limit_bytes=limit, known=sums if name == MODEL_ITEM else {}
            )
            for name, limit in limits.items()
            if store.stat(f"{temporary}/{name}") is not None
        }
        manifest = Manifest(job.step, items, job.leaves, time.time())
        for name in manifest.unhashed_items:
            job.notes.append(
                f"step {job.step}: the {name} item is larger than save.model_digest_limit_bytes "
                f"({self._config.model_digest_limit_bytes}); its files are recorded by size only"
            )
        store.write(f"{temporary}/{MANIFEST_NAME}", manifest.to_bytes(), if_absent=True)
        later = None if self._lock is None else self._lock.superseded_by()
        if later is not None and self._lock is not None:
            raise RunLockedError(
                f"start {later} has taken over the run {self._layout.directory} from this one (start {self._lock.start}); the "
                f"snapshot of step {job.step} was not committed. See starts/{later}.json for who it is"
            )

    def _make_durable(self, step: int) -> None:
        try:
            self._layout.store.sync("")
        except OSError:
            with contextlib.suppress(OSError):
                throw_away(self._layout, str(step))
            raise

    def _retain(self, job: SaveJob) -> None:
        config = self._config
        try:
            for step in steps_to_drop(
                self._layout.committed(), keep_latest=config.keep_latest, keep_every=config.keep_every
            ):
                drop(self._layout, step)
            self._saved += 1
            if self._saved % _RELOAD_EVERY == 0:  # Orbax's list of steps would grow for the whole run
                self._writer.reload()
        except Exception as error:
            job.notes.append(f"step {job.step} is committed, but an old step could not be removed: {error}")

    def _save_error(self, step: int, error: BaseException) -> SaveError:
        return SaveError(
            f"the snapshot of step {step} could not be written to {self._layout.directory}: {reason(error)}. "
            "It does not count; the committed steps are as they were"
        )


def reason(error: BaseException) -> str:
    """An exception in one line, as a person would say it."""
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or os.strerror(error.errno)}{where}"
    if isinstance(error, PeerError):
        return str(error)  # names each process and what it said, a line each
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


# A save that is pending when the interpreter exits is finished if that is possible, and reported, with exit 1. Orbax cannot
# commit once `concurrent.futures` has shut down, and then hangs for minutes or loses the save with exit code 0. The hook here
# runs before that: `threading._register_atexit` calls in reverse order, and `concurrent.futures.thread` has registered its own
# when it was imported above. It is the only hook that early, private or not. Python 3.12 starts no more threads by then, so
# there the save is lost as a rule; but it is said, and the process ends.

_IMPATIENT_SECONDS = 5.0
_pending: set[Saver] = set()
_reported = False


def _finish_pending() -> None:
    timeout = None if not _pending or _threads_can_start() else _IMPATIENT_SECONDS
    lost = [saver for saver in list(_pending) if not saver.finish_at_exit(timeout)]
    if lost:
        _leave_now()  # the interpreter would wait for Orbax's threads, which wait minutes for one that never began


def _threads_can_start() -> bool:
    try:
        probe = threading.Thread(target=bool)
        probe.start()
    except RuntimeError:
        return False
    probe.join()
    return True


def _leave_if_reported() -> None:
    if _reported:
        _leave_now()


def _leave_now() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)  # an exit hook cannot change the exit code in any other way


threading._register_atexit(_finish_pending)  # type: ignore[attr-defined]
atexit.register(_leave_if_reported)
os.register_at_fork(after_in_child=_pending.clear)
