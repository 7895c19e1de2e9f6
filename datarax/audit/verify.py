"""Restores and replays a run in a fresh process, and says whether what was recorded is what comes out again.

What is looked at, in this order: the files that snapshots share; then of each snapshot its files (`evidence.py`), its record
against the rest of the run, the recorded recipe against what its stored config gives today (`recipes.py`), the
data against their manifest before they are first read, and a stream restored from the snapshot before and run through the real
reading path (`replay.py`). `report.py` is the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from datarax.audit.evidence import (
    Records,
    check_snapshot,
    gaps,
    newly_not_finite,
    recorded_intervals,
    run_problems,
)
from datarax.audit.explain import explain, name_delivered_changes, notes_of_moved_files
from datarax.audit.proofs import DATA, make_proof_directory, proved_at, record_of, write_proof
from datarax.audit.recipes import DataUnavailableError, MakeStream, Recipes
from datarax.audit.replay import Replay
from datarax.audit.report import INTERRUPTED, Interval, SnapshotReport, VerifyReport
from datarax.checkpoint import Snapshot, ledger_steps, list_steps
from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.identity_reader import comparable
from datarax.checkpoint.layout import local_directory
from datarax.checkpoint.policy import identity_differences
from datarax.checkpoint.protocols import BatchStream, is_addressable
from datarax.core.errors import MISSING, ConfigError, Difference, InputError, SnapshotDamagedError
from datarax.loader import DataLoader
from datarax.order import Timeline
from datarax.run_config import AnyRunConfig
from datarax.sources import DataSource
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
    subset: tuple[int, int] = (1, 1),
    max_duration_seconds: float | None = None,
    max_errors: int | None = None,
    require_finite: bool = False,
    require_contents: bool = False,
    fast: bool = False,
    trust: bool = False,
    record: bool = False,
    say: Callable[[str], None] = lambda text: None,
    tell: Callable[[SnapshotReport], None] = lambda report: None,
) -> VerifyReport:
    """Verifies a run.

    A KeyboardInterrupt ends it with the report of what was looked at by then.

    Args:
        directory: the run.
        config: compare with this config instead of the one stored in the run.
        overrides: `key=value` changes to the stored config.
        make_stream: makes the loader of a run that keeps no config, as the run made it.
        step: only this snapshot; None for all that are there.
        last_steps: replay only so many of the newest recorded steps, through the ledger if need be.
        whole_history: also every step that only the ledger still tells of.
        subset: `(n, t)`: of the snapshots only the n-th of t parts, which hold all of them together whoever looks at them when;
            the first also checks the data files.
        max_duration_seconds: begin nothing after this time, and with what was proved longest ago, or never.
        max_errors: stop after so many snapshots that are not as recorded.
        require_finite: a leaf of the model that holds inf or NaN and did not in the snapshot before is a problem, not only a
            note; so is a NaN in the first snapshot that is looked at.
        require_contents: steps that were compared by their keys alone are a failure.
        fast: compare the keys of the last steps (`FAST_STEPS` by default) and of what follows from them in the state; no
            record, no data file and no model is read, and nothing is imported that the run names.
        trust: import what the stored config names also where others than the caller could have written it.
        record: keep what was proved in the run: `proofs.py`.
        say: told what is being done, a line at a time.
        tell: told what was found out about each snapshot, as soon as it is.

    Raises:
        InputError: if there is no run, or no such snapshot, or the run keeps no config and none is given, or the data that
            `config` or `overrides` name cannot be opened; or if others could have written the stored config.
        ConfigError: if `config` or `overrides` do not make a config.
        OSError: if the proof cannot be written.
    """
    begun, directory = time.monotonic(), local_directory(directory)
    committed, ledger = list_steps(directory), ledger_steps(directory)
    part, parts = subset
    has = ", ".join(map(str, committed))
    without = "which --fast does not read; leave out one of them"
    refusals = [
        (not committed, f"{directory} holds no committed snapshot, so there is nothing to verify"),
        (step not in (None, *committed), f"{directory} has no committed snapshot {step}; it has {has}"),
        (
            whole_history and (step, last_steps) != (None, None),
            "--all is the whole history; leave out --step and --steps",
        ),
        (require_finite and fast, f"--require-finite looks into the models, {without}"),
        (require_contents and fast, f"--require-contents needs the records, {without}"),
        (not 1 <= part <= parts, f"there is no part {part} of {parts}: parts count from 1"),
        *(
            (number is not None and number < 1, f"the number of {what} must be at least 1, got {number}")
            for number, what in ((last_steps, "last steps"), (max_errors, "errors"))
        ),
    ]
    for is_refused, why in refusals:
        if is_refused:
            raise InputError(why)
    if fast and last_steps is None and not whole_history and step is None:
        last_steps = FAST_STEPS
    if record:
        make_proof_directory(directory)  # what cannot be kept is said before the work
    known = {*committed}
    through_ledger = step is None and (whole_history or last_steps is not None)
    everything = sorted({*committed, *(ledger if through_ledger else ())})
    intervals = recorded_intervals(directory, everything if step is None else [step], last_steps)
    # Files of snapshots that are older than is asked for are looked at all the same, where there is time for it.
    older = known if step is None and not fast else set()
    candidates = _part(sorted({*intervals, *older}), subset)
    report = VerifyReport(
        str(directory),
        newest_step=committed[-1],
        whole_history=whole_history,
        part=subset,
        fast=fast,
        require_contents=require_contents,
    )
    report.run_problems += run_problems(
        directory, _part([s for s in ledger if not fast or s in intervals], subset)
    )
    if whole_history:
        report.run_problems += gaps(intervals)
    check_data = part == 1 and not fast
    most_seconds = float("inf") if max_duration_seconds is None else max_duration_seconds
    if max_duration_seconds is not None:
        proved = proved_at(directory, keys_only=fast)
        last = {each: proved.get(record_of(directory, each), 0.0) for each in candidates}
        candidates.sort(key=lambda each: last[each])
        check_data &= proved.get(DATA, 0.0) <= min(last.values(), default=0.0)
    with ExitStack() as opened:
        recipes = Recipes(directory, config, overrides, make_stream, opened, keys_only=fast, trust=trust)
        records = Records(directory, sorted({*committed, *ledger}))
        verification = _Verification(directory, records, recipes, report, check_data=check_data)
        try:
            for number, wanted in enumerate(candidates):
                if number and time.monotonic() - begun >= most_seconds:
                    report.stopped = f"after {most_seconds:g} seconds (--max-duration)"
                    break
                say(f"verifying {'snapshot' if wanted in known else 'ledger entry'} {wanted}")
                snapshot = SnapshotReport(wanted, in_ledger=wanted not in known, keys_only=fast)
                verification.look_at(snapshot, intervals.get(wanted), require_finite=require_finite)
                report.snapshots.append(snapshot)
                tell(snapshot)
                if sum(not each.ok for each in report.snapshots) == max_errors:
                    report.stopped = f"after {max_errors} errors (--max-errors)"
                    break
        except KeyboardInterrupt:
            report.stopped = INTERRUPTED
        report.snapshots.sort(key=lambda each: each.step)
        verification.conclude(len(candidates))
    if record:
        say(f"kept what was proved in {write_proof(directory, report)}")
    return report


def _part(steps: Sequence[int], subset: tuple[int, int]) -> list[int]:
    """Those that belong to the part `(n, t)`: by the step alone, so that it does not matter which others are there by now."""
    number, count = subset
    hashes = (int.from_bytes(hashlib.sha256(str(step).encode()).digest()[:8], "big") for step in steps)
    return [step for step, value in zip(steps, hashes, strict=True) if value % count == number - 1]


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """SIGINT waits until the end: where code is imported, an exception out of the blue may end the whole process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Verification:
    """One verification on its way: what is open, and what was replayed."""

    def __init__(
        self, directory: Path, records: Records, recipes: Recipes, report: VerifyReport, *, check_data: bool
    ) -> None:
        self._directory = directory
        self._records = records
        self._recipes = recipes
        self._report = report
        self._fast = report.fast
        self._check_data = check_data
        self._content: dict[int, list[str]] = {}  # by `id` of the source, which stays open
        self._read: list[tuple[range, DataSource, Timeline]] = []
        self._tried: set[int] = set()  # by `id` of the loader, which stays open

    def look_at(self, report: SnapshotReport, interval: Interval | None, *, require_finite: bool) -> None:
        """One snapshot, or ledger entry: its files, its record, its recipe, its steps."""
        # Parsed whether it is as written or not: of a damaged record we still want to say which fields are wrong.
        item = Snapshot.salvage(self._directory, report.step)
        if not report.in_ledger:
            trains = item is not None and self._recipes.trains(item.record)
            check_snapshot(self._directory, report, model_expected=trains, with_model=not self._fast)
            self._tell_not_finite(report, require_finite=require_finite)
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

    def _tell_not_finite(self, report: SnapshotReport, *, require_finite: bool) -> None:
        if report.model_leaves is None:  # only in the ledger, or damaged
            return
        seen = [each for each in self._report.snapshots if each.model_leaves is not None]
        before = max(
            (each for each in seen if each.step < report.step), key=lambda each: each.step, default=None
        )
        news = newly_not_finite(report, before)
        if news and require_finite:
            report.problems.append(f"model: {news} (--require-finite)")
        elif news:
            self._report.notes.append(f"snapshot {report.step}: {news}, as it was recorded")

    def _compare(self, report: SnapshotReport, item: Snapshot, interval: Interval | None) -> None:
        recorded = self._records.identity(item.record, {})
        config = self._records.config(report.step, item.record)
        with _without_interrupts():
            streams = self._recipes.streams(config, _process_count(item), recorded)
        self._look_at_data()
        stream = streams[0]
        self._report.has_keys = is_addressable(stream)
        scope = getattr(stream, "state_scope", "process")
        plain = hasattr(stream, "state_format")
        report.problems += self._records.contradictions(report.step, item.record, scope=scope, plain=plain)
        try:
            identity_of = stream.identity
            if self._fast and is_addressable(stream):
                identity_of = partial(stream.identity, sample=False)
            identity = {LOADER_NAME: identity_of()}
            both = comparable(recorded, identity, {LOADER_NAME: identity_of}, item.made_with)
        except InputError as error:
            if not self._recipes.stored:
                raise
            report.problems.append(f"not replayed: its data cannot be read as they were: {error}")
            return
        found = identity_differences(both.was, both.now) if recorded else []
        found = [each for each in found if not self._is_left_out(each)]
        report.superseded = self._superseded(item, found, identity, identity_of)
        report.differences += [each for each in found if each not in report.superseded]
        report.advice += all_advice(report.differences, recorded, both.now)
        if interval is not None:
            self._replay(report, item, range(*interval), streams)

    def _is_left_out(self, each: Difference) -> bool:
        """Whether a field differs only because it needs a record, code, or data that are left out here."""
        no_sample = self._fast and each.path.endswith(".sample") and each.now is MISSING
        return no_sample or any(f"{each.path}.".startswith(field) for field in self._recipes.left_out)

    def _superseded(
        self,
        item: Snapshot,
        found: Sequence[Difference],
        identity: Mapping[str, Any],
        identity_of: Callable[..., Mapping[str, Any]],
    ) -> list[Difference]:
        """Differences that come from a change made on purpose at a later step: today's value is that of the newest snapshot."""
        newest = Snapshot.salvage(self._directory, self._report.newest_step) if found else None
        if newest is None or newest.record.identity == item.record.identity:
            return []
        recorded = self._records.identity(newest.record, identity)
        both = comparable(recorded, identity, {LOADER_NAME: identity_of}, newest.made_with)
        other = identity_differences(both.was, both.now)
        still_other = {each.path for each in other}
        return [each for each in found if each.path not in still_other]

    def _replay(
        self, report: SnapshotReport, item: Snapshot, steps: range, streams: Sequence[BatchStream]
    ) -> None:
        replay, stream = Replay.of(item, steps), streams[0]
        if replay is None:
            report.problems.append(f"no digests of single steps are recorded for loader {LOADER_NAME!r}")
            return
        if not is_addressable(stream):
            if report.superseded:
                return
        elif not all(each.path.startswith(f"{LOADER_NAME}.pipeline.") for each in report.superseded):
            return  # its stages alone would leave the keys as they were
        elif report.differences and _has_more_rows(stream.timeline, item):
            report.problems.append(
                f"not replayed: its {item.step} steps have more rows by this recipe than were delivered"
            )
            return
        report.keys_only = self._fast or (bool(report.superseded) and is_addressable(stream))
        report.replayed_steps = (steps.start, steps.stop)
        replay.run(streams, report)
        if isinstance(stream, DataLoader) and not report.keys_only:
            self._try_transforms(report, stream, steps)
        if is_addressable(stream):
            self._read.append((steps, stream.source, stream.timeline))
        if report.first_diverging_step is not None:
            explain(report, stream, replay)
        if is_addressable(stream) and self._content.get(id(stream.source)):
            name_delivered_changes(report, stream, replay)

    def _try_transforms(self, report: SnapshotReport, loader: DataLoader, steps: range) -> None:
        """Each transform again, and in another order: a memory of its own may pass unseen in a replay, which repeats it.

        Once for each loader. The fresh process to compare with is this one.
        """
        if id(loader) not in self._tried and steps and report.first_diverging_step is None:
            self._tried.add(id(loader))
            report.problems += [
                f"step {steps.start}: {each}" for each in loader.unsteady_transforms(steps.start)
            ]

    def _look_at_data(self) -> None:
        """The data files of each source against their manifest, when it was opened."""
        for source in self._recipes.sources if self._check_data else ():
            if id(source) not in self._content:
                self._content[id(source)] = source.check_content()
                self._report.data_problems += self._content[id(source)]

    def conclude(self, wanted: int) -> None:
        """What was not checked, and why."""
        report, recipes = self._report, self._recipes
        report.data_problems += recipes.unavailable
        report.data_checked = bool(self._content)
        if report.stopped is not None:
            report.notes.append(
                f"stopped {report.stopped}: {len(report.snapshots)} of {wanted} snapshots and ledger entries were looked at"
            )
        for each in report.snapshots:
            if each.superseded:
                what = "contents were" if each.replayed_steps else "steps were"
                report.notes.append(
                    f"snapshot {each.step}: made before a change on purpose ({', '.join(d.path for d in each.superseded)}); "
                    f"what made it then is not here any more, so its {what} not replayed"
                )
        if self._fast:
            report.notes.insert(
                0, "keys only: no record was read, and neither data files nor model were checked"
            )
            report.notes += recipes.left_out.values()
            return
        if recipes.sources and not self._check_data:
            report.notes.append(
                "the data files were not held against their manifest: that is for the first part, and for when it is their turn"
            )
        for source in recipes.sources:
            if not source.content_recorded:
                report.notes.append(
                    f"source {source.name!r} has no manifest: its content was checked by size, record count, samples and "
                    f"replay only"
                )
                read = sorted(
                    ((steps, timeline) for steps, other, timeline in self._read if other is source),
                    key=lambda each: each[0].start,
                )
                report.notes += notes_of_moved_files(self._directory, source, read)
        replayed = [each for each in report.snapshots if each.replayed_steps is not None]
        if replayed and not any(each.bytes_compared for each in replayed):
            report.notes.append(
                "no snapshot has byte digests (loader.byte_digest): contents were not compared in replay"
            )


def _has_more_rows(timeline: Timeline, item: Snapshot) -> bool:
    """Whether no step would be as recorded anyway, and each might be as large as memory: a batch size is only a number."""
    try:
        position = timeline.position_of(item.step)
    except IndexError:  # the replay says so
        return False
    return bool(position > item.state(LOADER_NAME)["position"])


def _process_count(item: Snapshot) -> int:
    """How many processes saved a state of their own; 1 where that cannot be read, which is said elsewhere."""
    try:
        return len(item.process_parts()) or 1
    except ValueError:
        return 1


__all__ = ["FAST_STEPS", "verify_run"]
