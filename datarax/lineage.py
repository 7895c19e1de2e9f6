"""Which recipe made which steps of a run: one, or several where it was changed on purpose.

For commands that answer for a whole run (`order`, `plan`, `verify`): the history in the newest record says from which step and
position on which identity held, and an identity holds all that decides which records were delivered. So steps that were done
are answered by the run directory alone, without config, data or code of then. Read next: `deliveries.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, list_steps, read_config, read_identity
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.items import item_steps, read_item
from datarax.checkpoint.layout import local_directory
from datarax.checkpoint.policy import identity_differences
from datarax.checkpoint.record import HistoryEntry
from datarax.checkpoint.salvage import DataItem
from datarax.checkpoint.snapshot import run_history
from datarax.core.errors import ConfigError, DataraxError, Difference, InputError, SnapshotDamagedError
from datarax.loader import DataLoader
from datarax.order import Order, Remainder, Schedule
from datarax.run_config import RunConfig, parse_stored_config
from datarax.sources import SourceFile
from datarax.sources.file_list import listed, recorded_files
from datarax.sources.open import list_files
from datarax.training import LOADER_NAME


@dataclass(frozen=True)
class Stretch:
    """Steps that were made, or will be, by one recipe."""

    order: Order
    """Which record stands at which position."""
    schedule: Schedule
    """Which positions each of these steps covers."""
    first_step: int
    """The first of them."""
    end: int | None
    """The step after the last; None: they go on to the end of the run."""
    list_files: Callable[[], Sequence[SourceFile]]
    """The files of its source, () where it has none; raises InputError where they are not known any more."""

    def __contains__(self, step: int) -> bool:
        return self.first_step <= step and (self.end is None or step < self.end)


@dataclass(frozen=True)
class Lineage:
    """Which recipe made, or will make, each step of a run."""

    stretches: Sequence[Stretch]
    """In the order of their steps: those of the steps that were done, then that of the steps to come, if one is known."""
    total: int | None = None
    """Steps of the whole run; None if nothing says when it ends."""
    newest_step: int | None = None
    """How many steps are known to be done; None if there is no run yet."""
    recorded_in: Path | None = None
    """The run that keeps the digests of the steps done; None: the stretches are those of a config alone."""
    refused: Sequence[Difference] = ()
    """Identity fields in which the config differs from the run and may not; then `stretches` is the config alone."""
    allowed: Sequence[Difference] = ()
    """Identity fields in which it differs and may, by `resume.allow_changed` or `resume.warn_changed`."""
    warned: Sequence[Difference] = ()
    """Those of them that `resume.warn_changed` wants a person to see."""
    unknown_fields: Sequence[str] = ()
    """A sentence for each field of the two lists that neither the run's identity nor the config's has."""
    advice: Sequence[str] = ()
    """For each of `refused` the nearest thing to do, or nothing if that was said."""
    notes: Sequence[str] = ()
    """Why no more is known."""

    @property
    def steps_done(self) -> int:
        """Steps whose delivery is recorded."""
        return self.newest_step or 0 if self.recorded_in is not None else 0

    @property
    def available(self) -> int | None:
        """Steps that the last recipe has, whether the run goes on so far or not; None if it is endless."""
        return self.stretches[-1].schedule.num_steps

    def steps_to_search(self, *, done_only: bool) -> range:
        """All steps that were done, or all of the run.

        Raises:
            InputError: if none was done.
            ConfigError: if nothing says when the run ends.
        """
        end = self.steps_done if done_only else self.total
        if end is None:
            raise ConfigError(
                "nothing says when the run ends: set run.steps or loader.num_epochs, or give --steps A:B"
            )
        if end == 0:
            raise InputError(
                f"no step of {self.recorded_in} is saved yet; ask for steps to come with --steps A:B"
            )
        return range(end)


def place(loader: DataLoader, step: int, position: int) -> DataLoader:
    """Puts a loader where `step` begins at the global row `position`; returns it."""
    epoch = position // loader.order.num_records
    loader.set_state({**loader.get_state(), "idx": step, "position": position, "epoch": epoch})
    return loader


def trace(config: RunConfig, loader: DataLoader) -> Lineage:
    """The lineage of the run of `config`, whose loader is `loader`; the loader is placed where its own stretch begins.

    Steps that were done are answered by what the run recorded of them, later ones by the config.

    Raises:
        SnapshotDamagedError: if the newest snapshot of the run, or an identity of its history, cannot be read.
        InputError: if the recorded recipe of an earlier step cannot be computed.
    """
    directory = Path(config.run.directory)
    policy, now = config.resume.policy(), {LOADER_NAME: loader.identity()}
    steps = list_steps(directory)
    if not steps:
        return replace(_alone(config, loader), unknown_fields=policy.unknown_fields(now))
    item = read_item(directory, steps[-1])
    was = read_identity(directory, item.record.identity)
    found = identity_differences(was, now)
    allowed, refused = policy.select(found, Change.ACCEPT, Change.WARN), policy.select(found, Change.REFUSE)
    known = replace(
        _alone(config, loader),
        newest_step=steps[-1],
        allowed=allowed,
        warned=policy.select(found, Change.WARN),
        unknown_fields=policy.unknown_fields(was, now),
    )
    if refused:
        return replace(known, refused=refused, advice=all_advice(refused, was, now))
    done, ahead = _recorded(directory, item, lambda entry: [loader.source.files, *_stored(directory, entry)])
    base = (ahead.schedule.base_step, ahead.schedule.base_position)
    step, position = (steps[-1], position_in(item)) if allowed else base
    rows = loader.schedule.num_rows
    # A config with fewer epochs than the run has: `plan` says so, by the steps of an unmoved schedule.
    if rows is None or position <= rows:
        place(loader, step, position)
    own = Stretch(loader.order, loader.schedule, steps[-1], None, loader.source.files)
    total = _total(config, loader.schedule)
    return replace(known, stretches=[*done, own], total=total, recorded_in=directory)


def trace_run(directory: str | Path, overrides: Sequence[str] = ()) -> Lineage:
    """The lineage of a run by its directory alone: no config file, no data and no code of the user is needed.

    Args:
        directory: the run; a writer may be at work in it.
        overrides: `source.KEY=VALUE`: where the data lie now, for lists of files that only the data have.

    Raises:
        InputError: if there is no run, its data module is no loader, or an override is about something else.
        SnapshotDamagedError: if the newest record, or an identity that it names, cannot be read, or they contradict each other.
    """
    directory = local_directory(directory)
    for override in overrides:
        if not override.startswith("source."):
            raise InputError(
                f"--set {override}: a run directory is answered by what it recorded; only source.… (where the data lie now) "
                f"can be set. To ask what other settings would deliver, name a config file"
            )
    steps = item_steps(directory)
    if not steps:
        raise InputError(
            f"{directory} holds no snapshot and no ledger entry, so nothing is recorded there; name a config file to ask what "
            f"a run will deliver"
        )
    item = read_item(directory, steps[-1])
    done, ahead = _recorded(directory, item, lambda entry: _stored(directory, entry, overrides))
    known = Lineage(done, total=steps[-1], newest_step=steps[-1], recorded_in=directory)
    if item.record.config is None:
        note = "the run was made from Python and keeps no config that says when it ends"
        return replace(known, notes=[f"{note}: only the {steps[-1]} steps that were saved are known"])
    try:
        return _with_steps_to_come(known, ahead, _stored_config(directory, item.record.config))
    except (ConfigError, SnapshotDamagedError) as error:
        note = f"what comes after step {steps[-1] - 1} is not known: {error}"
        return replace(known, notes=[note])


def position_of(entry: HistoryEntry) -> int:
    """The global row at which an entry of the history begins."""
    return entry.positions.get(LOADER_NAME) or 0


def position_in(item: DataItem) -> int:
    """The global row that the loader had reached.

    Raises:
        InputError: if the item is of no loader.
    """
    loader = item.record.loaders.get(LOADER_NAME)
    if loader is not None and loader.scope == "process":
        raise InputError(
            f"snapshot {item.record.step} was delivered by a pipeline whose state belongs to each process (a Grain pipeline): "
            f"only that knows which records were in which step"
        )
    try:
        position = item.state(LOADER_NAME)["position"]
    except (ValueError, KeyError) as error:
        raise InputError(f"snapshot {item.record.step} holds no place of a loader: {error}") from error
    if type(position) is not int:
        raise InputError(f"snapshot {item.record.step} holds no place of a loader: position is {position!r}")
    return position


_ListFiles = Callable[[], Sequence[SourceFile]]


def _alone(config: RunConfig, loader: DataLoader) -> Lineage:
    stretch = Stretch(loader.order, loader.schedule, 0, None, loader.source.files)
    return Lineage([stretch], _total(config, loader.schedule))


def _total(config: RunConfig, schedule: Schedule) -> int | None:
    said = [steps for steps in (config.run.steps, schedule.num_steps) if steps is not None]
    return min(said, default=None)


def _with_steps_to_come(known: Lineage, ahead: Stretch, config: RunConfig) -> Lineage:
    """With the stretch in which the run goes on if nothing is changed."""
    epochs = config.loader.num_epochs
    schedule = replace(
        ahead.schedule,
        num_rows=None if epochs is None else epochs * ahead.order.num_records,
        remainder=config.loader.remainder,
    )
    total = max(known.steps_done, _total(config, schedule) or 0)
    to_come = [replace(ahead, schedule=schedule)] if total > known.steps_done else []
    return replace(known, stretches=[*known.stretches, *to_come], total=total)


def _recorded(
    directory: Path, newest: DataItem, places: Callable[[HistoryEntry], Sequence[_ListFiles]]
) -> tuple[list[Stretch], Stretch]:
    """The stretches of all steps up to an item, each by the identity that held then, and the endless one that goes on from it.

    Args:
        directory: the run.
        newest: the item.
        places: where the files of an entry of the history may be listed, if its identity does not.
    """
    history = run_history(directory, newest.record)
    marks = [(entry.from_step, position_of(entry)) for entry in history]
    marks.append((newest.record.step, position_in(newest)))
    stretches: list[Stretch] = []
    for entry, begin, end in zip(history, marks, marks[1:], strict=False):
        recipe = _recipe(directory, entry)
        ((name, source),) = recipe["sources"].items()
        ahead = Stretch(
            Order.from_identity(recipe["order"]),
            _endless(recipe["batch_size"], *begin),
            begin[0],
            None,
            partial(_listing, name, source, places(entry)),
        )
        for first, last in pairwise(_padded_ends(directory, begin, end, recipe["batch_size"])):
            if first[0] == last[0]:
                continue  # it was changed again before a step was made
            schedule = _closed(directory, _endless(recipe["batch_size"], *first), last)
            stretches.append(replace(ahead, schedule=schedule, first_step=first[0], end=last[0]))
            # After a padded batch the next one begins at the end of its rows, not where its slots end.
            base = first if last[1] - first[1] == (last[0] - first[0]) * schedule.batch_size else last
            ahead = replace(ahead, schedule=_endless(schedule.batch_size, *base))
    return stretches, replace(ahead, first_step=newest.record.step)


def _endless(batch_size: int, base_step: int, base_position: int) -> Schedule:
    return Schedule(
        batch_size=batch_size,
        num_rows=None,
        remainder=Remainder.DROP,
        base_step=base_step,
        base_position=base_position,
    )


def _closed(directory: Path, begun: Schedule, end: tuple[int, int]) -> Schedule:
    """The schedule of steps of which both borders are recorded: the second as (step, position)."""
    try:
        schedule = replace(begun, num_rows=end[1], remainder=Remainder.PAD)
        if schedule.num_steps == end[0]:
            return schedule
    except ConfigError:
        pass
    said = (
        f"steps {begun.base_step} to {end[0] - 1} are recorded as rows {begun.base_position} to {end[1] - 1}, which are not "
        f"{end[0] - begun.base_step} batches of {begun.batch_size}"
    )
    raise SnapshotDamagedError(
        f"the records of the run {directory} contradict each other; run `datarax verify` on it",
        step=end[0],
        problems=[said],
        newest_good_step=None,
    )


def _padded_ends(
    directory: Path, begin: tuple[int, int], end: tuple[int, int], batch_size: int
) -> list[tuple[int, int]]:
    """`begin`, each (step, position) at which a padded batch had ended the run before it was prolonged, and `end`."""
    marks = [begin]
    if end[1] - begin[1] == (end[0] - begin[0]) * batch_size:
        return [begin, end]
    # Rare: read where the run stood at each snapshot. The last step of a run is always saved.
    for step in item_steps(directory):
        if begin[0] < step < end[0]:
            position = position_in(read_item(directory, step))
            if position - marks[-1][1] < (step - marks[-1][0]) * batch_size:
                marks.append((step, position))
    return [*marks, end]


def _recipe(directory: Path, entry: HistoryEntry) -> Any:
    """The identity of the loader in an entry of the history."""
    tree = read_identity(directory, entry.identity).get(LOADER_NAME, {})
    missing = {"order", "batch_size", "sources"} - set(tree)
    if missing:
        raise InputError(
            f"the run {directory} was not delivered by a DataLoader called {LOADER_NAME!r} from step {entry.from_step} on: its "
            f"identity has no {', '.join(sorted(missing))}, so which records were in which step cannot be told"
        )
    return tree


def _stored(directory: Path, entry: HistoryEntry, overrides: Sequence[str] = ()) -> list[_ListFiles]:
    """Where the stored config of an entry says that the files are."""
    if entry.config is None:
        return []
    digest = entry.config
    return [lambda: list_files(_stored_config(directory, digest, overrides).source)]


def _stored_config(directory: Path, digest: str, overrides: Sequence[str] = ()) -> RunConfig:
    return parse_stored_config(
        read_config(directory, digest), overrides, where=f"configs/{digest[:12]}….toml"
    )


def _listing(name: str, recorded: Mapping[str, Any], places: Sequence[_ListFiles]) -> Sequence[SourceFile]:
    """The files of a source as an identity recorded them, from the first place where their list is."""
    files = recorded_files(recorded)
    if files is not None:
        return files
    reasons = []
    for place_of in places:
        try:
            found = place_of()
        except DataraxError as error:
            reasons.append(str(error))
            continue
        if listed(found) == recorded["files"]:
            return found
        reasons.append("the files that are listed there now are not those of then")
    raise InputError(
        f"which of the {recorded['num_files']} files of source {name!r} a record lay in is not known: of so many the run keeps "
        f"only a digest of the list, and {_why_not(reasons)}"
    )


def _why_not(reasons: Sequence[str]) -> str:
    if not reasons:
        return "it keeps no config that says where the data lie; name a config file that describes the run"
    found = "; ".join(reasons)
    return (
        f"no such list is beside the data ({found}); say where they lie now with --set source.files=DIRECTORY"
    )


__all__ = [
    "Lineage",
    "Stretch",
    "place",
    "position_in",
    "position_of",
    "trace",
    "trace_run",
]
