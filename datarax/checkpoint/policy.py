"""What is done about each identity field that differs: refused, accepted with a warning, or accepted.

A field is named by its dotted path; a path stands for everything below it, and the longest one that fits decides. Knows nothing
of snapshots: `restore.py` asks it for each difference.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.core.errors import ConfigError, Difference
from datarax.core.tree import differences, walk


class Change(enum.StrEnum):
    """What is done about a difference."""

    REFUSE = "refuse"
    """It stops the restore. The default."""
    WARN = "warn"
    """It is accepted, recorded in the history, and shown as a warning."""
    ACCEPT = "accept"
    """It is accepted and recorded in the history."""


@dataclass(frozen=True, kw_only=True)
class ChangePolicy:
    """Which identity fields may differ from a snapshot's.

    Raises:
        ConfigError: if a field is no text, is empty, or is listed twice.
    """

    accepted: Sequence[str] = ()
    """`resume.allow_changed`: fields whose change is accepted and recorded."""
    warned: Sequence[str] = ()
    """`resume.warn_changed`: likewise, and shown as a warning."""

    def __post_init__(self) -> None:
        for name, fields in (("allow_changed", self.accepted), ("warn_changed", self.warned)):
            if isinstance(fields, str):
                raise ConfigError(f"{name} must be a list of fields, not the text {fields!r}")
            for field in fields:
                if not isinstance(field, str) or not field:
                    raise ConfigError(f"{name} must hold paths of identity fields, got {field!r}")
        both = sorted({*self.accepted} & {*self.warned})
        if both:
            raise ConfigError(
                f"allow_changed and warn_changed both hold {both[0]!r}; a change of a field is either accepted or "
                f"accepted with a warning: take it out of one of them"
            )

    def of(self, path: str) -> Change:
        """What is done if the field at `path` differs: `a.b` covers `a.b`, `a.b.c` and `a.b[0]`.

        The seed of a loader has two names, `a.seed` and `a.order.seed`; to list one of them is enough.
        """
        names = _seed_names(path)
        # A difference at the first of the names stands for one at each, and the stricter answer counts.
        answers = {self._of(place, names) for place in (names if path == names[0] else [path])}
        return next(change for change in Change if change in answers)

    def _of(self, place: str, names: Sequence[str]) -> Change:
        listed = (*self.accepted, *self.warned)
        fitting = [field for field in listed if covers(field, place)] or [
            field for field in listed if field in names
        ]
        if not fitting:
            return Change.REFUSE
        return Change.WARN if max(fitting, key=len) in self.warned else Change.ACCEPT

    def list_of(self, path: str) -> str:
        """The setting that accepts a change at `path`."""
        return "warn_changed" if self.of(path) is Change.WARN else "allow_changed"

    def select(self, differences: Sequence[Difference], *changes: Change) -> list[Difference]:
        """The differences about which one of these is done, in their order."""
        return [each for each in differences if self.of(each.path) in changes]

    def unknown_fields(self, *identities: Mapping[str, Any]) -> list[str]:
        """A sentence for each listed field that none of the identities has, with the nearest that there is.

        Such a field permits nothing: it is a slip of the pen, or is left from a change that is long recorded.
        """
        known = sorted({path for identity in identities for path, _ in walk(identity) if path})
        said = []
        for name, fields in (("allow_changed", self.accepted), ("warn_changed", self.warned)):
            for field in fields:
                if field not in known:
                    near = difflib.get_close_matches(field, known, n=1)
                    hint = f"; did you mean {near[0]!r}?" if near else ""
                    said.append(f"resume.{name} names {field!r}, which is no field of this identity{hint}")
        return said


def identity_differences(was: Any, now: Any) -> list[Difference]:
    """Every field at which two identities differ, in path order: see `differences`.

    The seed of a loader stands in its identity twice, and where both are the same change it is named once: `train.seed`.
    """
    found = differences(was, now)
    by_path = {each.path: each for each in found}

    def repeats(each: Difference) -> bool:
        own = by_path.get(_seed_names(each.path)[0], each)
        return own is not each and (own.was, own.now) == (each.was, each.now)

    return [each for each in found if not repeats(each)]


def _seed_names(path: str) -> tuple[str, ...]:
    """The names of a loader's seed if `path` is one of them, the loader's own first; else the path alone."""
    loader, _, rest = path.partition(".")
    return (f"{loader}.seed", f"{loader}.order.seed") if rest in ("seed", "order.seed") else (path,)


def covers(field: str, path: str) -> bool:
    """Whether `path` is the field or lies below it."""
    return path == field or path.startswith((f"{field}.", f"{field}["))


__all__ = ["Change", "ChangePolicy", "covers", "identity_differences"]
