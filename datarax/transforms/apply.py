"""Rows through a pipeline: what each transform is given, what is checked after it, and what an error says.

Knows neither positions nor files: seeds and the names of records come in as functions, so that one process
can make any rows of any run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from datarax.core.errors import tell_where
from datarax.transforms.randomness import pinned, row_randomness
from datarax.transforms.stack import as_host_arrays, count_rows, stack, unstack
from datarax.transforms.transform import Level, Randomness, Transform

Seeds = Callable[[Transform], np.ndarray]
"""The row seeds `uint64[n]` of a transform."""


def apply_transforms(
    transforms: Sequence[Transform],
    rows: Any,
    seeds_for: Seeds,
    keys_text: Callable[[int], str],
) -> Any:
    """Sends n rows through the transforms, in their order, and stacks what comes out.

    A `list` is n records; anything else is columns, a PyTree of arrays `[n, ...]`. A batch transform gets
    whichever of the two the stage before left, and may return either; a record transform leaves a list of
    records, and gets row views of columns. A list that is left at the end is stacked. With n = 0 only columns
    work.

    Args:
        transforms: As `check_pipeline` returned them.
        rows: The n records as read.
        seeds_for: Called once for each transform that asks for randomness.
        keys_text: What the record of row i is called in an error.

    Returns:
        A PyTree of NumPy arrays `[n, ...]`.

    Raises:
        ValueError: if a stage changed the number of rows, or if its rows cannot be stacked.
        Exception: whatever a transform raised, itself, with a note that names the transform and the record.
            Only what would end the training loop in silence becomes a `RuntimeError`: see `tell_where`.
    """
    n = len(rows) if isinstance(rows, list) else count_rows(rows)
    for transform in transforms:
        rows = apply_transform(transform, rows, n, seeds_for, keys_text)
    if not isinstance(rows, list):
        return as_host_arrays(rows)
    try:
        return stack(rows)
    except ValueError as error:
        last = f"transform {transforms[-1].name!r}" if transforms else "the source"
        error.add_note(
            f"while stacking the {n} records that {last} left; record 0 is {keys_text(0) if n else 'none'}"
        )
        raise


def apply_transform(
    transform: Transform, rows: Any, n: int, seeds_for: Seeds, keys_text: Callable[[int], str]
) -> Any:
    """What one transform makes of n rows, not stacked; see `apply_transforms`."""
    if transform.level is Level.RECORD:
        return _map_records(transform, rows, n, seeds_for, keys_text)
    return _map_batch(transform, rows, n, seeds_for)


def _map_records(
    transform: Transform, rows: Any, n: int, seeds_for: Seeds, keys_text: Callable[[int], str]
) -> list[Any]:
    records = rows if isinstance(rows, list) else unstack(rows)
    fn, parameters, made = transform.fn, transform.parameters, []
    randomness = _randomness(transform, n, seeds_for)
    try:
        if transform.randomness is Randomness.NONE:
            for record in records:  # appended one by one: the length of `made` says where an error stood
                made.append(fn(record, **parameters))
        else:
            with pinned(transform.randomness):
                for record, own in zip(records, randomness, strict=True):
                    made.append(fn(record, own, **parameters))
    except BaseException as error:
        tell_where(error, f"in transform {transform.name!r}, at {keys_text(len(made))}")
        raise
    return made


def _map_batch(transform: Transform, rows: Any, n: int, seeds_for: Seeds) -> Any:
    is_plain = transform.randomness is Randomness.NONE
    given = (rows,) if is_plain else (rows, _randomness(transform, n, seeds_for))
    try:
        with pinned(transform.randomness):
            made = transform.fn(*given, **transform.parameters)
    except BaseException as error:
        tell_where(error, f"in transform {transform.name!r}, on a batch of {n} rows")
        raise
    try:
        found = len(made) if isinstance(made, list) else count_rows(made)
    except ValueError as error:
        error.add_note(f"in what transform {transform.name!r} returned for a batch of {n} rows")
        raise
    if found != n:
        raise ValueError(
            f"transform {transform.name!r} was given {n} rows and returned {found}; a batch transform keeps"
            " the number and order of rows"
        )
    return made


def _randomness(transform: Transform, n: int, seeds_for: Seeds) -> Any:
    if transform.randomness is Randomness.NONE:
        return None
    seeds = seeds_for(transform)
    if seeds.dtype != np.uint64 or seeds.shape != (n,):
        raise ValueError(
            f"transform {transform.name!r} needs uint64[{n}] seeds, was given"
            f" {seeds.dtype}{list(seeds.shape)}"
        )
    return row_randomness(transform.randomness, transform.level, seeds)
