"""SIGTERM and SIGINT while a session runs: the first asks it to save and to stop, the second leaves at once.

Before a session begins there is nothing to save, and a signal ends the process by its default action (`datarax/__main__.py`): a
handler that raises may do so in the import of a C extension, which aborts the process. So no handler here raises.

With many processes SIGTERM is JAX's, whose notice makes all of them agree on a step: it is left alone until that step is
reached, and the first SIGINT becomes a SIGTERM to this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)


class StopSignals:
    """Owns both signals from `__enter__` to `__exit__`, where their action was the default one, and turns them into a request.

    Only the main thread of a process can take signals; elsewhere this does nothing.

    Args:
        many: this is one of many processes.
    """

    def __init__(self, *, many: bool) -> None:
        self._many = many
        self._received: signal.Signals | None = None
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
        """The agreed step is reached, and this process is saving: the next signal, whichever it is, leaves at once."""
        if self._main:
            for number in (signal.SIGTERM, *self._before):
                signal.signal(number, self._leave)

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT,) if self._many else (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if not self._main or before == signal.SIG_IGN:  # so a shell starts jobs in the background
                continue
            if before in _DEFAULT:
                self._before[number] = signal.signal(number, self._handle)
            else:
                self.foreign.append(number.name)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._leave(number, frame)
        self._received = signal.Signals(number)
        if self._many:
            _write(
                f"\ndatarax: {self.name} received, all processes save at one step; once more leaves at once\n"
            )
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            _write(f"\ndatarax: {self.name} received, saving after this step; once more leaves at once\n")

    def _leave(self, number: int, frame: FrameType | None) -> None:
        _write(f"\ndatarax: second signal ({signal.Signals(number).name}), leaving at once\n")
        os._exit(128 + number)


def _write(text: str) -> None:
    # os.write, not print: a handler may interrupt a print, whose lock is then held. Nobody may be reading any more.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
