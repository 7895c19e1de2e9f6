"""Two runs, or two snapshots: is it the same stream and the same model, bit by bit?

Compares the newest good snapshot of each: step, identity, state and digests of every loader, and the model leaf by leaf. Never
paths, times, starts, metrics, provenance, or which other steps exist.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datarax.checkpoint import Snapshot, newest_good_step
from datarax.checkpoint.layout import is_step_name
from datarax.checkpoint.policy import identity_differences
from datarax.core.errors import InputError
from datarax.core.tree import differences


@dataclass
class DiffReport:
    """In what two snapshots differ."""

    left: str
    """The first snapshot, as RUN/STEP."""
    right: str
    """The second snapshot, as RUN/STEP."""
    lines: list[str] = field(default_factory=list)
    """One line per difference; [] if there is none."""


def diff_runs(left: str | Path, right: str | Path) -> DiffReport:
    """Compares two runs or snapshots.

    Args:
        left: a run directory (its newest good snapshot) or a snapshot's directory.
        right: likewise.

    Raises:
        InputError: if one of them is neither.
        SnapshotDamagedError: if a snapshot that was named fails its checks.
    """
    a, b = _snapshot(Path(left)), _snapshot(Path(right))
    found = [("", differences({"step": a.step}, {"step": b.step}))]
    found += [("identity.", identity_differences(a.identity, b.identity))]
    found += [("data.", differences(_data(a), _data(b)))]
    lines = [f"{what}{each.path}: {each.was!r} and {each.now!r}" for what, some in found for each in some]
    return DiffReport(str(a.directory), str(b.directory), lines + _model(a, b))


def _snapshot(path: Path) -> Snapshot:
    """The snapshot that a path names: `RUN` or `RUN/STEP`."""
    if is_step_name(path.name) and os.path.exists(path / "manifest.json"):
        snapshot = Snapshot.open(path.parent, int(path.name))
        problems = snapshot.check()
        if problems:
            raise snapshot.damaged(problems)
        return snapshot
    step = newest_good_step(path)
    if step is None:
        raise InputError(f"{path} is neither a run with a good snapshot nor a snapshot's directory")
    return Snapshot.open(path, step)


def _data(snapshot: Snapshot) -> dict[str, object]:
    loaders, parts = snapshot.record.loaders, snapshot.process_parts()
    return {
        name: {
            "scope": each.scope,
            "state": each.state,
            "processes": {index: part[name] for index, part in parts.items() if name in part},
            "digest": each.digest,
        }
        for name, each in loaders.items()
    }


def _model(left: Snapshot, right: Snapshot) -> list[str]:
    """The model leaf by leaf: kinds and shapes as recorded, then bits."""
    specs = [{leaf.path: leaf for leaf in each.leaves or ()} for each in (left, right)]
    lines = []
    for path in sorted({*specs[0], *specs[1]}):
        here, there = specs[0].get(path), specs[1].get(path)
        if here != there:
            lines.append(f"model.{path}: {here or '(absent)'} and {there or '(absent)'}")
    if lines:
        return lines
    values = left.model(), right.model()
    for path in sorted(values[0]):
        a, b = values[0][path], values[1][path]
        # Bits, not values: NaN equals itself, and 0.0 differs from -0.0.
        if a.tobytes() != b.tobytes():
            bits = [np.ascontiguousarray(each).reshape(-1).view(f"V{each.dtype.itemsize}") for each in (a, b)]
            count = int(np.count_nonzero(bits[0] != bits[1]))
            lines.append(f"model.{path}: {count} of {a.size} elements differ in their bits")
    return lines
