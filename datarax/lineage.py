"""Which recipe made which steps of a run: one config, or several where it was changed on purpose.

For commands that answer for a whole run (`order`, `plan`, `verify`): the history in the newest snapshot says from which
step and position on which identity held, and the run keeps the config of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, Snapshot, list_steps, read_config, read_identity
from datarax.checkpoint.record import HistoryEntry
from datarax.core.advice import all_advice
from datarax.core.errors import Difference, InputError
from datarax.core.fingerprint import differences
from datarax.loader import DataLoader
from datarax.run_config import RunConfig, build_loader, parse_stored_config
from datarax.sources import DataSource
from datarax.sources.open import open_source
from datarax.training import LOADER_NAME


@dataclass(frozen=True)
class Stretch:
    """Steps that were made, or will be, by one recipe."""

    loader: DataLoader
    """Its schedule covers these steps: it knows at which position they begin."""
    first_step: int
    """The first of them."""
    end: int | None = None
    """The step after the last; None: they go on to the end of the run."""

    def __contains__(self, step: int) -> bool:
        return self.first_step <= step and (self.end is None or step < self.end)


@dataclass(frozen=True)
class Lineage:
    """How a config and the run that is in its directory belong together."""

    stretches: Sequence[Stretch]
    """In the order of their steps; the last one is the config's own."""
    newest_step: int | None = None
    """The newest snapshot of the run; None if there is no run yet."""
    refused: Sequence[Difference] = field(default_factory=tuple)
    """Identity fields in which the config differs from the run and may not; then `stretches` is the config alone."""
    allowed: Sequence[Difference] = field(default_factory=tuple)
    """Identity fields in which it differs and may, by `resume.allow_changed` or `resume.warn_changed`."""
    warned: Sequence[Difference] = field(default_factory=tuple)
    """Those of them that `resume.warn_changed` wants a person to see."""
    unknown_fields: Sequence[str] = field(default_factory=tuple)
    """A sentence for each field of the two lists that neither the run's identity nor the config's has."""
    advice: Sequence[str] = field(default_factory=tuple)
    """For each of `refused` the nearest thing to do, or nothing if that was said."""

    @property
    def last(self) -> Stretch:
        """The stretch that the run will go on with."""
        return self.stretches[-1]


def place(loader: DataLoader, step: int, position: int) -> DataLoader:
    """Puts a loader where `step` begins at the global row `position`; returns it."""
    epoch = position // loader.order.num_records
    loader.set_state({**loader.get_state(), "idx": step, "position": position, "epoch": epoch})
    return loader


def trace(config: RunConfig, loader: DataLoader, opened: ExitStack) -> Lineage:
    """The lineage of `config`, whose loader is `loader`; what has to be opened for it, `opened` will close.

    Raises:
        SnapshotDamagedError: if the newest snapshot of the run cannot be read.
        InputError: if a config of the run's history was not kept, or its data cannot be opened.
    """
    directory = Path(config.run.directory)
    policy, now = config.resume.policy(), {LOADER_NAME: loader.identity()}
    if not list_steps(directory):
        return Lineage([Stretch(loader, 0)], unknown_fields=policy.unknown_fields(now))
    newest = Snapshot.open(directory)
    was = newest.identity
    found = differences(was, now)
    allowed = policy.select(found, Change.ACCEPT, Change.WARN)
    warned, unknown = policy.select(found, Change.WARN), policy.unknown_fields(was, now)
    refused = policy.select(found, Change.REFUSE)
    if refused:
        advice = all_advice(refused, was, now)
        return Lineage([Stretch(loader, 0)], newest.step, refused, allowed, warned, unknown, advice)
    history = list(newest.history)
    starts = [(entry.from_step, position_of(entry)) for entry in history]
    makers: list[DataLoader] = [_earlier(directory, entry, loader, opened) for entry in history[:-1]]
    if allowed:
        makers.append(_earlier(directory, history[-1], loader, opened))
        starts.append((newest.step, int(newest.states()[LOADER_NAME]["position"])))
    makers.append(loader)
    ends = [step for step, _ in starts[1:]] + [None]
    stretches = [
        Stretch(place(maker, step, position), step, end)
        for maker, (step, position), end in zip(makers, starts, ends, strict=True)
        if end is None or end > step
    ]
    return Lineage(stretches, newest.step, (), allowed, warned, unknown)


def position_of(entry: HistoryEntry) -> int:
    """The global row at which an entry of the history begins."""
    return entry.positions.get(LOADER_NAME) or 0


def _earlier(directory: Path, entry: HistoryEntry, present: DataLoader, opened: ExitStack) -> DataLoader:
    """The loader of an earlier config; over the present source if that has not changed since."""
    if entry.config is None:
        raise InputError(
            f"the run {directory} was changed at a later step than {entry.from_step}, and it was made from Python: "
            f"it keeps no config that says what was delivered before the change"
        )
    config = parse_stored_config(
        read_config(directory, entry.config), where=f"configs/{entry.config[:12]}….toml"
    )
    recorded: Any = read_identity(directory, entry.identity)
    source: DataSource = present.source
    if recorded[LOADER_NAME]["sources"] != present.identity()["sources"]:
        source = opened.enter_context(open_source(config.source))
    return opened.enter_context(build_loader(config, source))


__all__ = [
    "Lineage",
    "Stretch",
    "place",
    "position_of",
    "trace",
]
