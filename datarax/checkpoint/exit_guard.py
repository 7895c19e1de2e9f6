"""What happens to a save that is pending when the interpreter exits: it is finished if it can be, reported, and exit 1.

Orbax cannot commit once `concurrent.futures` has shut down, and then hangs or loses the save with exit code 0. The
hook here runs before that: `threading._register_atexit` calls in reverse order, and `concurrent.futures.thread` has
registered its own when it was imported above. It is the only hook that early, private or not.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  its exit hook must be registered before ours
import os
import sys
import threading
from typing import Protocol


class Pending(Protocol):
    """A save in progress."""

    def finish_at_exit(self) -> str | None:
        """Wait for it for a bounded time; say in one sentence what became of it, or None if all was well before."""
        ...


_pending: set[Pending] = set()
_left_pending = False


def watch(pending: Pending) -> None:
    """A save has begun."""
    _pending.add(pending)


def forget(pending: Pending) -> None:
    """The save has ended and will be reported by its owner."""
    _pending.discard(pending)


def _finish_pending() -> None:
    global _left_pending
    for pending in list(_pending):
        outcome = pending.finish_at_exit()
        if outcome is not None:
            _left_pending = True
            print(f"datarax: {outcome}", file=sys.stderr, flush=True)


def _leave() -> None:
    if not _left_pending:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue
    os._exit(1)  # an exit hook cannot change the exit code in any other way


def _forget_in_child() -> None:
    _pending.clear()


threading._register_atexit(_finish_pending)  # type: ignore[attr-defined]
atexit.register(_leave)
os.register_at_fork(after_in_child=_forget_in_child)
