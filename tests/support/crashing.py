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
        self._files, self._directories, self._open = {}, {}, {}
        self._leases = []
        self._lock = threading.Lock()
        for parent, _, names in os.walk(directory):
            self._keep(parent)
            for name in names:
                self._keep(os.path.join(parent, name))

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
            self._keep(path, path.parent, *made)

    def append(self, key, data):
        path = Path(self.path(key))
        with self._change(f"append {key}"):
            made = self._missing_parents(key)
            self._store.append(key, data)
            self._keep(path, path.parent, *made)

    def make(self, prefix=""):
        with self._change(f"make {prefix}"):
            made = self._missing_parents(f"{prefix}/x")
            self._store.make(prefix)
            self._keep(*made)

    def move(self, prefix, to):
        with self._change(f"move {prefix} {to}", lambda: self._store.make(os.path.dirname(to))):
            made = self._missing_parents(to)
            self._store.move(prefix, to)
            self._keep(os.path.dirname(self.path(prefix)), os.path.dirname(self.path(to)), *made)

    def delete(self, prefix):
        with self._change(f"delete {prefix}", lambda: _delete_half(Path(self.path(prefix)))):
            self._store.delete(prefix)
            parent = os.path.dirname(self.path(prefix))
            self._keep(*(path for path in [parent] if os.path.isdir(path)))

    def sync(self, key):
        with self._change(f"sync {key}"):
            self._store.sync(key)
            self._keep(self.path(key))

    def lease(self, key):
        self._leases.append(self._alive().lease(key))
        return self._leases[-1]

    def end(self):
        """The kernel frees what a dead process held."""
        for lease in self._leases:
            lease.release()
        for descriptor in self._open.values():
            os.close(descriptor)

    def after_power_cut(self, place):
        """Writes what is durable to another place."""
        self._restore(Path(place), os.stat(self.url).st_ino)

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

    def _keep(self, *paths):
        for path in map(os.fspath, paths):
            inode = self._inode(path)
            if os.path.isdir(path):
                with os.scandir(path) as entries:
                    self._directories[inode] = {each.name: self._inode(each.path) for each in entries}
            else:
                self._files[inode] = Path(path).read_bytes()

    def _inode(self, path):
        inode = os.lstat(path).st_ino
        if inode not in self._open:  # held open, so that no other file gets its number
            self._open[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        return inode


def _delete_half(path):
    if path.is_dir():
        for each in sorted(path.iterdir())[:1]:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
