"""What the data files looked like at an earlier start: sizes and times, kept beside the starts of a run.

Never identity and never a reason to refuse: what has moved since is a reason to look. Knows nothing of sources; what stands
in a stamp is for its maker to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint.layout import RunLayout, is_step_name
from datarax.core.tree import canonical_json
from datarax.store.files import sync, write_new

_SUFFIX = ".files.json"


@dataclass(frozen=True)
class FileStamps:
    """The stamps that stand beside a start."""

    start: int
    """The start that recorded them: its number."""
    sources: Mapping[str, Any]
    """Name of each source -> its stamp; empty if the file cannot be read."""


def newest_file_stamps(layout: RunLayout) -> FileStamps | None:
    """What was recorded last; None if nothing ever was."""
    numbers = _recorded(layout)
    return _read(layout, numbers[-1]) if numbers else None


def all_file_stamps(layout: RunLayout) -> list[FileStamps]:
    """What was recorded at each start at which it had changed, oldest first."""
    return [_read(layout, number) for number in _recorded(layout)]


def _recorded(layout: RunLayout) -> list[int]:
    try:
        names = [path.name.removesuffix(_SUFFIX) for path in layout.starts.glob(f"*{_SUFFIX}")]
    except OSError:
        return []
    return sorted(int(name) for name in names if is_step_name(name))


def _read(layout: RunLayout, number: int) -> FileStamps:
    try:
        sources = json.loads((layout.starts / f"{number}{_SUFFIX}").read_bytes())["sources"]
    except (OSError, ValueError, KeyError, TypeError):
        sources = None
    return FileStamps(number, sources if isinstance(sources, dict) else {})


def record_file_stamps(layout: RunLayout, start: int, sources: Mapping[str, Any]) -> None:
    """Writes `starts/<start>.files.json`, unless the newest one there says the same.

    Raises:
        OSError: if it cannot be written.
    """
    newest = newest_file_stamps(layout)
    if newest is not None and canonical_json(newest.sources) == canonical_json(sources):
        return
    write_new(layout.starts / f"{start}{_SUFFIX}", canonical_json({"sources": sources}) + b"\n")
    sync(layout.starts)
