"""Local files: what we write is whole and durable, or not there; what we read is a file, of a size that makes sense.

A reader never waits for a pipe or a device, and with a `root` never leaves that directory: no link is followed on the way.
Foreign writers (Orbax, ArrayRecord) write by themselves, and `sync` makes durable what they wrote. Knows paths and bytes, not
what the bytes mean.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from typing import Any

from datarax.core.errors import InputError

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
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


def check_path(path: str, what: str) -> None:
    """Refuses a path that is no text: records, manifests and configs are UTF-8, and could not name it again.

    Args:
        path: with bytes that are not UTF-8 as Python holds them (`os.fsdecode`).
        what: what it is, for messages.

    Raises:
        InputError: naming it in a form that can be printed.
    """
    shown = _NOT_TEXT.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", path)
    if shown != path:
        raise InputError(f"{what} '{shown}' is not UTF-8 text; rename it, or name a link to it")


def open_file(
    path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, flags: int = os.O_RDONLY
) -> int:
    """The descriptor of a regular file, opened without waiting for anybody.

    Args:
        path: the file.
        root: a directory above it; between the two, and at the end, no link is followed. None: links are followed.
        flags: as `os.open` takes them.

    Raises:
        OSError: if it cannot be opened, or is something else than a file: a directory, a pipe, a device; with
            a root a link too.
    """
    path, flags = os.fspath(path), flags | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        if root is None:
            descriptor = os.open(path, flags, 0o644)
        else:
            *parents, name = os.path.relpath(path, root).split(os.sep)
            parent = _open_directory(root, parents)
            try:
                descriptor = os.open(name, flags | os.O_NOFOLLOW, 0o644, dir_fd=parent)
            finally:
                os.close(parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO) or (root is not None and error.errno == errno.ENOTDIR):
            raise OSError(error.errno, "it, or a directory on the way, is a link or no file", path) from error
        raise OSError(error.errno, error.strerror, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return descriptor


def _open_directory(root: str | os.PathLike[str], parts: Sequence[str]) -> int:
    """The descriptor of a directory below `root`, reached without following a link; the root itself may be one.

    Raises:
        OSError: if it is none, or leads out of the root.
    """
    if os.pardir in parts:
        raise OSError(errno.EINVAL, "it leads out of its directory")
    descriptor = os.open(root, _DIRECTORY)
    for part in parts:
        above = descriptor
        try:
            descriptor = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return descriptor


def read_file(
    path: str | os.PathLike[str], most_bytes: int, *, root: str | os.PathLike[str] | None = None
) -> bytes:
    """All of a file of at most `most_bytes`; see `open_file`.

    Raises:
        OSError: if it cannot be read, is no regular file, or is larger.
    """
    with open(open_file(path, root=root), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(
                errno.EFBIG, f"it has {size} bytes, at most {most_bytes} make sense", os.fspath(path)
            )
        return file.read(size)


MOST_DEPTH = 200
"""How deep a tree that we read or write may be nested: all that walks one by recursion is far from Python's limit there."""

MOST_BITS = 14_284
"""How long an integer may be that we read or write: Python converts no more than 4,300 digits."""

_TOO_DEEP = f"it is nested more than {MOST_DEPTH} deep"
_TOO_LONG = "it holds an integer of more than 4,300 digits"


def parse_json(data: bytes | str) -> Any:
    """The tree of a JSON text.

    Raises:
        ValueError: if it is none, or one that `check_tree` refuses.
    """
    return parsed(json.loads, data)


def parsed(parse: Callable[[Any], Any], data: bytes | str) -> Any:
    """The tree that a parser makes of a text.

    Raises:
        ValueError: if the parser refuses the text, or `check_tree` the tree.
    """
    try:
        tree = parse(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        if type(error) is not ValueError:  # parsers have kinds of their own; this one is that of `int`
            raise
        raise ValueError(_TOO_LONG) from None
    check_tree(tree)
    return tree


def check_tree(tree: Any) -> None:
    """Refuses a tree of dicts and lists that could not be walked, or not be written.

    Raises:
        ValueError: if it is nested more than `MOST_DEPTH` deep, or holds an integer of more than `MOST_BITS`.
    """
    level = [tree]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for node in level:
            if type(node) is int and node.bit_length() > MOST_BITS:
                raise ValueError(_TOO_LONG)
            if isinstance(node, (dict, list)):
                below += node.values() if isinstance(node, dict) else node
        if not below:
            return
        level = below
    raise ValueError(_TOO_DEEP)


def make_directory(path: str | os.PathLike[str]) -> bool:
    """Makes a directory if it is not there; its parent must be.

    Returns:
        Whether it was made.

    Raises:
        NotADirectoryError: if something else is there, a link to a directory included.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        return True
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(
            errno.ENOTDIR,
            "a link or a file is in the place of a directory: put that back, or move this away",
            os.fspath(path),
        )
    return False


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
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
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
    first = True
    while True:
        descriptor = open_file(path, root=os.path.dirname(path), flags=os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same_file(descriptor, path):  # else deleted or replaced between open and lock
                if not first or os.fstat(descriptor).st_nlink <= 1:
                    return descriptor
                # It is another directory's too: a copy by links, or what it was copied from. Only once, since some file
                # systems count links in their own way.
                os.unlink(path)
                first = False
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_same_file(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Whether an open file still lies under its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False
