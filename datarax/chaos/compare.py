"""Two finished runs of one config: is the data stream the same, step by step, and the model, bit by bit?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datarax.audit.diff import diff_runs
from datarax.checkpoint import Snapshot
from datarax.checkpoint.snapshot import item_steps

StepDigests = dict[tuple[str, int], tuple[int, int | None]]
"""(loader, step) -> digest of its record keys, and of its bytes if that was kept."""

_MODEL = "model."


@dataclass
class Comparison:
    """In what two runs differ."""

    data: list[str] = field(default_factory=list)
    """Steps, identity, state and digests of the data; the first step that differs comes first."""
    model: list[str] = field(default_factory=list)
    """Leaves of the model."""
    steps_compared: int = 0
    """How many steps both runs keep a digest of."""
    bytes_compared: bool = False
    """Whether these digests cover the delivered bytes, not only the record keys."""


def compare_runs(undisturbed: Path, disturbed: Path) -> Comparison:
    """Compares what two runs delivered at each step, and their newest good snapshots.

    Raises:
        InputError: if one of them has no good snapshot.
        SnapshotDamagedError: if a digest that should be there cannot be read.
    """
    ours, theirs = step_digests(undisturbed), step_digests(disturbed)
    both = sorted(ours.keys() & theirs.keys(), key=lambda each: (each[1], each[0]))
    found = Comparison(
        steps_compared=len({step for _, step in both}),
        bytes_compared=bool(both) and all(ours[key][1] is not None for key in both),
    )
    first = next((key for key in both if ours[key] != theirs[key]), None)
    if first is not None:
        what = "the record keys" if ours[first][0] != theirs[first][0] else "the bytes of the rows"
        others = sum(ours[key] != theirs[key] for key in both) - 1
        found.data.append(
            f"step {first[1]}: {what} differ" + (f", and at {others} more steps" if others else "")
        )
    for line in diff_runs(undisturbed, disturbed).lines:
        (found.model if line.startswith(_MODEL) else found.data).append(line)
    return found


def step_digests(run: Path) -> StepDigests:
    """The recorded digests of the steps of a run: from its snapshots, and from the ledger for those that are gone."""
    return {key: digest for part in _parts(run) for key, digest in part.items()}


def _parts(run: Path) -> Iterator[StepDigests]:
    for step in item_steps(run):
        for name, (first, keys, values) in Snapshot.find(run, step).steps.items():
            yield _digests(name, first, keys, values)


def _digests(
    name: str, first: int, keys: npt.NDArray[np.uint64], values: npt.NDArray[np.uint64] | None
) -> StepDigests:
    kept = [None] * len(keys) if values is None else values.tolist()
    return {(name, first + i): (key, kept[i]) for i, key in enumerate(keys.tolist())}
