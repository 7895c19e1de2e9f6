"""Orbax: the only file that names its managers, handlers and arguments.

`OrbaxWriter` runs one `CheckpointManager` for a run: a `Composite` of the `data` item, whose bytes we write ourselves, and the
`model` item, a flat dict of arrays. Orbax keeps every step; which to drop, what counts as committed and what is damaged
is decided elsewhere. Read next: `datarax.checkpoint.saver`, which calls it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future as ocp_future
from orbax.checkpoint import options as ocp_options

from datarax.checkpoint.layout import DATA_ITEM, MODEL_ITEM, RunLayout
from datarax.checkpoint.model_item import LeafSpec
from datarax.checkpoint.retention import temporary_steps
from datarax.multihost import Processes
from datarax.store import Store

_STRAGGLER_SECONDS = 60.0
_SHORTEST_DEADLINE_SECONDS = 60.0
_MEETINGS = ("written", "renamed", "durable")
"""In one commit of many processes: all have written; process 0 has renamed; the rename is durable."""

PROCESS_PREFIX = "ocdbt.process_"
"""What the directory begins with in which one process writes its part of a model; its index follows."""

TEMPORARY_SUFFIX: str = ocp.utils.TMP_DIR_SUFFIX
"""What Orbax appends to the name of a step that it is still writing."""


@dataclass
class DataSave(ocp.args.CheckpointArgs):
    """The files of the data item, name -> content, fixed when the save begins; None on processes that write none."""

    files: Mapping[str, bytes] | None
    """Name -> content."""


class DataHandler(ocp.AsyncCheckpointHandler):
    """Writes given bytes in the background, each file durable.

    `JsonSave` would serialise the caller's live objects in the background and so save a later step's state.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.temporary = ""
        """The key of the temporary directory of the step now being written."""

    async def async_save(self, directory: Any, args: DataSave) -> list[ocp_future.Future]:
        """Begin to write; the returned future waits until Orbax has made the directory."""
        self.temporary = Path(directory).parent.name
        if args.files is None:
            return []
        write = self._write(f"{self.temporary}/{Path(directory).name}", args.files)
        return [ocp_future.CommitFutureAwaitingContractedSignals(write, name="datarax_data")]

    async def _write(self, item: str, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._store.write(f"{item}/{name}", content, if_absent=True)

    def save(self, directory: Any, args: DataSave) -> None:
        """Not used: the manager is asynchronous."""
        raise NotImplementedError

    def restore(self, directory: Any, args: Any = None) -> Any:
        """Not used: the data item is read without Orbax."""
        raise NotImplementedError

    def finalize(self, directory: Any) -> None:
        """Nothing to do: the files are complete and durable."""

    def close(self) -> None:
        """Nothing is held."""


ocp.args.register_with_handler(DataHandler, for_save=True)(DataSave)


class _Quiet(logging.Filter):
    """Keeps Orbax from logging the traceback of a failed save, which is raised as one clear error instead."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which asks for a notice of preemption only when the loop does.

    `save` and its background thread ask too, for the step being saved. JAX takes the last number asked for as where this
    process is, so an older one would make all processes agree on a step that is over, and the notice would be lost.
    """

    def reached_preemption(self, step: int) -> bool:
        return False

    def agreed_to_stop(self, poll: int) -> bool:
        return super().reached_preemption(poll)


class OrbaxWriter:
    """One asynchronous `CheckpointManager`; one save at a time.

    Args:
        layout: the run, whose directory must exist.
        timeout_seconds: after how long a background save counts as failed.
        written: called in a background thread with the key of the step's temporary directory, when this process has written
            all of its own; what it returns has JSON. Only with many processes.
        before_commit: called there on process 0 when all items lie finished in it and before it is renamed, also with what
            `written` gave on each process; an exception there keeps the step from being committed.
        processes: those of the run; each has its writer, and all of them start and wait for the same saves.
    """

    def __init__(
        self,
        layout: RunLayout,
        *,
        timeout_seconds: int,
        written: Callable[[str], Any],
        before_commit: Callable[[str, Sequence[Any]], None],
        processes: Processes,
    ) -> None:
        self._layout = layout
        self._written = written
        self._before_commit = before_commit
        self._parts: list[Any] = []
        self._data = DataHandler(layout.store)
        self._failed = False
        self._processes = processes
        # Two writers commit in the background at the same time: their meetings must not be taken for each other's.
        self._scope = self._processes.next_scope()
        self._longest = float(timeout_seconds)
        self._slowest = 0.0
        self._begun = 0.0
        self._met = 0
        self._polls = 0
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add(DATA_ITEM, DataSave, self._data)
        self._quiet = _Quiet()
        logging.getLogger("absl").addFilter(self._quiet)
        self._manager = _Manager(
            str(layout.directory),
            options=manager_options(
                timeout_seconds,
                self._run_before_commit,
                processes=self._processes,
                scope=self._scope,
                meet=self._orbax_barrier,
            ),
            handler_registry=registry,
        )

    def agreed_to_stop(self) -> bool:
        """Whether the processes have agreed to stop here, after one of them was told to (SIGTERM).

        Every process must ask equally often, at the same moments of its run; only one of the answers is True. The questions are
        counted, not the steps: what comes before the first step counts too.
        """
        if self._processes.count == 1:
            return False
        self._polls += 1
        return self._manager.agreed_to_stop(self._polls)

    def start(self, step: int, files: Mapping[str, bytes] | None, model: Mapping[str, Any] | None) -> None:
        """Begin to save; returns when nothing that the caller may change is referenced any more.

        Args:
            step: the step, greater than all steps saved since the last `reload`.
            files: the data item; None where another process writes it.
            model: the stored leaves by path, or None for a step without model item.

        Raises:
            Exception: whatever Orbax raises; then nothing is being saved.
        """
        if self._failed:
            self._drain()
        self._begun, self._met, self._parts = time.monotonic(), 0, []
        items: dict[str, Any] = {DATA_ITEM: DataSave(files)}
        if model is not None:
            items[MODEL_ITEM] = ocp.args.PyTreeSave(dict(model))
        try:
            # force: whether a save is due is decided by the session; Orbax would skip one in silence.
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except BaseException:
            self._after_failure()
            raise

    def wait(self) -> None:
        """Wait until the save in progress is committed.

        Raises:
            BaseException: what made it fail; then the step is not committed and its remains are removed.
        """
        try:
            self._manager.wait_until_finished()
        except BaseException:
            self._after_failure()
            raise
        self._slowest = max(self._slowest, time.monotonic() - self._begun)

    @property
    def deadline_seconds(self) -> float:
        """How long the other processes are waited for in a commit: what is configured, or ten times the slowest one so far."""
        if not self._slowest:
            return self._longest
        return min(self._longest, max(_SHORTEST_DEADLINE_SECONDS, 10 * self._slowest))

    def tell_failure(self, error: BaseException) -> None:
        """Tell the processes that wait for this one in the commit that it has failed, unless they know."""
        if self._processes.count > 1 and self._met < len(_MEETINGS):

            def fail() -> None:
                raise error

            with contextlib.suppress(Exception):
                self._meet(_MEETINGS[self._met], self.deadline_seconds, fail)

    def meet_last(self, work: Callable[[], None]) -> None:
        """The last meeting of a commit: `work` runs on process 0, and all raise what it raises.

        Raises:
            OSError: if Orbax has not asked for the meetings before; then it has committed without waiting for all.
        """
        if self._processes.count > 1 and self._met != len(_MEETINGS) - 1:
            raise OSError(
                f"Orbax met the other processes {self._met} times in a commit, expected are {len(_MEETINGS) - 1}"
            )
        self._meet(_MEETINGS[-1], self.deadline_seconds, work if self._processes.first else lambda: None)

    def _orbax_barrier(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's barriers around the commit, as meetings at which a process that has failed can say so."""
        if "async_write_complete" in key or "async_commit_complete" in key:
            # In this order; that both were asked for is made sure at the last meeting.
            is_last = "async_commit_complete" in key
            work = (lambda: None) if is_last else (lambda: self._written(self._data.temporary))
            self._meet(_MEETINGS[is_last], min(timeout_ms / 1000, self.deadline_seconds), work)
        # Its other barriers guard a mark that nothing here reads.

    def _meet(self, topic: str, seconds: float, work: Callable[[], Any]) -> None:
        met, self._met = self._met, len(_MEETINGS)  # after a failure nobody comes to the next one
        self._processes.exchange(
            f"{topic}-{self._scope}",
            work,
            self._parts.extend,
            about="the commit of a snapshot",
            timeout_seconds=seconds,
        )
        self._met = met + 1

    def remove_remains(self, step: int) -> None:
        """Delete what a failed save of `step` left: on a full disk it would keep the disk full."""
        for path in temporary_steps(self._layout, TEMPORARY_SUFFIX):
            if path.name.startswith(f"{step}{TEMPORARY_SUFFIX}"):
                self._remove(path.name)

    def _remove(self, key: str) -> None:
        # Orbax writes its step metadata on yet another thread, which may put a file back while the directory is emptied.
        for _ in range(50):
            try:
                return self._layout.store.delete(key)
            except OSError as error:
                if error.errno not in (
                    errno.ENOTEMPTY,
                    errno.ENOENT,
                ):  # as on a disk that has become read-only
                    return None
            time.sleep(0.1)
        return None

    def reload(self) -> None:
        """Look at the directory again after steps were moved away behind the manager's back."""
        self._drain()
        self._manager.reload()

    def close(self) -> None:
        """Free the manager's threads. The save in progress must have been waited for."""
        self._drain()
        try:
            # What Orbax still has to say is of a save that failed, and was told: its step's metadata had nowhere to go either.
            with contextlib.suppress(Exception):
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(self._quiet)

    def _after_failure(self) -> None:
        # When one file fails, Orbax's other threads go on writing, and would write into the directory of a second try too.
        self._failed = True
        _join_orbax_threads(_STRAGGLER_SECONDS)

    def _drain(self) -> None:
        # Orbax hands the exception of a failed save to every thread once, and to `save` in place of the next save.
        for _ in range(2):
            try:
                self._manager.wait_until_finished()
                break
            except Exception:
                continue
        self._failed = False

    def _run_before_commit(self) -> None:
        self._before_commit(self._data.temporary, self._parts)


def _join_orbax_threads(timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") and thread is not threading.current_thread():
            # Not thread.join(): Orbax's raises what the thread raised.
            threading.Thread.join(thread, max(0.0, deadline - time.monotonic()))


def manager_options(
    timeout_seconds: int,
    before_commit: Callable[[], None] | None,
    *,
    processes: Processes | None = None,
    scope: str | None = None,
    meet: Callable[..., None] | None = None,
) -> ocp.CheckpointManagerOptions:
    """The options under which every save runs; the benchmark of a two-byte handler uses the same."""
    many = processes is not None and processes.count > 1
    # Named processes make Orbax wait at barriers of the coordination service, which have deadlines, not in device collectives.
    active = set(range(processes.count)) if processes is not None and many else None
    return ocp.CheckpointManagerOptions(
        create=False,
        cleanup_tmp_directories=False,  # done before, with the lock held
        save_root_metadata=False,
        lightweight_initialize=True,  # reading the metadata of 200 steps takes 0.4 s, and nothing here needs them
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(
            timeout_secs=timeout_seconds,
            barrier_sync_fn=meet if many else None,
            post_finalization_callback=before_commit,
            # A save with a model blocks 9 ms less otherwise, but where a directory cannot be made Orbax's threads then
            # wait five minutes for it, and so does the exit of the interpreter.
            create_directories_asynchronously=False,
        ),
        multiprocessing_options=ocp_options.MultiprocessingOptions(
            active_processes=active, barrier_sync_key_prefix=f"datarax-{scope}" if many else None
        ),
        # Whether the step exists is checked before; the rename fails on a directory that is not empty.
        file_options=ocp_options.FileOptions(skip_sync_file_validations=True),
    )


def check_model_written(directory: Path) -> None:
    """Make sure that a finished model item has its content.

    Orbax merges the parts of the processes into one database at the end, and skips that in silence if it finds no parts.

    Raises:
        OSError: if the merged database is not there.
    """
    if not (directory / "manifest.ocdbt").is_file():
        raise OSError(f"Orbax finished the model item {directory} without content")


def read_model(
    directory: Path,
    specs: Sequence[LeafSpec],
    shardings: Mapping[str, jax.sharding.Sharding | None],
    *,
    some: bool = False,
) -> dict[str, jax.Array | np.ndarray]:
    """The stored leaves of a model item, without a manager.

    Args:
        directory: the item.
        specs: leaves of the model: all, unless `some`.
        shardings: for each stored leaf its sharding, or None to read it as a NumPy array.
        some: whether there may be others, which are left alone.

    Raises:
        Exception: whatever Orbax and TensorStore raise for missing or unreadable files.
    """
    restore_args = {spec.path: _restore_args(spec, shardings[spec.path]) for spec in specs if spec.stored}
    if not restore_args:
        return {}
    # The handler itself, not a Checkpointer around it: that would wait for the other processes, and for ever.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return handler.restore(
            directory,
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(restore_args, 0), restore_args=restore_args, partial_restore=some
            ),
        )
    finally:
        handler.close()


def _restore_args(spec: LeafSpec, sharding: jax.sharding.Sharding | None) -> ocp.RestoreArgs:
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(
        restore_type=jax.Array, sharding=sharding, global_shape=spec.shape, strict=True
    )
