"""What a verification looks at, and in which order: see the package's docstring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeGuard

from datarax.audit.explain import explain, name_delivered_changes
from datarax.audit.files import check_snapshot, ledger_problems, run_problems
from datarax.audit.finiteness import note_not_finite
from datarax.audit.moved import notes_of_moved_files
from datarax.audit.recipes import (
    DataUnavailableError,
    MakeStream,
    Recipes,
    no_keys,
    recorded_identity,
    usable_config,
)
from datarax.audit.records import contradictions
from datarax.audit.replay import RecordedSteps, Replayed, replay
from datarax.audit.report import Interval, SnapshotReport, VerifyReport
from datarax.audit.rows import StepRows
from datarax.checkpoint import Snapshot, ledger_steps, list_steps
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.layout import local_directory
from datarax.checkpoint.policy import identity_differences
from datarax.checkpoint.protocols import AddressableStream, BatchStream, is_addressable
from datarax.core.errors import MISSING, ConfigError, Difference, InputError, SnapshotDamagedError
from datarax.run_config import AnyRunConfig
from datarax.training import LOADER_NAME

FAST_STEPS = 1000
"""How many of the newest steps a fast verification covers if nothing else is asked for."""


def verify_run(
    directory: str | Path,
    *,
    config: AnyRunConfig | None = None,
    overrides: Sequence[str] = (),
    make_stream: MakeStream | None = None,
    step: int | None = None,
    last_steps: int | None = None,
    whole_history: bool = False,
    require_finite: bool = False,
    fast: bool = False,
    trust: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> VerifyReport:
    """Verifies a run.

    Args:
        directory: the run.
        config: compare with this config instead of the one stored in the run.
        overrides: `key=value` changes to the stored config.
        make_stream: makes the loader of a run that keeps no config, as the run made it.
        step: only this snapshot; None for all that are there.
        last_steps: replay only so many of the newest recorded steps, through the ledger if need be.
        whole_history: also every step that only the ledger still tells of.
        require_finite: a leaf of the model that holds inf or NaN and did not in the snapshot before is a problem, not only a
            note; so is a NaN in the first snapshot that is looked at.
        fast: compare the keys of the last steps (`FAST_STEPS` by default) and of what follows from them in the state; no
            record, no data file and no model is read, and nothing is imported that the run names.
        trust: import what the stored config names also where others than the caller could have written it.
        say: told what is being done, a line at a time.

    Raises:
        InputError: if there is no run, or no such snapshot, or the run keeps no config and none is given, or the data that
            `config` or `overrides` name cannot be opened; or if others could have written the stored config.
        ConfigError: if `config` or `overrides` do not make a config.
    """
    directory = local_directory(directory)
    committed = list_steps(directory)
    if not committed:
        raise InputError(f"{directory} holds no committed snapshot, so there is nothing to verify")
    if step is not None and step not in committed:
        raise InputError(
            f"{directory} has no committed snapshot {step}; it has {', '.join(map(str, committed))}"
        )
    if whole_history and (step is not None or last_steps is not None):
        raise InputError("--all is the whole history; leave out --step and --steps")
    if require_finite and fast:
        raise InputError(
            "--require-finite looks into the models, which --fast does not read; leave out one of them"
        )
    if last_steps is not None and last_steps < 1:
        raise InputError(f"the number of last steps must be at least 1, got {last_steps}")
    if fast and last_steps is None and not whole_history and step is None:
        last_steps = FAST_STEPS
    ledger, known = ledger_steps(directory), {*committed}
    in_ledger = {*ledger} - known
    through_ledger = step is None and (whole_history or last_steps is not None)
    candidates = [step] if step is not None else sorted([*committed, *(in_ledger if through_ledger else [])])
    intervals = _intervals(directory, candidates, last_steps)
    if last_steps is not None:
        # What is older than is asked for. Files of snapshots are looked at all the same, where there is time for it.
        candidates = [each for each in candidates if each in intervals or (each in known and not fast)]
    report = VerifyReport(str(directory), newest_step=committed[-1], whole_history=whole_history)
    report.run_problems += run_problems(directory)
    report.run_problems += ledger_problems(directory, [s for s in ledger if not fast or s in intervals])
    if whole_history:
        report.run_problems += _gaps(intervals)
    with ExitStack() as opened:
        verification = _Verification(
            directory,
            sorted({*committed, *ledger}),
            committed[-1],
            Recipes(directory, config, overrides, make_stream, opened, keys_only=fast, trust=trust),
            fast,
        )
        for wanted in candidates:
            say(f"verifying {'ledger entry' if wanted in in_ledger else 'snapshot'} {wanted}")
            snapshot = SnapshotReport(wanted, in_ledger=wanted in in_ledger, keys_only=fast)
            report.snapshots.append(snapshot)
            verification.look_at(snapshot, intervals.get(wanted))
        if not fast:
            say("verifying the data files")
        verification.look_at_data(report)
        report.notes += verification.notes(report)
        note_not_finite(report, require_finite=require_finite)
    return report


def _intervals(directory: Path, candidates: Sequence[int], last_steps: int | None) -> dict[int, Interval]:
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


def _gaps(intervals: Mapping[int, Interval]) -> list[str]:
    """Steps of which nothing is recorded any more, although retention keeps all of them."""
    borders = [0, *(border for _, interval in sorted(intervals.items()) for border in interval)]
    return [
        f"steps {end} to {begin} are recorded nowhere: neither a snapshot nor a ledger entry {begin} is there"
        for end, begin in zip(borders[::2], borders[1::2], strict=False)
        if end < begin
    ]


class _Verification:
    """One verification on its way: what is open, and what was replayed."""

    def __init__(
        self, directory: Path, known: Sequence[int], newest_step: int, recipes: Recipes, fast: bool
    ) -> None:
        self._directory = directory
        self._known = known
        self._newest_step = newest_step
        self._recipes = recipes
        self._fast = fast
        self._done: list[tuple[SnapshotReport, StepRows, RecordedSteps, Replayed]] = []

    def look_at(self, report: SnapshotReport, interval: Interval | None) -> None:
        """One snapshot, or ledger entry: its files, its record, its recipe, its steps."""
        # Parsed whether it is as written or not: of a damaged record we still want to say which fields are wrong.
        item = Snapshot.salvage(self._directory, report.step)
        if not report.in_ledger:
            expected = item is not None and self._trains(item)
            check_snapshot(self._directory, report, model_expected=expected, with_model=not self._fast)
        if item is None:
            if report.in_ledger:
                report.problems.append("its record in the ledger cannot be parsed")
            return
        try:
            self._compare(report, item, interval)
        except (ConfigError, InputError):
            raise
        except DataUnavailableError:
            report.problems.append(
                "not replayed: its data cannot be opened, see the data files; if they were moved, say where they are: "
                "--set source.files=… (or source.path=…)"
            )
        except SnapshotDamagedError as error:
            report.problems.append(f"not replayed: {'; '.join(error.problems)}")
        except Exception as error:
            # What is not as written can have any form; of a good snapshot this would be a fault of ours. Nothing says of a
            # ledger entry that it is good.
            if not report.problems and not report.in_ledger:
                raise
            report.problems.append(f"not replayed: {type(error).__name__}: {error}")

    def _trains(self, item: Snapshot) -> bool:
        try:
            return self._recipes.trains(item.record)
        except (SnapshotDamagedError, ConfigError):
            return False  # reported as such

    def _compare(self, report: SnapshotReport, item: Snapshot, interval: Interval | None) -> None:
        count = _process_count(item)
        config = usable_config(self._directory, self._known, report.step, item.record)
        recorded = recorded_identity(self._directory, item.record, {})
        streams = self._recipes.streams(config, count, recorded)
        stream = streams[0]
        scope = getattr(stream, "state_scope", "process")
        report.problems += contradictions(self._directory, self._known, report.step, item.record, scope=scope)
        try:
            present = stream.identity(sample=False) if self._samples_left_out(stream) else stream.identity()
        except InputError as error:
            if not self._recipes.stored:
                raise
            report.problems.append(f"not replayed: its data cannot be read as they were: {error}")
            return
        identity = {LOADER_NAME: present}
        found = identity_differences(recorded, identity) if recorded else []
        if self._samples_left_out(stream):
            found = [each for each in found if not (each.path.endswith(".sample") and each.now is MISSING)]
        if self._recipes.without_code:
            found = [each for each in found if not f"{each.path}.".startswith(f"{LOADER_NAME}.pipeline.")]
        if self._recipes.stands_in(stream):
            found = [each for each in found if not each.path.startswith(f"{LOADER_NAME}.sources.")]
        report.superseded = self._superseded(item, found, identity)
        report.differences += [each for each in found if each not in report.superseded]
        report.advice += all_advice(report.differences, recorded, identity)
        if interval is not None:
            self._replay(report, item, interval, streams)

    def _superseded(
        self, item: Snapshot, found: Sequence[Difference], identity: Mapping[str, Any]
    ) -> list[Difference]:
        """Differences that come from a change made on purpose at a later step: today's value is that of the newest snapshot."""
        newest = Snapshot.salvage(self._directory, self._newest_step)
        if not found or newest is None or newest.record.identity == item.record.identity:
            return []
        other = identity_differences(recorded_identity(self._directory, newest.record, identity), identity)
        still_other = {each.path for each in other}
        return [each for each in found if each.path not in still_other]

    def _samples_left_out(self, stream: BatchStream) -> TypeGuard[AddressableStream]:
        """Whether to compare what is known of the data without reading a record."""
        return self._fast and is_addressable(stream)

    def _replay(
        self, report: SnapshotReport, item: Snapshot, interval: Interval, streams: Sequence[BatchStream]
    ) -> None:
        recorded = _recorded(self._directory, item, interval)
        if recorded is None:
            report.problems.append(f"no digests of single steps are recorded for loader {LOADER_NAME!r}")
            return
        stream = streams[0]
        if report.superseded and not _keys_remain(report, stream):
            return
        if report.differences and is_addressable(stream) and _has_more_rows(stream, recorded):
            report.problems.append(
                f"not replayed: its {recorded.end} steps have more rows by this recipe than were delivered"
            )
            return
        keys_only = (self._fast or bool(report.superseded)) and is_addressable(stream)
        report.keys_only = keys_only
        if self._fast and not keys_only:
            raise no_keys(self._directory)
        report.replayed = (recorded.begin, recorded.end)
        result = replay(streams, recorded, keys_only=keys_only, recipe_differs=bool(report.differences))
        report.bytes_compared = result.bytes_compared
        report.problems += result.problems
        report.first_diverging_step = result.first_diverging_step
        if is_addressable(stream):
            self._done.append((report, StepRows(stream.source, stream.timeline), recorded, result))
        if result.first_diverging_step is not None:
            explain(report, self._directory, item, stream, result)

    # The data.

    def look_at_data(self, report: VerifyReport) -> None:
        """Every data file against its manifest; where one differs, the first step that delivered what it holds now."""
        report.data_problems += self._recipes.unavailable
        report.data_checked = not self._fast and bool(self._recipes.sources)
        if self._fast:
            return
        for source in self._recipes.sources:
            report.data_problems += source.check_content()
        if report.data_problems:
            for snapshot, rows, recorded, result in self._done:
                name_delivered_changes(snapshot, rows, recorded, result)

    def notes(self, report: VerifyReport) -> list[str]:
        """What was not checked, and why."""
        notes = [
            f"snapshot {each.step}: made before a change on purpose ({', '.join(d.path for d in each.superseded)}); what made "
            f"it then is not here any more, so its {'contents were' if each.replayed else 'steps were'} not replayed"
            for each in report.snapshots
            if each.superseded
        ]
        if self._fast:
            notes.append("keys only: no record was read, and neither data files nor model were checked")
            return notes + self._recipes.left_out
        notes += [
            f"source {source.name!r} has no manifest: its content was checked by size, record count, samples and replay only"
            for source in self._recipes.sources
            if not source.content_recorded
        ]
        for source in self._recipes.sources:
            if not source.content_recorded:
                looked_at = [
                    (range(recorded.begin, recorded.end), rows)
                    for _, rows, recorded, _ in self._done
                    if rows.source is source
                ]
                notes += notes_of_moved_files(self._directory, source, looked_at)
        replayed = [each for each in report.snapshots if each.replayed is not None]
        if replayed and not any(each.bytes_compared for each in replayed):
            notes.append(
                "no snapshot has byte digests (loader.byte_digest): contents were not compared in replay"
            )
        return notes


def _has_more_rows(stream: AddressableStream, recorded: RecordedSteps) -> bool:
    """Whether no step would be as recorded anyway, and each might be as large as memory: a batch size is only a number."""
    try:
        position = stream.timeline.position_of(recorded.end)
    except IndexError:  # the replay says so
        return False
    return bool(position > recorded.item.state(LOADER_NAME)["position"])


def _keys_remain(report: SnapshotReport, stream: BatchStream) -> bool:
    """Whether the keys of a snapshot can be computed although its stages were changed later."""
    stages = f"{LOADER_NAME}.pipeline."
    return is_addressable(stream) and all(each.path.startswith(stages) for each in report.superseded)


def _recorded(directory: Path, item: Snapshot, interval: Interval) -> RecordedSteps | None:
    """What is recorded of the steps of an interval; None if no digests of single steps are."""
    steps = item.steps.get(LOADER_NAME)
    if steps is None:
        return None
    first, keys, row_bytes = steps
    begin, end = interval
    return RecordedSteps(
        begin=begin,
        end=end,
        item=item,
        before=Snapshot.salvage(directory, first) if first else None,
        first=first,
        keys=keys[begin - first :],
        row_bytes=None if row_bytes is None else row_bytes[begin - first :],
    )


def _process_count(item: Snapshot) -> int:
    """How many processes saved a state of their own; 1 where that cannot be read, which is said elsewhere."""
    try:
        return len(item.process_parts()) or 1
    except ValueError:
        return 1


__all__ = ["FAST_STEPS", "verify_run"]
