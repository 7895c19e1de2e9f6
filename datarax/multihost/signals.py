"""The signals of `save.signals` while a session runs: the first asks it to save and to stop.

A second SIGINT or SIGTERM leaves at once. Whatever else arrives meanwhile is ignored: a scheduler that has warned with SIGUSR1
sends SIGTERM when the time is up, SIGXCPU comes every second, and the save goes on for as long as it is let.

Before a session begins there is nothing to save, and a signal ends the process by its default action (`datarax/__main__.py`): a
handler that raises may do so in the import of a C extension, which aborts the process. So no handler here raises.

With many processes SIGTERM is JAX's, whose notice makes all of them agree on a step: it is left alone until that step is
reached, and the first of the other signals becomes a SIGTERM to this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

from datarax.multihost.startup import handler_address

_URGENT = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Owns signals from `__enter__` to `__exit__`, those whose action was the default one, and turns them into a request.

    Only the main thread of a process can take signals; elsewhere this does nothing.

    Args:
        names: which, as in `SaveConfig.signals`.
        many: this is one of many processes.
    """

    def __init__(self, names: Iterable[str], *, many: bool) -> None:
        self._numbers = [signal.Signals[f"SIG{name}"] for name in dict.fromkeys(names)]
        self._many = many
        self._received: signal.Signals | None = None
        self._urgent = 0
        self._before: dict[signal.Signals, Any] = {}
        self._main = threading.current_thread() is threading.main_thread()
        self.foreign: list[str] = []
        """Names of the signals that have a handler of somebody else, which stays."""

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    @property
    def name(self) -> str:
        """The name of the signal that arrived first; with many processes another one may have got it."""
        return self._received.name if self._received else "SIGTERM to a process of the run"

    def leave_on_next(self) -> None:
        """The agreed step is reached, and this process is saving: the next SIGINT or SIGTERM leaves at once."""
        if self._main:
            for number in {signal.SIGTERM, *self._before}:
                signal.signal(number, self._leave if number in _URGENT else _ignore)

    def __enter__(self) -> StopSignals:
        for number in self._numbers:
            if not self._main or (self._many and number == signal.SIGTERM):
                continue
            before = signal.getsignal(number)
            # So a shell starts jobs in the background, and nohup whatever it starts.
            if before == signal.SIG_IGN:
                continue
            # Nobody has taken it: not in Python, nor in C (`faulthandler.register`), of which Python does not know.
            is_default = before == signal.SIG_DFL and not handler_address(number)
            if is_default or before is signal.default_int_handler:
                self._before[number] = signal.signal(number, self._handle)
            else:
                self.foreign.append(number.name)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        self._urgent += received in _URGENT
        if self._urgent > 1:
            self._leave(number, frame)
        if self._received is not None:
            if received in _URGENT:
                _write(f"\ndatarax: {received.name} received, already saving; once more leaves at once\n")
            return
        self._received = received
        who = "all processes save at one step" if self._many else "saving after this step"
        more = "once more" if received in _URGENT else "SIGINT or SIGTERM twice"
        _write(f"\ndatarax: {received.name} received, {who}; {more} leaves at once\n")
        if self._many:
            os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        _write(f"\ndatarax: second signal ({signal.Signals(number).name}), leaving at once\n")
        os._exit(128 + number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """For signals that arrive when their work is being done. Not SIG_IGN, which a program that is started would inherit."""


def _write(text: str) -> None:
    # os.write, not print: a handler may interrupt a print, whose lock is then held. Nobody may be reading any more.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
