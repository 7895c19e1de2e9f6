"""Who computes units of work, the bounded, ordered read-ahead in front of the loop, and whose turn it is to take from it.

Knows nothing of batches, order or state. Because a unit is pure, who computes it is a detail: a failed one may be computed
again, and dropping what was read ahead loses nothing. Next: `loader.py`, which takes from here.

Ctrl-C can come between any two instructions of the thread that takes, and a lock that it has there it has for ever. So it
takes none: it waits at queues that are written in C, and what takes locks in Python (the start of a thread) is done in another
thread, which no signal reaches.
"""

from __future__ import annotations

import _thread
import functools
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_PAUSE_SECONDS = 0.0002
"""Between two looks at whether another thread is done."""

_NAME = "datarax-read-ahead"

_alive: weakref.WeakSet[ReadAhead[Any]] = weakref.WeakSet()


def _close_all() -> None:
    for each in list(_alive):
        each.close()
    while any(thread.name == _NAME for thread in threading.enumerate()):
        time.sleep(_PAUSE_SECONDS)


# Before Python ends: a thread must not be in the middle of C code then, nor finish batches that nobody will take.
cast(Any, threading)._register_atexit(_close_all)


class Turns:
    """Calls functions one at a time, whichever threads ask; what is asked for from within a call is called at once.

    A generator runs in one thread at a time, and is over as soon as anything is raised in it: the interpreter itself sees to
    both, so that no interrupt leaves a turn taken.
    """

    def __init__(self) -> None:
        self._room = _new_room()

    def call(self, function: Callable[[], Any]) -> Any:
        """What the function returns.

        Raises:
            BaseException: what the function raised; instead of a StopIteration a RuntimeError.
        """
        while True:
            calls, after, process = self._room
            try:
                return calls.send(function)
            except (ValueError, StopIteration) as error:
                if cast(Any, error.__traceback__).tb_next is not None:
                    raise  # the function's; without a second frame it is the generator that cannot be entered
            if (
                calls.gi_frame is None or process != os.getpid()
            ):  # over, or entered by a thread that was not forked
                self._room = after.setdefault("room", _new_room())  # whose is set first is the next for all
            elif calls.gi_frame in [frame for frame, _ in traceback.walk_stack(sys._getframe())]:
                return function()
            else:
                time.sleep(_PAUSE_SECONDS)


def _new_room() -> tuple[Any, dict[str, Any], int]:
    calls = _calls()
    next(calls)
    return calls, {}, os.getpid()


def _calls() -> Generator[Any, Any, None]:
    function = yield
    while True:
        function = yield function()


F = TypeVar("F", bound=Callable[..., Any])


def in_turn(method: F) -> F:
    """A method of a stream that is called alone: between the hand-overs of other threads, and all else that is in turn."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._runtime.turns.call(functools.partial(method, self, *args, **kwargs))

    return cast(F, called)


class Unit(Generic[T]):
    """A unit of work under way, or done.

    Args:
        step: which.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._news: SimpleQueue[None] = SimpleQueue()

    def settle(self, result: T | None, error: BaseException | None = None) -> None:
        """Says what came of it."""
        self._outcome = result, error
        self._news.put(None)

    def compute(self, function: Callable[[int], T]) -> None:
        """Settles it with what the function gives or raises, unless that is done."""
        if self._outcome is None:
            try:
                self.settle(function(self.step))
            except BaseException as error:
                self.settle(None, error)

    def outcome(self) -> tuple[Any, BaseException | None]:
        """Waits for what comes of it: the result, and what was raised instead."""
        while self._outcome is None:
            self._news.get()
        return self._outcome


class Threads(Generic[T]):
    """Computes in threads of this process, which begin with the first units and end with `close`, for good.

    Args:
        compute: a pure, thread-safe function of the step; it must not refer to whoever owns this object, or the threads would
            keep their owner alive.
        count: threads.
    """

    def __init__(self, compute: Callable[[int], T], count: int) -> None:
        self._compute = compute
        self._count = count
        self.is_over = False
        """Whether it was closed, or that was begun."""
        self._work: SimpleQueue[Unit[T] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # A loader that is dropped without close() must not leave threads waiting for ever.
        weakref.finalize(self, self._work.put, None)

    def submit(self, step: int) -> Unit[T]:
        """Begins to compute a unit."""
        unit: Unit[T] = Unit(step)
        self._work.put(unit)
        if len(self._threads) < self._count:
            thread = threading.Thread(target=_work, args=(self._work, self._compute), name=_NAME, daemon=True)
            _thread.start_new_thread(_start, (thread, self._work, self._compute))
            self._threads.append(thread)  # an interrupt before this line only means one more
        return unit

    def close(self) -> None:
        """Waits for the threads to end; one that has not begun yet ends as soon as it does."""
        self.is_over = True
        self._work.put(None)
        while [
            each for each in self._threads if each.is_alive()
        ]:  # no generator: an interrupt while it is closed is lost
            time.sleep(_PAUSE_SECONDS)


def _start(thread: threading.Thread, work: SimpleQueue[Unit[T] | None], compute: Callable[[int], T]) -> None:
    try:
        thread.start()
    except RuntimeError:  # the system has no more threads: then this one
        _work(work, compute)


def _work(work: SimpleQueue[Unit[T] | None], compute: Callable[[int], T]) -> None:
    for unit in iter(work.get, None):
        unit.compute(compute)
        del unit  # or its batch would stay until the next one comes
    work.put(None)  # for the next thread


class ReadAhead(Generic[T]):
    """Holds the results of up to `depth` steps beyond the last one taken, in their order.

    Args:
        make_threads: makes what computes them; called anew after `close` and after a fork, where only the parent has threads.
        depth: results held or under way; to take any, at least 1.
    """

    def __init__(self, make_threads: Callable[[], Threads[T]], depth: int) -> None:
        self._make_threads = make_threads
        self._threads = make_threads()
        self.depth = depth
        self._pending: deque[Unit[T]] = deque()
        self._process = os.getpid()
        _alive.add(self)

    def take(self, step: int, stop: int | None) -> T:
        """The result of `step`; starts the steps after it, up to but not including `stop` (None: no end).

        Raises:
            BaseException: whatever computing it raised, unchanged. The same step may then be taken again.
        """
        if self._threads.is_over or self._process != os.getpid():
            self._pending.clear()
            self._threads = self._make_threads()
            self._process = os.getpid()
        if not self._pending or self._pending[0].step != step:
            self.drop()
        self._top_up(step, stop)
        # Only looked at: an interrupt while waiting leaves the queue as it was.
        result, error = self._pending[0].outcome()
        if error is not None:
            # What computing raised, an exit or an interrupt included, must not stay to be raised again.
            self.drop()
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        self._pending.popleft()
        self._top_up(step + 1, stop)
        return cast(T, result)

    def drop(self) -> None:
        """Forgets what was read ahead; running computations end unseen."""
        while self._pending:
            self._pending.popleft().settle(None, RuntimeError("another thread dropped what was read ahead"))

    def close(self) -> None:
        """Drops everything and ends the threads. May be used again afterwards."""
        self.drop()
        self._threads.close()

    def _top_up(self, step: int, stop: int | None) -> None:
        upcoming = self._pending[-1].step + 1 if self._pending else step
        while len(self._pending) < self.depth and (stop is None or upcoming < stop):
            self._pending.append(self._threads.submit(upcoming))
            upcoming += 1
