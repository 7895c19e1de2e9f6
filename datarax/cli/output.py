"""What a command says, on streams that cannot fail it: a closed or full output never changes an answer or an exit code."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

_STANDARD = (0, 1, 2)


def use_sure_streams() -> None:
    """Puts streams that never raise in the place of Python's own standard output and error; others are left alone.

    Descriptors that are closed (`>&-`) lead to nowhere from now on. Otherwise the next file that anybody opens gets their
    number, and what a library prints ends in it.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = sure_stream(1, like=sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = sure_stream(2, like=sys.stderr)


def sure_stream(descriptor: int, *, like: TextIO | None = None) -> TextIO:
    """A text stream on a descriptor, which stays open with it. What cannot be written is lost, and nothing is raised.

    Args:
        descriptor: of an open file.
        like: a stream whose encoding and buffering it takes over.
    """
    raw = _Sure(descriptor)
    unbuffered = bool(getattr(like, "write_through", False))
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[type-var]  # `raw` takes all that it is given
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",  # a file name may hold bytes that are no text
        line_buffering=descriptor == 2 or raw.isatty(),
        write_through=unbuffered,
    )


def end_with_reader(stream: TextIO) -> None:
    """From now on BrokenPipeError is raised when the reader of a stream has left: for output that is the only work."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # without buffering (`python -u`) they are the same
    if isinstance(raw, _Sure):
        raw.ends_with_reader = True


class _Sure(io.FileIO):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = False
        self.ends_with_reader = False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Takes all of it, whether it can be written or not."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self._lost:
            try:
                left = left[os.write(self.fileno(), left) :]
            except BlockingIOError:  # a pipe that somebody made non-blocking, and whose reader is slow
                select.select([], [self.fileno()], [])
            except OSError as error:
                if self.ends_with_reader and error.errno == errno.EPIPE:
                    self.ends_with_reader = False
                    self._lost = True
                    raise
                self._lost = error.errno in (errno.EPIPE, errno.EBADF)
                break
        return size
