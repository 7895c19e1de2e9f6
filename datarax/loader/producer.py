"""Who computes units of work, and the bounded, ordered read-ahead in front of the loop.

Knows nothing of batches, order or state. Because a unit is pure, who computes it is a detail: a failed one may be computed
again, and dropping what was read ahead loses nothing. Next: `loader.py`, which takes from here.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

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


class Producer(Protocol[T]):
    """Computes units of work, each a step. A unit is pure: it may be submitted again, anywhere."""

    def submit(self, work: int) -> Future[T]:
        """Begins to compute a unit."""

    def close(self) -> None:
        """Ends what computes. What is submitted later starts it again."""


class Threads(Generic[T]):
    """Computes in threads of this process, which begin with the first unit.

    Args:
        compute: a pure, thread-safe function of the step; it must not refer to whoever owns this object, or the threads would
            keep their owner alive.
        count: threads.
    """

    def __init__(self, compute: Callable[[int], T], count: int) -> None:
        self._compute = compute
        self._count = count
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, work: int) -> Future[T]:
        """Begins to compute a unit."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._count, thread_name_prefix="datarax-read-ahead")
            # A loader that is dropped without close() must not leave threads waiting for ever.
            weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)
        return self._executor.submit(self._compute, work)

    def close(self) -> None:
        """Waits for the threads to end."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


class ReadAhead(Generic[T]):
    """Holds the results of up to `depth` steps beyond the last one taken, in their order.

    Args:
        make_producer: makes who computes them; called anew after a fork, for threads exist in the parent only.
        depth: results held or under way; to take any, at least 1.
    """

    def __init__(self, make_producer: Callable[[], Producer[T]], depth: int) -> None:
        self._make_producer = make_producer
        self._producer = make_producer()
        self.depth = depth
        self._pending: deque[tuple[int, Future[T]]] = deque()
        self._process = os.getpid()
        _alive.add(self)

    def take(self, step: int, stop: int | None) -> T:
        """The result of `step`; starts the steps after it, up to but not including `stop` (None: no end).

        Raises:
            BaseException: whatever computing it raised, unchanged. The same step may then be taken again.
        """
        if self._process != os.getpid():
            self._process, self._producer = os.getpid(), self._make_producer()
            self._pending.clear()
        if not self._pending or self._pending[0][0] != step:
            self.drop()
        self._top_up(step, stop)
        # Peek first: an interrupt while waiting leaves the queue as it was. What computing raised, an exit or an interrupt
        # included, must not stay in it to be raised again.
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
        """Drops everything and ends the producer. May be used again afterwards."""
        self.drop()
        self._producer.close()

    def _top_up(self, step: int, stop: int | None) -> None:
        upcoming = self._pending[-1][0] + 1 if self._pending else step
        while len(self._pending) < self.depth and (stop is None or upcoming < stop):
            self._pending.append((upcoming, self._producer.submit(upcoming)))
            upcoming += 1
