"""The manifest of a step: what must be there, byte for byte.

Its existence in a numbered directory makes that directory a snapshot; its content says whether it is still the one that
was written. It also keeps what Orbax does not: the kind, dtype and shape of every leaf of the model.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datarax.checkpoint.model_item import LeafSpec
from datarax.core.config import Natural, from_tree
from datarax.core.tree import canonical_json, reader_of
from datarax.store.files import open_file, parse_json, sync

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


def seal_item(directory: Path, *, limit_bytes: int | None = None) -> dict[str, FileEntry]:
    """Make every file and directory of an item durable and measure the files.

    Orbax syncs none of the files that it writes itself, so a power cut after the commit could leave them empty.

    Args:
        directory: the item.
        limit_bytes: record only sizes if the files together are larger than this.

    Returns:
        Path relative to `directory` (with `/`) -> file, in path order.
    """
    paths, directories = _walk(directory)
    sizes = [path.stat().st_size for path in paths]
    hashed = limit_bytes is None or sum(sizes) <= limit_bytes
    with ThreadPoolExecutor(_HASH_THREADS, "datarax-seal") as pool:
        # A pool costs more than it brings for the few small files of a data item.
        run = map if sum(sizes) < _BLOCK_BYTES and len(paths) < 8 else pool.map
        digests: list[str | None] = list(run(_seal_file if hashed else sync, paths))
    for path in reversed(directories):
        sync(path)
    names = [path.relative_to(directory).as_posix() for path in paths]
    return {name: FileEntry(size, digest) for name, size, digest in zip(names, sizes, digests, strict=True)}


def check_item(
    directory: Path, files: Mapping[str, FileEntry], *, share: tuple[int, int] = (0, 1), root: Path
) -> list[str]:
    """Compare the files of an item with the manifest.

    Args:
        directory: the item.
        files: what the manifest lists.
        share: `(i, n)`: of the listed files only each n-th from the i-th on.
        root: the run: what lies behind a link below it does not count.

    Returns:
        One sentence per file that is missing, changed or not listed, naming it relative to the step; [] if all match.
    """
    with ThreadPoolExecutor(_HASH_THREADS, "datarax-check") as pool:
        own = sorted(files.items())[share[0] :: share[1]]
        jobs = [pool.submit(_check_file, directory, name, entry, root) for name, entry in own]
        problems = [problem for job in jobs if (problem := job.result())]
    if os.path.realpath(directory) != os.path.join(os.path.realpath(root), directory.relative_to(root)):
        # What it leads to is not looked at: that may be the whole disk.
        return [*problems, f"{directory.name}: it, or a directory on the way, is a link"]
    listed = set(files)
    found = [path.relative_to(directory).as_posix() for path in _walk(directory)[0]]
    problems += [f"{directory.name}/{name}: is not in the manifest" for name in found if name not in listed]
    return problems


def check_bytes(data: bytes, entry: FileEntry | None) -> str | None:
    """What is wrong with bytes that were read, by the manifest; None if nothing is."""
    if entry is None:
        return "is not in the manifest"
    if len(data) != entry.size:
        return f"has {len(data)} bytes, was written with {entry.size}"
    if entry.sha256 is not None and hashlib.sha256(data).hexdigest() != entry.sha256:
        return "its content has changed since it was written (SHA-256 differs)"
    return None


def _check_file(directory: Path, name: str, entry: FileEntry, root: Path) -> str | None:
    path, shown = directory / name, f"{directory.name}/{name}"
    try:
        with open(open_file(path, root=root), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                return f"{shown}: has {size} bytes, was written with {entry.size}"
            if entry.sha256 is not None and _hash_file(file) != entry.sha256:
                return f"{shown}: its content has changed since it was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{shown}: is missing"
    except OSError as error:
        return f"{shown}: cannot be read ({error.strerror})"
    return None


def _walk(directory: Path) -> tuple[list[Path], list[Path]]:
    files: list[Path] = []
    directories: list[Path] = []
    for parent, below, names in os.walk(directory):
        directories.append(Path(parent))
        files += [Path(parent, name) for name in names]
        files += [Path(parent, name) for name in below if os.path.islink(os.path.join(parent, name))]
    return sorted(files), directories


def _seal_file(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        digest = _hash_file(file)
    sync(path)
    return digest


def _hash_file(file: io.FileIO) -> str:
    # hashlib lets go of the interpreter lock for blocks of this size, so the pool hashes in parallel.
    digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    while count := file.readinto(view):
        digest.update(view[:count])
    return digest.hexdigest()
