"""Where everything of a run lies: the store that holds it, and the paths in it.

`checkpoints/README.md` describes each file. Knows keys, paths and bytes, not what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.store import LocalStore, Store
from datarax.store.files import check_path

MANIFEST_NAME = "manifest.json"
"""Its existence makes a step committed."""
DATA_ITEM = "data"
"""The item with what is recorded of the data."""
MODEL_ITEM = "model"
"""The item with the trainer's arrays."""
RECORD_NAME = "record.json"
"""See `Record`."""
STATE_NAME = "state.json"
"""States that do not fit into the record."""
STEPS_NAME = "steps.bin"
"""Digests of single steps."""
PROCESSES_NAME = "processes.json"
"""States that belong to single processes."""
COMMIT_MARK_NAME = "commit_success.txt"
"""Orbax writes it into each item and step; nothing here reads it."""

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")
_WILDCARDS = "*?[\\"
_MOST_BYTES = {
    MANIFEST_NAME: 1 << 28,
    RECORD_NAME: 1 << 16,
    STATE_NAME: 1 << 28,
    STEPS_NAME: 1 << 30,
    PROCESSES_NAME: 1 << 28,
    "identity": 1 << 26,
    "history": 1 << 26,
    "configs": 1 << 24,
    "starts": 1 << 28,
    "lock": 1 << 16,
    "parts": 1 << 28,
}
"""What a file of this name, or in a directory of this name, may hold: far more than any was ever written with."""

_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

_STEP_NAME = re.compile("0|[1-9][0-9]{0,18}")

MOST_STEP = 2**63 - 1
"""No record has a greater step or start."""

_MOST_COUNTED = 10**15 - 1
"""Starts and places are counted one at a time: no run comes near it, and what is called more was called so by somebody else."""


@dataclass(frozen=True)
class RunLayout:
    """One run directory."""

    directory: Path
    """Absolute path of the run."""

    @cached_property
    def store(self) -> Store:
        """What all our files of the run are read from and written to."""
        return LocalStore(self.directory)

    def step(self, step: int) -> Path:
        """The directory of a committed step."""
        return self.directory / str(step)

    def identity(self, sha256: str) -> Path:
        """The identity tree with this digest."""
        return self.directory / "identity" / f"{sha256}.json"

    def history(self, sha256: str) -> Path:
        """The earlier entries of a long history."""
        return self.directory / "history" / f"{sha256}.json"

    def config(self, sha256: str) -> Path:
        """The resolved run config with this digest."""
        return self.directory / "configs" / f"{sha256}.toml"

    @property
    def lock(self) -> Path:
        """The file that the one writer holds locked."""
        return self.directory / "lock"

    @property
    def starts(self) -> Path:
        """One numbered file for each time a writer opened the run."""
        return self.directory / "starts"

    @property
    def trash(self) -> Path:
        """Directories on their way out; emptied by the next writer if this one dies."""
        return self.directory / "trash"

    @property
    def parts(self) -> Path:
        """What other processes hand to process 0 for the snapshot that is being saved; never part of one."""
        return self.directory / "parts"

    def key(self, path: Path) -> str:
        """The key of a path of the run in its store."""
        return path.relative_to(self.directory).as_posix()

    def read(self, path: Path | str) -> bytes:
        """All of a file of the run.

        Raises:
            OSError: if it cannot be read, lies outside of the run behind a link, is no file, or is larger than any such file.
        """
        key = path if isinstance(path, str) else self.key(path)
        place, _, name = key.rpartition("/")
        most = _MOST_BYTES.get(name) or _MOST_BYTES[place.partition("/")[0] or name]
        return self.store.read(key, most)

    def has(self, path: Path) -> bool:
        """Whether there is such a file of the run: neither a link nor reached through one."""
        entry = self.store.stat(self.key(path))
        return entry is not None and entry.kind == "file"

    def write_addressed(self, path: Path, data: bytes) -> bool:
        """Write a file named by its content, unless it is there already and whole; durable with its directory.

        Returns:
            Whether it had to be written.
        """
        with contextlib.suppress(OSError):  # what is there and cannot be read is written again
            if self.read(path) == data:
                return False
        self.store.write(self.key(path), data)
        return True

    def numbered(self, place: str = "") -> list[int]:
        """All directories named as a step, committed or not, ascending.

        Args:
            place: where, in the run: "" or "ledger".

        Raises:
            InputError: if something else is there than a directory, or nothing can be under such a name.
            ReadError: if the run is there and cannot be listed.
        """
        try:
            entries = self.store.list(place)
        except OSError as error:
            kind = InputError if error.errno in _NO_DIRECTORY else ReadError
            raise kind(f"the run directory {self.directory} cannot be listed: {error.strerror}") from error
        return sorted(int(e.name) for e in entries if e.kind == "directory" and is_step_name(e.name))

    def committed(self) -> list[int]:
        """All committed steps, ascending: numbered directories that hold a manifest."""
        return [step for step in self.numbered() if self.is_committed(step)]

    def is_committed(self, step: int) -> bool:
        """Whether `committed` has this step; the other ones are not looked at."""
        return self.store.stat(f"{step}/{MANIFEST_NAME}") is not None


def local_directory(directory: str | os.PathLike[str]) -> Path:
    """`directory` as an absolute local path.

    Raises:
        ConfigError: if it is not a local path, such as `gs://bucket/run`.
        InputError: if it is not in UTF-8.
    """
    text = os.fspath(directory)
    if not isinstance(text, str) or not text:
        raise ConfigError(f"a run directory must be a path in text, not {text!r}")
    if _SCHEME.match(text):
        raise ConfigError(
            f"the run directory {text!r} is not a local path; object stores are not supported yet"
        )
    absolute = os.path.abspath(os.path.expanduser(text))
    check_path(absolute, "the run directory")
    return Path(absolute)


def place_of(directory: Path) -> Path:
    """The run directory, or the nearest directory above it that is there, in which it will be made.

    Raises:
        InputError: if that is no directory, or no directory can be made in it.
    """
    place = directory
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"the run directory {directory} cannot be used: {place} is no directory")
    if os.statvfs(place).f_blocks == 0:
        raise InputError(f"the run directory {directory} cannot be used: {place} keeps no files of anybody")
    return place


def refuse_wildcards(path: Path) -> None:
    """Refuse a directory that Orbax cannot write a model to: it looks for its own files there with `glob`.

    In `run[1]` it finds none and commits a model without content.

    Raises:
        ConfigError: if there is a wildcard in the path.
    """
    wildcard = next((character for character in str(path) if character in _WILDCARDS), None)
    if wildcard is not None:
        raise ConfigError(
            f"the run directory {str(path)!r} has {wildcard!r} in its path, which Orbax takes for a wildcard; "
            "choose another name"
        )


def is_step_name(name: str) -> bool:
    """Whether a directory of this name stands for a step: a canonical decimal number."""
    return _STEP_NAME.fullmatch(name) is not None and int(name) <= MOST_STEP


def numbers_in(store: Store, place: str, suffix: str = "") -> list[int]:
    """The numbers by which starts or places are named in a directory; other names are passed over.

    Raises:
        OSError: if the directory is there and cannot be listed, or is none.
    """
    names = [entry.key.removeprefix(f"{place}/") for entry in store.list(place)]
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return [int(stem) for stem in stems if is_step_name(stem) and int(stem) <= _MOST_COUNTED]


def next_number(store: Store, place: str, suffix: str = "") -> int:
    """The number after all in a directory, 1 for the first; see `numbers_in`.

    Raises:
        InputError: if there is none.
    """
    last = max(numbers_in(store, place, suffix), default=0)
    if last >= _MOST_COUNTED:
        raise InputError(
            f"{store.path(f'{place}/{last}{suffix}')} has the last number that is counted, and no run has come so far: "
            f"somebody has put it there; move it out of {store.path(place)} and go on"
        )
    return last + 1


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()
