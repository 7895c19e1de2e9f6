"""In which fields a record contradicts the rest of its run.

State and digests are for a replay to compare; here are the fields that say what a record belongs to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datarax.checkpoint import Snapshot
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.record import SNAPSHOT_FORMAT, Record
from datarax.core.tree import differences
from datarax.training import LOADER_NAME


def neighbour_record(directory: Path, known: Sequence[int], step: int) -> Record | None:
    """The record of the nearest snapshot, or ledger entry, before `step`, else after it; None if there is none.

    Args:
        directory: the run.
        known: its `item_steps`.
        step: where to look from.
    """
    at = bisect_left(known, step)
    others = (*reversed(known[:at]), *known[bisect_right(known, step) :])
    items = (Snapshot.salvage(directory, other) for other in others)
    return next((item.record for item in items if item is not None), None)


def contradictions(
    directory: Path, known: Sequence[int], step: int, record: Record, *, scope: str
) -> list[str]:
    """Fields of a record that the rest of its run contradicts.

    Args:
        directory: the run.
        known: its `item_steps`.
        step: of the record.
        record: the record, whether its file is as written or not.
        scope: the scope that the module which saved it has.
    """
    expected = [
        ("format", record.format, record.format if Record.reads(record.format) else SNAPSHOT_FORMAT),
        ("step", record.step, step),
        ("previous", record.previous, _previous(known, step, record)),
        ("loaders", sorted(record.loaders), [LOADER_NAME]),
        *_expected_of_loader(step, record, scope),
    ]
    found = [
        f"data/record.json: {name} is recorded as {was!r}, the rest of the run says {should!r}"
        for name, was, should in expected
        if was != should
    ]
    return found + list(_dangling(directory, record)) + _wrong_history(directory, known, step, record)


def _previous(known: Sequence[int], step: int, record: Record) -> int | None:
    """What `previous` must be. A snapshot between may have been deleted by hand; then the record is believed."""
    loader = record.loaders.get(LOADER_NAME)
    if record.config is not None and loader is not None and loader.steps is not None:
        # A session never seeks: its steps since the last snapshot begin there.
        begun = loader.steps.first_step or None
        if record.previous != begun:
            return begun
    at = bisect_left(known, step)
    there = known[at - 1] if at else None
    said = record.previous
    is_possible = said is not None and (there or 0) <= said < step
    return said if is_possible or (said is None and there is None) else there


def _expected_of_loader(step: int, record: Record, scope: str) -> Iterator[tuple[str, Any, Any]]:
    loader = record.loaders.get(LOADER_NAME)
    if loader is None:
        return
    name = f"loaders.{LOADER_NAME}"
    yield f"{name}.scope", loader.scope, scope
    if loader.steps is not None:
        yield f"{name}.steps.count", loader.steps.count, step - loader.steps.first_step
        yield f"{name}.steps.offset", loader.steps.offset, 0
        if loader.digest is not None and loader.digest["bytes"] is not None and loader.steps.count:
            yield f"{name}.steps.has_bytes", loader.steps.has_bytes, True
        if record.config is not None:
            yield f"{name}.steps.first_step", loader.steps.first_step, record.previous or 0


def _dangling(directory: Path, record: Record) -> Iterator[str]:
    layout = RunLayout(directory)
    named = [
        ("identity", layout.identity(record.identity)),
        ("start", layout.starts / f"{record.start}.json"),
    ]
    if record.config is not None:
        named.append(("config", layout.config(record.config)))
    if record.earlier_history is not None:
        named.append(("earlier_history", layout.history(record.earlier_history)))
    for name, path in named:
        if not path.exists():
            yield f"data/record.json: {name} names {path.parent.name}/{path.name}, which is not there"


def _wrong_history(directory: Path, known: Sequence[int], step: int, record: Record) -> list[str]:
    """The history of an earlier snapshot begins that of a later one."""
    other = neighbour_record(directory, known, step)
    if other is None or record.earlier_history != other.earlier_history:
        return []
    length = len(other.history if other.step < step else record.history)
    here, there = ([vars(entry) for entry in each.history[:length]] for each in (record, other))
    return [
        f"data/record.json: history{each.path} is recorded as {each.was!r}, snapshot {other.step} says {each.now!r}"
        for each in differences(here, there)
    ]


__all__ = ["contradictions", "neighbour_record"]
