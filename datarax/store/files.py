"""Local files: what we write is whole and durable, or not there; and locks that die with their holder.

Knows paths and bytes, not what the bytes mean. Foreign writers (Orbax, ArrayRecord) write by themselves, and `sync` makes
durable what they wrote.
"""

import contextlib
import fcntl
import os
import re

from datarax.core.errors import InputError, check_path

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(path: str | os.PathLike[str], what: str) -> str:
    """The absolute form of a local path, with `~` expanded.

    Args:
        path: the path.
        what: what it is, for messages.

    Raises:
        InputError: if `path` is empty, is not a path or not in UTF-8, or names an object store or another remote place.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    if not text:
        raise InputError(f"{what} must be a non-empty path, got {path!r}")
    if _REMOTE.match(text):
        raise InputError(
            f"{what} {text!r} is not a local path; object stores are not supported yet, copy the data to a local disk"
        )
    absolute = os.path.abspath(os.path.expanduser(text))
    check_path(absolute, what)
    return absolute


def sync(path: str | os.PathLike[str]) -> None:
    """Waits until the bytes of a file, or the entries of a directory, are on the disk, whoever wrote them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file that must not exist yet; its bytes are durable, its name once its directory is synced.

    Raises:
        FileExistsError: if it exists.
        OSError: if it cannot be written; what was written is removed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file, new or in place of another, at one stroke; durable with its name."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # as a rule it has its name by now
            os.unlink(temporary)
        raise
    sync(directory or ".")


def take_lock(path: str | os.PathLike[str]) -> int:
    """The descriptor of a file that this process now holds locked, and makes if it is not there.

    The lock is a `flock`: the kernel frees it when its holder dies, however it dies. A forked child holds it too, until both
    have closed the descriptor.

    Raises:
        BlockingIOError: if another holds it.
        OSError: if the file cannot be opened, or this file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # deleted or replaced between open and lock
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
