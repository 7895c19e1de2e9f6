"""Files that are on the disk, whole, when the call returns. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import os


def write_durably(path: str, data: bytes) -> None:
    """Writes `data` to `path` under a temporary name, flushes it to the disk, and renames it into place."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        _remove_if_there(partial)
        raise
    flush_to_disk(os.path.dirname(path))


def flush_to_disk(path: str) -> None:
    """Waits until a file that was written, or the entries of a directory, are on the disk."""
    descriptor = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
