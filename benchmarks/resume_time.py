"""How long a run takes from its snapshot to its first batch, at position 0 and at position 10^12.

Each start opens a fresh loader over 10^13 records, restores a real snapshot from the disk, and takes one batch. Starts of both
kinds are made in turn, so that whatever else the machine does hits both; with `--fresh` each in a process of its own.

    python -m benchmarks.resume_time [--starts 40] [--fresh]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import map_batch

BATCH = 256
POSITIONS = (0, BATCH * (10**12 // BATCH))


def rows(numbers: list[int]) -> dict[str, np.ndarray]:
    """Integers to a batch."""
    return {"x": np.asarray(numbers, np.int64)}


def open_loader() -> DataLoader:
    """A loader of 10^13 records, at its beginning."""
    config = DataLoaderConfig(batch_size=BATCH, seed=1, byte_digest=True)
    source = RangeSource(RangeConfig(stop=10**13), name="numbers")
    return DataLoader(config, source, transforms=[map_batch(rows, name="rows")])


def make_snapshot(directory: Path, position: int) -> None:
    """A run with one snapshot at a position."""
    with (
        open_loader() as loader,
        Checkpointer(directory, config=SaveConfig(every_seconds=None)) as checkpointer,
    ):
        loader.seek(position // BATCH)
        checkpointer.save(position // BATCH, data=loader)


def start(directory: Path) -> float:
    """Opens, restores and takes the first batch; milliseconds."""
    begun = time.perf_counter()
    with open_loader() as loader:
        Checkpointer(directory).restore(data=loader)
        next(loader)
        taken = time.perf_counter() - begun
    return taken * 1e3


def _fresh(directory: Path, answer: multiprocessing.connection.Connection) -> None:
    answer.send(start(directory))


def start_in_fresh_process(directory: Path) -> float:
    """The same in a process of its own, which has the packages imported and nothing else; milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["datarax.checkpoint", "datarax.loader", "datarax.sources"])
    here, there = context.Pipe()
    process = context.Process(target=_fresh, args=(directory, there))
    process.start()
    taken = here.recv()
    process.join()
    return float(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=40, help="starts of each kind")
    parser.add_argument("--fresh", action="store_true", help="each in a process of its own")
    arguments = parser.parse_args()
    measure = start_in_fresh_process if arguments.fresh else start
    seen: dict[int, list[float]] = {position: [] for position in POSITIONS}
    with tempfile.TemporaryDirectory() as place:
        runs = {position: Path(place, str(position)) for position in POSITIONS}
        for position, run in runs.items():
            make_snapshot(run, position)
            measure(run)  # warm
        for number in range(arguments.starts):
            for position in POSITIONS if number % 2 else reversed(POSITIONS):
                seen[position].append(measure(runs[position]))
    found = {position: statistics.median(values) for position, values in seen.items()}
    for position, median in found.items():
        print(
            f"position {position:>17,}: {median:8.2f} ms from snapshot to first batch, median of {arguments.starts}"
        )
    print(f"ratio {found[POSITIONS[1]] / found[POSITIONS[0]]:.3f}")


if __name__ == "__main__":
    main()
