"""Restore and replay a run in a fresh process, and say whether what was recorded is what comes out again.

For each snapshot that is there: its files against its manifest; its recorded identity against the data, order and
pipeline that its own stored config gives today; the data files against the dataset's manifest; then a loader restored from
the snapshot before it is run through the real reading path, and every step's digest and every field of the state are compared.
Nothing is written, no lock is taken, no peers are needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datarax.checkpoint import Snapshot, ledger_record, ledger_steps, list_steps, read_config
from datarax.checkpoint.layout import DATA_ITEM, RECORD_NAME, RunLayout, local_directory
from datarax.checkpoint.record import Record
from datarax.checkpoint.salvage import DataItem, read_data_item
from datarax.core.errors import MISSING, ConfigError, Difference, InputError, SnapshotDamagedError
from datarax.core.fingerprint import differences
from datarax.lineage import nearest_record, place, position_of, wrong_fields
from datarax.loader import DataLoader
from datarax.order import Digest
from datarax.run_config import RunConfig, apply_environment, build_loader, parse_config
from datarax.sources import DataSource
from datarax.sources.open import open_source
from datarax.training import LOADER_NAME

# Means of a user's own function: reported beside a run, outside digest and identity.
_REPORTED_ONLY = ("_computed_stats", "stats_rows")


@dataclass
class SnapshotReport:
    """What was found out about one snapshot."""

    step: int
    """The snapshot's step."""
    problems: list[str] = field(default_factory=list)
    """Files that fail their checks, fields and steps that differ from the replay."""
    differences: list[Difference] = field(default_factory=list)
    """Identity fields in which the recorded recipe differs from today's."""
    replayed: tuple[int, int] | None = None
    """The half-open interval of steps that were replayed and compared."""
    bytes_compared: bool = False
    """Whether the replay compared delivered bytes, not only record keys."""


@dataclass
class VerifyReport:
    """The answer of `verify_run`."""

    directory: str
    """The run."""
    snapshots: list[SnapshotReport] = field(default_factory=list)
    """One report per snapshot, oldest first."""
    run_problems: list[str] = field(default_factory=list)
    """Files of the run beside its snapshots (identities, configs, history, ledger) that are not as written."""
    data_problems: list[str] = field(default_factory=list)
    """Data files that are not what was recorded when the dataset was made, or cannot be opened."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is as recorded."""
        return not (
            self.run_problems
            or self.data_problems
            or any(each.problems or each.differences for each in self.snapshots)
        )


def verify_run(
    directory: str | Path,
    *,
    config: RunConfig | None = None,
    overrides: Sequence[str] = (),
    step: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> VerifyReport:
    """Verifies a run.

    Args:
        directory: the run.
        config: compare with this config instead of the one stored in the run.
        overrides: `key=value` changes to the stored config.
        step: only this snapshot; None for all that are there.
        say: told what is being done, a line at a time.

    Raises:
        InputError: if there is no run, or no such snapshot, or the run keeps no config and none is given, or the data that
            `config` or `overrides` name cannot be opened.
        ConfigError: if `config` or `overrides` do not make a config.
    """
    directory = local_directory(directory)
    steps = list_steps(directory)
    if not steps:
        raise InputError(f"{directory} holds no committed snapshot, so there is nothing to verify")
    if step is not None and step not in steps:
        raise InputError(f"{directory} has no committed snapshot {step}; it has {', '.join(map(str, steps))}")
    report = VerifyReport(str(directory))
    report.run_problems += _run_problems(directory)
    with ExitStack() as opened:
        pipelines = _Pipelines(directory, config, overrides, opened)
        for wanted in steps if step is None else [step]:
            say(f"verifying snapshot {wanted}")
            snapshot = SnapshotReport(wanted)
            report.snapshots.append(snapshot)
            _verify_snapshot(directory, snapshot, pipelines)
        say("verifying the data files")
        report.data_problems += _data_problems(pipelines)
        report.notes += _notes(report, pipelines)
    return report


class _DataUnavailable(Exception):
    """The data of a stored config cannot be opened: a finding, reported once and not by each snapshot."""


class _Pipelines:
    """Sources and loaders as the stored configs describe them, each opened once."""

    def __init__(
        self, directory: Path, config: RunConfig | None, overrides: Sequence[str], opened: ExitStack
    ) -> None:
        self._directory = directory
        self._config = config
        self._overrides = overrides
        self._opened = opened
        self._loaders: dict[str, tuple[DataLoader, dict[str, Any]]] = {}
        self._sources: dict[str, DataSource | _DataUnavailable] = {}

    @property
    def sources(self) -> list[DataSource]:
        """Every source that was opened."""
        return [each for each in self._sources.values() if isinstance(each, DataSource)]

    @property
    def unavailable(self) -> list[str]:
        """Why other sources could not be."""
        return [str(each) for each in self._sources.values() if isinstance(each, _DataUnavailable)]

    def loader(self, config_digest: str | None) -> DataLoader:
        """The loader of the config with this digest, with the overrides asked for, as it was when it was built.

        Raises:
            InputError: if the run keeps no such config, or the data that the user named here cannot be opened.
            _DataUnavailable: if the data of a stored config cannot be opened.
        """
        key = "" if self._config is not None else config_digest or ""
        if key not in self._loaders:
            config = (
                self._config if self._config is not None else self._stored(config_digest, self._overrides)
            )
            apply_environment(config)
            # Digest all bytes again whatever the config says now: whether they were recorded is the snapshot's to say.
            config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, byte_digest=True))
            loader = self._opened.enter_context(build_loader(config, self._source(config, config_digest)))
            self._loaders[key] = (loader, loader.get_state())
        loader, initial = self._loaders[key]
        loader.set_state(initial)
        return loader

    def _source(self, config: RunConfig, config_digest: str | None) -> DataSource:
        key = repr(config.source)  # a table holds mappings, which have no hash
        if key not in self._sources:
            try:
                self._sources[key] = self._opened.enter_context(open_source(config.source))
            except InputError as error:
                if config_digest is None or self._stored(config_digest).source != config.source:
                    raise
                self._sources[key] = _DataUnavailable(str(error))
        found = self._sources[key]
        if isinstance(found, _DataUnavailable):
            raise found
        return found

    def _stored(self, config_digest: str | None, overrides: Sequence[str] = ()) -> RunConfig:
        if config_digest is None:
            raise InputError(
                f"the run {self._directory} was made from Python and keeps no config; write one that describes it "
                f"and name it with --config"
            )
        text = read_config(self._directory, config_digest)
        return parse_config(text, overrides, where=f"configs/{config_digest[:12]}….toml")


def _run_problems(directory: Path) -> list[str]:
    """Files that several snapshots share: each is named by its SHA-256, or listed in a manifest of the ledger."""
    problems = []
    for kind in ("identity", "configs", "history"):
        for path in sorted(Path(directory, kind).glob("[!.]*")):
            if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem:
                problems.append(f"{kind}/{path.name}: its content has changed since it was written")
    for step in ledger_steps(directory):
        try:
            ledger_record(directory, step)
        except SnapshotDamagedError as error:
            problems += error.problems
    return problems


def _data_problems(pipelines: _Pipelines) -> list[str]:
    problems = pipelines.unavailable
    for source in pipelines.sources:
        problems += source.check_content()
    return problems


def _notes(report: VerifyReport, pipelines: _Pipelines) -> list[str]:
    notes = [
        f"source {source.name!r} has no manifest: its content was checked by size, record count, samples and replay only"
        for source in pipelines.sources
        if not source.content_recorded
    ]
    replayed = [each for each in report.snapshots if each.replayed is not None]
    if replayed and not any(each.bytes_compared for each in replayed):
        notes.append(
            "no snapshot has byte digests (loader.byte_digest): contents were not compared in replay"
        )
    return notes


def _verify_snapshot(directory: Path, report: SnapshotReport, pipelines: _Pipelines) -> None:
    report.problems += _file_problems(directory, report.step)
    # Parsed whether it is as written or not: of a damaged record we still want to say which fields are wrong.
    item = read_data_item(directory, report.step)
    if item is None:
        return
    if any(problem.startswith(f"{DATA_ITEM}/{RECORD_NAME}") for problem in report.problems):
        report.problems += wrong_fields(directory, report.step, item.record)
    try:
        loader = pipelines.loader(_usable_config(directory, report.step, item.record))
        identity = {LOADER_NAME: loader.identity()}
        report.differences += differences(_recorded_identity(directory, item.record, identity), identity)
        if not report.differences:
            report.problems += _replay(directory, report, loader, item)
    except (ConfigError, InputError):
        raise
    except _DataUnavailable:
        report.problems.append("not replayed: its data cannot be opened, see the data files")
    except SnapshotDamagedError as error:
        report.problems.append(f"not replayed: {'; '.join(error.problems)}")
    except Exception as error:
        # What is not as written can have any form; of a good snapshot this would be a fault of ours.
        if not report.problems:
            raise
        report.problems.append(f"not replayed: {type(error).__name__}: {error}")


def _usable_config(directory: Path, step: int, record: Record) -> str | None:
    """The config that the record names; if the record is damaged and names none, that of the nearest other snapshot."""
    if record.config is None or RunLayout(directory).config(record.config).exists():
        return record.config
    other = nearest_record(directory, step)
    return record.config if other is None else other.config


def _recorded_identity(directory: Path, record: Record, present: Any) -> Any:
    """The identity that the record names. What is missing or damaged was reported already: then there is none to compare."""
    try:
        return json.loads(RunLayout(directory).identity(record.identity).read_bytes())
    except (OSError, ValueError):
        return present


def _file_problems(directory: Path, step: int) -> list[str]:
    """Files of a snapshot that are not as written, and model leaves that are not finite."""
    try:
        snapshot = Snapshot.open(directory, step)
        problems = snapshot.check()
        return problems or _model_problems(snapshot)
    except SnapshotDamagedError as error:
        return list(error.problems)


def _model_problems(snapshot: Snapshot) -> list[str]:
    problems = []
    for path, leaf in snapshot.model().items():
        if leaf.dtype.kind in "fcV" and not np.isfinite(leaf.astype(np.complex128)).all():
            problems.append(f"model: {path} holds values that are not finite")
    return problems


def _replay(directory: Path, report: SnapshotReport, loader: DataLoader, item: DataItem) -> list[str]:
    """Runs from where the recorded step digests begin to the snapshot; what differs, first divergence first."""
    steps = item.steps(LOADER_NAME)
    if steps is None:
        return [f"no digests of single steps are recorded for loader {LOADER_NAME!r}"]
    first, keys, row_bytes = steps
    before = read_data_item(directory, first) if first else None
    try:
        if before is not None:
            loader.set_state(before.state(LOADER_NAME))
        else:
            place(loader, first, _position_at(item.record, first, loader))
        loader.committed(first)
        start = loader.digest
        report.replayed = (first, report.step)
        report.bytes_compared = row_bytes is not None
        for _ in range(first, report.step):
            next(loader)
    except Exception as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return [f"replay of steps {first} to {report.step} stopped: {type(error).__name__}: {error}{notes}"]
    problems = list(_diverging_steps(loader, first, keys, row_bytes))
    exact = before is not None or first == 0
    try:
        problems += _differing_fields(loader, item.state(LOADER_NAME), exact=exact, start=start)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        problems.append(f"data/record.json: the state of {LOADER_NAME!r} cannot be decoded: {error}")
    recorded = item.record.loaders[LOADER_NAME].digest
    if exact and not problems:
        problems += _differing_digest(loader.digest, recorded)
    return problems


def _position_at(record: Record, step: int, loader: DataLoader) -> int:
    """The global row at which `step` begins, by the history: the batch size may have been another before."""
    entry = max((each for each in record.history if each.from_step <= step), key=lambda each: each.from_step)
    return position_of(entry) + (step - entry.from_step) * loader.schedule.batch_size


def _diverging_steps(
    loader: DataLoader, first: int, keys: np.ndarray, row_bytes: np.ndarray | None
) -> Iterator[str]:
    _, replayed_keys, replayed_bytes, _ = loader.take_step_digests()
    if len(replayed_keys) != len(keys):
        yield f"data/steps.bin holds {len(keys)} steps from {first} on, the replay delivered {len(replayed_keys)}"
        return
    compared = [("records", keys, replayed_keys)]
    if row_bytes is not None:
        compared.append(("bytes", row_bytes, replayed_bytes))
    for what, was, now in compared:
        wrong = np.flatnonzero(was != now)
        if len(wrong):
            yield (
                f"step {first + int(wrong[0])} is the first whose {what} differ from what was delivered then "
                f"({len(wrong)} of {len(was)} steps differ)"
            )


def _differing_fields(
    loader: DataLoader, state: dict[str, Any], *, exact: bool, start: Digest
) -> Iterator[str]:
    """State fields in which the snapshot differs from the replay."""
    now = loader.get_state()
    skipped = set(_REPORTED_ONLY)
    if not exact:
        # Without the state before, sums since the start of the run are not known; the steps' own digests are.
        skipped |= {"_applied_count", "_skipped_count", "digest_rows", "digest_keys", "digest_bytes"}
    if start.bytes is None or state.get("digest_bytes") is None:
        skipped.add("digest_bytes")
    for name in sorted({*now, *state} - skipped):
        was, replayed = state.get(name, MISSING), now.get(name, MISSING)
        same_kind = type(was) is type(replayed) and np.asarray(was).dtype == np.asarray(replayed).dtype
        if not same_kind or not np.array_equal(was, replayed):
            yield f"data/record.json: {name} is recorded as {was!r}, the replay gives {replayed!r}"


def _differing_digest(replayed: Digest, recorded: Mapping[str, Any] | None) -> Iterator[str]:
    now = replayed.to_state()
    for each in differences(dict(recorded or {}), dict(now)):
        if each.path == "bytes" and (each.was is None or each.now is None):
            continue  # a stretch of the run kept no byte digests
        yield f"data/record.json: digest.{each.path} is recorded as {each.was!r}, the replay gives {each.now!r}"
