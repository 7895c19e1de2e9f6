"""What digests cost the loader: the same loader with and without them, measured in turn.

The workload: records of 2 KiB, shuffled globally, batches of 256. Each pair is two short measurements of loaders that stay
open, one with and one without, in alternating order; the figure is the median of the pairs' ratios, with the quartiles. Next
to wall time stands the CPU time of all threads, which other programs disturb less. The first line of each table compares
the loader without digests with itself: what the method cannot tell from nothing.

    python -m benchmarks.digest_cost [--pairs 200] [--batches 64]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.loader import DataLoader, DataLoaderConfig
from datarax.loader.plan import BatchPlan
from datarax.loader.reader import PreparedBatch
from datarax.loader.statistics import SharedMeans
from datarax.order import RecordKeys, row_hashes
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, DataSource, MemoryConfig, MemorySource

RECORD_BYTES = 2048
BATCH = 256
RECORDS = 200_000


class PlanWithoutDigests(BatchPlan):
    """Hashes no keys."""

    def _digests(self, positions: np.ndarray, keys: RecordKeys) -> list[int]:
        return [0] * len(positions)


class LoaderWithoutDigests(DataLoader):
    """What the loader would be if it kept no digests: no hashes, no sums, no log of steps."""

    def __init__(self, config: DataLoaderConfig, source: DataSource) -> None:
        super().__init__(config, source)
        plan = self._runtime.reader.plan
        # The same object that the reader and its threads hold.
        plan.__class__ = PlanWithoutDigests

    def _hand_over(self, batch: PreparedBatch, step: int, means: SharedMeans) -> None:
        runtime = self._runtime
        metrics, current = runtime.metrics, runtime.current
        means_before = None if means is runtime.means else self._means_kept()
        try:
            runtime.current = batch.host
            if means_before is not None:
                self._keep_means(means)
            metrics.batches += 1
            metrics.rows += runtime.schedule.rows_in(step)
            runtime.shown.idx = step + 1
        except BaseException:
            runtime.current = current
            raise


@dataclass
class Spent:
    """Seconds."""

    wall: float
    cpu: float


def spent_on(loader: DataLoader, batches: int) -> Spent:
    """On so many batches; a multiple of the steps in a block of keys, so that each measurement makes as many blocks."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(batches):
        next(loader)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def compare(title: str, with_it: DataLoader, without: DataLoader, pairs: int, batches: int) -> None:
    """One line: what `with_it` costs more, in percent of `without`."""
    with with_it, without:
        spent_on(with_it, batches), spent_on(without, batches)
        seen: list[tuple[Spent, Spent]] = []
        for pair in range(pairs):
            order = (with_it, without) if pair % 2 else (without, with_it)
            first, second = (spent_on(loader, batches) for loader in order)
            seen.append((first, second) if pair % 2 else (second, first))
    bare = statistics.median(without.wall for _, without in seen) / batches * 1e6
    wall = statistics.quantiles([100 * (a.wall / b.wall - 1) for a, b in seen])
    cpu = statistics.quantiles([100 * (a.cpu / b.cpu - 1) for a, b in seen])
    print(
        f"  {title:<26}{bare:9.1f} us{wall[1]:+9.2f} % ({wall[0]:+6.2f} … {wall[2]:+6.2f})"
        f"{cpu[1]:+9.2f} % ({cpu[0]:+6.2f} … {cpu[2]:+6.2f})"
    )


def compare_all(title: str, source: DataSource, pairs: int, batches: int) -> None:
    """One table for a source."""
    print(f"\n{title}\n  {'':26}{'a batch':>12}{'wall time, quartiles':>29}{'CPU time, quartiles':>29}")
    for depth, name in ((0, "no read-ahead"), (2, "read-ahead 2")):
        bare, bytes_too = (
            DataLoaderConfig(batch_size=BATCH, seed=1, read_ahead=depth, byte_digest=hashed)
            for hashed in (False, True)
        )
        lines: list[tuple[str, Callable[[], tuple[DataLoader, DataLoader]]]] = [
            ("nothing", lambda c=bare: (LoaderWithoutDigests(c, source), LoaderWithoutDigests(c, source))),
            ("key digests", lambda c=bare: (DataLoader(c, source), LoaderWithoutDigests(c, source))),
            ("byte digests", lambda c=bytes_too, b=bare: (DataLoader(c, source), DataLoader(b, source))),
        ]
        for what, loaders in lines:
            compare(f"{name}, {what}", *loaders(), pairs, batches)


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
    parser.add_argument(
        "--pairs", type=int, default=200, help="of the source in memory; a quarter from files"
    )
    parser.add_argument(
        "--batches", type=int, default=64, help="batches of one measurement, a multiple of 64"
    )
    arguments = parser.parse_args()
    hashing_speed()
    data = np.random.default_rng(0).integers(0, 256, (RECORDS, RECORD_BYTES), np.uint8)
    compare_all("in memory", MemorySource(MemoryConfig(), data), arguments.pairs, arguments.batches)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "records.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in data:
            writer.write(record.tobytes())
        writer.close()
        with ArrayRecordSource(ArrayRecordConfig(files=str(path))) as source:
            compare_all("ArrayRecord, group_size:1", source, arguments.pairs // 4, arguments.batches)


if __name__ == "__main__":
    main()
