"""What a run keeps, held against itself: files against their sums, a record against the rest of the run, the model's leaves.

State and digests are for a replay to compare (`replay.py`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from datarax.audit.replay import unlike
from datarax.audit.report import Interval, SnapshotReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import DATA_ITEM, RunLayout
from datarax.checkpoint.record import SNAPSHOT_FORMAT, Record
from datarax.checkpoint.snapshot import read_addressed
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from datarax.training import LOADER_NAME

_BLOCK = 1 << 20  # values; with the booleans that are made of them a block stays in the cache
_NAMED_LEAVES = 5
_ADDRESSED: dict[str, Callable[[bytes], Any]] = {
    "identity": parse_identity,
    "configs": bytes.decode,
    "history": bytes,
}
"""Directories whose files are named by their SHA-256, because several snapshots share them, and what reads them."""


def recorded_intervals(
    directory: Path, candidates: Sequence[int], last_steps: int | None
) -> dict[int, Interval]:
    """For each snapshot the steps to replay: all that are recorded with it, or of the newest `last_steps` its share."""
    left, found = last_steps, {}
    for step in reversed(candidates):
        if left == 0:
            break
        item = Snapshot.salvage(directory, step)
        loader = None if item is None else item.record.loaders.get(LOADER_NAME)
        first = step if loader is None or loader.steps is None else min(loader.steps.first_step, step)
        begin = first if left is None else max(first, step - left)
        if left is not None:
            left -= step - begin
        found[step] = (begin, step)
    return found


def gaps(intervals: Mapping[int, Interval]) -> list[str]:
    """Steps of which nothing is recorded any more, although retention keeps all of them."""
    borders = [0, *(border for _, interval in sorted(intervals.items()) for border in interval)]
    return [
        f"steps {end} to {begin} are recorded nowhere: neither a snapshot nor a ledger entry {begin} is there"
        for end, begin in zip(borders[::2], borders[1::2], strict=False)
        if end < begin
    ]


def run_problems(directory: Path, ledger: Sequence[int]) -> list[str]:
    """Files beside the snapshots that are not as they were written: those that they share, and these entries of the ledger."""
    problems: list[str] = []
    for kind, parse in _ADDRESSED.items():
        for path in sorted((directory / kind).glob("[!.]*")):
            try:
                read_addressed(RunLayout(directory), path, parse)
            except ValueError as error:
                problems.append(str(error))
    for step in ledger:
        try:
            problems += Snapshot.of_ledger(directory, step).check()
        except SnapshotDamagedError as error:
            problems += error.problems
    return problems


def check_snapshot(
    directory: Path, report: SnapshotReport, *, model_expected: bool, with_model: bool
) -> None:
    """Holds the files of a snapshot against its manifest, and the model's leaves against what is recorded of them.

    Args:
        directory: the run.
        report: gets the problems.
        model_expected: whether the run trains a model, so that a snapshot without one is damaged.
        with_model: False leaves the model item alone.
    """
    try:
        snapshot = Snapshot.open(directory, report.step)
        problems = snapshot.check(None if with_model else [DATA_ITEM])
        report.problems += problems
        if model_expected and snapshot.leaves is None:
            report.problems.append("model: is missing, but the run trains a task")
        elif with_model and not problems:
            _check_model(snapshot, report)
    except SnapshotDamagedError as error:
        report.problems += error.problems
    except SnapshotNotFoundError:
        # The run goes on meanwhile, and its retention has taken the snapshot; the ledger keeps what can be replayed.
        report.in_ledger = True


def _check_model(snapshot: Snapshot, report: SnapshotReport) -> None:
    specs = {leaf.path: leaf for leaf in snapshot.leaves or ()}
    report.model_leaves = 0
    for path, leaf in snapshot.model_leaves():
        report.model_leaves += 1
        spec = specs[path]
        if spec.impl is None and spec.shape is not None and tuple(leaf.shape) != spec.shape:
            shape = ",".join(map(str, leaf.shape))
            report.problems.append(f"model: {path} has the shape [{shape}], recorded is {spec}")
        if spec.impl is None and spec.dtype is not None and leaf.dtype != jnp.dtype(spec.dtype):
            report.problems.append(f"model: {path} has the dtype {leaf.dtype}, recorded is {spec}")
        value = held(leaf)
        if value is not None:
            report.not_finite[path] = value


def held(leaf: np.ndarray) -> str | None:
    """What a leaf holds that is not finite: "nan", else "inf" of either sign, else None. No copy of the leaf is made."""
    if leaf.dtype.kind not in "fcV":  # bfloat16 and its like are "V" to NumPy
        return None
    found, values = None, leaf.reshape(-1)
    for begin in range(0, values.size, _BLOCK):
        block = values[begin : begin + _BLOCK]
        if np.isfinite(block).all():
            continue
        if np.isnan(block).any():
            return "nan"
        found = "inf"
    return found


def newly_not_finite(report: SnapshotReport, before: SnapshotReport | None) -> str:
    """What a snapshot's model holds that is not finite and that the one before did not hold so; "" if nothing.

    Both may be meant: the best loss so far begins at inf, and a mask is 0 and -inf. So a value is no fault by itself; what was
    not there before is worth a word. The first one has none before: an inf may be how it began, a NaN is told all the same.
    """
    was = {} if before is None else before.not_finite
    news = [
        f"{path} ({value})"
        for path, value in report.not_finite.items()
        if was.get(path) not in (value, "nan") and (before is not None or value == "nan")
    ]
    if not news:
        return ""
    more = f" and {len(news) - _NAMED_LEAVES} more" if len(news) > _NAMED_LEAVES else ""
    since = "" if before is None else f", which snapshot {before.step} does not"
    return f"{', '.join(news[:_NAMED_LEAVES])}{more} of the model hold what is not finite{since}"


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

    def contradictions(self, step: int, record: Record, *, scope: str, plain: bool) -> list[str]:
        """Fields of the record of a step that the rest of the run contradicts.

        Args:
            step: the step.
            record: its record.
            scope: that of the module that saved it.
            plain: whether states of that module are plain JSON today.
        """
        loader = record.loaders.get(LOADER_NAME)
        was: dict[str, Any] = {"format": record.format, "step": record.step, "previous": record.previous}
        should = {**was, "step": step, "previous": self._previous(step, record)}
        if not Record.reads(record.format):
            should["format"] = SNAPSHOT_FORMAT
        was["loaders"], should["loaders"] = dict.fromkeys(record.loaders), {LOADER_NAME: None}
        if loader is not None:
            fields: dict[str, Any] = {"scope": loader.scope, "plain": loader.plain}
            expected: dict[str, Any] = {"scope": scope, "plain": plain and record.format > 1}
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

    def _dangling(self, record: Record) -> list[str]:
        named = [
            ("identity", self._layout.identity(record.identity)),
            ("start", self._layout.starts / f"{record.start}.json"),
            ("config", record.config and self._layout.config(record.config)),
            ("earlier_history", record.earlier_history and self._layout.history(record.earlier_history)),
        ]
        return [
            f"data/record.json: {name} names {path.parent.name}/{path.name}, which is not there"
            for name, path in named
            if isinstance(path, Path) and not path.exists()
        ]

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


__all__ = [
    "Records",
    "check_snapshot",
    "gaps",
    "held",
    "newly_not_finite",
    "recorded_intervals",
    "run_problems",
]
