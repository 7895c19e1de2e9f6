"""How a process of a run with many ends when another is lost, or when it fails alone: soon, with one message, never by hanging.

A process that waits in a collective cannot look after the others. So one that fails alone says so through the coordination
service before it ends, and a thread in each of the others listens.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from datarax.core.errors import PeerLostError
from datarax.multihost.processes import Processes
from datarax.multihost.startup import leave_at_once, notice_replaced

# How jaxlib says that others do not take part any more, in errors of whatever type; want of memory is a process's own.
_BROKEN_COLLECTIVE = re.compile("(CANCELLED|UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED): ")


class Peers:
    """The other processes of a run, seen from one that trains.

    Args:
        processes: those of the run.
        newest_step: asks for the newest committed snapshot; whether there is one decides about the exit code of a loss.
    """

    def __init__(self, processes: Processes, newest_step: Callable[[], int | None]) -> None:
        self._processes = processes
        self._newest_step = newest_step
        self._ended: Exception | None = None
        self._warned = False
        # However many they are: together they ask the coordinator some hundred times a second at most.
        self._listen_seconds = max(0.5, processes.count / 200)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, a process that ends before the others takes this one with it."""
        if self._processes.count == 1:
            yield
            return
        over = threading.Event()

        def listen() -> None:
            while not over.wait(self._listen_seconds):
                who = self._processes.abandoned_by()
                if who is not None and not over.is_set():
                    self._leave(f"it lost {who}")

        listener = threading.Thread(target=listen, name="datarax-peers", daemon=True)
        listener.start()
        try:
            with self.ending():
                yield
        finally:
            over.set()
            listener.join()

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A failure inside is told to the others, before anything outside waits for them.

        Raises:
            Exception: what was raised inside, if all processes raise it, or if it is this process's own. Where another process
                was lost the process ends here: with code 75 if the run has a snapshot, else with 74.
        """
        try:
            yield
        except Exception as error:
            if self._processes.count > 1 and error is not self._ended:
                self._ended = error
                self._end(error)
            raise

    def _end(self, error: Exception) -> None:
        """Returns if `error` is to be raised here; ends the process if it comes of the loss of another."""
        processes = self._processes
        if processes.is_shared(error):
            return
        if isinstance(error, PeerLostError):
            processes.abandon(error.missing[0] if error.missing else processes.index)
            self._leave(str(error))
        # A collective that broke: the cause is in another process, which may have said so. Anything else is our own.
        broke = _BROKEN_COLLECTIVE.match(str(error)) is not None
        who = processes.abandoned_by() if broke else None
        missing = [] if who else processes.missing()
        if who is None and not missing:
            return  # all have stopped here, so all have failed alike
        if broke:
            if who is None:
                processes.abandon(missing[0])
                who = ", ".join(processes.describe(index) for index in missing)
            self._leave(f"it lost {who} ({str(error).splitlines()[0]})")
        processes.broken = True
        processes.abandon(processes.index, f"{type(error).__name__}: {error}")
        self._let_others_hear()

    def _leave(self, why: str) -> NoReturn:
        newest, processes = self._newest_step(), self._processes
        what = "no snapshot was committed yet; run again to start over"
        if newest is not None:
            what = f"snapshot {newest} is committed; run the same command again to continue after it"
        self._let_others_hear()
        text = f"process {processes.index} of {processes.count} stops: {why}. {what}"
        leave_at_once(74 if newest is None else 75, text)

    def _let_others_hear(self) -> None:
        """With process 0 ends the coordinator, and JAX aborts who is still there: they get the time to listen once more."""
        if self._processes.first:
            time.sleep(2 * self._listen_seconds + 1)

    def warn_of_lost_notice(self) -> None:
        """Says once that this process would not hear of a preemption any more, if that is so."""
        if self._warned or not notice_replaced():
            return
        self._warned = True
        print(
            f"datarax: warning: process {self._processes.index} has got another handler for SIGTERM since the start. JAX's "
            f"notice of a preemption is lost there: a SIGTERM to this process will save nothing. Remove that handler",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def deadline(seconds: float | None, why: Callable[[], str]) -> Iterator[None]:
    """Ends the process with code 75 if what is inside takes longer; None: it may take any time."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, lambda: leave_at_once(75, why()))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
