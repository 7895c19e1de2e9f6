"""The first batches, for real: read, transformed and placed as a launch would, against the clock and then thrown away."""

from __future__ import annotations

import itertools
import statistics
import time

import jax

from datarax.doctor.checks import Finding, failure
from datarax.loader import DataLoader, DataLoaderConfig

_MOST_BATCHES = 100
_MOST_SECONDS = 3.0


def first_batches(loader: DataLoader, *, left: int, before_seconds: float) -> Finding:
    """Takes batches for a few seconds.

    Args:
        loader: where a launch would begin.
        left: steps that are left.
        before_seconds: what opening and restoring took; a launch waits for it too.
    """
    if left == 0:
        return Finding(found="no step is left")
    at = int(loader.idx.get_value() or 0)
    started = time.perf_counter()
    ends: list[float] = []
    num_bytes = 0
    try:
        while len(ends) < min(_MOST_BATCHES, left) and time.perf_counter() - started < _MOST_SECONDS:
            next(loader)
            ends.append(time.perf_counter())
            num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(loader.current.get_value()))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return failure(
            f"step {at + len(ends):,} raised {type(error).__name__}: {first}",
            "correct the transform or the record that is named; a launch would end with exit code 70 or 74 here",
            details=getattr(error, "__notes__", ()),
            numbers={"step": at + len(ends)},
        )
    seconds = _seconds_per_batch(loader, started, ends)
    rate = loader.schedule.batch_size / seconds
    first_seconds = before_seconds + ends[0] - started
    speed = f"{rate:,.3g} rows/s and {num_bytes / seconds / 1e6:,.3g} MB/s"
    return Finding(
        found=f"from step {at:,}: the first after {first_seconds:.2g} s, then {speed}; {duration(left * seconds)} to the end",
        details=[
            f"measured over {len(ends)} batches of {num_bytes:,} bytes: this machine, the loader alone, with page caches that "
            f"may be warm"
        ],
        numbers={
            "batches": len(ends),
            "batch_bytes": num_bytes,
            "seconds_to_first_batch": first_seconds,
            "rows_per_second": rate,
            "bytes_per_second": num_bytes / seconds,
            "seconds_for_the_steps_left": left * seconds,
        },
    )


def _seconds_per_batch(loader: DataLoader, started: float, ends: list[float]) -> float:
    """The median time from one batch to the next; where read-ahead had made most of them already, the mean over all."""
    assert isinstance(loader.config, DataLoaderConfig)
    made_ahead = loader.config.read_ahead + 1
    gaps = [after - before for before, after in itertools.pairwise(ends)][made_ahead:]
    mean = (ends[-1] - started) / len(ends)
    return max(statistics.median(gaps), 1e-9) if len(gaps) > 2 * made_ahead else mean


def duration(seconds: float) -> str:
    """Rounded, in the largest unit that shows something."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 86400:,.3g} days"
