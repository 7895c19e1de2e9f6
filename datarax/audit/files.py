"""What is on the disk against what was written: the shared files of a run, a snapshot's items, the model's leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from datarax.audit.finiteness import held
from datarax.audit.report import SnapshotReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import DATA_ITEM, RunLayout
from datarax.checkpoint.snapshot import read_addressed
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError


def run_problems(directory: Path) -> list[str]:
    """Files that several snapshots share: each is named by its SHA-256."""
    problems, layout = [], RunLayout(directory)
    kinds: dict[str, Callable[[bytes], Any]] = {
        "identity": parse_identity,
        "configs": bytes.decode,
        "history": bytes,
    }
    for kind, parse in kinds.items():
        for path in sorted(Path(directory, kind).glob("[!.]*")):
            try:
                read_addressed(layout, path, parse)
            except ValueError as error:
                problems.append(str(error))
    return problems


def ledger_problems(directory: Path, steps: Sequence[int]) -> list[str]:
    """Files of these entries of the ledger that are not as they were written."""
    problems: list[str] = []
    for step in steps:
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
    recorded = {leaf.path: leaf for leaf in snapshot.leaves or ()}
    report.model_leaves = 0
    for path, leaf in snapshot.model_leaves():
        report.model_leaves += 1
        spec = recorded[path]
        if spec.impl is None and spec.shape is not None and tuple(leaf.shape) != spec.shape:
            report.problems.append(f"model: {path} has the shape {_text(leaf.shape)}, recorded is {spec}")
        if spec.impl is None and spec.dtype is not None and leaf.dtype != jnp.dtype(spec.dtype):
            report.problems.append(f"model: {path} has the dtype {leaf.dtype}, recorded is {spec}")
        value = held(leaf)
        if value is not None:
            report.not_finite[path] = value


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


__all__ = ["check_snapshot", "ledger_problems", "run_problems"]
