"""Where a dataset is built: a temporary sibling of the output, a lock beside it, and the rename at the end.

The lock is a `flock`, which the kernel frees when its holder dies, however it dies. What a dead builder left is
removed by the next one that holds the lock. Knows nothing of what is built.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator

from datarax.core.errors import InputError
from datarax.sources.durable import flush_to_disk
from datarax.sources.manifest import MANIFEST_NAME

_SECONDS_BETWEEN_TRIES = 0.1


class BuildPlace:
    """The output directory of a build, and what lies beside it while it is made.

    Args:
        output: absolute path of the directory to make.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        parent, name = os.path.split(output)
        self._parent = parent
        self._lock_path = os.path.join(parent, f".{name}.build-lock")
        # The host is in the name because a flock may not reach across machines: each removes only its own leftovers.
        self._prefix = os.path.join(parent, f".{name}.building-{socket.gethostname()}-")

    def is_finished(self) -> bool:
        """Whether the output is a finished dataset.

        Raises:
            InputError: if something else is there.
        """
        if os.path.exists(os.path.join(self.output, MANIFEST_NAME)):
            return True
        if not os.path.lexists(self.output) or (os.path.isdir(self.output) and not os.listdir(self.output)):
            return False
        raise InputError(
            f"{self.output} exists and is no finished dataset (it has no {MANIFEST_NAME}); give another output, or "
            f"move it away"
        )

    @contextlib.contextmanager
    def locked(self, *, while_waiting: Callable[[], None]) -> Iterator[None]:
        """Holds the lock, waiting for it as long as it takes; removes what dead builders left."""
        os.makedirs(self._parent, exist_ok=True)
        descriptor = self._lock(while_waiting)
        try:
            for leftover in glob.glob(f"{glob.escape(self._prefix)}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._lock_path)
            os.close(descriptor)

    @contextlib.contextmanager
    def temporary_directory(self) -> Iterator[str]:
        """A new directory beside the output; what is left of it at the end is removed."""
        directory = f"{self._prefix}{os.getpid()}-{time.time_ns()}"
        os.mkdir(directory)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def put_in_place(self, directory: str) -> bool:
        """Makes the finished `directory` the output. False if another one is there already."""
        flush_to_disk(directory)
        try:
            os.rename(directory, self.output)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and self.is_finished():
                return False
            raise
        flush_to_disk(self._parent)
        return True

    def _lock(self, while_waiting: Callable[[], None]) -> int:
        while True:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                while not _try_lock(descriptor):
                    while_waiting()
                    time.sleep(_SECONDS_BETWEEN_TRIES)
                # The holder before may have removed the file: then this is the lock of a name that is gone.
                if _is_same_file(descriptor, self._lock_path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
