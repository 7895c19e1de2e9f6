"""In which fields a record contradicts the rest of its run.

State and digests are for a replay to compare; here are the fields that say what a record belongs to.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datarax.audit.replay import unlike
from datarax.checkpoint import Snapshot
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.record import SNAPSHOT_FORMAT, Record
from datarax.training import LOADER_NAME


class Records:
    """The records of a run, whether their files are as written or not.

    Args:
        directory: the run.
        known: the steps that it holds, committed or in the ledger, ascending.
    """

    def __init__(self, directory: Path, known: Sequence[int]) -> None:
        self._layout = RunLayout(directory)
        self._known = known

    def identity(self, record: Record, present: Any) -> Any:
        """The identity that a record names. What is missing or damaged was reported already: then there is none to compare."""
        try:
            return parse_identity(self._layout.read(self._layout.identity(record.identity)))
        except (OSError, ValueError):
            return present

    def config(self, step: int, record: Record) -> str | None:
        """The config that the record of a step names; if the record is damaged and names none, that of its neighbour."""
        if record.config is None or self._layout.config(record.config).exists():
            return record.config
        other = self._neighbour(step)
        return record.config if other is None else other.config

    def contradictions(self, step: int, record: Record, *, scope: str) -> list[str]:
        """Fields of the record of a step that the rest of the run contradicts; `scope` is that of the module that saved it."""
        loader = record.loaders.get(LOADER_NAME)
        was: dict[str, Any] = {"format": record.format, "step": record.step, "previous": record.previous}
        should = {**was, "step": step, "previous": self._previous(step, record)}
        if not Record.reads(record.format):
            should["format"] = SNAPSHOT_FORMAT
        was["loaders"], should["loaders"] = dict.fromkeys(record.loaders), {LOADER_NAME: None}
        if loader is not None:
            fields: dict[str, Any] = {"scope": loader.scope}
            expected: dict[str, Any] = {"scope": scope}
            was["loaders"][LOADER_NAME], should["loaders"][LOADER_NAME] = fields, expected
            if loader.steps is not None:
                fields["steps"] = vars(loader.steps)
                expected["steps"] = {
                    **vars(loader.steps),
                    "count": step - loader.steps.first_step,
                    "offset": 0,
                }
                if loader.digest is not None and loader.digest["bytes"] is not None and loader.steps.count:
                    expected["steps"]["has_bytes"] = True
                if record.config is not None:
                    expected["steps"]["first_step"] = record.previous or 0
        found = unlike(was, should, "the rest of the run says")
        return [*found, *self._dangling(record), *self._wrong_history(step, record)]

    def _previous(self, step: int, record: Record) -> int | None:
        """What `previous` must be. A snapshot between may have been deleted by hand; then the record is believed."""
        loader = record.loaders.get(LOADER_NAME)
        if record.config is not None and loader is not None and loader.steps is not None:
            # A session never seeks: its steps since the last snapshot begin there.
            begun = loader.steps.first_step or None
            if record.previous != begun:
                return begun
        at = bisect_left(self._known, step)
        there = self._known[at - 1] if at else None
        said = record.previous
        is_possible = said is not None and (there or 0) <= said < step
        return said if is_possible else there

    def _dangling(self, record: Record) -> Iterator[str]:
        named = [
            ("identity", self._layout.identity(record.identity)),
            ("start", self._layout.starts / f"{record.start}.json"),
        ]
        if record.config is not None:
            named.append(("config", self._layout.config(record.config)))
        if record.earlier_history is not None:
            named.append(("earlier_history", self._layout.history(record.earlier_history)))
        for name, path in named:
            if not path.exists():
                yield f"data/record.json: {name} names {path.parent.name}/{path.name}, which is not there"

    def _wrong_history(self, step: int, record: Record) -> list[str]:
        """The history of an earlier snapshot begins that of a later one."""
        other = self._neighbour(step)
        if other is None or record.earlier_history != other.earlier_history:
            return []
        length = len(other.history if other.step < step else record.history)
        here, there = ([vars(entry) for entry in each.history[:length]] for each in (record, other))
        return unlike({"history": here}, {"history": there}, f"snapshot {other.step} says")

    def _neighbour(self, step: int) -> Record | None:
        """The record of the nearest snapshot, or ledger entry, before a step, else after it; None if there is none."""
        at = bisect_left(self._known, step)
        before = (self._known[i] for i in range(at - 1, -1, -1))
        after = (self._known[i] for i in range(bisect_right(self._known, step), len(self._known)))
        items = (Snapshot.salvage(self._layout.directory, other) for other in itertools.chain(before, after))
        return next((item.record for item in items if item is not None), None)


__all__ = ["Records"]
