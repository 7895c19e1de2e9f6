"""The nouns of a rehearsal: a launch as a list of named steps, of which one that fails hides no other.

Knows nothing of what the steps look at. Read next: `rehearse.py`, which lists them.
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
    """A launch will end with this, at once or within the steps that were looked at, or could not be continued exactly."""
    SKIPPED = "skipped"
    """Not looked at: what it depends on failed or is not there yet, or it cannot be known beforehand."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one step found."""

    found: str
    """One line."""
    verdict: Verdict = Verdict.OK
    """How it went."""
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
    seconds: float = 0.0
    """How long the step took; not part of a report."""


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


@dataclass(frozen=True)
class Step:
    """One step of a launch."""

    name: str
    """What it is called in the report."""
    look: Callable[[Rehearsal], Finding | None]
    """What it comes to; None if there is nothing to look at. What it raises is its failure."""
    otherwise: str
    """What to do if it raises."""
    needs: Sequence[str] = ()
    """Names of steps without whose values it cannot be made."""


@dataclass
class Rehearsal:
    """A launch on its way, and in the end the report of it; what one step opens, later ones use."""

    config_path: str
    """The config file."""
    opened: ExitStack
    """Closes what is opened."""
    num_steps: int
    """How many of the next steps have their files looked at."""
    num_devices: int | None
    """Devices of the launch, if it will not be here."""
    config: Any = None
    """The run, `BaseRunConfig` of any kind; None if it cannot be parsed."""
    checks: dict[str, Finding] = field(default_factory=dict)
    """What the steps found, by name, in the order in which they were made."""

    def value(self, *names: str) -> Any:
        """What the first of these steps that was made gives to later ones."""
        return next((self.checks[name].value for name in names if name in self.checks), None)

    @property
    def directory(self) -> Path:
        """The run's."""
        return Path(self.config.run.directory)

    @property
    def snapshot(self) -> Snapshot | None:
        """Where a launch would continue; None if it would not."""
        return self.value("snapshot")

    @property
    def stream(self) -> Any:
        """The batches, None if they cannot be had."""
        return self.value("loader", "pipeline")

    def blocked(self, *needs: str) -> Finding | None:
        """The finding of a step that needs others, if one of them has no value to give."""
        words = {Verdict.FAIL: "failed", Verdict.SKIPPED: "was skipped"}
        for name in needs:
            finding = self.checks.get(name)
            if finding and not (finding.verdict not in words if finding.usable is None else finding.usable):
                how = words.get(finding.verdict, "is not there yet")
                return skipped(f"needs {name!r}, which {how}", f"see {name!r} first")
        return None

    def make(self, steps: Sequence[Step]) -> None:
        """Makes these steps, one after the other."""
        for step in steps:
            started = time.perf_counter()
            try:
                finding = self.blocked(*step.needs) or step.look(self)
            except Exception as error:
                finding = raised(error, step.otherwise)
            if finding is not None:
                more = len(finding.details) - _SHOWN_DETAILS
                details = [*finding.details[:_SHOWN_DETAILS], *([f"and {more:,} more"] if more > 0 else [])]
                seconds = time.perf_counter() - started
                self.checks[step.name] = replace(finding, details=details, seconds=seconds)

    @property
    def ok(self) -> bool:
        """Whether no step failed."""
        return self.count(Verdict.FAIL) == 0

    def count(self, verdict: Verdict) -> int:
        """How many steps came to this."""
        return sum(check.verdict is verdict for check in self.checks.values())

    def to_tree(self) -> dict[str, Any]:
        """Everything, for JSON."""
        shown = ("verdict", "found", "do", "details", "numbers")
        return {
            "config": self.config_path,
            "directory": self.config and self.config.run.directory,
            "checks": [
                {"name": name, **{key: getattr(check, key) for key in shown}}
                for name, check in self.checks.items()
            ],
            "ok": self.ok,
        }
