"""Restore and replay a run in a fresh process, and say whether what was recorded is what comes out again.

For each snapshot that is there: its files against its manifest; its recorded identity against the data, order and
pipeline that its own stored config gives today; the data files against the dataset's manifest; then a loader restored from
the snapshot before it is run through the real reading path, and every step's digest and every field of the state are compared.
Nothing is written, no lock is taken, no peers are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datarax.checkpoint import Snapshot, list_steps, read_config, read_identity
from datarax.checkpoint.salvage import DataItem, read_data_item
from datarax.core.errors import (
    MISSING,
    ConfigError,
    DataraxError,
    Difference,
    InputError,
    SnapshotDamagedError,
)
from datarax.core.fingerprint import differences
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
    data_problems: list[str] = field(default_factory=list)
    """Data files that are not what was recorded when the dataset was made."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is as recorded."""
        return not self.data_problems and not any(
            each.problems or each.differences for each in self.snapshots
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
        InputError: if there is no run, or no such snapshot.
        ConfigError: if `config` or `overrides` do not make a config.
    """
    directory = Path(directory)
    steps = list_steps(directory)
    if not steps:
        raise InputError(f"{directory} holds no committed snapshot, so there is nothing to verify")
    if step is not None and step not in steps:
        raise InputError(f"{directory} has no committed snapshot {step}; it has {', '.join(map(str, steps))}")
    report = VerifyReport(str(directory))
    asked = config is not None or bool(overrides)
    with ExitStack() as opened:
        pipelines = _Pipelines(directory, config, overrides, opened)
        for wanted in steps if step is None else [step]:
            say(f"verifying snapshot {wanted}")
            snapshot = SnapshotReport(wanted)
            report.snapshots.append(snapshot)
            _verify_snapshot(directory, snapshot, pipelines, asked=asked)
        say("verifying the data files")
        for source in pipelines.sources:
            report.data_problems += source.check_content()
            if not source.content_recorded:
                report.notes.append(
                    f"source {source.name!r} has no manifest: its content was checked by size, record count, samples "
                    f"and replay only"
                )
    if not any(each.bytes_compared for each in report.snapshots):
        report.notes.append(
            "no snapshot has byte digests (loader.byte_digest): contents were not compared in replay"
        )
    return report


class _Pipelines:
    """Sources and loaders as the stored configs describe them, each opened once."""

    def __init__(
        self, directory: Path, config: RunConfig | None, overrides: Sequence[str], opened: ExitStack
    ) -> None:
        self._directory = directory
        self._config = config
        self._overrides = overrides
        self._opened = opened
        self._loaders: dict[str, DataLoader] = {}
        self._sources: dict[Any, DataSource] = {}

    @property
    def sources(self) -> list[DataSource]:
        """Every source that was opened."""
        return list(self._sources.values())

    def loader(self, config_digest: str | None) -> DataLoader:
        """The loader of the config with this digest, with the overrides asked for.

        Raises:
            InputError: if the run keeps no such config or its data cannot be opened.
        """
        key = config_digest or ""
        if key not in self._loaders:
            config = self._config if self._config is not None else self._stored(config_digest)
            apply_environment(config)
            # Digest all bytes again whatever the config says now: whether they were recorded is the snapshot's to say.
            config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, byte_digest=True))
            loader = build_loader(config, self._source(config))
            self._loaders[key] = self._opened.enter_context(loader)
        return self._loaders[key]

    def _source(self, config: RunConfig) -> DataSource:
        key = repr(config.source)
        if key not in self._sources:
            self._sources[key] = self._opened.enter_context(open_source(config.source))
        return self._sources[key]

    def _stored(self, config_digest: str | None) -> RunConfig:
        if config_digest is None:
            raise InputError(
                "this run was made from Python and keeps no config; name one that describes it with --config"
            )
        return parse_config(
            read_config(self._directory, config_digest),
            self._overrides,
            where=f"configs/{config_digest[:12]}….toml",
        )


def _verify_snapshot(directory: Path, report: SnapshotReport, pipelines: _Pipelines, *, asked: bool) -> None:
    report.problems += _file_problems(directory, report.step)
    # Parsed whether it is as written or not: of a damaged record we still want to say which fields are wrong.
    item = read_data_item(directory, report.step)
    if item is None:
        return
    try:
        recorded = read_identity(directory, item.record.identity)
        loader = pipelines.loader(item.record.config)
        identity = {LOADER_NAME: loader.identity()}
        report.differences += differences(recorded, identity)
        if not report.differences:
            report.problems += _replay(directory, report, loader, item)
    except ConfigError:
        raise
    except (DataraxError, ValueError) as error:
        if asked and isinstance(error, InputError):
            raise
        report.problems.append(str(error))


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
            loader.reset()
            loader.seek(first)
        loader.committed(first)
        start = loader.digest
        report.replayed = (first, report.step)
        report.bytes_compared = row_bytes is not None
        for _ in range(first, report.step):
            next(loader)
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        return [
            f"replay of steps {first} to {report.step} stopped: {type(error).__name__}: {error} ({notes})"
        ]
    problems = list(_diverging_steps(loader, first, keys, row_bytes))
    state = item.state(LOADER_NAME)
    return problems + list(
        _differing_fields(loader, state, exact=before is not None or first == 0, start=start)
    )


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
        if type(was) is not type(replayed) or not np.array_equal(was, replayed):
            yield f"data/record.json: {name} is recorded as {was!r}, the replay gives {replayed!r}"
