"""Which steps stay, and how steps leave: to the ledger and the trash, or set aside.

Every move is one rename, so a kill between two of them leaves nothing half moved; `clean_up` finishes what was begun.
Needs no space on the disk: what leaves must be able to leave a full one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from datarax.checkpoint.layout import (
    COMMIT_MARK_NAME,
    DATA_ITEM,
    MANIFEST_NAME,
    RunLayout,
    is_step_name,
    next_number,
)
from datarax.checkpoint.manifest import Manifest
from datarax.core.tree import canonical_json
from datarax.store.files import make_directory, sync, write_new, write_whole

_TEXTS = ("identity", "configs", "history")
_DROPPED = "dropped-"
_THROWN_AWAY = re.compile(".+-[0-9a-f]{32}")


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
    make_directory(layout.trash)
    gone = layout.trash / f"{_DROPPED}{step}"
    os.rename(layout.step(step), gone)
    sync(layout.directory)
    _finish_drop(layout, gone)


def _finish_drop(layout: RunLayout, gone: Path) -> None:
    data = gone / DATA_ITEM
    if _is_directory(data):
        _keep_sums(layout, gone)
        entry = layout.ledger(int(gone.name.removeprefix(_DROPPED)))
        make_directory(entry.parent)
        with contextlib.suppress(OSError):  # nothing reads it: whatever lies there goes along
            (data / COMMIT_MARK_NAME).unlink()
        if os.path.lexists(entry):  # of a branch that was rolled back by hand
            throw_away(layout, entry)
        os.rename(data, entry)
        sync(entry.parent)
    shutil.rmtree(gone)


def _keep_sums(layout: RunLayout, gone: Path) -> None:
    """Put what the manifest says of the data item beside it, so that the ledger can be checked too."""
    try:
        manifest = Manifest.from_bytes(layout.read(gone / MANIFEST_NAME))
        files = {name: f for name, f in manifest.items[DATA_ITEM].items() if name != COMMIT_MARK_NAME}
        small = dataclasses.replace(manifest, items={DATA_ITEM: files}, leaves=None)
        for left in (gone / DATA_ITEM).glob(f".{MANIFEST_NAME}.*.tmp"):  # by a writer that was killed here
            left.unlink()
        write_whole(gone / DATA_ITEM / MANIFEST_NAME, small.to_bytes())
    except (OSError, ValueError, KeyError):
        return  # a full disk or a damaged step must not keep it from leaving


def throw_away(layout: RunLayout, path: Path) -> None:
    """Delete a directory of the run so that no reader sees it half deleted."""
    make_directory(layout.trash)
    gone = layout.trash / f"{path.name}-{uuid.uuid4().hex}"
    os.rename(path, gone)
    sync(path.parent)
    if _is_directory(gone):  # a link stays in the trash: what it points to is not ours
        shutil.rmtree(gone)


def _is_directory(path: Path) -> bool:
    """Whether it is a directory of its own, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def temporary_steps(layout: RunLayout, temporary_suffix: str) -> list[Path]:
    """Directories of steps that are being written, or that killed writers left."""
    return [
        path
        for path in sorted(layout.directory.glob(f"*{temporary_suffix}*"))
        if is_step_name(path.name.partition(temporary_suffix)[0]) and _is_directory(path)
    ]


def clean_up(layout: RunLayout, temporary_suffix: str, *, start: int) -> list[str]:
    """Remove what killed writers left: temporary step directories, parts, trash, half-written small files.

    Only for the one writer, with the lock held and before a manager is open. What is not ours is left alone: no link is
    followed, and nothing is deleted but directories that we have named. What lies in the place of ours is set aside.

    Returns:
        A sentence for each temporary step that was removed, and for each thing that does not belong to a run.

    Raises:
        OSError: if something cannot be moved or deleted.
    """
    said = _make_way(layout, start=start)
    for path in temporary_steps(layout, temporary_suffix):
        throw_away(layout, path)
        said.append(f"removed {path.name}, left by a save that was killed before its commit")
    # Errors are nothing: a process of an earlier start that still writes there is heard by nobody.
    shutil.rmtree(layout.parts, ignore_errors=True)
    for path in sorted(layout.trash.iterdir()) if layout.trash.exists() else ():
        if not _is_directory(path) or not _is_ours_in_trash(path.name):
            said.append(f"{path} does not belong to the run; it is left alone")
        elif path.name.startswith(_DROPPED):
            _finish_drop(layout, path)
        else:
            shutil.rmtree(path)
    for path in _texts(layout, ".*.tmp"):
        path.unlink(missing_ok=True)
    return said


def _make_way(layout: RunLayout, *, start: int) -> list[str]:
    """Sets aside what lies where a directory, or a named text, of the run will have to be; a sentence for each."""
    said = []
    if _is_in_the_way(layout.set_aside):
        # Nothing can be set aside before this has gone: it stays in the run, beside its place.
        beside = layout.directory / f"set_aside-{uuid.uuid4().hex}"
        os.rename(layout.set_aside, beside)
        said.append(
            f"{layout.set_aside} was a link or a file, not a directory of the run; it is now {beside}"
        )
    places = [layout.directory / name for name in ("parts", "trash", "ledger", *_TEXTS)]
    for path in filter(_is_in_the_way, places):
        place = set_aside(layout, [path], start=start, reason="it was no directory")
        said.append(f"{path} was a link or a file, not a directory of the run; it is now in {place}")
    for path in filter(_is_directory, _texts(layout, "*")):
        place = set_aside(layout, [path], start=start, reason="it was a directory")
        said.append(f"{path} was a directory, where the run has files only; it is now in {place}")
    return said


def _is_ours_in_trash(name: str) -> bool:
    if name.startswith(_DROPPED):
        return is_step_name(name.removeprefix(_DROPPED))
    return _THROWN_AWAY.fullmatch(name) is not None


def _is_in_the_way(path: Path) -> bool:
    return os.path.lexists(path) and not _is_directory(path)


def _texts(layout: RunLayout, pattern: str) -> list[Path]:
    """What lies in the directories of the texts that snapshots name."""
    places = [layout.directory / name for name in _TEXTS]
    return [path for place in places if _is_directory(place) for path in sorted(place.glob(pattern))]


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
    make_directory(parent)
    place = parent / str(next_number(parent))
    place.mkdir()
    sync(parent)
    sync(parent.parent)
    return place
