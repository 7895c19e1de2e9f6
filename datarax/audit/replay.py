"""Runs recorded steps again and says what did not come out as recorded: the first step, and the fields of the state.

A stream is put where a snapshot was, by its own `set_state`, and handed over batch by batch, or (keys only) asked for the keys
of its steps. Knows nothing of manifests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from datarax.audit.report import SnapshotReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.protocols import BatchStream, is_addressable
from datarax.core.errors import InputError
from datarax.core.tree import decode, differences, identical
from datarax.training import LOADER_NAME

# Means of a user's own function: reported beside a run, outside digest and identity.
_ROWS, _MEANS = "stats_rows", "_computed_stats"
_SUMS = ("_applied_count", "_skipped_count", "digest_rows", "digest_keys", "digest_bytes")
_MEANS_TOLERANCE = 1e-6

Numbers = npt.NDArray[np.uint64]
"""Digests, uint64[steps]."""
Steps = npt.NDArray[np.int64]
"""Steps, int64[n]."""


def unlike(
    recorded: Any, again: Any, by: str, of: str = "", *, equal: Callable[[Any, Any], bool] = identical
) -> list[str]:
    """A sentence for each field of a record that is not what was made again.

    Args:
        recorded: a tree of fields.
        again: the same, made again.
        by: what made it, and a verb.
        of: whose fields they are.
        equal: whether two values are the same.
    """
    return [
        f"data/record.json: {each.path}{of} is recorded as {each.was!r}, {by} {each.now!r}"
        for each in differences(recorded, again, equal=equal)
    ]


@dataclass
class Replay:
    """Recorded steps, and what was not as recorded when they were run again."""

    item: Snapshot
    """What the snapshot after them says."""
    steps: range
    """The steps to compare, up to that of `item`."""
    before: Snapshot | None
    """The snapshot at which the recorded steps begin; None if there is none any more, or at step 0."""
    first: int
    """The step at which they begin."""
    keys: Numbers
    """uint64[steps], recorded."""
    row_bytes: Numbers | None
    """uint64[steps], recorded; None if bytes were not digested."""
    wrong_keys: Steps = field(default_factory=lambda: np.zeros(0, np.int64))
    """Steps whose keys differ, ascending."""
    wrong_bytes: Steps = field(default_factory=lambda: np.zeros(0, np.int64))
    """Steps whose bytes differ, ascending."""
    completed: bool = False
    """Whether it came to its end, and did not stop with an error."""

    @staticmethod
    def of(item: Snapshot, steps: range) -> Replay | None:
        """The steps before a snapshot, or of a ledger entry; None if no digests of single steps are recorded."""
        recorded = item.steps.get(LOADER_NAME)
        if recorded is None:
            return None
        first, keys, row_bytes = recorded
        return Replay(
            item=item,
            steps=steps,
            before=Snapshot.salvage(item.layout.directory, first) if first else None,
            first=first,
            keys=keys[steps.start - first :],
            row_bytes=None if row_bytes is None else row_bytes[steps.start - first :],
        )

    @property
    def whole(self) -> bool:
        """Whether all recorded steps are run, from a known state: then the state at the end can be compared."""
        return self.steps.start == self.first and (self.before is not None or self.first == 0)

    def run(self, streams: Sequence[BatchStream], report: SnapshotReport) -> None:
        """Runs the steps again.

        Args:
            streams: one per recorded process, each at its beginning; one alone for a stream whose state is global.
            report: gets what is not as recorded. If it says `keys_only`, the keys of each step are computed and no record is
                read; if it says that the recipe differs, only the steps are compared, for the state follows from them.
        """
        keys = np.zeros(len(self.steps), np.uint64)
        row_bytes = np.zeros_like(keys)
        try:
            for index, stream in enumerate(streams):
                self._put(stream, index)
            with_bytes = [stream.digest.bytes is not None for stream in streams]
            if report.keys_only:
                keys = _keys_of(streams[0], self.steps)
            else:
                report.bytes_compared = self.row_bytes is not None
                for stream in streams:
                    own_keys, own_bytes = self._handed_over(stream, report)
                    keys += own_keys
                    row_bytes += own_bytes
        except Exception as error:
            notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
            report.problems.append(
                f"replay of steps {self.steps.start} to {self.steps.stop} stopped: {type(error).__name__}: {error}{notes}"
            )
            return
        self.completed = True
        self.wrong_keys = self._differing("records", self.keys, keys, report)
        if report.bytes_compared:
            assert self.row_bytes is not None
            self.wrong_bytes = self._differing("bytes", self.row_bytes, row_bytes, report)
        for step in np.union1d(self.wrong_keys, self.wrong_bytes)[:1].tolist():
            report.first_diverging_step = step
        if report.keys_only and not report.differences:
            report.problems += self._end_of_keys(streams[0], keys)
        elif not report.differences:
            report.problems += self._ends(streams, with_bytes, clean=report.first_diverging_step is None)

    def _put(self, stream: BatchStream, index: int) -> None:
        """Puts a stream where the steps begin, through its own restore."""
        if self.before is not None:
            stream.set_state(stream.recorded_state(self.before.state(LOADER_NAME, index)))
        elif self.first:
            if not is_addressable(stream):
                raise InputError(
                    f"the snapshot of step {self.first}, where the recorded steps begin, is not there any more"
                )
            entry = [each for each in self.item.record.history if each.from_step <= self.first][-1]
            position = entry.positions.get(LOADER_NAME) or 0
            epoch = position // stream.timeline.last.order.num_records
            place = {"idx": entry.from_step, "position": position, "epoch": epoch}
            stream.set_state({**stream.get_state(), **place})
        if is_addressable(stream):
            stream.seek(self.steps.start)
        stream.committed(self.first)

    def _handed_over(self, stream: BatchStream, report: SnapshotReport) -> tuple[Numbers, Numbers]:
        """Keys and bytes of each step, uint64[steps]."""
        for step in range(int(stream.idx.get_value()), self.steps.stop):
            try:
                next(stream)
            except BaseException:
                report.first_diverging_step = step
                raise
        first, keys, row_bytes, has_bytes = stream.take_step_digests()
        report.bytes_compared &= has_bytes
        return keys[self.steps.start - first :], row_bytes[self.steps.start - first :]

    def _differing(self, what: str, recorded: Numbers, again: Numbers, report: SnapshotReport) -> Steps:
        wrong: Steps = self.steps.start + np.flatnonzero(recorded != again)
        if len(wrong):
            report.problems.append(
                f"step {int(wrong[0])} is the first whose {what} differ from what was delivered then "
                f"({len(wrong)} of {len(again)} steps differ)"
            )
        return wrong

    def _end_of_keys(self, stream: BatchStream, keys: Numbers) -> list[str]:
        """The fields of the state that follow from the timeline and the keys alone."""
        assert is_addressable(stream)
        before, after = stream.get_state(), stream.recorded_state(self.item.state(LOADER_NAME))
        position = stream.timeline.position_of(self.steps.stop)
        again = {
            "idx": self.steps.stop,
            "position": position,
            "epoch": position // stream.timeline.last.order.num_records,
        }
        if self.whole:
            again["digest_rows"] = before["digest_rows"] + position - before["position"]
            total = int(before["digest_keys"], 16) + int(keys.sum(dtype=np.uint64))
            again["digest_keys"] = f"{total % (1 << 64):016x}"
        return unlike({name: after.get(name) for name in again}, again, "the keys give")

    def _ends(
        self, streams: Sequence[BatchStream], with_bytes: Sequence[bool], *, clean: bool
    ) -> Iterator[str]:
        """Fields of the state at the end, and of the digest, that are not as recorded."""
        loader = self.item.record.loaders[LOADER_NAME]
        for index, stream in enumerate(streams):
            of = f" of process {index}" if loader.scope == "process" else ""
            try:
                was = stream.recorded_state(self.item.state(LOADER_NAME, index))
                yield from self._end_of(was, stream.get_state(), with_bytes[index], of)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                yield f"data/record.json: the state of {LOADER_NAME!r} cannot be decoded: {error}"
        if self.whole and clean and len(streams) == 1:
            digest, again = dict(loader.digest or {}), dict(streams[0].digest.to_state())
            if None in (digest.get("bytes", ""), again["bytes"]):  # a part of the run kept no byte digests
                digest["bytes"] = again["bytes"] = None
            yield from unlike({"digest": digest}, {"digest": again}, "the replay gives")

    def _end_of(
        self, was: Mapping[str, Any], now: Mapping[str, Any], with_bytes: bool, of: str
    ) -> Iterator[str]:
        skipped = {_ROWS, _MEANS}
        if not self.whole:
            # Without the state before, sums since the start of the run are not known; the steps' own digests are.
            skipped |= {*_SUMS}
        if not with_bytes or was.get("digest_bytes") is None:
            skipped.add("digest_bytes")
        skipped -= now.keys() ^ was.keys()
        here, there = ({name: each[name] for name in each if name not in skipped} for each in (was, now))
        yield from unlike(here, there, "the replay gives", of)
        if not self.whole or was.keys() != now.keys():
            return
        # Nothing but the loader itself changes statistics in a session. A loop of the user's own may begin them anew, or set
        # others: then means of fewer rows are believed.
        strict, rows, again = self.item.record.config is not None, was.get(_ROWS), now.get(_ROWS)
        if strict or (again and rows is not None and rows > again):
            yield from unlike({_ROWS: rows}, {_ROWS: again}, "the replay gives")
        if rows == again and (strict or again):
            here, there = ({_MEANS: decode(each.get(_MEANS))} for each in (was, now))
            yield from unlike(here, there, "the replay gives", equal=_close)


def _keys_of(stream: BatchStream, steps: range) -> Numbers:
    assert is_addressable(stream)
    rows = stream.timeline.rows(steps)
    return np.concatenate([np.zeros(0, np.uint64), *(each.step_digests() for each in rows)])


def _close(recorded: Any, means: Any) -> bool:
    """Sums of many processes round otherwise than those of one."""
    if isinstance(recorded, (float, np.ndarray)) and isinstance(means, (float, np.ndarray)):
        return np.allclose(recorded, means, rtol=_MEANS_TOLERANCE, atol=0, equal_nan=True)
    return identical(recorded, means)


__all__ = ["Replay", "unlike"]
