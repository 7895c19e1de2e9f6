"""A Grain pipeline as one may have it already, for `configs/grain.toml`: numbers, shuffled, made into features, batched."""

from __future__ import annotations

import grain
import numpy as np


def features(number: int, scale: float) -> dict[str, np.generic]:
    """One record: a number and its sine."""
    return {"number": np.int64(number), "sine": np.float32(np.sin(number * scale))}


def pipeline(
    num_records: int = 10_000,
    batch_size: int = 32,
    seed: int = 1,
    scale: float = 0.01,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Each process reads its part of the records, in batches of its part of the rows."""
    dataset = grain.MapDataset.range(num_records).seed(seed).shuffle()[process_index::process_count]
    return (
        dataset.repeat()
        .map(lambda number: features(number, scale))
        .batch(batch_size // process_count, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )
