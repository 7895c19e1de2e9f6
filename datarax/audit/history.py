"""What a run recorded of itself, and what a config would make of it: its timeline, and which files its records lay in.

The history in the newest record says from which step and position on which identity held, and an identity holds all that
decides which records were delivered. So steps that were done are answered by the run directory alone, without config, data or
code of then. Read next: `rows.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datarax.checkpoint import Change, HistoryEntry, Snapshot, list_steps, read_config
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.layout import local_directory
from datarax.checkpoint.policy import identity_differences
from datarax.checkpoint.snapshot import item_steps
from datarax.core.errors import ConfigError, DataraxError, Difference, InputError, SnapshotDamagedError
from datarax.loader import DataLoader
from datarax.order import Segment, Timeline
from datarax.run_config import RunConfig, parse_stored_config
from datarax.sources import SourceFile
from datarax.sources.files import listed, recorded_files
from datarax.training import LOADER_NAME
from datarax.training.recorded import recorded_recipe, recorded_timeline

ListFiles = Callable[[], Sequence[SourceFile]]
"""Lists the files of a source as they are today, or gives None where they cannot be listed."""


@dataclass(frozen=True)
class History:
    """Which recipe made, or will make, each step of a run."""

    timeline: Timeline
    """Of the steps that were done, and of those to come if a recipe for them is known."""
    files: Sequence[tuple[int, ListFiles]]
    """From which step on which files the records lay in: () where the source has none; raises InputError where they are not
    known any more."""
    available: int | None = None
    """Steps that are known, whether the run goes on so far or not; None if they are endless."""
    total: int | None = None
    """Steps of the whole run; None if nothing says when it ends."""
    newest_step: int | None = None
    """How many steps are known to be done; None if there is no run yet."""
    recorded_in: Path | None = None
    """The run that keeps the digests of the steps done; None: the timeline is that of a config alone."""
    refused: Sequence[Difference] = ()
    """Identity fields in which the config differs from the run and may not; then `timeline` is that of the config alone."""
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

    def files_of(self, segment: Segment) -> Sequence[SourceFile]:
        """The files of the records of a segment.

        Raises:
            InputError: if they are not known any more.
        """
        number = bisect_right(self.files, segment.first_step, key=lambda each: each[0]) - 1
        return self.files[number][1]()

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


def history_by_config(config: RunConfig, loader: DataLoader) -> History:
    """The history of the run of `config`, whose loader is `loader`.

    Steps that were done are answered by what the run recorded of them, later ones by the config.

    Raises:
        SnapshotDamagedError: if the newest snapshot of the run, or an identity of its history, cannot be read.
        InputError: if the recorded recipe of an earlier step cannot be computed.
        MismatchError: if the records of the run contradict each other.
    """
    directory, own = Path(config.run.directory), loader.timeline
    policy = config.resume.policy()
    now: Mapping[str, Any] = {LOADER_NAME: loader.identity()}
    steps = list_steps(directory)
    alone = History(own, [(0, loader.source.files)], own.num_steps, _total(config, own))
    if not steps:
        return replace(alone, unknown_fields=policy.unknown_fields(now))
    newest = steps[-1]
    snapshot = Snapshot.find(directory, newest)
    compared = snapshot.comparable(now, {LOADER_NAME: loader})
    was, now = compared.was, compared.now
    found = identity_differences(was, now)
    known = replace(
        alone,
        newest_step=newest,
        refused=policy.select(found, Change.REFUSE),
        allowed=policy.select(found, Change.ACCEPT, Change.WARN),
        warned=policy.select(found, Change.WARN),
        unknown_fields=policy.unknown_fields(was, now),
    )
    if known.refused:
        return replace(known, advice=all_advice(known.refused, was, now))
    entries = snapshot.history
    timeline = recorded_timeline(directory, snapshot.record, entries)
    files: list[tuple[int, ListFiles]] = [
        (entry.from_step, partial(_files_of_then, directory, entry, (), loader.source.files))
        for entry in entries
    ]
    position = timeline.position_of(newest)
    if known.allowed:
        begun = replace(own.last, first_step=newest, first_position=position)
        kept = (each for each in timeline.segments if each.first_step < newest)
        timeline = replace(timeline, segments=(*kept, begun))
        files.append((newest, loader.source.files))
    if own.num_rows is None or position <= own.num_rows:
        timeline = replace(timeline, num_rows=own.num_rows, remainder=own.remainder)
        own = timeline
    # Else the config has fewer epochs than the run, and the steps that it would have say so.
    return replace(
        known,
        timeline=timeline,
        files=files,
        available=own.num_steps,
        total=_total(config, own),
        recorded_in=directory,
    )


def history_of_run(directory: str | Path, overrides: Sequence[str] = ()) -> History:
    """The history of a run by its directory alone: no config file, no data and no code of the user is needed.

    Args:
        directory: the run; a writer may be at work in it.
        overrides: `source.KEY=VALUE`: where the data lie now, for lists of files that only the data have.

    Raises:
        InputError: if there is no run, its data module is no loader, or an override is about something else.
        SnapshotDamagedError: if the newest record, or an identity that it names, cannot be read.
        MismatchError: if the records contradict each other.
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
    newest, snapshot = steps[-1], Snapshot.find(directory, steps[-1])
    record, entries = snapshot.record, snapshot.history
    timeline = recorded_timeline(directory, record, entries)
    files = [(entry.from_step, partial(_files_of_then, directory, entry, overrides)) for entry in entries]
    known = History(timeline, files, newest, newest, newest_step=newest, recorded_in=directory)
    if record.config is None:
        note = "the run was made from Python and keeps no config that says when it ends"
        return replace(known, notes=[f"{note}: only the {newest} steps that were saved are known"])
    try:
        config = _stored_config(directory, record.config)
        epochs, remainder = config.loader.num_epochs, config.loader.remainder
        num_rows = None if epochs is None else epochs * timeline.last.order.num_records
        whole = replace(timeline, num_rows=num_rows, remainder=remainder)
    except (ConfigError, SnapshotDamagedError) as error:
        return replace(known, notes=[f"what comes after step {newest - 1} is not known: {error}"])
    total = _total(config, whole)
    if total is None or total <= newest:
        return known
    return replace(known, timeline=whole, available=total, total=total)


def _total(config: RunConfig, timeline: Timeline) -> int | None:
    said = [steps for steps in (config.run.steps, timeline.num_steps) if steps is not None]
    return min(said, default=None)


def _stored_config(directory: Path, digest: str, overrides: Sequence[str] = ()) -> RunConfig:
    text = read_config(directory, digest)
    return parse_stored_config(text, overrides, where=f"configs/{digest[:12]}….toml")


def _files_of_then(
    directory: Path, entry: HistoryEntry, overrides: Sequence[str], *lists: ListFiles
) -> Sequence[SourceFile]:
    """The files of an entry: by its identity, else by the first list of today that is the one of then."""
    recipe = recorded_recipe(directory, entry)
    try:
        ((name, source),) = recipe["sources"].items()
        recorded = recorded_files(source)
        length = recipe["order"]["sources"][name]
        if not all(0 <= file.num_records <= length - file.first_index for file in recorded or ()):
            raise ValueError("they have other numbers of records than the order")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"identity/{entry.identity}.json of the run {directory} is damaged: which files there were is not to be read "
            f"({error!r})"
        ) from error
    if recorded is not None:
        return recorded
    config = entry.config
    if config is not None:
        lists = (*lists, lambda: _stored_config(directory, config, overrides).source.config().list_files())
    reasons = []
    for list_now in lists:
        try:
            files = list_now()
        except DataraxError as error:
            reasons.append(str(error))
            continue
        if listed(files) == source["files"]:
            return files
        reasons.append("the files that are listed there now are not those of then")
    why = "it keeps no config that says where the data lie; name a config file that describes the run"
    if reasons:
        why = f"no such list is beside the data ({'; '.join(reasons)}); "
        why += "say where they lie now with --set source.files=DIRECTORY"
    raise InputError(
        f"which of the {source.get('num_files')} files of source {name!r} a record lay in is not known: of so many the run "
        f"keeps only a digest of the list, and {why}"
    )


__all__ = ["History", "history_by_config", "history_of_run"]
