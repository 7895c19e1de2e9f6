"""A directory of this machine, or of a network file system, as a store.

Read `datarax.store.files` for how a file is opened, written and locked here.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import operator
import os
import shutil
import stat
import weakref
from typing import Literal

from datarax.store.files import (
    is_same_file,
    make_directory,
    open_file,
    read_file,
    sync,
    take_lock,
    write_new,
    write_whole,
)
from datarax.store.store import Entry

_BLOCK_BYTES = 4 << 20
_key_of = operator.attrgetter("key")
_leases: weakref.WeakSet[LocalLease] = weakref.WeakSet()


class LocalStore:
    """The store of one directory.

    Args:
        directory: its absolute path. It may be a link; below it none is followed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.url = os.fspath(directory)

    def path(self, key: str) -> str:
        """See `Store`."""
        return os.path.join(self.url, key) if key else self.url

    def read(self, key: str, most_bytes: int) -> bytes:
        """See `Store`."""
        return read_file(self.path(key), most_bytes, root=self.url)

    def sha256(self, key: str) -> str:
        """See `Store`."""
        # hashlib lets go of the interpreter lock for blocks of this size, so threads hash in parallel.
        digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
        with open(open_file(self.path(key), root=self.url), "rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
        return digest.hexdigest()

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """See `Store`."""
        path, parent = self.path(key), os.path.dirname(key)
        if parent:
            self.make(parent)
        if if_absent:
            write_new(path, data)
            sync(self.path(parent))
        else:
            write_whole(path, data)

    def append(self, key: str, data: bytes) -> None:
        """See `Store`."""
        if parent := os.path.dirname(key):
            self.make(parent)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with open(open_file(self.path(key), root=self.url, flags=flags), "ab", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        """See `Store`."""
        entry, path = self.stat(prefix), self.path(prefix)
        if entry is None and (prefix or not os.path.lexists(path)):
            return []
        if entry is None or entry.kind != "directory":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        above = f"{prefix}/" if prefix else ""
        with os.scandir(path) as found:
            return sorted((Entry(above + each.name, _kind(each)) for each in found), key=_key_of)

    def stat(self, key: str) -> Entry | None:
        """See `Store`."""
        path, mode = self.url, stat.S_IFDIR
        try:
            for part in key.split("/"):
                if not stat.S_ISDIR(mode):
                    return None
                path = os.path.join(path, part)
                status = os.lstat(path)
                mode = status.st_mode
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        if stat.S_ISDIR(mode):
            return Entry(key, "directory")
        return Entry(key, "file" if stat.S_ISREG(mode) else "other", status.st_size)

    def make(self, prefix: str = "") -> None:
        """See `Store`."""
        if not prefix:
            os.makedirs(self.url, exist_ok=True)
            return
        entry = self.stat(prefix)
        parts = [] if entry is not None and entry.kind == "directory" else prefix.split("/")
        for end in range(1, len(parts) + 1):
            if make_directory(self.path("/".join(parts[:end]))):
                sync(self.path("/".join(parts[: end - 1])))

    def move(self, prefix: str, to: str) -> None:
        """See `Store`."""
        source, target = os.path.dirname(prefix), os.path.dirname(to)
        if target:
            self.make(target)
        os.rename(self.path(prefix), self.path(to))
        for parent in {target: None, source: None}:
            sync(self.path(parent))

    def delete(self, prefix: str) -> None:
        """See `Store`."""
        entry = self.stat(prefix)
        if entry is None:
            return
        if entry.kind == "directory":
            shutil.rmtree(self.path(prefix))
        else:
            os.unlink(self.path(prefix))
        sync(self.path(os.path.dirname(prefix)))

    def sync(self, key: str) -> None:
        """See `Store`."""
        sync(self.path(key))

    def lease(self, key: str) -> LocalLease:
        """See `Store`."""
        return LocalLease(self.path(key))


class LocalLease:
    """A file that this process holds locked: see `files.take_lock`. A forked child lets go of it at once.

    Args:
        path: the file; made if it is not there, and never removed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = take_lock(path)
        _leases.add(self)

    def is_held(self) -> bool:
        """See `Lease`."""
        return self._descriptor is not None and is_same_file(self._descriptor, self._path)

    def write(self, holder: bytes) -> None:
        """See `Lease`."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, holder, 0)

    def release(self) -> None:
        """See `Lease`."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _kind(entry: os.DirEntry[str]) -> Literal["file", "directory", "other"]:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _let_go_in_child() -> None:
    # It would keep the lock after its parent's death.
    for lease in list(_leases):
        lease.release()


os.register_at_fork(after_in_child=_let_go_in_child)
