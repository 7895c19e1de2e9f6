"""What keys, hashes and row hashes cost: `python benchmarks/order_speed.py`. The numbers of docs/design/order.md."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from datarax.order import Order, OrderConfig, id64, key_hashes, row_hashes, row_seeds

POLICIES = {
    "none": {"policy": "none"},
    "global": {},
    "block 16 x 64": {"policy": "block", "block_size": 16, "window_blocks": 64},
    "block 1024 x 64": {"policy": "block", "block_size": 1024, "window_blocks": 64},
    "grain": {"policy": "grain", "grain_style": "index_sampler"},
}
LENGTHS = [100, 50_000, 65_537, 1_000_000, 2**20 + 2, 10**9, 10**12]
BATCHES = [
    (256, (2048,), "u1"),
    (256, (2047,), "u1"),
    (64, (256,), "u1"),
    (8, (224, 224, 3), "f4"),
    (256, (), "i4"),
]


def best_seconds(call: Callable[[], object], repeats: int = 15) -> float:
    """The best of some calls: what the work costs when nothing else runs."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def order_costs(num_keys: int) -> None:
    print(f"Order.keys, ns per key, {num_keys} consecutive positions")
    print(f"{'':18}" + "".join(f"{n:>16,}" for n in LENGTHS))
    for name, fields in POLICIES.items():
        costs = []
        for n in LENGTHS:
            order = Order(OrderConfig(**fields), {"books": n})
            positions = np.arange(n // 3, n // 3 + num_keys)
            costs.append(best_seconds(lambda order=order, p=positions: order.keys(p), 5) / num_keys * 1e9)
        print(f"{name:18}" + "".join(f"{cost:16.1f}" for cost in costs))


def hash_costs(num_rows: int) -> None:
    position, index = np.arange(num_rows), np.random.default_rng(0).integers(0, 10**9, num_rows)
    ids, epoch = np.full(num_rows, id64("books"), np.uint64), np.zeros(num_rows, np.int64)
    keys = best_seconds(lambda: key_hashes(position, ids, index, epoch))
    seeds = best_seconds(lambda: row_seeds(1, "crop", ids, index, epoch))
    print(
        f"\nkey_hashes {keys / num_rows * 1e9:.1f} ns per row, row_seeds {seeds / num_rows * 1e9:.1f} ns per row"
    )
    for rows, shape, dtype in BATCHES:
        batch = np.ones((rows, *shape), dtype)
        seconds = best_seconds(lambda b=batch: row_hashes(np.arange(len(b)), [("x", b)]), 100)
        print(
            f"row_hashes {rows} x {dtype}{list(shape)}: {seconds * 1e6:.0f} us, {batch.nbytes / seconds / 1e9:.2f} GB/s"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-keys", type=int, default=16_384)
    arguments = parser.parse_args()
    order_costs(arguments.num_keys)
    hash_costs(arguments.num_keys)
