"""What a check says, and the list that runs them: one that fails hides no other, and names what had to be skipped for it.

Knows nothing of what is checked.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datarax.core.errors import DataraxError

_SHOWN_DETAILS = 20


class Verdict(enum.StrEnum):
    """What a check comes to."""

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
    """What one check found."""

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
    """For the checks that depend on this one; not part of a report."""
    usable: bool = False
    """Whether those may go on with `value` although this one failed."""


def warning(found: str, do: str, **rest: Any) -> Finding:
    """A finding that lets a launch begin."""
    return Finding(verdict=Verdict.WARNING, found=found, do=do, **rest)


def failure(found: str, do: str, **rest: Any) -> Finding:
    """A finding with which a launch will end."""
    return Finding(verdict=Verdict.FAIL, found=found, do=do, **rest)


def skipped(found: str, do: str, **rest: Any) -> Finding:
    """A finding that cannot be had beforehand."""
    return Finding(verdict=Verdict.SKIPPED, found=found, do=do, **rest)


def raised(error: Exception, do: str) -> Finding:
    """The finding of a check that an exception ended, with its notes."""
    first, *more = str(error).strip().splitlines() or ["no message"]
    found = first if isinstance(error, DataraxError) else f"{type(error).__name__}: {first}"
    notes: Sequence[str] = getattr(error, "__notes__", ())
    return failure(found, do, details=[*(line.strip() for line in more), *notes])


def shortened(lines: Sequence[str]) -> list[str]:
    """The first lines of many, and how many more there are."""
    more = len(lines) - _SHOWN_DETAILS
    return [*lines[:_SHOWN_DETAILS], *([f"and {more:,} more"] if more > 0 else [])]


@dataclass(frozen=True)
class Check:
    """One line of a report."""

    name: str
    """What was looked at."""
    verdict: Verdict
    """What it came to."""
    found: str
    """What was found, in one line."""
    do: str | None
    """What to do; None where it is ok."""
    details: list[str]
    """Further lines."""
    numbers: dict[str, Any]
    """What was measured or counted."""


@dataclass
class Report:
    """The answer of `examine`."""

    config: str
    """The config file."""
    directory: str | None = None
    """The run directory; None if the config says none."""
    checks: list[Check] = field(default_factory=list)
    """All checks, in the order in which they were made."""

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not any(check.verdict is Verdict.FAIL for check in self.checks)

    def count(self, verdict: Verdict) -> int:
        """How many checks came to this."""
        return sum(check.verdict is verdict for check in self.checks)


class Checklist:
    """Runs checks one after the other and keeps what they found in a report."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._unusable: dict[str, Verdict] = {}

    def check(
        self, name: str, look: Callable[[], Finding], *, otherwise: str, needs: Sequence[str] = ()
    ) -> Any:
        """Runs one check; returns its value, None if it has none.

        Args:
            name: of the check.
            look: what finds it; whatever it raises is a failure of this check.
            otherwise: what to do if it raises.
            needs: names of checks without whose values it cannot be made.
        """
        finding = self._blocked(needs) or self._looked(look, otherwise)
        if finding.verdict in (Verdict.FAIL, Verdict.SKIPPED) and not finding.usable:
            self._unusable[name] = finding.verdict
        self._report.checks.append(
            Check(
                name,
                finding.verdict,
                finding.found,
                finding.do,
                shortened(finding.details),
                dict(finding.numbers),
            )
        )
        return finding.value

    def _blocked(self, needs: Sequence[str]) -> Finding | None:
        for name in needs:
            verdict = self._unusable.get(name)
            if verdict is not None:
                how = "failed" if verdict is Verdict.FAIL else "was skipped"
                return skipped(f"needs {name!r}, which {how}", f"see {name!r} first")
        return None

    def _looked(self, look: Callable[[], Finding], otherwise: str) -> Finding:
        try:
            return look()
        except Exception as error:
            return raised(error, otherwise)
