"""What a verification found out: checks as values, what all of them together say, and what to type next.

People's lines, JSON lines, the exit code and the proofs are all drawn from here. Knows nothing of how it was found.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datarax.core.errors import Difference

Interval = tuple[int, int]
"""Steps from the first up to, not including, the second."""

INTERRUPTED = "by an interrupt"
"""Why a verification stopped that SIGINT, or a KeyboardInterrupt, ended."""


@dataclass
class SnapshotReport:
    """What was found out about one snapshot, or about a step that only the ledger keeps."""

    step: int
    """The snapshot's step."""
    in_ledger: bool = False
    """Whether retention has deleted the snapshot and only its data item is left."""
    problems: list[str] = field(default_factory=list)
    """Files that fail their checks, fields and steps that differ from the replay."""
    differences: list[Difference] = field(default_factory=list)
    """Identity fields in which the recorded recipe differs from today's."""
    superseded: list[Difference] = field(default_factory=list)
    """Fields in which it differs because of a change made on purpose at a later step. No failure."""
    advice: list[str] = field(default_factory=list)
    """For each of the differences the nearest thing to do; empty where it was said already."""
    replayed_steps: Interval | None = None
    """The steps that were replayed and compared."""
    bytes_compared: bool = False
    """Whether the replay compared delivered bytes, not only record keys."""
    keys_only: bool = False
    """Whether keys were computed and no record was read."""
    first_diverging_step: int | None = None
    """The first of them that did not come out as recorded; None if all did."""
    records: list[str] = field(default_factory=list)
    """Records of that step that are not what the dataset's manifest says."""
    model_leaves: int | None = None
    """Leaves of the model that were read and checked; None if the model was not read."""
    not_finite: dict[str, str] = field(default_factory=dict)
    """Those of them that hold inf or NaN -> "inf" or "nan". No failure: it is what was recorded."""

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is as recorded."""
        return not (self.problems or self.differences)

    def tree(self) -> dict[str, Any]:
        """All of it, with JSON."""
        differences = [
            {"field": each.path, "was": _plain(each.was), "is": _plain(each.now)} for each in self.differences
        ]
        superseded = [each.path for each in self.superseded]
        return {**vars(self), "ok": self.ok, "differences": differences, "superseded": superseded}


_OF_THE_QUESTION = ("whole_history", "fast", "require_contents", "has_keys", "options")


@dataclass
class VerifyReport:
    """The answer of `verify_run`."""

    directory: str
    """The run."""
    newest_step: int
    """Its newest snapshot: so many steps have been done."""
    whole_history: bool = False
    """Whether all steps were asked for."""
    fast: bool = False
    """Whether only keys were asked for."""
    require_contents: bool = False
    """Whether steps of which only the keys were compared are a failure."""
    snapshots: list[SnapshotReport] = field(default_factory=list)
    """One report per snapshot that was looked at, oldest first."""
    run_problems: list[str] = field(default_factory=list)
    """Files of the run beside its snapshots (identities, configs, history, ledger) that are not as written."""
    data_problems: list[str] = field(default_factory=list)
    """Data files that are not what was recorded when the dataset was made, or cannot be opened."""
    data_checked: bool = False
    """Whether the data files were read."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""
    stopped: str | None = None
    """What ended the verification before it had looked at all that was asked for; None if nothing did."""
    has_keys: bool = True
    """Whether `datarax order` can tell the records of a step: not those of a Grain pipeline."""
    options: Sequence[str] = ()
    """Words that another `datarax verify` of this run needs too."""

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is as recorded, and everything was checked that is required."""
        found = self.run_problems or self.data_problems or (self.require_contents and self.without_contents())
        return not found and all(each.ok for each in self.snapshots)

    @property
    def first_diverging_step(self) -> int | None:
        """The first step of all that did not come out as recorded; None if all did."""
        found = [each.first_diverging_step for each in self.snapshots]
        return min((step for step in found if step is not None), default=None)

    def covered(self) -> list[Interval]:
        """The steps that were replayed, in as few intervals as possible."""
        return _merged(each.replayed_steps for each in self.snapshots)

    def uncovered(self) -> list[Interval]:
        """The steps up to the newest snapshot that were not replayed."""
        borders = [0, *(border for interval in self.covered() for border in interval), self.newest_step]
        pairs = zip(borders[::2], borders[1::2], strict=True)
        return [(begin, end) for begin, end in pairs if begin < end]

    def without_contents(self) -> list[Interval]:
        """The steps whose keys are as recorded, and whose contents were not compared."""
        keys_only = (each for each in self.snapshots if not each.bytes_compared)
        return _merged(each.replayed_steps for each in keys_only if each.first_diverging_step is None)

    @property
    def next_command(self) -> str | None:
        """What to type next; None if nothing is left to ask."""
        step = self.first_diverging_step
        failed = [each for each in self.snapshots if not each.ok]
        again = ["verify", self.directory, *self.options]
        if step is not None and self.has_keys:
            words = ["order", self.directory, "--steps", str(step)]
        elif failed or self.run_problems:
            at = [] if not failed or failed[0].in_ledger else ["--step", str(failed[0].step)]
            words = ["inspect", self.directory, *at]
        elif self.stopped is not None:
            words = [*again, "--max-duration", "3600", "--record"]
        elif self.fast or self.data_problems:
            words = again
        elif self.uncovered() and not self.whole_history:
            words = [*again, "--all"]
        else:
            return None
        return shlex.join(["datarax", *words])

    def summary(self) -> dict[str, Any]:
        """The answer, with JSON."""
        answers = {name: value for name, value in vars(self).items() if name not in _OF_THE_QUESTION}
        return {
            **answers,
            "ok": self.ok,
            "snapshots": [each.tree() for each in self.snapshots],
            "covered_steps": self.covered(),
            "uncovered_steps": self.uncovered(),
            "contents_not_compared": self.without_contents(),
            "first_diverging_step": self.first_diverging_step,
            "next": self.next_command,
        }


def _merged(intervals: Iterable[Interval | None]) -> list[Interval]:
    """The same steps in as few intervals as possible, ascending."""
    merged: list[Interval] = []
    for begin, end in sorted(each for each in intervals if each is not None):
        if begin == end:
            continue
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else repr(value)


__all__ = ["INTERRUPTED", "Interval", "SnapshotReport", "VerifyReport"]
