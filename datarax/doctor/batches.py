"""The first batches, for real: read, transformed and placed as a launch would, against the clock and then thrown away."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from datarax.core.errors import InputError
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, skipped
from datarax.run_config import RunConfig
from datarax.run_config.build import transform_settings
from datarax.transforms.load import load_transforms
from datarax.transforms.steadiness import unsteady_transforms

_MOST_SECONDS = 3.0
_MOST_BATCHES = 100
# Of one step, run four times.
_MOST_RECORDS = 256
# Grain may have hundreds of elements ready by the time that it gives the first.
_MOST_ELEMENTS = 10_000


def first_batches(rehearsal: Rehearsal) -> Finding | None:
    """Takes batches for a few seconds."""
    stream, left = rehearsal.stream, rehearsal.values.get("steps")
    if stream is None:
        return rehearsal.blocked("loader", "pipeline")
    if left == 0:
        return Finding(found="no step is left")
    most, made_ahead, called = _MOST_ELEMENTS, None, "elements"
    if isinstance(rehearsal.config, RunConfig):
        most, made_ahead, called = _MOST_BATCHES, rehearsal.config.loader.read_ahead + 1, "batches"
    # What opening and restoring took: a launch waits for it too.
    before = ("source", "pipeline", "identity", "restore")
    before_seconds = sum(rehearsal.seconds.get(name, 0.0) for name in before)
    at, rows_before = int(stream.idx.get_value() or 0), stream.metrics.rows
    started = time.perf_counter()
    ends: list[float] = []
    num_bytes = 0
    try:
        while len(ends) < min(most, left or most) and time.perf_counter() - started < _MOST_SECONDS:
            batch = next(stream)
            ends.append(time.perf_counter())
            num_bytes += _num_bytes(batch)
    except StopIteration:
        if left is not None or not ends:
            return _ended(at + len(ends), left)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return failure(
            f"step {at + len(ends):,} raised {type(error).__name__}: {first}",
            "correct the transform or the record that is named; a launch would end with exit code 70 or 74 here",
            details=getattr(error, "__notes__", ()),
            numbers={"step": at + len(ends)},
        )
    seconds = _seconds_per_batch([end - started for end in ends], made_ahead)
    batch_bytes = num_bytes // len(ends)
    rows_per_second = (stream.metrics.rows - rows_before) / len(ends) / seconds
    first_seconds = before_seconds + ends[0] - started
    found = f"from step {at:,}: the first after {first_seconds:.2g} s, then {1 / seconds:,.3g} {called}/s, "
    found += f"{rows_per_second:,.3g} rows/s and {batch_bytes / seconds / 1e6:,.3g} MB/s"
    return Finding(
        found=found if left is None else f"{found}; {duration(left * seconds)} to the end",
        details=[
            f"measured over {len(ends)} {called} of {batch_bytes:,} bytes: this machine, the data alone, with page caches "
            f"that may be warm"
        ],
        numbers={
            "batches": len(ends),
            "batch_bytes": batch_bytes,
            "seconds_to_first_batch": first_seconds,
            "batches_per_second": 1 / seconds,
            "rows_per_second": rows_per_second,
            "bytes_per_second": batch_bytes / seconds,
            "seconds_for_the_steps_left": None if left is None else left * seconds,
        },
        value=at,
    )


def steady_transforms(rehearsal: Rehearsal) -> Finding:
    """Whether each transform gives the same bytes for the next records every time."""
    stream, step = rehearsal.stream, rehearsal.values["batches"]
    if step is None:
        return Finding(found="no step is left")
    names = [each.name for each in stream.recipe.transforms]
    if not names:
        return Finding(found="none")
    keys, order, source = stream.record_keys(step), stream.order, stream.source
    keys = keys[keys.source >= 0][:_MOST_RECORDS]
    rebuild = partial(load_transforms, transform_settings(rehearsal.config))
    numbers: dict[str, Any] = {"step": step, "records": len(keys), "transforms": names}
    try:
        found = unsteady_transforms(
            stream.recipe.transforms,
            source.read(keys.index),
            lambda transform: order.row_seeds(transform.name, keys),
            lambda i: f"{source.name}:{keys.index[i]} (epoch {keys.epoch[i]})",
            rebuild=rebuild,
        )
    except InputError as error:
        return skipped(
            f"the same bytes again and in another order; nothing could be compared in a fresh process: {error}",
            "nothing, or correct what is said there: transforms and records must reach another process",
        )
    if found:
        guilty = ", ".join(dict.fromkeys(each.transform for each in found))
        return failure(
            f"{guilty}: other bytes for the same records",
            "make it a function of the record, its parameters and the randomness that it is given alone: no default "
            "argument, cache or global that it changes, no clock, no order of a set",
            details=[str(each) for each in found],
            numbers={**numbers, "unsteady": [vars(each) for each in found]},
        )
    return Finding(
        found=f"{', '.join(names)}: the same bytes for {len(keys):,} records of step {step:,}, run again, in another order, "
        f"and in a fresh process",
        numbers=numbers,
    )


def _ended(at: int, left: int | None) -> Finding:
    if left is None:
        return Finding(found=f"the data end after {at:,} steps, which are done")
    return failure(
        f"the data end after {at:,} steps, before the run does",
        f"set run.steps = {at}, or give it more data" if at else "give it data: there is not one element",
        numbers={"step": at},
    )


def _num_bytes(batch: Any) -> int:
    """Bytes of its arrays; plain values, which an element may have as well, are not counted."""
    arrays = (jax.Array, np.ndarray, np.generic)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch) if isinstance(leaf, arrays))


def _seconds_per_batch(ends: Sequence[float], made_ahead: int | None) -> float:
    """The median time from one batch to the next; where read-ahead had, or may have, made most of them already, the mean.

    Args:
        ends: when each was there, since the first was asked for.
        made_ahead: how many may have been made before they were asked for.
    """
    if made_ahead is not None:
        gaps = [after - before for before, after in itertools.pairwise(ends)][made_ahead:]
        if len(gaps) > 2 * made_ahead:
            return max(statistics.median(gaps), 1e-9)
    return max(ends[-1] / len(ends), 1e-9)


def duration(seconds: float) -> str:
    """Rounded, in the largest unit that shows something."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 86400:,.3g} days"
