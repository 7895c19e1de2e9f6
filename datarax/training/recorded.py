"""The timeline that the records of a run tell: which recipe made which of its steps. No config and no data are needed.

For whoever answers for steps that were done: a restore, `verify`, and the commands that look at a run directory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datarax.checkpoint import HistoryEntry, Record, Restored, Snapshot, decode, read_identity
from datarax.checkpoint.snapshot import item_steps
from datarax.core.config import REST, BatchSize, from_tree
from datarax.core.errors import (
    ConfigError,
    InputError,
    MismatchError,
    SnapshotDamagedError,
    SnapshotNotFoundError,
)
from datarax.order import Order, Timeline

LOADER_NAME = "train"
"""Name of the training loader in a snapshot's record."""


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the identity of a loader holds; see `DataLoader.identity`."""

    order: Mapping[str, Any]
    batch_size: BatchSize
    sources: Mapping[str, Mapping[str, Any]]
    others: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """What the identity of a run of a loader holds."""

    train: _Recipe
    others: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


def recorded_timeline(directory: str | Path, record: Record, history: Sequence[HistoryEntry]) -> Timeline:
    """The timeline of the steps up to a record, endless from there.

    Args:
        directory: the run.
        record: where it stands.
        history: of the run up to the record, or the later part of it; then the steps before are unknown.

    Raises:
        InputError: if these steps were not delivered by a loader, or its order cannot be computed.
        MismatchError: if the records contradict each other.
        SnapshotDamagedError: if an identity, or a record that is needed, is not as it was written.
    """
    now = record.step, _position_in(record)
    recipes = [
        (entry.from_step, entry.positions.get(LOADER_NAME) or 0, recorded_recipe(directory, entry))
        for entry in history
    ]
    try:
        return Timeline.recorded(
            recipes,
            now,
            lambda steps: [step for step in item_steps(directory) if step in steps],
            lambda step: _position_in(Snapshot.find(directory, step).record),
        )
    except MismatchError as error:
        raise MismatchError(
            f"the records of the run {directory} contradict each other; run `datarax verify` on it\n  {error}"
        ) from error


def recorded_recipe(directory: str | Path, entry: HistoryEntry) -> Any:
    """The identity of the loader in an entry of the history.

    Raises:
        InputError: if it is not that of a loader.
        SnapshotDamagedError: if it is not as it was written.
    """
    tree = read_identity(directory, entry.identity)
    try:
        Order.from_identity(from_tree(_Identity, tree).train.order)
    except (ConfigError, InputError) as error:
        raise InputError(
            f"which records were in which step of the run {directory} from step {entry.from_step} on cannot be told: "
            f"identity/{entry.identity}.json is damaged, or not that of a DataLoader called {LOADER_NAME!r} that this datarax "
            f"knows: {error}"
        ) from error
    return tree[LOADER_NAME]


def _position_in(record: Record) -> int:
    """The global row that the loader had reached."""
    loader = record.loaders.get(LOADER_NAME)
    if loader is not None and loader.scope == "process":
        raise InputError(
            f"snapshot {record.step} was delivered by a pipeline whose state belongs to each process (a Grain pipeline): "
            f"only that knows which records were in which step"
        )
    try:
        position = decode(record.loaders[LOADER_NAME].state)["position"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"snapshot {record.step} holds no place of a loader: {error}") from error
    if type(position) is not int:
        raise InputError(f"snapshot {record.step} holds no place of a loader: position is {position!r}")
    return position


def check_position(directory: str | Path, restored: Restored) -> None:
    """Whether a restored loader stands where its steps and batch sizes lead, by the history of the run.

    Raises:
        MismatchError: if it does not.
    """
    entry = restored.history[-1]
    try:
        segments = recorded_timeline(directory, restored.record, [entry]).segments
        if len(segments) == 1 or recorded_recipe(directory, entry).get("row_mask"):
            return
        problem = f"its steps are not whole batches of {segments[0].batch_size}, and this run pads none"
    except MismatchError as error:
        problem = str(error.__cause__)
    except (SnapshotDamagedError, SnapshotNotFoundError):
        return  # An older snapshot, which tells where the run was prolonged, is gone or damaged: this one is not.
    raise MismatchError(
        f"snapshot {restored.step} holds a loader at the global row {_position_in(restored.record)} (position), but {problem}; "
        f"the state is damaged or belongs to another run"
    )
