"""Which steps stay, and how steps leave: to the ledger and the trash, or set aside.

Every move is one rename, so a kill between two of them leaves nothing half moved; `clean_up` finishes what was begun.
Needs no space on the disk: what leaves must be able to leave a full one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
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
from datarax.store import Entry, Store

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
    gone = f"trash/{_DROPPED}{step}"
    layout.store.move(str(step), gone)
    _finish_drop(layout, gone)


def _finish_drop(layout: RunLayout, gone: str) -> None:
    store, data, entry = layout.store, f"{gone}/{DATA_ITEM}", f"ledger/{gone.rpartition('-')[2]}"
    if _is_directory(store.stat(data)):
        _keep_sums(layout, gone)
        with contextlib.suppress(OSError):  # nothing reads it: whatever lies there goes along
            store.delete(f"{data}/{COMMIT_MARK_NAME}")
        if store.stat(entry) is not None:  # of a branch that was rolled back by hand
            throw_away(layout, entry)
        store.move(data, entry)
    store.delete(gone)


def _keep_sums(layout: RunLayout, gone: str) -> None:
    """Put what the manifest says of the data item beside it, so that the ledger can be checked too."""
    store, data = layout.store, f"{gone}/{DATA_ITEM}"
    try:
        manifest = Manifest.from_bytes(layout.read(f"{gone}/{MANIFEST_NAME}"))
        files = {name: f for name, f in manifest.items[DATA_ITEM].items() if name != COMMIT_MARK_NAME}
        small = dataclasses.replace(manifest, items={DATA_ITEM: files}, leaves=None)
        for left in store.list(data):
            if _is_temporary(left.name):  # by a writer that was killed here
                store.delete(left.key)
        store.write(f"{data}/{MANIFEST_NAME}", small.to_bytes())
    except (OSError, ValueError, KeyError):
        return  # a full disk or a damaged step must not keep it from leaving


def throw_away(layout: RunLayout, key: str) -> None:
    """Delete a directory of the run so that no reader sees it half deleted."""
    gone = f"trash/{key.rpartition('/')[2]}-{uuid.uuid4().hex}"
    layout.store.move(key, gone)
    if _is_directory(layout.store.stat(gone)):  # a link stays in the trash: what it points to is not ours
        layout.store.delete(gone)


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == "directory"


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def temporary_steps(layout: RunLayout, temporary_suffix: str) -> list[Path]:
    """Directories of steps that are being written, or that killed writers left."""
    return [
        layout.directory / entry.key
        for entry in layout.store.list()
        if temporary_suffix in entry.key
        and is_step_name(entry.key.partition(temporary_suffix)[0])
        and _is_directory(entry)
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
    store, said = layout.store, _make_way(layout, start=start)
    for path in temporary_steps(layout, temporary_suffix):
        throw_away(layout, path.name)
        said.append(f"removed {path.name}, left by a save that was killed before its commit")
    with contextlib.suppress(
        OSError
    ):  # a process of an earlier start that still writes there is heard by nobody
        store.delete("parts")
    for entry in store.list("trash"):
        if not _is_directory(entry) or not _is_ours_in_trash(entry.name):
            said.append(f"{store.path(entry.key)} does not belong to the run; it is left alone")
        elif entry.name.startswith(_DROPPED):
            _finish_drop(layout, entry.key)
        else:
            store.delete(entry.key)
    for entry in _texts(store):
        if _is_temporary(entry.name):
            store.delete(entry.key)
    return said


def _make_way(layout: RunLayout, *, start: int) -> list[str]:
    """Sets aside what lies where a directory, or a named text, of the run will have to be; a sentence for each."""
    store, said = layout.store, []

    def move(entry: Entry, was: str, should: str) -> None:
        if entry.key == "set_aside":
            # Nothing can be set aside before this has gone: it stays in the run, beside its place.
            beside = f"set_aside-{uuid.uuid4().hex}"
            store.move(entry.key, beside)
            now = store.path(beside)
        else:
            place = set_aside(layout, [entry.key], start=start, reason=f"it was {was}")
            now = f"in {store.path(place)}"
        said.append(f"{store.path(entry.key)} was {should}; it is now {now}")

    for name in ("set_aside", "parts", "trash", "ledger", *_TEXTS):
        entry = store.stat(name)
        if entry is not None and not _is_directory(entry):
            move(entry, "no directory", "a link or a file, not a directory of the run")
    for entry in filter(_is_directory, _texts(store)):
        move(entry, "a directory", "a directory, where the run has files only")
    return said


def _is_ours_in_trash(name: str) -> bool:
    is_dropped = name.startswith(_DROPPED) and is_step_name(name.removeprefix(_DROPPED))
    return is_dropped or _THROWN_AWAY.fullmatch(name) is not None


def _texts(store: Store) -> list[Entry]:
    """What lies in the directories of the texts that snapshots name."""
    return [entry for place in _TEXTS for entry in store.list(place)]


def set_aside(layout: RunLayout, keys: Sequence[str], *, start: int, reason: str) -> str:
    """Move directories out of the run without deleting them.

    Args:
        layout: the run.
        keys: directories of the run, in the order in which they leave (newest first, so that a kill in between
            leaves a shorter run and not one with a hole).
        start: number of the start that does it.
        reason: one sentence, kept beside them.

    Returns:
        The directory that now holds them under their keys; "" if there were none.
    """
    if not keys:
        return ""
    store = layout.store
    place = f"set_aside/{next_number(store, 'set_aside')}"
    note = {"reason": reason, "start": start, "unix_seconds": time.time()}
    store.write(f"{place}/note.json", canonical_json(note) + b"\n", if_absent=True)
    for key in keys:
        store.move(key, f"{place}/{key}")
    return place
