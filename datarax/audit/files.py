"""What is on the disk against what was written: the shared files of a run, a snapshot's items, the model's leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from datarax.audit.report import SnapshotReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import DATA_ITEM, RunLayout
from datarax.checkpoint.snapshot import read_addressed
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError

_BLOCK = 1 << 20  # values; with the booleans that are made of them a block stays in the cache
_NAMED_LEAVES = 5
_ADDRESSED: dict[str, Callable[[bytes], Any]] = {
    "identity": parse_identity,
    "configs": bytes.decode,
    "history": bytes,
}
"""Directories whose files are named by their SHA-256, because several snapshots share them, and what reads them."""


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


__all__ = ["check_snapshot", "held", "newly_not_finite", "run_problems"]
