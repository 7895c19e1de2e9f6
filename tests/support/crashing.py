"""A store that stops after its n-th change, as a machine does that loses its power or a process that is killed there.

Foreign writers (Orbax) change files below it by themselves. What they wrote counts as durable once it was synced: the bytes of
a file, or the names in a directory. So the store keeps, by inode, what a disk would have after a power cut.
"""

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

from datarax.store import LocalStore


class Stopped(OSError):
    """The process is dead: nothing more happens on its disk."""


class Disk:
    """What is durable below a directory: the bytes of files and the names in directories, by inode.

    Args:
        directory: the place; what lies there from the beginning counts as durable.
    """

    def __init__(self, directory):
        self._root = os.fspath(directory)
        self._files, self._directories, self._open = {}, {}, {}
        for parent, _, names in os.walk(directory):
            self.keep(parent, *(os.path.join(parent, name) for name in names))

    def keep(self, *paths):
        """The bytes of a file, or the names in a directory, are durable as they are now."""
        for path in map(os.fspath, paths):
            inode = self._inode(path)
            if os.path.isdir(path):
                with os.scandir(path) as entries:
                    self._directories[inode] = {each.name: self._inode(each.path) for each in entries}
            else:
                self._files[inode] = Path(path).read_bytes()

    def after_power_cut(self, place):
        """Writes what is durable to another place."""
        self._restore(Path(place), os.stat(self._root).st_ino)

    def close(self):
        for descriptor in self._open.values():
            os.close(descriptor)

    def _restore(self, place, inode):
        if inode in self._directories:
            place.mkdir()
            for name, below in self._directories[inode].items():
                self._restore(place / name, below)
        elif inode in self._files:
            place.write_bytes(self._files[inode])
        elif os.path.isdir(f"/proc/self/fd/{self._open[inode]}"):
            place.mkdir()  # its name is on the disk, and none of those in it
        else:
            place.write_bytes(b"")

    def _inode(self, path):
        inode = os.lstat(path).st_ino
        if inode not in self._open:  # held open, so that no other file gets its number
            self._open[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        return inode


class CrashingStore:
    """A `LocalStore` that changes things `changes` times, then begins one more change, and then is dead.

    Args:
        directory: the place, which exists; what lies there counts as durable.
        changes: how many; None: it never stops.
    """

    def __init__(self, directory, changes=None):
        self._store, self.url = LocalStore(directory), os.fspath(directory)
        self._left, self.done = changes, 0
        self.stopped_at = None
        self.disk = Disk(directory)
        self._leases = []
        self._lock = threading.Lock()

    def path(self, key):
        return self._store.path(key)

    def read(self, key, most_bytes):
        return self._alive().read(key, most_bytes)

    def sha256(self, key):
        return self._alive().sha256(key)

    def list(self, prefix=""):
        return self._alive().list(prefix)

    def stat(self, key):
        return self._alive().stat(key)

    def write(self, key, data, *, if_absent=False):
        path = Path(self.path(key))
        half = path if if_absent else path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with self._change(
            f"write {key}", lambda: half.parent.is_dir() and half.write_bytes(data[: len(data) // 2])
        ):
            made = self._missing_parents(key)
            self._store.write(key, data, if_absent=if_absent)
            self.disk.keep(path, path.parent, *made)

    def append(self, key, data):
        path = Path(self.path(key))
        with self._change(f"append {key}"):
            made = self._missing_parents(key)
            self._store.append(key, data)
            self.disk.keep(path, path.parent, *made)

    def make(self, prefix=""):
        with self._change(f"make {prefix}"):
            made = self._missing_parents(f"{prefix}/x")
            self._store.make(prefix)
            self.disk.keep(*made)

    def move(self, prefix, to):
        with self._change(f"move {prefix} {to}", lambda: self._store.make(os.path.dirname(to))):
            made = self._missing_parents(to)
            self._store.move(prefix, to)
            self.disk.keep(os.path.dirname(self.path(prefix)), os.path.dirname(self.path(to)), *made)

    def delete(self, prefix):
        with self._change(f"delete {prefix}", lambda: _delete_half(Path(self.path(prefix)))):
            self._store.delete(prefix)
            parent = os.path.dirname(self.path(prefix))
            self.disk.keep(*(path for path in [parent] if os.path.isdir(path)))

    def sync(self, key):
        with self._change(f"sync {key}"):
            self._store.sync(key)
            self.disk.keep(self.path(key))

    def lease(self, key):
        self._leases.append(self._alive().lease(key))
        return self._leases[-1]

    def end(self):
        """The kernel frees what a dead process held."""
        for lease in self._leases:
            lease.release()
        self.disk.close()

    def _alive(self):
        if self.stopped_at is not None:
            raise Stopped(errno.EIO, "the process is dead", self.url)
        return self._store

    @contextlib.contextmanager
    def _change(self, what, half=lambda: None):
        with self._lock:
            self._alive()
            if self._left == 0:
                self.stopped_at = what
                half()
                raise Stopped(errno.EIO, f"the process died in: {what}", self.url)
            yield
            self.done += 1
            if self._left is not None:
                self._left -= 1

    def _missing_parents(self, key):
        """The directories that will have a new name in them, because those below are made."""
        parents = [Path(self.url, *key.split("/")[:depth]) for depth in range(1, key.count("/") + 1)]
        return [parent.parent for parent in parents if not parent.exists()]


class CrashingSystem:
    """For code that changes a directory by `os` itself: dead after so many calls that change names, or sync.

    Args:
        patch: a `pytest.MonkeyPatch`, undone when the process is over.
        directory: as for `CrashingStore`.
        changes: as for `CrashingStore`.
    """

    def __init__(self, patch, directory, changes):
        self.disk, self.stopped_at = Disk(directory), None
        self._left, self._place = changes, os.fspath(directory)
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, self._dying(name, getattr(os, name)))

    def _dying(self, name, real):
        def call(*args, **kwargs):
            path = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else os.fspath(args[0])
            if self.stopped_at is not None:
                raise Stopped(errno.EIO, "the process is dead", path)
            if self._left == 0:
                self.stopped_at = f"{name} {path}"
                raise Stopped(errno.EIO, f"the process died in: {self.stopped_at}", path)
            self._left -= 1
            done = real(*args, **kwargs)
            if name == "fsync" and path.startswith(self._place):
                self.disk.keep(path)
            return done

        return call


def _delete_half(path):
    if path.is_dir():
        for each in sorted(path.iterdir())[:1]:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
