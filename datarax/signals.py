"""SIGTERM and SIGINT while a run is going on: the first asks it to stop well, the second leaves at once.

Owns both signals from `__enter__` to `__exit__` and puts back what it found. Only the main thread of a process can
take signals; elsewhere this is inert and says so through `active`.

With many processes SIGTERM is JAX's, whose notice makes all of them agree on a step: `hand_over` leaves it alone from then on,
and turns the first SIGINT into a SIGTERM to this process. `leave_on_next` takes both back once the step is reached.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_UNTIL_AGAIN = 0.05


class StopRequested(BaseException):
    """A signal asked the run to stop at a moment when there was nothing to save.

    Like KeyboardInterrupt no `Exception`: it passes through what handles the errors of the work it breaks off.
    """

    exit_code = 75


class StopSignals:
    """Turns signals into a request that the loop reads between two steps.

    Args:
        raising: start in the mode for work that may be broken off anywhere (building a dataset): the first signal raises
            `StopRequested` in the main thread. `defer()` changes to the mode of the training loop.
        handed_over: SIGTERM is JAX's already: never touch it before `leave_on_next`.
    """

    def __init__(self, *, raising: bool = False, handed_over: bool = False) -> None:
        self._raising = raising
        self._handed_over = handed_over
        self._broke_off = False
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._previous_hook: Any = None
        self._again: threading.Timer | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    @property
    def name(self) -> str:
        """The name of the signal that arrived first, or an empty text."""
        return self._received.name if self._received else ""

    @property
    def active(self) -> bool:
        """Whether signals are being taken."""
        return bool(self._previous)

    def explains(self, error: BaseException) -> bool:
        """Whether `error` came of breaking work off: itself, or what someone on its way (an import) made of it."""
        return isinstance(error, StopRequested) or self._broke_off

    def defer(self) -> None:
        """From here on a signal is only noted; the loop asks `requested`.

        Raises:
            StopRequested: if one has arrived already.
        """
        self._raising = False
        if self._received is not None:
            raise StopRequested(f"{self.name} received")

    def hand_over(self) -> None:
        """JAX has just taken SIGTERM for its notice; from here on it is not touched, and a first SIGINT becomes one.

        Raises:
            StopRequested: if a signal has arrived before; then no notice of it will come.
        """
        self._raising = False
        self._handed_over = True
        self._previous.pop(signal.SIGTERM, None)
        if self._received is not None:
            raise StopRequested(f"{self.name} received")

    def leave_on_next(self) -> None:
        """The agreed step is reached, and this process is saving: the next signal, whichever it is, leaves at once."""
        if self._previous:
            signal.signal(signal.SIGTERM, self._leave)
            signal.signal(signal.SIGINT, self._leave)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            # SIGINT may be ignored (background jobs of a shell start that way): it is taken all the same.
            for number in _SIGNALS:
                if number == signal.SIGTERM and self._handed_over:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *exc: object) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._previous_hook is not None:
            sys.unraisablehook, self._previous_hook = self._previous_hook, None
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._again is not None:
            self._again = None
            if self._raising:
                raise StopRequested(f"{self.name} received")
            return
        if self._received is not None:
            self._leave(number, frame)
        self._received = signal.Signals(number)
        if self._handed_over:
            _write(
                f"\ndatarax: {self.name} received, all processes save at one step; once more leaves at once\n"
            )
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._raising:
            self._broke_off = True
            raise StopRequested(f"{self.name} received")
        _write(f"\ndatarax: {self.name} received, saving after this step; once more leaves at once\n")

    def _leave(self, number: int, frame: FrameType | None) -> None:
        _write(f"\ndatarax: second signal ({signal.Signals(number).name}), leaving at once\n")
        os._exit(128 + number)

    def _unraisable(self, unraisable: Any) -> None:
        """Comes back a moment later where Python lets no exception out: a destructor, a callback of the garbage collector."""
        if not isinstance(unraisable.exc_value, StopRequested) or self._received is None:
            self._previous_hook(unraisable)
            return
        main = threading.main_thread().ident
        self._again = threading.Timer(_SECONDS_UNTIL_AGAIN, signal.pthread_kill, (main, self._received))
        self._again.daemon = True
        self._again.start()


def _write(text: str) -> None:
    # os.write, not print: a handler may interrupt a print, whose lock is then held. Nobody may be reading any more.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
