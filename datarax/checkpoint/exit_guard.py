"""What happens to a save that is pending when the interpreter exits: finished if that is possible, reported, and exit 1.

Orbax cannot commit once `concurrent.futures` has shut down, and then hangs for minutes or loses the save with exit code 0.
The hook here runs before that: `threading._register_atexit` calls in reverse order, and `concurrent.futures.thread` has
registered its own when it was imported above. It is the only hook that early, private or not. Python 3.12 starts no more
threads by then, so there the save is lost as a rule; but it is said, and the process ends.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  its exit hook must be registered before ours
import os
import sys
import threading
from typing import NoReturn, Protocol

_IMPATIENT_SECONDS = 5.0


class Pending(Protocol):
    """A save in progress."""

    def finish_at_exit(self, timeout_seconds: float | None) -> tuple[bool, str] | None:
        """Wait for it.

        Args:
            timeout_seconds: for how long; None: as long as a save may take.

        Returns:
            Whether it is committed, and in one sentence what became of it; None if all was well before.
        """
        ...


_pending: set[Pending] = set()
_reported = False


def watch(pending: Pending) -> None:
    """A save has begun."""
    _pending.add(pending)


def forget(pending: Pending) -> None:
    """The save has ended and will be reported by its owner."""
    _pending.discard(pending)


def _finish_pending() -> None:
    global _reported
    timeout = None if not _pending or _threads_can_start() else _IMPATIENT_SECONDS
    all_committed = True
    for pending in list(_pending):
        outcome = pending.finish_at_exit(timeout)
        if outcome is not None:
            committed, sentence = outcome
            print(f"datarax: {sentence}", file=sys.stderr)
            _reported, all_committed = True, all_committed and committed
    if not all_committed:
        _leave_now()  # the interpreter would wait for Orbax's threads, which wait minutes for one that never began


def _threads_can_start() -> bool:
    try:
        probe = threading.Thread(target=bool)
        probe.start()
    except RuntimeError:
        return False
    probe.join()
    return True


def _leave_if_reported() -> None:
    if _reported:
        _leave_now()


def _leave_now() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue
    os._exit(1)  # an exit hook cannot change the exit code in any other way


def _forget_in_child() -> None:
    _pending.clear()


threading._register_atexit(_finish_pending)  # type: ignore[attr-defined]
atexit.register(_leave_if_reported)
os.register_at_fork(after_in_child=_forget_in_child)
