"""Which slots of the global batch a process reads, and which of them count there: derived from where a sharding puts the rows.

With model parallelism several processes hold the same rows; the lowest of them owns them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from datarax.core.errors import ConfigError, DisagreementError
from datarax.multihost.processes import Processes


@dataclass(frozen=True)
class Slots:
    """Which slots of the global batch a process reads."""

    rows: np.ndarray
    """int64, sorted: those that its devices hold."""
    owned: np.ndarray
    """int64, sorted, a subset of `rows`: those that no lower process holds. Over all processes every slot has one owner."""


def slots_of(
    sharding: Sharding,
    batch_size: int,
    *,
    process_index: int | None = None,
    process_of: Callable[[Any], int] = lambda device: device.process_index,
) -> Slots:
    """The slots of one process under a sharding of the batch.

    With model parallelism several processes hold the same rows, and the rows of one need not be a range.

    Args:
        sharding: where the leading axis of a batch lies.
        batch_size: rows of the global batch.
        process_index: which process; by default this one.
        process_of: the process of a device.

    Raises:
        ConfigError: if the sharding does not divide the batch, with the numbers of row shards that fit.
    """
    index = jax.process_index() if process_index is None else process_index
    try:
        held = leading_axis(sharding).devices_indices_map((batch_size,))
    except ValueError as error:
        raise ConfigError(_does_not_divide(sharding, batch_size, error)) from error
    # Devices of one row shard have the same slice: the shards are few where the devices are many.
    holders: dict[tuple[int, int], tuple[int, bool]] = {}
    for device, place in held.items():
        start, stop, _ = place[0].indices(batch_size)
        process = process_of(device)
        lowest, mine = holders.get((start, stop), (process, False))
        holders[start, stop] = (min(lowest, process), mine or process == index)
    ranges = sorted((*span, lowest) for span, (lowest, mine) in holders.items() if mine)
    return Slots(
        _union([(start, stop) for start, stop, _ in ranges]),
        _union([(start, stop) for start, stop, lowest in ranges if lowest == index]),
    )


def chosen_slots(
    rows: np.ndarray | Sequence[int] | None,
    owned: np.ndarray | Sequence[int] | None,
    sharding: jax.sharding.Sharding | None,
    batch_size: int,
) -> Slots:
    """Which slots are read here, and which of them count here; None: those that the sharding gives, without one all.

    Raises:
        ConfigError: if they are no slots of a batch, do not fit the sharding, or others count than are read.
    """
    held = None if sharding is None else slots_of(sharding, batch_size)
    every = np.arange(batch_size, dtype=np.int64) if held is None else held.rows
    read = every if rows is None else _checked_slots(rows, batch_size)
    if held is not None and not np.array_equal(read, held.rows):
        raise ConfigError(
            f"the devices of this process hold {_described(held.rows)} of the global batch under the given sharding, but "
            f"rows says {_described(read)}; leave out the sharding to read any rows as NumPy arrays"
        )
    if owned is None:
        return Slots(read, read if held is None else held.owned)
    counted = _checked_slots(owned, batch_size) if len(owned) else np.zeros(0, np.int64)
    if not np.isin(counted, read).all():
        raise ConfigError(f"owned must be some of rows, got {counted}, but rows is {read}")
    return Slots(read, counted)


def _checked_slots(chosen: np.ndarray | Sequence[int], batch_size: int) -> np.ndarray:
    slots = np.asarray(chosen)
    if slots.ndim != 1 or len(slots) == 0 or slots.dtype.kind not in "iu":
        raise ConfigError(f"rows must be a non-empty list of slots of the global batch, got {chosen!r}")
    slots = slots.astype(np.int64)
    if slots[0] < 0 or slots[-1] >= batch_size or np.any(np.diff(slots) <= 0):
        raise ConfigError(f"rows must be sorted, distinct and in [0, {batch_size}), got {slots}")
    return slots


def check_slots(owned: Sequence[Sequence[Sequence[int]]], batch_size: int) -> None:
    """Makes sure that every slot of the global batch has one owner.

    Args:
        owned: for each process the slots that it owns, as ranges `[start, stop)`.
        batch_size: slots of the global batch.

    Raises:
        DisagreementError: if a slot has none or several, naming it and them.
    """
    owners = np.zeros(batch_size, np.int64)
    for ranges in owned:
        for start, stop in ranges:
            owners[start:stop] += 1
    wrong = np.flatnonzero(owners != 1)
    if len(wrong) == 0:
        return
    slot = int(wrong[0])
    holders = [i for i, ranges in enumerate(owned) if any(start <= slot < stop for start, stop in ranges)]
    whose = f"processes {', '.join(map(str, holders))}" if holders else "no process"
    raise DisagreementError(
        f"{len(wrong)} of {batch_size} slots of the global batch do not have one owner, the first is slot {slot}, counted by "
        f"{whose}; let rows and owned follow from one sharding on all processes"
    )


def agree_on_slots(processes: Processes, slots: Slots, batch_size: int) -> None:
    """All processes together must deliver the global batch, each slot of it counted once; one alone may deliver any part.

    Raises:
        DisagreementError: if they do not.
    """
    if processes.count == 1:
        return
    cuts = np.flatnonzero(np.diff(slots.owned) != 1) + 1
    ranges = [[int(part[0]), int(part[-1]) + 1] for part in np.split(slots.owned, cuts) if len(part)]
    about = "the slots of the global batch"
    processes.exchange("slots", lambda: ranges, lambda parts: check_slots(parts, batch_size), about=about)


def leading_axis(sharding: Sharding, rank: int = 1) -> Sharding:
    """A sharding of arrays with any number of axes, reduced to that of their first `rank`."""
    if isinstance(sharding, NamedSharding) and len(sharding.spec) > rank:
        spec = PartitionSpec(*sharding.spec[:rank])
        return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)
    return sharding


def _union(ranges: list[tuple[int, int]]) -> np.ndarray:
    if not ranges:
        return np.zeros(0, np.int64)
    return np.unique(np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in ranges]))


def fitting_row_shards(batch_size: int) -> list[int]:
    """Into how many row shards a batch can be split: JAX's shardings take equal parts only."""
    return [count for count in range(1, batch_size + 1) if batch_size % count == 0]


def _does_not_divide(sharding: Sharding, batch_size: int, error: ValueError) -> str:
    if not isinstance(sharding, NamedSharding):
        return f"a batch of {batch_size} rows cannot be placed under {sharding}: {error}"
    axes = sharding.spec[0] if len(sharding.spec) else None
    names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    shards = math.prod(sharding.mesh.shape[name] for name in names)
    fit = fitting_row_shards(batch_size)
    shown = ", ".join(map(str, fit[:20])) + (" …" if len(fit) > 20 else "")
    return (
        f"a batch of {batch_size} rows cannot be split into {shards} row shards (mesh axes {', '.join(names)}); the numbers "
        f"of row shards that fit are {shown}"
    )


def _described(slots: np.ndarray) -> str:
    if len(slots) and slots[-1] - slots[0] == len(slots) - 1:
        return f"rows {slots[0]} to {slots[-1]}"
    return f"{len(slots)} rows {slots}"
