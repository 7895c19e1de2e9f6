"""How fast the loader is, against the bare reads underneath and against Grain's best configuration, in one go.

The workload: records of 2 KiB, shuffled globally, batches of 256. Every contender runs in each round, in turn, so that
drift of a shared machine falls on all of them; the figures are medians over the rounds.

    python benchmarks/loader_speed.py [--records N] [--rounds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from datarax import (
    ArrayRecordConfig,
    ArrayRecordSource,
    DataLoader,
    DataLoaderConfig,
    MemoryConfig,
    MemorySource,
)

RECORD_BYTES = 2048
BATCH = 256

Measure = Callable[[], float]


def rows_per_second(batches: Iterator[object], seconds: float) -> float:
    """Takes batches for a while, after two that warm up."""
    next(batches)
    next(batches)
    started = time.perf_counter()
    taken = 0
    while time.perf_counter() - started < seconds:
        next(batches)
        taken += 1
    return taken * BATCH / (time.perf_counter() - started)


def ours(source: object, seconds: float, **settings: object) -> Measure:
    def measure() -> float:
        with DataLoader(DataLoaderConfig(batch_size=BATCH, seed=1, **settings), source) as loader:
            return rows_per_second(iter(loader), seconds)

    return measure


def grains(source: object, seconds: float, *, threads: int, buffer: int, batch_first: bool) -> Measure:
    """Grain's `MapDataset`; batching first pays its cost per element once per batch."""

    def measure() -> float:
        dataset = grain.MapDataset.source(source).seed(1).shuffle().repeat()
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        if batch_first:
            iterator = iter(dataset.batch(BATCH).to_iter_dataset(options))
        else:
            iterator = iter(dataset.to_iter_dataset(options).batch(BATCH))
        rate = rows_per_second(iterator, seconds)
        if hasattr(iterator, "close"):
            iterator.close()
        return rate

    return measure


def grain_candidates(source: object, seconds: float) -> dict[str, Measure]:
    candidates = {"grain, default": grains(source, seconds, threads=16, buffer=500, batch_first=False)}
    for threads, buffer in ((0, 0), (1, 2), (2, 4), (4, 8), (16, 16)):
        candidates[f"grain, batch first, {threads} threads"] = grains(
            source, seconds, threads=threads, buffer=buffer, batch_first=True
        )
    return candidates


def bare_gather(data: np.ndarray, seconds: float) -> Measure:
    def batches() -> Iterator[np.ndarray]:
        order = np.random.default_rng(1).permutation(len(data))
        while True:
            for start in range(0, len(data) - BATCH, BATCH):
                yield data[order[start : start + BATCH]]

    return lambda: rows_per_second(batches(), seconds)


def bare_reader(path: Path, count: int, seconds: float) -> Measure:
    def batches(reader: object) -> Iterator[object]:
        order = np.random.default_rng(1).permutation(count)
        while True:
            for start in range(0, count - BATCH, BATCH):
                yield reader.read(order[start : start + BATCH].tolist())

    def measure() -> float:
        with closing(ArrayRecordReader(str(path))) as reader:
            return rows_per_second(batches(reader), seconds)

    return measure


def contest(title: str, bare: str, contenders: dict[str, Measure], rounds: int) -> dict[str, object]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            rates[name].append(measure())
    medians = {name: statistics.median(each) for name, each in rates.items()}
    best_grain = max((name for name in medians if name.startswith("grain")), key=medians.__getitem__)
    best_ours = max((name for name in medians if name.startswith("datarax")), key=medians.__getitem__)
    ratio = statistics.median(a / b for a, b in zip(rates[best_ours], rates[best_grain], strict=True))
    share = statistics.median(a / b for a, b in zip(rates[best_ours], rates[bare], strict=True))
    return {
        "title": title,
        "rows_per_second": medians,
        "best_grain": best_grain,
        "times_best_grain": ratio,
        "bare_read": bare,
        "times_bare_read": share,
    }


def show(result: dict) -> None:
    print(f"\n{result['title']}")
    for name, rate in sorted(result["rows_per_second"].items(), key=lambda item: -item[1]):
        print(f"  {name:<38}{rate:>14,.0f} rows/s")
    print(f"  datarax / {result['best_grain']}: {result['times_best_grain']:.1f}×, median over the rounds")
    print(f"  datarax / {result['bare_read']}: {result['times_bare_read']:.2f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data = np.random.default_rng(0).integers(0, 256, (arguments.records, RECORD_BYTES), np.uint8)
    results = []

    memory = {
        "numpy gather": bare_gather(data, arguments.seconds),
        "datarax": ours(MemorySource(MemoryConfig(), data), arguments.seconds),
        "datarax, no read-ahead": ours(MemorySource(MemoryConfig(), data), arguments.seconds, read_ahead=0),
        "datarax, byte digests": ours(
            MemorySource(MemoryConfig(), data), arguments.seconds, byte_digest=True
        ),
        **grain_candidates(data, arguments.seconds),
    }
    results.append(contest("in memory", "numpy gather", memory, arguments.rounds))

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "records.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in data:
            writer.write(record.tobytes())
        writer.close()
        with ArrayRecordSource(ArrayRecordConfig(files=str(path))) as source:
            files = {
                "C++ reader, one list": bare_reader(path, arguments.records, arguments.seconds),
                "datarax": ours(source, arguments.seconds),
                "datarax, 2 threads": ours(source, arguments.seconds, num_threads=2, read_ahead=4),
                "datarax, no read-ahead": ours(source, arguments.seconds, read_ahead=0),
                "datarax, byte digests": ours(source, arguments.seconds, byte_digest=True),
                **grain_candidates(grain.sources.ArrayRecordDataSource(str(path)), arguments.seconds),
            }
            results.append(
                contest("ArrayRecord, group_size:1", "C++ reader, one list", files, arguments.rounds)
            )

    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            show(result)


if __name__ == "__main__":
    main()
