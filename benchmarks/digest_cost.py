"""What digests cost the loader: one loader with and without them, in turn.

The workload: records of 2 KiB, shuffled globally, batches of 256. One loader goes on and on; for the steps of one block of
keys it keeps digests, for the next it does not, and so on, so that nothing else differs: neither where things lie in
memory nor what was read shortly before. Two such stretches are a pair, in alternating order; the figure is the median of
the pairs' ratios, with the quartiles, and the median of their differences. Beside wall time stands the CPU time of all threads,
which other programs disturb less. First each table compares the loader without digests with itself: what the method cannot
tell from nothing. Takes about two minutes.

    python -m benchmarks.digest_cost [--pairs 500]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.loader import DataLoader, DataLoaderConfig
from datarax.loader.tally import StepLog
from datarax.order import Rows, row_hashes
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, DataSource, MemoryConfig, MemorySource

RECORD_BYTES = 2048
BATCH = 256
RECORDS = 200_000
STRETCH = 64
"""Batches in a block of keys."""
WARM_UP = 4


class NoLog(StepLog):
    """Keeps nothing."""

    def put(self, step: int, keys: int, row_bytes: int | None) -> NoLog:
        """Forgets it."""
        return self


def no_hashes(rows: Rows) -> np.ndarray:
    """In place of the key hashes."""
    return np.zeros(len(rows), np.uint64)


HASHES = Rows.hashes


Switch = Callable[[DataLoader, bool], None]


def switch_nothing(loader: DataLoader, on: bool) -> None:
    """No digests either way."""
    switch_keys(loader, False)


def switch_keys(loader: DataLoader, on: bool) -> None:
    """Key digests or none: no hashes, no log of steps."""
    Rows.hashes = HASHES if on else no_hashes
    tally = loader._runtime.tally
    tally.log = StepLog(tally.place.step) if on else NoLog(tally.place.step)


def switch_bytes(loader: DataLoader, on: bool) -> None:
    """Key digests either way, byte digests or none."""
    object.__setattr__(loader.recipe, "byte_digest", on)


@dataclass
class Spent:
    """Seconds."""

    wall: float
    cpu: float


def spent_on(loader: DataLoader) -> Spent:
    """On one stretch: as many batches as there are in a block of keys, so that each stretch makes one block."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(STRETCH):
        next(loader)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def compare(title: str, loader: DataLoader, switch: Switch, pairs: int) -> None:
    """One line: what is switched on costs more, in percent of the loader without it and in microseconds a batch."""
    seen: list[dict[bool, Spent]] = []
    with loader:
        for pair in range(WARM_UP + pairs):
            spent = {}
            for on in (True, False) if pair % 2 else (False, True):
                switch(loader, on)
                spent[on] = spent_on(loader)
            seen.append(spent)
    del seen[:WARM_UP]
    bare = statistics.median(each[False].wall for each in seen) / STRETCH * 1e6
    wall = statistics.quantiles([100 * (each[True].wall / each[False].wall - 1) for each in seen])
    cpu = statistics.quantiles([100 * (each[True].cpu / each[False].cpu - 1) for each in seen])
    more = statistics.median(each[True].wall - each[False].wall for each in seen) / STRETCH * 1e6
    print(
        f"  {title:<26}{bare:9.1f} us{wall[1]:+9.2f} % ({wall[0]:+6.2f} … {wall[2]:+6.2f}){more:+8.2f} us"
        f"{cpu[1]:+9.2f} % ({cpu[0]:+6.2f} … {cpu[2]:+6.2f})",
        flush=True,
    )


def compare_all(title: str, source: DataSource, depths: Sequence[int], pairs: int) -> None:
    """One table for a source."""
    print(
        f"\n{title}\n  {'':26}{'a batch':>12}{'wall time, quartiles, difference':>40}{'CPU time, quartiles':>29}"
    )
    for depth in depths:
        config = DataLoaderConfig(batch_size=BATCH, seed=1, read_ahead=depth, byte_digest=False)
        lines: list[tuple[str, Switch, int]] = [
            ("nothing", switch_nothing, pairs),
            ("key digests", switch_keys, pairs),
            ("byte digests", switch_bytes, pairs // 8),
        ]
        for what, switch, count in lines:
            compare(f"read-ahead {depth}, {what}", DataLoader(config, source), switch, count)


def hashing_speed() -> None:
    """GB/s of one thread, by its CPU time."""
    print("\nrow_hashes, one thread")
    for rows, row_bytes in ((256, 2048), (256, 2047), (64, 65536), (8, 602_112)):
        data = np.random.default_rng(0).integers(0, 256, (rows, row_bytes), np.uint8)
        positions, rates = np.arange(rows), []
        for _ in range(60):
            begun = time.thread_time()
            for _ in range(10):
                row_hashes(positions, [("x", data)])
            rates.append(10 * data.nbytes / (time.thread_time() - begun) / 1e9)
        low, middle, high = statistics.quantiles(rates)
        print(f"  {rows:>4} rows of {row_bytes:>7} bytes {middle:6.2f} GB/s ({low:.2f} … {high:.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500, help="in memory; a sixth of them from files")
    arguments = parser.parse_args()
    hashing_speed()
    data = np.random.default_rng(0).integers(0, 256, (RECORDS, RECORD_BYTES), np.uint8)
    compare_all("in memory", MemorySource(MemoryConfig(), data), (0, 2), arguments.pairs)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "records.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in data:
            writer.write(record.tobytes())
        writer.close()
        with ArrayRecordSource(ArrayRecordConfig(files=str(path))) as source:
            compare_all("ArrayRecord, group_size:1", source, (2,), arguments.pairs // 6)


if __name__ == "__main__":
    main()
