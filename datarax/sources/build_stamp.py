"""A side file that says which inputs a dataset was last compared with, so that comparing again need not read them.

It holds times of change, so it lies outside the manifest: no identity ever depends on it, and it may be deleted.
"""

from __future__ import annotations

import contextlib
import os

from datarax.sources.durable import write_durably

BUILD_STAMP_NAME = "inputs.stamp"


def load_stamp(directory: str) -> str | None:
    """The recorded stamp; None if there is none that can be read."""
    try:
        with open(os.path.join(directory, BUILD_STAMP_NAME), encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def save_stamp(directory: str, stamp: str) -> None:
    """Records a stamp; a directory that cannot be written to keeps the old one, which only costs time."""
    with contextlib.suppress(OSError):
        write_durably(os.path.join(directory, BUILD_STAMP_NAME), stamp.encode())
