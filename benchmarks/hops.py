"""How many calls of this package, through how many of its files, a batch, a snapshot and a restore take.

One loader over memory with one batch transform and byte digests, read-ahead 0, warm; snapshots hold its state alone. Counted
are calls of Python functions (generators each time they go on) in the thread that asks. `core/tree.py`, which calls itself for
each node of a tree, is shown beside as one.

    python -m benchmarks.hops [--list]     with --list: the functions of a batch, in the order of their first call
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import datarax
from datarax import Checkpointer, DataLoader, DataLoaderConfig, MemoryConfig, MemorySource, map_batch

PACKAGE = str(Path(datarax.__file__).parent)


def scaled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The user's function."""
    return {"x": batch["x"] * 2}


def make() -> DataLoader:
    """The loader."""
    config = DataLoaderConfig(batch_size=256, seed=1, read_ahead=0, byte_digest=True)
    source = MemorySource(MemoryConfig(), {"x": np.zeros((20_000, 64), np.float32)})
    return DataLoader(config, source, transforms=[map_batch(scaled, name="scaled")])


def calls_of(do: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """(file, function) -> calls, in the order of the first."""
    calls: Counter[tuple[str, str]] = Counter()

    def count(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls[code.co_filename.removeprefix(PACKAGE + "/"), code.co_qualname] += 1

    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(None)
    return calls


def show(what: str, calls: Counter[tuple[str, str]]) -> None:
    """One line."""
    files = {file for file, _ in calls}
    in_tree = sum(number for (file, _), number in calls.items() if file == "core/tree.py")
    as_one = sum(calls.values()) - in_tree + bool(in_tree)
    print(
        f"{what:10} {sum(calls.values()):5} calls through {len(files):2} files; {as_one:5} with core/tree.py as one"
    )


def main(listed: bool) -> None:
    """Prints the table."""
    loader = make()
    for _ in range(3):
        next(loader)
    batch = calls_of(lambda: next(loader))
    show("a batch", batch)
    if listed:
        for (file, function), number in batch.items():
            print(f"             {number:3}  {file}: {function}")
    with tempfile.TemporaryDirectory() as directory, Checkpointer(directory) as checkpointer:
        for step in (4, 5):
            calls = calls_of(lambda step=step: (checkpointer.save(step, data=loader), checkpointer.wait()))
            next(loader)
        show("a snapshot", calls)
        show("a restore", calls_of(lambda: checkpointer.restore(5, data=make())))


if __name__ == "__main__":
    main("--list" in sys.argv)
