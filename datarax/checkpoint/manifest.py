"""The manifest of a step: what must be there, byte for byte.

Its existence in a numbered directory makes that directory a snapshot; its content says whether it is still the one that
was written. It also keeps what Orbax does not: the kind, dtype and shape of every leaf of the model.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from datarax.checkpoint.model_item import LeafSpec
from datarax.core.config import Natural, from_tree
from datarax.core.tree import canonical_json, reader_of
from datarax.store import Store
from datarax.store.files import parse_json

T = TypeVar("T")

MANIFEST_FORMAT = 1
"""Raise this when the meaning of a field of `manifest.json` changes, add a reader to the table below, and golden snapshots
with `make golden`."""

_BLOCK_BYTES = 4 << 20
_HASH_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class FileEntry:
    """One file of an item."""

    size: Natural
    """Bytes."""
    sha256: str | None
    """Hex digits; None if the item was above the digest limit, so that only the size is known."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    step: Natural
    """The step that it makes committed."""
    items: Mapping[str, Mapping[str, FileEntry]]
    """Item name -> path relative to the item directory -> file. Every item of the step is listed."""
    leaves: Sequence[LeafSpec] | None
    """All leaves of the model, None leaves included; None if the step holds no model."""
    written_unix_seconds: float
    """When the step was committed, by the clock of the writer."""

    @property
    def unhashed_items(self) -> list[str]:
        """Items whose files are recorded by size only."""
        return [name for name, files in self.items.items() if any(f.sha256 is None for f in files.values())]

    def to_bytes(self) -> bytes:
        """Canonical JSON with a checksum over itself."""
        body = {
            "format": MANIFEST_FORMAT,
            "step": self.step,
            "items": {
                name: {path: {"size": f.size, "sha256": f.sha256} for path, f in files.items()}
                for name, files in self.items.items()
            },
            "leaves": None if self.leaves is None else [leaf.to_tree() for leaf in self.leaves],
            "written_unix_seconds": self.written_unix_seconds,
        }
        return canonical_json({**body, "checksum": _checksum(body)})

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: if a byte of it has changed, or there is no reader for its format.
        """
        tree = parse_json(data)
        if not isinstance(tree, dict):
            raise ValueError("it is not a JSON object")
        # The bytes too: the last digit of a number may change without its value.
        if canonical_json(tree) != data or tree.pop("checksum", None) != _checksum(tree):
            raise ValueError("its checksum does not match its content")
        reader = reader_of(tree.pop("format", None), _READERS)
        try:
            return reader(tree)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its fields are not those of a manifest: {error}") from error


def _read_v1(tree: Mapping[str, Any]) -> Manifest:
    manifest = from_tree(Manifest, tree)
    for path in (path for name, files in manifest.items.items() for path in (name, *files)):
        if {"", os.curdir, os.pardir} & set(path.split("/")) or "\0" in path:
            raise ValueError(f"its file name {path!r} leads elsewhere")
    return manifest


_READERS = {1: _read_v1}


def _checksum(body: Any) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def seal_item(
    store: Store, item: str, *, limit_bytes: int | None = None, known: Mapping[str, FileEntry] | None = None
) -> dict[str, FileEntry]:
    """Make every file and directory of an item durable and measure the files.

    Orbax syncs none of the files that it writes itself, so a power cut after the commit could leave them empty.

    Args:
        store: of the run.
        item: the key of the item's directory.
        limit_bytes: record only sizes if the files together are larger than this.
        known: files of the item that other processes have sealed; those of the same size are not read again.

    Returns:
        Path relative to the item (with `/`) -> file, in path order.
    """
    directories, files = _walk(store, item)
    sizes = {key: _size(store, key) for key in files}
    total = sum(sizes.values())
    hashed = limit_bytes is None or total <= limit_bytes

    def seal(key: str) -> str | None:
        before = (known or {}).get(key.removeprefix(f"{item}/"))
        if before is not None and before.size == sizes[key]:
            return before.sha256 if hashed else None
        digest = store.sha256(key) if hashed else None
        store.sync(key)
        return digest

    # A pool costs more than it brings for the few small files of a data item.
    digests = _each(seal, files, alone=total < _BLOCK_BYTES and len(files) < 8)
    for key in reversed(directories):
        store.sync(key)
    return {
        key.removeprefix(f"{item}/"): FileEntry(sizes[key], digest)
        for key, digest in zip(files, digests, strict=True)
    }


def check_item(
    store: Store, item: str, files: Mapping[str, FileEntry], *, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """Compare the files of an item with the manifest.

    Args:
        store: of the run.
        item: the key of the item's directory.
        files: what the manifest lists.
        share: `(i, n)`: of the listed files only each n-th from the i-th on.

    Returns:
        One sentence per file that is missing, changed or not listed, naming it relative to the step; [] if all match.
    """
    shown = item.rpartition("/")[2]

    def check(name: str) -> str | None:
        problem = _file_problem(store, f"{item}/{name}", files[name])
        return problem and f"{shown}/{name}: {problem}"

    names = sorted(files)[share[0] :: share[1]]
    problems = [problem for problem in _each(check, names) if problem]
    try:
        found = [key.removeprefix(f"{item}/") for key in _walk(store, item)[1]]
    except NotADirectoryError:
        # What a link leads to is not looked at: that may be the whole disk.
        return [*problems, f"{shown}: it, or a directory on the way, is a link"]
    except OSError as error:
        return [*problems, f"{shown}: cannot be listed ({error.strerror})"]
    return problems + [f"{shown}/{name}: is not in the manifest" for name in found if name not in files]


def _each(do: Callable[[str], T], keys: Sequence[str], *, alone: bool = False) -> list[T]:
    if alone:
        return [do(key) for key in keys]
    with ThreadPoolExecutor(_HASH_THREADS, "datarax-hash") as pool:
        return list(pool.map(do, keys))


def check_bytes(data: bytes, entry: FileEntry | None) -> str | None:
    """What is wrong with bytes that were read, by the manifest; None if nothing is."""
    if entry is None:
        return "is not in the manifest"
    if len(data) != entry.size:
        return f"has {len(data)} bytes, was written with {entry.size}"
    if entry.sha256 is not None and hashlib.sha256(data).hexdigest() != entry.sha256:
        return "its content has changed since it was written (SHA-256 differs)"
    return None


def _file_problem(store: Store, key: str, entry: FileEntry) -> str | None:
    try:
        size = _size(store, key)
        if size != entry.size:
            return f"has {size} bytes, was written with {entry.size}"
        if entry.sha256 is not None and store.sha256(key) != entry.sha256:
            return "its content has changed since it was written (SHA-256 differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _size(store: Store, key: str) -> int:
    entry = store.stat(key)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), store.path(key))
    if entry.kind != "file" or entry.size is None:
        raise OSError(errno.EINVAL, "it, or a directory on the way, is a link or no file", store.path(key))
    return entry.size


def _walk(store: Store, directory: str) -> tuple[list[str], list[str]]:
    """All directories from this one on, and all else in them."""
    directories: list[str] = [directory]
    files: list[str] = []
    for above in directories:
        for entry in store.list(above):
            (directories if entry.kind == "directory" else files).append(entry.key)
    return directories, sorted(files)
