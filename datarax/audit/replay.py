"""Runs recorded steps again and says what did not come out as recorded: the first step, and the fields of the state.

A stream is put where a snapshot was, by its own `set_state`, and handed over batch by batch, or (keys only) asked for the keys
of its steps. Knows nothing of files, manifests and reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from datarax.checkpoint import Snapshot
from datarax.checkpoint.protocols import BatchStream, is_addressable
from datarax.core.errors import MISSING, InputError
from datarax.core.tree import decode, differences, identical
from datarax.order import Digest
from datarax.training import LOADER_NAME

# Means of a user's own function: reported beside a run, outside digest and identity.
_STATISTICS = ("_computed_stats", "stats_rows")
_SUMS = ("_applied_count", "_skipped_count", "digest_rows", "digest_keys", "digest_bytes")
_MEANS_TOLERANCE = 1e-6

Steps = npt.NDArray[np.int64]


@dataclass
class RecordedSteps:
    """Steps to run again, and what is recorded of them."""

    begin: int
    """The first step to compare."""
    end: int
    """The step after the last: that of `item`."""
    item: Snapshot
    """What the snapshot after them says."""
    before: Snapshot | None
    """The snapshot at which the recorded steps begin; None if there is none any more, or at step 0."""
    first: int
    """The step at which they begin."""
    keys: npt.NDArray[np.uint64]
    """uint64[end - begin], recorded."""
    row_bytes: npt.NDArray[np.uint64] | None
    """uint64[end - begin], recorded; None if bytes were not digested."""

    @property
    def whole(self) -> bool:
        """Whether all recorded steps are run, from a known state: then the state at the end can be compared."""
        return self.begin == self.first and (self.before is not None or self.first == 0)


@dataclass
class Replayed:
    """What did not come out as recorded."""

    problems: list[str] = field(default_factory=list)
    """Sentences, the first diverging step first."""
    wrong_keys: Steps = field(default_factory=lambda: np.zeros(0, np.int64))
    """Steps whose keys differ, ascending."""
    wrong_bytes: Steps = field(default_factory=lambda: np.zeros(0, np.int64))
    """Steps whose bytes differ, ascending."""
    bytes_compared: bool = False
    """Whether delivered bytes were compared."""
    ended_at: int | None = None
    """The step at which the replay stopped with an error; None if it came to its end."""

    @property
    def first_diverging_step(self) -> int | None:
        """The first step that is not as recorded, or that could not be run."""
        found = [int(steps[0]) for steps in (self.wrong_keys, self.wrong_bytes) if len(steps)]
        if self.ended_at is not None:
            found.append(self.ended_at)
        return min(found, default=None)


def replay(
    streams: Sequence[BatchStream], recorded: RecordedSteps, *, keys_only: bool, recipe_differs: bool = False
) -> Replayed:
    """Runs recorded steps again.

    Args:
        streams: one per recorded process, each at its beginning; one alone for a stream whose state is global.
        recorded: what to run.
        keys_only: compute the keys of each step and read no record; for a `DataLoader` only.
        recipe_differs: whether the streams follow another recipe; then only the steps are compared, for the state follows
            from them.
    """
    result = Replayed()
    keys = np.zeros(recorded.end - recorded.begin, np.uint64)
    row_bytes = np.zeros_like(keys)
    try:
        for index, stream in enumerate(streams):
            _put(stream, recorded, index)
        starts = [_digest(stream) for stream in streams]
        if keys_only:
            keys += _keys_of(streams[0], recorded)
        else:
            result.bytes_compared = recorded.row_bytes is not None
            for stream in streams:
                own_keys, own_bytes = _run(stream, recorded, result)
                keys += own_keys
                row_bytes += own_bytes
    except Exception as error:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        result.problems.append(
            f"replay of steps {recorded.begin} to {recorded.end} stopped: {type(error).__name__}: {error}{notes}"
        )
        return result
    result.wrong_keys = recorded.begin + np.flatnonzero(recorded.keys != keys)
    if result.bytes_compared:
        assert recorded.row_bytes is not None
        result.wrong_bytes = recorded.begin + np.flatnonzero(recorded.row_bytes != row_bytes)
    result.problems += _diverging(result, len(keys))
    if recipe_differs:
        return result
    if keys_only:
        result.problems += _ends_of_keys(streams[0], recorded, keys)
    else:
        result.problems += _ends(streams, recorded, starts, clean=not result.problems)
    return result


def _put(stream: BatchStream, recorded: RecordedSteps, index: int) -> None:
    """Puts a stream where the steps begin, through its own restore."""
    if recorded.before is not None:
        stream.set_state(stream.recorded_state(recorded.before.state(LOADER_NAME, index)))
    elif recorded.first:
        if not is_addressable(stream):
            raise InputError(
                f"the snapshot of step {recorded.first}, where the recorded steps begin, is not there any more"
            )
        entry = [each for each in recorded.item.record.history if each.from_step <= recorded.first][-1]
        position = entry.positions.get(LOADER_NAME) or 0
        epoch = position // stream.timeline.last.order.num_records
        stream.set_state({**stream.get_state(), "idx": entry.from_step, "position": position, "epoch": epoch})
    if is_addressable(stream):
        stream.seek(recorded.begin)
    stream.committed(recorded.first)


def _run(
    stream: BatchStream, recorded: RecordedSteps, result: Replayed
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Keys and bytes of each step, uint64[end - begin]."""
    for step in range(int(stream.idx.get_value()), recorded.end):
        try:
            next(stream)
        except BaseException:
            result.ended_at = step
            raise
    first, keys, row_bytes, has_bytes = stream.take_step_digests()
    result.bytes_compared &= has_bytes
    return keys[recorded.begin - first :], row_bytes[recorded.begin - first :]


def _keys_of(stream: BatchStream, recorded: RecordedSteps) -> npt.NDArray[np.uint64]:
    assert is_addressable(stream)
    rows = stream.timeline.rows(range(recorded.begin, recorded.end))
    return np.concatenate([np.zeros(0, np.uint64), *(each.step_digests() for each in rows)])


def _digest(stream: BatchStream) -> Digest:
    digest = stream.digest
    assert isinstance(digest, Digest)
    return digest


def _diverging(result: Replayed, count: int) -> Iterator[str]:
    for what, wrong in (("records", result.wrong_keys), ("bytes", result.wrong_bytes)):
        if len(wrong):
            yield (
                f"step {int(wrong[0])} is the first whose {what} differ from what was delivered then "
                f"({len(wrong)} of {count} steps differ)"
            )


def _ends(
    streams: Sequence[BatchStream], recorded: RecordedSteps, starts: Sequence[Digest], *, clean: bool
) -> Iterator[str]:
    """Fields of the state at the end, and of the digest, that are not as recorded."""
    for index, (stream, start) in enumerate(zip(streams, starts, strict=True)):
        try:
            yield from _differing_fields(stream, recorded, index, start)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            yield f"data/record.json: the state of {LOADER_NAME!r} cannot be decoded: {error}"
    if recorded.whole and clean and len(streams) == 1:
        yield from _differing_digest(_digest(streams[0]), recorded.item.record.loaders[LOADER_NAME].digest)


def _ends_of_keys(
    stream: BatchStream, recorded: RecordedSteps, keys: npt.NDArray[np.uint64]
) -> Iterator[str]:
    """The fields of the state that follow from the timeline and the keys alone."""
    assert is_addressable(stream)
    before, after = stream.get_state(), stream.recorded_state(recorded.item.state(LOADER_NAME))
    begin, position = before["position"], stream.timeline.position_of(recorded.end)
    expected = {
        "idx": recorded.end,
        "position": position,
        "epoch": position // stream.timeline.last.order.num_records,
    }
    if recorded.whole:
        expected["digest_rows"] = before["digest_rows"] + position - begin
        total = int(before["digest_keys"], 16) + int(keys.sum(dtype=np.uint64))
        expected["digest_keys"] = f"{total % (1 << 64):016x}"
    for name, value in expected.items():
        if after.get(name) != value:
            yield f"data/record.json: {name} is recorded as {after.get(name)!r}, the keys give {value!r}"


def _differing_fields(
    stream: BatchStream, recorded: RecordedSteps, index: int, start: Digest
) -> Iterator[str]:
    state, now = stream.recorded_state(recorded.item.state(LOADER_NAME, index)), stream.get_state()
    skipped = set(_STATISTICS)
    if not recorded.whole:
        # Without the state before, sums since the start of the run are not known; the steps' own digests are.
        skipped |= set(_SUMS)
    if start.bytes is None or state.get("digest_bytes") is None:
        skipped.add("digest_bytes")
    of_process = (
        f" of process {index}" if recorded.item.record.loaders[LOADER_NAME].scope == "process" else ""
    )
    for name in sorted({*now, *state} - skipped | (now.keys() ^ state.keys())):
        for each in differences(state.get(name, MISSING), now.get(name, MISSING), name, equal=identical):
            yield f"data/record.json: {each.path}{of_process} is recorded as {each.was!r}, the replay gives {each.now!r}"
    if recorded.whole and state.keys() == now.keys():
        # Nothing but the loader itself changes statistics in a session; a loop of the user's own may begin them anew.
        by_session = recorded.item.record.config is not None
        yield from _differing_statistics(state, now, strict=by_session)


def _differing_statistics(state: Mapping[str, Any], now: Mapping[str, Any], *, strict: bool) -> Iterator[str]:
    """Row counts and means; unless `strict`, means of fewer rows, or others that were set, are believed."""
    was, replayed = state.get("stats_rows"), now.get("stats_rows")
    if was != replayed and (strict or (replayed and was is not None and was > replayed)):
        yield f"data/record.json: stats_rows is recorded as {was!r}, the replay gives {replayed!r}"
    if was != replayed or not (strict or replayed):
        return
    name = "_computed_stats"
    for each in differences(decode(state.get(name)), decode(now.get(name)), name, equal=identical):
        recorded, means = each.was, each.now
        numbers = isinstance(recorded, (float, np.ndarray)) and isinstance(means, (float, np.ndarray))
        # Sums of many processes round otherwise than those of one.
        if not numbers or not np.allclose(recorded, means, rtol=_MEANS_TOLERANCE, atol=0, equal_nan=True):
            yield f"data/record.json: {each.path} is recorded as {recorded!r}, the replay gives {means!r}"


def _differing_digest(replayed: Digest, recorded: Mapping[str, Any] | None) -> Iterator[str]:
    now = replayed.to_state()
    for each in differences(dict(recorded or {}), dict(now)):
        if each.path == "bytes" and (each.was is None or each.now is None):
            continue  # a part of the run kept no byte digests
        yield f"data/record.json: digest.{each.path} is recorded as {each.was!r}, the replay gives {each.now!r}"


__all__ = ["RecordedSteps", "Replayed", "replay"]
