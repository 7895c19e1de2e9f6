"""A launch as a list of named steps: one that fails hides no other, and names what had to be skipped for it.

Knows nothing of what the steps look at. Read next: `examine.py`, which lists them.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datarax.checkpoint import Snapshot
from datarax.core.errors import DataraxError

_SHOWN_DETAILS = 20


class Verdict(enum.StrEnum):
    """What a step comes to."""

    OK = "ok"
    """As it should be."""
    WARNING = "warning"
    """A launch will begin; this may be unwanted later."""
    FAIL = "fail"
    """A launch will end with this, at once or within the steps that were looked at."""
    SKIPPED = "skipped"
    """Not looked at: what it depends on failed, or it cannot be known beforehand."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one step found."""

    found: str
    """One line."""
    verdict: Verdict = Verdict.OK
    do: str | None = None
    """What to do, for anything that is not ok."""
    details: Sequence[str] = ()
    """Further lines: each bad file, each field that differs."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The same as data, for programs."""
    value: Any = None
    """For the steps that depend on this one; not part of a report."""
    usable: bool | None = None
    """Whether those may go on with `value`; None: if this one neither failed nor was skipped."""
    name: str = ""
    """Of the step."""


def warning(found: str, do: str, **rest: Any) -> Finding:
    """A finding that lets a launch begin."""
    return Finding(verdict=Verdict.WARNING, found=found, do=do, **rest)


def failure(found: str, do: str, **rest: Any) -> Finding:
    """A finding with which a launch will end."""
    return Finding(verdict=Verdict.FAIL, found=found, do=do, **rest)


def skipped(found: str, do: str) -> Finding:
    """A finding that cannot be had beforehand."""
    return Finding(verdict=Verdict.SKIPPED, found=found, do=do)


def raised(error: Exception, do: str) -> Finding:
    """The finding of a step that an exception ended, with its notes."""
    first, *more = str(error).strip().splitlines() or ["no message"]
    found = first if isinstance(error, DataraxError) else f"{type(error).__name__}: {first}"
    notes: Sequence[str] = getattr(error, "__notes__", ())
    return failure(found, do, details=[*(line.strip() for line in more), *notes])


@dataclass
class Report:
    """The answer of `examine`."""

    config: str
    """The config file."""
    directory: str | None = None
    """The run directory; None if the config says none."""
    checks: list[Finding] = field(default_factory=list)
    """What the steps found, in the order in which they were made."""

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return self.count(Verdict.FAIL) == 0

    def count(self, verdict: Verdict) -> int:
        """How many steps came to this."""
        return sum(check.verdict is verdict for check in self.checks)

    def to_tree(self) -> dict[str, Any]:
        """Everything, for JSON."""
        shown = ("name", "verdict", "found", "do", "details", "numbers")
        checks = [{name: getattr(check, name) for name in shown} for check in self.checks]
        return {**vars(self), "checks": checks, "ok": self.ok}


@dataclass(frozen=True)
class Step:
    """One step of a launch."""

    name: str
    look: Callable[[Rehearsal], Finding | None]
    """What it comes to; None if there is nothing to look at. What it raises is its failure."""
    otherwise: str
    """What to do if it raises."""
    needs: Sequence[str] = ()
    """Names of steps without whose values it cannot be made."""


class Rehearsal:
    """A launch on its way; what one step opens, later ones use.

    Args:
        config: the run, `BaseRunConfig` of any kind.
        report: gets what is found.
        opened: closes what is opened.
        num_steps: how many of the next steps have their files looked at.
        num_devices: devices of the launch, if it will not be here.

    Attributes:
        values: name of each step -> what it gives to later ones.
        seconds: name of each step -> how long it took.
    """

    def __init__(
        self, config: Any, report: Report, opened: ExitStack, *, num_steps: int, num_devices: int | None
    ) -> None:
        self.config = config
        self.opened = opened
        self.num_steps = num_steps
        self.num_devices = num_devices
        self.directory = Path(config.run.directory)
        self.values: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._report = report
        self._unusable: dict[str, Verdict] = {}

    @property
    def snapshot(self) -> Snapshot | None:
        """Where a launch would continue; None if it would not."""
        return self.values.get("snapshot")

    @property
    def stream(self) -> Any:
        """The batches, None if they cannot be had."""
        return self.values.get("loader", self.values.get("pipeline"))

    def blocked(self, *needs: str) -> Finding | None:
        """The finding of a step that needs others, if one of them has no value to give."""
        for name in needs:
            verdict = self._unusable.get(name)
            if verdict is not None:
                how = {Verdict.FAIL: "failed", Verdict.SKIPPED: "was skipped"}.get(
                    verdict, "is not there yet"
                )
                return skipped(f"needs {name!r}, which {how}", f"see {name!r} first")
        return None

    def is_yet_to_come(self, name: str) -> bool:
        """Whether a launch makes the value of this step itself, so that only a rehearsal has to do without."""
        return self._unusable.get(name) is Verdict.OK

    def make(self, steps: Sequence[Step]) -> None:
        """Makes these steps, one after the other."""
        for step in steps:
            started = time.perf_counter()
            try:
                finding = self.blocked(*step.needs) or step.look(self)
            except Exception as error:
                finding = raised(error, step.otherwise)
            self.seconds[step.name] = time.perf_counter() - started
            if finding is None:
                continue
            as_a_rule = finding.verdict not in (Verdict.FAIL, Verdict.SKIPPED)
            if not (as_a_rule if finding.usable is None else finding.usable):
                self._unusable[step.name] = finding.verdict
            self.values[step.name] = finding.value
            more = len(finding.details) - _SHOWN_DETAILS
            details = [*finding.details[:_SHOWN_DETAILS], *([f"and {more:,} more"] if more > 0 else [])]
            self._report.checks.append(replace(finding, name=step.name, details=details))
