"""What is known about the first step that is not as recorded: the record, the field of the recipe, the library behind it.

Reads single records, through the source. Knows nothing of which steps are looked at.
"""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import numpy as np

from datarax.audit.replay import RecordedSteps, Replayed
from datarax.audit.report import SnapshotReport
from datarax.audit.rows import StepRows, real
from datarax.checkpoint import Snapshot
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.protocols import AddressableStream, BatchStream, is_addressable
from datarax.order import changed_algorithms
from datarax.store.files import parse_json

_NAMED_RECORDS = 5


def explain(
    report: SnapshotReport, directory: Path, item: Snapshot, stream: BatchStream, result: Replayed
) -> None:
    """What the first divergence comes from, as far as it can be known."""
    step = result.first_diverging_step
    assert step is not None
    if report.differences:
        fields = ", ".join(each.path for each in report.differences)
        report.problems.append(f"step {step}: explained by what differs in the recipe: {fields}")
    if report.keys_only:
        return
    if not is_addressable(stream):
        if not report.differences:
            report.problems.append(
                f"step {step}: the pipeline describes itself as it did then, so records that are not sampled, or code that "
                f"is not part of the identity, have changed{_other_versions(directory, item)}"
            )
        return
    report.records = StepRows(stream.source, stream.timeline).changed_records(step)
    report.problems += [f"step {step}: {text}" for text in report.records[:_NAMED_RECORDS]]
    if report.records or report.differences:
        return
    if len(result.wrong_keys):
        report.problems.append(
            f"step {step}: identity and data are the same, so what was recorded has been changed, or the code that makes "
            f"the order is not what it was{_changed_code()}"
        )
    elif len(result.wrong_bytes):
        report.problems.append(
            f"step {step}: {_unexplained(stream)}{_changed_code()}{_other_versions(directory, item)}"
        )


def _other_versions(directory: Path, item: Snapshot) -> str:
    """Libraries that were others when the steps were made: recorded, never refused, and a hint where bytes differ."""
    layout = RunLayout(directory)
    try:
        made_with = dict(parse_json(layout.read(layout.starts / f"{item.record.start}.json"))["provenance"])
        now = {name: _version(name) for name in made_with}
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    others = [
        f"{name} {made_with[name]} (now {version})"
        for name, version in now.items()
        if version is not None and version != made_with[name]
    ]
    return f"; it was made with {', '.join(others)}" if others else ""


def name_delivered_changes(
    report: SnapshotReport, rows: StepRows, recorded: RecordedSteps, result: Replayed
) -> None:
    """Steps that came out as recorded although their records are not what the manifest says: they got them as they are."""
    if result.ended_at is not None or report.keys_only:
        return
    steps = range(recorded.begin, recorded.end)
    indices = rows.indices(steps)  # int64[steps, rows]
    changed = rows.source.changed_among(real(indices))
    if not changed:
        return
    wrong = {int(step) for step in (*result.wrong_keys, *result.wrong_bytes)}
    hit = np.isin(indices, np.array(sorted(changed), np.int64)).any(axis=1)
    delivered = [step for step in (recorded.begin + np.flatnonzero(hit)).tolist() if step not in wrong]
    if not delivered:
        return
    first = delivered[0]
    records = rows.changed_records(first)
    what = (
        "is the first that delivered records as they are now, which is not what the manifest says"
        if report.bytes_compared
        else "is the first whose records are not what the manifest says; without byte digests it is not known whether they "
        "had changed by then"
    )
    report.problems.append(
        f"step {first} {what} ({len(delivered)} of {len(steps)} steps): {'; '.join(records[:_NAMED_RECORDS])}"
    )
    if report.first_diverging_step is None:
        report.first_diverging_step, report.records = first, records


def _unexplained(stream: AddressableStream) -> str:
    if not stream.source.content_recorded:
        return (
            "its records are the same by key; which of them has changed cannot be said without a manifest of the data "
            "(datarax build manifest)"
        )
    return (
        "every record of it is what the manifest says today: the files were others when it was delivered, or code that is "
        "not part of the identity (a function of another module, a library) has changed"
    )


def _changed_code() -> str:
    """Algorithms of this installation that do not do what their version says."""
    return "".join(f"; {sentence}" for sentence in changed_algorithms())


def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["explain", "name_delivered_changes"]
