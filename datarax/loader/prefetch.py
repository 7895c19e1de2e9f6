"""Bounded, ordered read-ahead: results of a pure function of the step, computed on threads before they are asked for.

Knows nothing of batches, order or state. Because the function is pure, who computes a step is a detail, a failed
step may be computed again, and dropping what was read ahead loses nothing. Next: `loader.py`, which takes from here.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_alive: weakref.WeakSet[ReadAhead[Any]] = weakref.WeakSet()


def _drop_all() -> None:
    for each in list(_alive):
        each.drop()


# At exit, Python first finishes everything that is queued in any executor: seconds or minutes of batches that nobody
# will take. Its own executors hook in here too, and the latest hook is called first.
_register = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_drop_all)


class ReadAhead(Generic[T]):
    """Computes `prepare(step)` for up to `depth` steps beyond the last one taken.

    Args:
        prepare: a pure, thread-safe function of the step; it must not refer to whoever owns this object, or the
            threads would keep their owner alive.
        depth: results held or under way at most; 0 computes in the caller's thread.
        num_threads: threads that compute.
    """

    def __init__(self, prepare: Callable[[int], T], *, depth: int, num_threads: int) -> None:
        self._prepare = prepare
        self._depth = depth
        self._num_threads = num_threads
        self._pending: deque[tuple[int, Future[T]]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        _alive.add(self)

    def take(self, step: int, stop: int | None) -> T:
        """The result of `step`; starts the steps after it, up to but not including `stop` (None: no end).

        Raises:
            BaseException: whatever `prepare` raised, unchanged. The same step may then be taken again.
        """
        if self._depth == 0:
            return self._prepare(step)
        if self._process != os.getpid():
            self._leave_to_parent()
        if not self._pending or self._pending[0][0] != step:
            self.drop()
        self._top_up(step, stop)
        # Peek first: an interrupt while waiting leaves the queue as it was. What `prepare` itself raised, an exit
        # or an interrupt included, must not stay in it to be raised again.
        head = self._pending[0][1]
        try:
            result = head.result()
        except BaseException:
            if head.done():
                self.drop()
            raise
        self._pending.popleft()
        self._top_up(step + 1, stop)
        return result

    def drop(self) -> None:
        """Forgets what was read ahead; running computations end unseen."""
        while self._pending:
            self._pending.popleft()[1].cancel()

    def close(self) -> None:
        """Drops everything and waits for the threads to end. May be used again afterwards."""
        self.drop()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _top_up(self, step: int, stop: int | None) -> None:
        upcoming = self._pending[-1][0] + 1 if self._pending else step
        while len(self._pending) < self._depth and (stop is None or upcoming < stop):
            self._pending.append((upcoming, self._threads().submit(self._prepare, upcoming)))
            upcoming += 1

    def _leave_to_parent(self) -> None:
        """After a fork: threads, and with them all that they had under way, exist in the parent only."""
        self._process = os.getpid()
        self._pending.clear()
        self._executor = None

    def _threads(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix="datarax-read-ahead")
            # A loader that is dropped without close() must not leave threads waiting for ever.
            weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)
        return self._executor
