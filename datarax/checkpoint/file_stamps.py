"""What the data files looked like at an earlier start: sizes and times, kept beside the starts of a run.

Never identity and never a reason to refuse: what has moved since is a reason to look. So whatever lies in the place of such a
file stops nobody: a stamp that is not one counts as not recorded. Knows nothing of sources; what stands in a stamp is for its
maker to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint.layout import RunLayout, numbers_in
from datarax.core.tree import canonical_json
from datarax.store.files import parse_json

_SUFFIX = ".files.json"


@dataclass(frozen=True)
class FileStamps:
    """The stamps that stand beside a start."""

    start: int
    """The start that recorded them: its number."""
    sources: Mapping[str, Any]
    """Name of each source -> its stamp, a dict whose "files" is a dict; empty if no file can be read."""


def newest_file_stamps(layout: RunLayout) -> FileStamps | None:
    """What was recorded last and can be read, without sources if none can; None if nothing ever was recorded."""
    numbers = _recorded(layout)
    readable = (_read(layout, number) for number in reversed(numbers))
    unknown = FileStamps(numbers[-1], {}) if numbers else None
    return next((each for each in readable if each.sources), unknown)


def all_file_stamps(layout: RunLayout) -> list[FileStamps]:
    """What was recorded at each start at which it had changed, oldest first."""
    found = [_read(layout, number) for number in _recorded(layout)]
    return [each for each in found if each.sources]


def _recorded(layout: RunLayout) -> list[int]:
    try:
        return sorted(numbers_in(layout.store, "starts", _SUFFIX))
    except OSError:
        return []


def _read(layout: RunLayout, number: int) -> FileStamps:
    try:
        sources = parse_json(layout.read(f"starts/{number}{_SUFFIX}"))["sources"]
        canonical_json(sources)  # what cannot be written was not written by us, and could not be compared
        stamps = {name: stamp for name, stamp in sources.items() if isinstance(stamp.get("files"), dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        stamps = {}
    return FileStamps(number, stamps)


def first_start_ns(layout: RunLayout) -> int | None:
    """When the run was first started, in ns since 1970; 0 if nobody can say, None if it never was."""
    try:
        numbers = numbers_in(layout.store, "starts", ".json")
        tree = parse_json(layout.read(f"starts/{min(numbers)}.json")) if numbers else None
        return None if tree is None else int(tree["unix_seconds"] * 10**9)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def record_file_stamps(layout: RunLayout, start: int, sources: Mapping[str, Any]) -> None:
    """Writes `starts/<start>.files.json`, again where this start wrote one; not if the newest one there says the same.

    Raises:
        OSError: if it cannot be written.
    """
    newest = newest_file_stamps(layout)
    if newest is not None and canonical_json(newest.sources) == canonical_json(sources):
        return
    text = canonical_json({"sources": sources}) + b"\n"
    layout.store.write(f"starts/{start}{_SUFFIX}", text)
