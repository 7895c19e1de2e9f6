"""However the rows of a batch are split over processes: together they deliver and digest what one alone does.

The processes are simulated: one loader each, in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import jax
import numpy as np

from datarax.checkpoint.protocols import is_addressable
from datarax.loader import DataLoader
from datarax.testing.difference import must_equal
from datarax.testing.recording import END, Make, Recording, next_of, opened

MakePart = Callable[[np.ndarray], DataLoader]

# A mean of means is rounded otherwise than the mean of all rows, so statistics agree only nearly.
_ROUNDED = "_computed_stats"


def check_parts(make: Make, make_part: MakePart, process_counts: Sequence[int], run: Recording) -> None:
    """Runs the stream split over each number of processes, and goes on from the middle with another number.

    Raises:
        AssertionError: naming the number of processes, the batch and the leaf, or the field of the state.
        TypeError: if the loaders are no `DataLoader`s.
        ValueError: if there is no number of processes to test.
    """
    with opened(make) as whole:
        if not is_addressable(whole):
            raise TypeError(f"make_part is for a DataLoader, but make_loader gave a {type(whole).__name__}")
        rows = whole.slots.rows
    counts = [count for count in process_counts if count <= len(rows)]
    if not counts:
        raise ValueError(
            f"none of process_counts {list(process_counts)} is at most the {len(rows)} rows of a batch"
        )
    middle = len(run.elements) // 2
    for count, next_count in zip(counts, counts[1:] + counts[:1], strict=True):
        for how, shares in _splits(rows, count):
            where = f"split over {count} processes {how}" if count > 1 else "read by one process"
            state = _run_parts(make_part, shares, run, range(middle), None, where)
            shares = next(_splits(rows, next_count))[1]
            where += f", going on with {next_count} after {middle} batches"
            _run_parts(make_part, shares, run, range(middle, len(run.elements)), state, where)


def _splits(rows: np.ndarray, count: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    yield "in ranges of rows", np.array_split(rows, count)
    if count > 1:
        yield "in rows dealt out in turn", [rows[i::count] for i in range(count)]


def _run_parts(
    make_part: MakePart,
    shares: list[np.ndarray],
    run: Recording,
    places: range,
    state: Any,
    where: str,
) -> dict[str, Any]:
    """Runs one loader for each share over some of the batches; gives the state that they have together."""
    with ExitStack() as stack:
        parts = [stack.enter_context(opened(partial(make_part, share))) for share in shares]
        for part, share in zip(parts, shares, strict=True):
            _check_share(part, share)
            if state is not None:
                part.set_state(state)
        for place in places:
            run.check_element(place, _joined([next_of(part) for part in parts], shares), where)
        if run.ended and places.stop == len(run.elements):
            for part in parts:
                run.check_element(places.stop, next_of(part), where)
        contributions = [part.contribution() for part in parts]
        together, digest = parts[0].combined(contributions)
    after = f"{where}: after {places.stop} batches"
    must_equal(
        run.digests[places.stop], digest, f"{after} the digests do not add up to that of one process, at"
    )
    expected = run.states[places.stop]
    must_equal(_exact(expected), _exact(together), f"{after} the joint state is not that of one process, at")
    return together


def _check_share(part: Any, share: np.ndarray) -> None:
    if not is_addressable(part):
        raise TypeError(f"make_part must return a DataLoader, got {type(part).__name__}")
    if not np.array_equal(part.slots.rows, share):
        raise AssertionError(
            f"make_part was asked for the rows {share} and gave a loader of {part.slots.rows}"
        )


def _joined(batches: list[Any], shares: list[np.ndarray]) -> Any:
    """The global batch: the rows of all parts, sorted by slot."""
    if any(batch is END for batch in batches):
        return END
    order = np.argsort(np.concatenate(shares))
    return jax.tree.map(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[order], *batches
    )


def _exact(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != _ROUNDED}
