"""One writer at a time: the lock of a run, and the number of each start.

The lock is `flock`: the kernel frees it when its holder dies, however it dies, so a file left behind blocks nobody. Should a
second writer get in all the same (a deleted lock file, a file system that keeps locks per machine), start numbers stop the
first: a writer that finds a higher number than its own commits nothing more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datarax.checkpoint.layout import RunLayout, next_number, numbers_in
from datarax.core.errors import InputError, RunLockedError, RunLostError
from datarax.core.tree import canonical_json
from datarax.store.files import parse_json

_SUFFIX = ".json"


class RunLock:
    """The right to write to a run, held from construction to `release`.

    Args:
        layout: the run; its directory must exist.
        provenance: what is recorded of this start besides host, pid and time.

    Attributes:
        start: the number of this start, 1 for the first.

    Raises:
        RunLockedError: if another process, or another lock in this one, holds it; names host, pid and start.
        InputError: if the lock file cannot be opened or this file system has no locks.
    """

    def __init__(self, layout: RunLayout, provenance: Mapping[str, Any] | None = None) -> None:
        self._layout = layout
        try:
            self._lease = layout.store.lease("lock")
        except BlockingIOError:
            raise RunLockedError(_held_text(layout.lock)) from None
        except OSError as error:
            raise InputError(
                f"cannot lock {layout.lock}: {error.strerror}; the run must lie where you may write, on a file system with "
                "flock"
            ) from error
        try:
            self.start = self._take_start(provenance or {})
            self._lease.write(canonical_json(self._holder(self.start)) + b"\n")
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in. The file stays; its content says who was last."""
        self._lease.release()

    def superseded_by(self) -> int | None:
        """The number of a later start; None if this is the latest, and the run is still where it was locked.

        Raises:
            RunLostError: if the directory, its lock or the file of this start is gone, or is not the one that was locked.
        """
        numbers: list[int] = []
        with contextlib.suppress(NotADirectoryError):  # something else lies in the place of the starts
            numbers = start_numbers(self._layout)
        latest = max(numbers, default=0)
        if latest > self.start:
            return latest
        if self.start not in numbers or not self._lease.is_held():
            raise RunLostError(
                f"the run {self._layout.directory} is not the directory any more that start {self.start} has locked: it, or "
                f"its lock or starts/, was deleted, moved or replaced while the run was going on. Nothing more is written "
                f"there; the snapshots are where the directory is now"
            )
        return None

    def _take_start(self, provenance: Mapping[str, Any]) -> int:
        store = self._layout.store
        store.make("starts")
        while True:
            number = next_number(store, "starts", _SUFFIX)
            content = {**self._holder(number), "provenance": dict(provenance)}
            # A number taken in the meantime belongs to a writer that this file system's locks did not stop.
            with contextlib.suppress(FileExistsError):
                store.write(f"starts/{number}{_SUFFIX}", canonical_json(content) + b"\n", if_absent=True)
                return number

    def _holder(self, number: int) -> dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": number,
            "unix_seconds": time.time(),
        }


def start_numbers(layout: RunLayout) -> list[int]:
    """The numbers of all starts of a run, in no order."""
    return numbers_in(layout.store, "starts", _SUFFIX)


def is_held_on_this_machine(path: Path) -> bool | None:
    """Whether a process of this machine holds the lock; asks the kernel and takes nothing. None if it does not say.

    To try the lock would be surer, but a writer that starts in that moment would find it taken.
    """
    try:
        lines = Path("/proc/locks").read_text().splitlines()
        found = path.stat()
    except FileNotFoundError:
        return False if Path("/proc/locks").exists() else None
    except OSError:
        return None
    # `1: FLOCK  ADVISORY  WRITE <pid> <major>:<minor>:<inode> 0 EOF`; a waiter has `->` after its number.
    held = [words for words in map(str.split, lines) if len(words) > 5 and words[1] == "FLOCK"]
    places = {words[5]: words[4] for words in held if words[5].rpartition(":")[2] == str(found.st_ino)}
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    # Some file systems give their files another device number than the kernel shows: there the process decides.
    return device in places or str(read_holder(path).get("pid")) in places.values()


def read_holder(path: Path) -> Mapping[str, Any]:
    """Who wrote the lock file last; empty if it cannot be read."""
    try:
        tree = parse_json(RunLayout(path.parent).read(path))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _held_text(path: Path) -> str:
    holder = read_holder(path)
    who = "another process"
    if holder:
        who = f"process {holder.get('pid')} on host {holder.get('host')} (start {holder.get('start')})"
    return f"the run {path.parent} is being written by {who}; wait for it to end, stop it, or use another directory"
