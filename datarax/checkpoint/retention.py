"""Which steps stay, and how steps leave: to the ledger and the trash, or set aside.

Every move is one rename, so a kill between two of them leaves nothing half moved; `clean_up` finishes what was begun.
Needs no space on the disk: what leaves must be able to leave a full one.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from datarax.checkpoint.layout import COMMIT_MARK_NAME, DATA_ITEM, MANIFEST_NAME, RunLayout, is_step_name
from datarax.checkpoint.manifest import Manifest
from datarax.core.tree import canonical_json
from datarax.store.files import sync, write_new

_DROPPED = "dropped-"


def steps_to_drop(committed: Sequence[int], *, keep_latest: int | None, keep_every: int | None) -> list[int]:
    """The committed steps that are neither among the newest `keep_latest` nor multiples of `keep_every`."""
    if keep_latest is None:
        return []
    old = sorted(committed)[:-keep_latest]
    return [step for step in old if keep_every is None or step % keep_every != 0]


def drop(layout: RunLayout, step: int) -> None:
    """Take a committed step out of the run: its data item to the ledger, the rest away.

    Raises:
        OSError: if it cannot be moved; what is left is finished by the next `clean_up`.
    """
    layout.trash.mkdir(exist_ok=True)
    gone = layout.trash / f"{_DROPPED}{step}"
    os.rename(layout.step(step), gone)
    sync(layout.directory)
    _finish_drop(layout, gone)


def _finish_drop(layout: RunLayout, gone: Path) -> None:
    data = gone / DATA_ITEM
    if data.is_dir():
        _keep_sums(gone)
        entry = layout.ledger(int(gone.name.removeprefix(_DROPPED)))
        entry.parent.mkdir(exist_ok=True)
        (data / COMMIT_MARK_NAME).unlink(missing_ok=True)
        if entry.exists():  # of a branch that was rolled back by hand
            throw_away(layout, entry)
        os.rename(data, entry)
        sync(entry.parent)
    shutil.rmtree(gone)


def _keep_sums(gone: Path) -> None:
    """Put what the manifest says of the data item beside it, so that the ledger can be checked too."""
    try:
        manifest = Manifest.from_bytes((gone / MANIFEST_NAME).read_bytes())
        files = {name: f for name, f in manifest.items[DATA_ITEM].items() if name != COMMIT_MARK_NAME}
        small = dataclasses.replace(manifest, items={DATA_ITEM: files}, leaves=None)
        write_new(gone / DATA_ITEM / MANIFEST_NAME, small.to_bytes())
    except (OSError, ValueError, KeyError):
        return  # a full disk or a damaged step must not keep it from leaving; a second try finds the file written


def throw_away(layout: RunLayout, path: Path) -> None:
    """Delete a directory of the run so that no reader sees it half deleted."""
    layout.trash.mkdir(exist_ok=True)
    gone = layout.trash / f"{path.name}-{uuid.uuid4().hex}"
    os.rename(path, gone)
    sync(path.parent)
    shutil.rmtree(gone)


def temporary_steps(layout: RunLayout, temporary_suffix: str) -> list[Path]:
    """Directories of steps that are being written, or that killed writers left."""
    return [
        path
        for path in sorted(layout.directory.glob(f"*{temporary_suffix}*"))
        if is_step_name(path.name.partition(temporary_suffix)[0]) and path.is_dir()
    ]


def clean_up(layout: RunLayout, temporary_suffix: str) -> list[str]:
    """Remove what killed writers left: temporary step directories, parts, trash, half-written small files.

    Only for the one writer, with the lock held and before a manager is open.

    Returns:
        The names of the temporary step directories that were removed.
    """
    removed = []
    for path in temporary_steps(layout, temporary_suffix):
        throw_away(layout, path)
        removed.append(path.name)
    # Errors are nothing: a process of an earlier start that still writes there is heard by nobody.
    shutil.rmtree(layout.parts, ignore_errors=True)
    if layout.trash.is_dir():
        for path in sorted(layout.trash.iterdir()):
            if path.name.startswith(_DROPPED):
                _finish_drop(layout, path)
            else:
                shutil.rmtree(path)
    for name in ("identity", "configs", "history"):
        for path in layout.directory.glob(f"{name}/.*.tmp"):
            path.unlink(missing_ok=True)
    return removed


def set_aside(layout: RunLayout, paths: Sequence[Path], *, start: int, reason: str) -> Path | None:
    """Move directories out of the run without deleting them.

    Args:
        layout: the run.
        paths: directories below the run, in the order in which they leave (newest first, so that a kill in between
            leaves a shorter run and not one with a hole).
        start: number of the start that does it.
        reason: one sentence, kept beside them.

    Returns:
        The directory that now holds them under their relative paths, or None if there were none.
    """
    if not paths:
        return None
    place = _new_place(layout.set_aside)
    note = {"reason": reason, "start": start, "unix_seconds": time.time()}
    write_new(place / "note.json", canonical_json(note) + b"\n")
    for path in paths:
        target = place / path.relative_to(layout.directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
        sync(target.parent)
        sync(path.parent)
    return place


def _new_place(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    taken = [int(name) for name in os.listdir(parent) if is_step_name(name)]
    place = parent / str(max(taken, default=0) + 1)
    place.mkdir()
    sync(parent)
    sync(parent.parent)
    return place
