"""What a store is: bytes under keys, below one place. All that we write of a run goes through one.

A key is a relative path with `/`, or "" for the place itself. What a method has done is durable when it returns; a process
that dies within one leaves the state before it or after it, and at most a temporary file that nobody reads. Foreign readers
and writers (Orbax, TensorStore) open files by themselves: they get `path`, and `sync` makes durable what they wrote. Knows
nothing of what the bytes mean. Read next: `datarax.store.local`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Entry:
    """What lies at a key."""

    key: str
    """Where it lies in the store."""
    kind: Literal["file", "directory", "other"]
    """`other`: a link, whatever it leads to, a pipe, a socket or a device. None of ours, and none is followed."""
    size: int | None = None
    """Bytes of a file, where they are known without another call."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


class Lease(Protocol):
    """The right to be the one writer, from `Store.lease` to `release` or the death of its holder."""

    def is_held(self) -> bool:
        """Whether the object that was leased is still the one at its key."""
        ...

    def write(self, holder: bytes) -> None:
        """Leaves a word about the holder, for others to read; it outlives the lease."""
        ...

    def release(self) -> None:
        """Lets the next one in; twice is allowed."""
        ...


class Store(Protocol):
    """Bytes under keys.

    Every method raises `OSError` where what it is asked cannot be done, with the path in it.
    """

    url: str
    """The place."""

    def path(self, key: str) -> str:
        """The path of a key, for foreign readers and writers."""
        ...

    def read(self, key: str, most_bytes: int) -> bytes:
        """All of a file of at most `most_bytes`; no link is followed below the place.

        Raises:
            OSError: if it is not there, is no file, or is larger.
        """
        ...

    def sha256(self, key: str) -> str:
        """The digest of a file of any size, as 64 hex digits; links as in `read`. Threads may ask at once."""
        ...

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Writes a file at one stroke, and makes the directories that it needs.

        Args:
            key: which.
            data: all of it.
            if_absent: write no file that is there. Then a process that dies here may leave a part of it.

        Raises:
            FileExistsError: if it is there, and must not be.
        """
        ...

    def append(self, key: str, data: bytes) -> None:
        """Adds to the end of a file, or begins it: for logs."""
        ...

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """What lies directly in a directory, by name; nothing if it is not there.

        Raises:
            NotADirectoryError: if it is a file, or a link to whatever.
        """
        ...

    def stat(self, key: str) -> Entry | None:
        """What lies at a key, with its size; None for nothing, and for what only a link would lead to."""
        ...

    def make(self, prefix: str = "") -> None:
        """Sees to it that a directory is there, and all above it.

        Raises:
            NotADirectoryError: if something else is in its place.
        """
        ...

    def move(self, prefix: str, to: str) -> None:
        """Gives a file or directory another key. One rename: it needs no room, and whoever looks sees it at one of the two."""
        ...

    def delete(self, prefix: str) -> None:
        """Removes a file, or a directory with all in it; what a link leads to stays. Nothing there is no error."""
        ...

    def sync(self, key: str) -> None:
        """Makes durable what others wrote: the bytes of a file, or the names in a directory."""
        ...

    def lease(self, key: str) -> Lease:
        """The lease of a key, which needs no file there.

        Raises:
            BlockingIOError: if another has it.
        """
        ...
