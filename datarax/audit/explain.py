"""What is known about steps that are not as recorded: the record, the field of the recipe, the library, the file that moved.

Reads single records, through the source. Knows nothing of which steps are looked at.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from datarax.audit.replay import Replay
from datarax.audit.report import SnapshotReport
from datarax.audit.rows import changed_records, indices_of
from datarax.checkpoint import Snapshot
from datarax.checkpoint.file_stamps import FileStamps, all_file_stamps
from datarax.checkpoint.layout import RunLayout
from datarax.checkpoint.protocols import AddressableStream, BatchStream, is_addressable
from datarax.checkpoint.snapshot import item_steps
from datarax.order import Timeline, changed_algorithms
from datarax.sources import DataSource

_NAMED_RECORDS = 5
_NAMED_FILES = 5


def explain(report: SnapshotReport, stream: BatchStream, replayed: Replay) -> None:
    """What the first divergence comes from, as far as it can be known."""
    step = replayed.first_diverging_step
    assert step is not None
    if report.differences:
        fields = ", ".join(each.path for each in report.differences)
        report.problems.append(f"step {step}: explained by what differs in the recipe: {fields}")
    if report.keys_only:
        return
    known = ""
    if not is_addressable(stream):
        known = (
            "the pipeline describes itself as it did then, so records that are not sampled, or code that is not part of the "
            f"identity, have changed{_other_versions(replayed.item)}"
        )
    else:
        report.records = changed_records(stream.source, stream.timeline, step)
        report.problems += [f"step {step}: {text}" for text in report.records[:_NAMED_RECORDS]]
        # Algorithms of this installation that do not do what their version says.
        algorithms = "".join(f"; {sentence}" for sentence in changed_algorithms())
        if len(replayed.wrong_keys):
            known = (
                "identity and data are the same, so what was recorded has been changed, or the code that makes the order is "
                f"not what it was{algorithms}"
            )
        elif len(replayed.wrong_bytes):
            known = f"{_unexplained(stream)}{algorithms}{_other_versions(replayed.item)}"
    if known and not (report.records or report.differences):
        report.problems.append(f"step {step}: {known}")


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


def _other_versions(item: Snapshot) -> str:
    """Libraries that were others when the steps were made: recorded, never refused, and a hint where bytes differ."""
    made_with = item.made_with
    now = {name: _version(name) for name in made_with}
    others = [
        f"{name} {made_with[name]} (now {version})"
        for name, version in now.items()
        if version is not None and version != made_with[name]
    ]
    return f"; it was made with {', '.join(others)}" if others else ""


def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def name_delivered_changes(report: SnapshotReport, stream: AddressableStream, replayed: Replay) -> None:
    """Steps that came out as recorded although their records are not what the manifest says: they got them as they are."""
    if replayed.ended_at is not None or report.keys_only:
        return
    indices = indices_of(stream.timeline, replayed.steps)
    changed = stream.source.changed_among(indices[indices >= 0])
    hit = np.isin(indices, np.array(sorted(changed), np.int64)).any(axis=1)
    wrong = {*replayed.wrong_keys.tolist(), *replayed.wrong_bytes.tolist()}
    delivered = [step for step in (replayed.steps.start + np.flatnonzero(hit)).tolist() if step not in wrong]
    if not delivered:
        return
    first = delivered[0]
    records = changed_records(stream.source, stream.timeline, first)
    what = (
        "is the first that delivered records as they are now, which is not what the manifest says"
        if report.bytes_compared
        else "is the first whose records are not what the manifest says; without byte digests it is not known whether they "
        "had changed by then"
    )
    report.problems.append(
        f"step {first} {what} ({len(delivered)} of {len(replayed.steps)} steps): {'; '.join(records[:_NAMED_RECORDS])}"
    )
    if report.first_diverging_step is None:
        report.first_diverging_step, report.records = first, records


def notes_of_moved_files(
    directory: Path, source: DataSource, looked_at: Sequence[tuple[range, Timeline]]
) -> Iterator[str]:
    """A sentence for each start that found files of a source with another time or size than the one before.

    What they held before is known to nobody: what was delivered before and after can be told apart only by steps.

    Args:
        directory: the run.
        source: one without a manifest.
        looked_at: the steps that were looked at and read this source, ascending.
    """
    for before, after in pairwise(all_file_stamps(RunLayout(directory))):
        moved = _moved(before, after, source.name)
        if not moved:
            continue
        items = ((step, Snapshot.salvage(directory, step)) for step in item_steps(directory))
        saved_before = (step for step, item in items if item is not None and item.record.start < after.start)
        since = max(saved_before, default=0)
        files = source.files()
        ranges = [(f.first_index, f.first_index + f.num_records) for f in files if f.name in moved]
        ranges = ranges if files else [(0, len(source))]
        first = next(_reading(looked_at, since, ranges), None)
        read = (
            "none of these steps read them since"
            if first is None
            else f"step {first} is the first that read them since"
        )
        names = ", ".join(moved[:_NAMED_FILES]) + (" and more" if len(moved) > _NAMED_FILES else "")
        yield (
            f"{names} changed on the disk between start {before.start} and start {after.start}, after step {since}; without a "
            f"manifest nobody can say whether their records did: {read}"
        )


def _moved(before: FileStamps, after: FileStamps, source: str) -> list[str]:
    try:
        was, now = (each.sources[source]["files"] for each in (before, after))
        return sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    except (KeyError, TypeError, AttributeError):
        return []


def _reading(
    looked_at: Sequence[tuple[range, Timeline]], since: int, ranges: Sequence[tuple[int, int]]
) -> Iterator[int]:
    """The steps from `since` on that read a record in one of these ranges."""
    for steps, timeline in looked_at:
        left = range(max(steps.start, since), steps.stop)
        if left:
            indices = indices_of(timeline, left)
            hits = [((indices >= first) & (indices < end)).any(axis=1) for first, end in ranges]
            yield from (left.start + np.flatnonzero(np.any(hits, axis=0))).tolist()


__all__ = ["explain", "name_delivered_changes", "notes_of_moved_files"]
