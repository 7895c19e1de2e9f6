"""When a data file is opened: has it moved since an earlier start, and if so, does it still hold what was recorded of it?

A quick fingerprint samples a few records; a file that was rewritten between two starts at the same size may escape it. Its time
does not, so such files are read whole and held against the dataset's manifest. All access to files is the source's, which
shows their stamps: those of many files each when it is opened, so that a start looks at none. Read next: `session.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datarax.checkpoint.file_stamps import first_start_ns, newest_file_stamps
from datarax.checkpoint.layout import RunLayout
from datarax.core.errors import MismatchError
from datarax.sources import DataSource

_REFUSAL = (
    "data files have changed since an earlier start of this run and are not what their manifest says; the run's snapshots were "
    "not touched. Restore them from a copy, or build the dataset again (resume.check_moved_files = false looks at no file)"
)


class FileWatch:
    """Compares the files of a source with their stamps, and the content of those that have moved with the manifest.

    A stamp that no start has recorded is believed if its time lies before the first start; one without a time is.

    Args:
        source: whose files; its stamps are shown from now on.
        directory: of the run.
        say: told what a person should know.

    Raises:
        MismatchError: if a file that moved is not what the manifest says; also from a read that opens such a file.
        InputError: if a file is gone.
    """

    def __init__(self, source: DataSource, directory: str | Path, say: Callable[[str], None]) -> None:
        self._source, self._say = source, say
        layout = RunLayout(Path(directory))
        last, first_ns = newest_file_stamps(layout), first_start_ns(layout)
        self._start = 1 if last is None else last.start
        self._content = source.content_fingerprint() if source.content_recorded else None
        self._files: dict[str, Any] = {}
        self._since_ns = time.time_ns() if first_ns is None else first_ns
        if last is not None:
            then = last.sources.get(source.name, {})
            if then.get("content", "") == self._content:
                self._files = dict(then["files"])
            else:  # another manifest, or no readable stamp, makes no file trustworthy
                self._since_ns = 0
        self._said = False
        self._lock = threading.Lock()
        source.watch(self._look)

    def stamps(self) -> dict[str, Any]:
        """To be recorded; {} if the source has no files."""
        with self._lock:
            files = dict(self._files)
        if not files:
            return {}
        return {self._source.name: {"files": files, "content": self._content}}

    def _look(self, stamps: Mapping[str, Any]) -> None:
        moved = [name for name, stamp in stamps.items() if not self._is_known(name, stamp)]
        if moved:
            self._check(moved, len(stamps))
        with self._lock:
            self._files.update(stamps)

    def _is_known(self, name: str, stamp: Any) -> bool:
        if name in self._files:
            return bool(self._files[name] == stamp)
        return isinstance(stamp, str) or bool(stamp[1] < self._since_ns)

    def _check(self, moved: list[str], count: int) -> None:
        which, have = (f"{len(moved)} of {count} files", "have") if count > 1 else (f"file {moved[0]}", "has")
        what = f"{which} of source {self._source.name!r} {have} another time or size, or another manifest, than at start "
        what += str(self._start)
        if self._content is None:
            self._say(
                f"note: {what} ({_some(moved)}); without a manifest their content cannot be checked beyond a few sampled "
                f"records (`datarax build manifest` makes one)"
            )
            return
        if not self._said:
            self._said = True
            self._say(f"{what}: checking their content, and that of all others so when they are opened")
        problems = self._source.check_files(moved)
        if problems:
            raise MismatchError("\n".join([_REFUSAL, *(f"  {problem}" for problem in problems)]))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
