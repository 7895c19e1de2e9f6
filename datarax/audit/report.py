"""What a verification found out. Plain values; knows nothing of how it was found."""

from __future__ import annotations

from dataclasses import dataclass, field

from datarax.core.errors import Difference

Interval = tuple[int, int]
"""Steps from the first up to, not including, the second."""


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
    """For each of them the nearest thing to do; empty where it was said already."""
    replayed: Interval | None = None
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


@dataclass
class VerifyReport:
    """The answer of `verify_run`."""

    directory: str
    """The run."""
    newest_step: int
    """Its newest snapshot: so many steps have been done."""
    whole_history: bool = False
    """Whether all steps were asked for."""
    snapshots: list[SnapshotReport] = field(default_factory=list)
    """One report per snapshot, oldest first."""
    run_problems: list[str] = field(default_factory=list)
    """Files of the run beside its snapshots (identities, configs, history, ledger) that are not as written."""
    data_problems: list[str] = field(default_factory=list)
    """Data files that are not what was recorded when the dataset was made, or cannot be opened."""
    data_checked: bool = False
    """Whether the data files were read."""
    notes: list[str] = field(default_factory=list)
    """What could not be checked, and why."""

    @property
    def ok(self) -> bool:
        """Whether everything that was checked is as recorded."""
        return not (self.run_problems or self.data_problems) and all(each.ok for each in self.snapshots)

    @property
    def first_diverging_step(self) -> int | None:
        """The first step of all that did not come out as recorded; None if all did."""
        found = [each.first_diverging_step for each in self.snapshots]
        return min((step for step in found if step is not None), default=None)

    def covered(self) -> list[Interval]:
        """The steps that were replayed, in as few intervals as possible."""
        merged: list[Interval] = []
        for begin, end in sorted(each.replayed for each in self.snapshots if each.replayed is not None):
            if begin == end:
                continue
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((begin, end))
        return merged

    def uncovered(self) -> list[Interval]:
        """The steps up to the newest snapshot that were not replayed."""
        borders = [0, *(border for interval in self.covered() for border in interval), self.newest_step]
        pairs = zip(borders[::2], borders[1::2], strict=True)
        return [(begin, end) for begin, end in pairs if begin < end]


__all__ = ["Interval", "SnapshotReport", "VerifyReport"]
