"""What it costs one process to know which records it reads in a step, for 1 to 4,096 processes and 10^3 to 10^12 records.

Planning is everything about a batch but its content: positions, record keys, digest. Each process has 32 rows of the batch. The
figures are medians over interleaved repetitions; the last column compares with the first row.

    python -m benchmarks.planning [--repetitions 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4096"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from datarax.loader.recipe import Recipe
from datarax.multihost import Slots, slots_of
from datarax.order import Order, OrderConfig, Segment, Timeline
from tests.support.simulated import DEVICES, check_all

ROWS = 32
STEPS = 2048
PROCESSES = (1, 4, 16, 64, 256, 1024, 4096)
RECORDS = (10**3, 10**6, 10**9, 10**12)


def planner(processes: int, records: int) -> Callable[[], float]:
    """A function that plans the next steps of one process in the middle of the others; microseconds per step."""
    index = processes // 2
    slots = np.arange(index * ROWS, (index + 1) * ROWS)
    order = Order(OrderConfig(seed=1), {"web": records})
    timeline = Timeline(segments=(Segment(order=order, batch_size=ROWS * processes),))
    recipe = Recipe(
        timeline=timeline,
        sources=(),
        transforms=(),
        slots={ROWS * processes: Slots(slots, slots)},
        byte_digest=False,
    )
    reader = recipe.open()
    step = 0

    def measure() -> float:
        nonlocal step
        begun = time.perf_counter()
        for number in range(step, step + STEPS):
            reader.keys(number)
        step += STEPS
        return (time.perf_counter() - begun) / STEPS * 1e6

    return measure


def shares(processes: int) -> Callable[[], float]:
    """A function that finds the slots of one process from a real sharding; milliseconds, once per start."""
    mesh = Mesh(np.array(jax.devices()[:processes]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def measure() -> float:
        begun = time.perf_counter()
        # Another batch size each time: JAX remembers the index map of a shape.
        slots_of(
            sharding, ROWS * processes * next(sizes), process_index=0, process_of=lambda device: device.id
        )
        return (time.perf_counter() - begun) * 1e3

    sizes = iter(range(1, 10_000))
    return measure


def medians(measures: Mapping[object, Callable[[], float]], repetitions: int) -> dict[object, float]:
    """The median of each, measured in turn."""
    seen: dict[object, list[float]] = {key: [] for key in measures}
    for measure in measures.values():
        measure()  # warm
    for _ in range(repetitions):
        for key, measure in measures.items():
            seen[key].append(measure())
    return {key: statistics.median(values) for key, values in seen.items()}


def show(title: str, unit: str, found: Mapping[object, float]) -> None:
    """One table."""
    first = next(iter(found.values()))
    print(f"\n{title}\n{'':>16} {unit:>10} {'ratio':>6}")
    for key, value in found.items():
        print(f"{key:>16,} {value:10.2f} {value / first:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    by_processes = {count: planner(count, 10**12) for count in PROCESSES}
    show(f"processes, 10^12 records, {ROWS} rows each", "us/step", medians(by_processes, repetitions))
    by_records = {records: planner(1, records) for records in RECORDS}
    show(f"records, one process, {ROWS} rows", "us/step", medians(by_records, repetitions))
    by_devices = {count: shares(count) for count in PROCESSES}
    show("once per start: the slots of one process, by processes", "ms", medians(by_devices, 5))
    for axes in ({"data": DEVICES}, {"data": DEVICES // 4, "model": 4}):
        owning = check_all(axes)
        print(
            f"\n{axes}: the rows of all {DEVICES:,} processes are the global batch; {owning:,} of them own rows"
        )


if __name__ == "__main__":
    main()
