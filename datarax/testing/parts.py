"""However the rows of a batch are split over processes: together they deliver and digest what one alone does.

The processes are simulated: one loader each, in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from datarax.checkpoint.protocols import is_addressable
from datarax.loader import DataLoader
from datarax.testing.streams import END, Delivery, Make, delivered, next_of, opened

MakePart = Callable[[np.ndarray], DataLoader]
"""Makes the loader that reads only these rows of a batch, int64, sorted."""

# A mean of means is rounded otherwise than the mean of all rows, so statistics agree only nearly.
_ROUNDED = "_computed_stats"


def check_parts(make: Make, make_part: MakePart, process_counts: Sequence[int], run: Delivery) -> None:
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
    last = len(run.states) - 1
    for count, next_count in zip(counts, counts[1:] + counts[:1], strict=True):
        splits = {"in ranges of rows": np.array_split(rows, count)}
        if count > 1:
            splits["in rows dealt out in turn"] = [rows[i::count] for i in range(count)]
        for how, shares in splits.items():
            where = f"split over {count} processes {how}" if count > 1 else "read by one process"
            with _split(make_part, shares) as split:
                half = delivered(split, range(last // 2), where, asks=False)
            _exact(run).check(_exact(half), where)
            where += f", going on with {next_count} after {last // 2} batches"
            with _split(make_part, np.array_split(rows, next_count)) as split:
                split.set_state(half.states[last // 2])
                rest = delivered(split, range(last // 2, last), where, asks=False)
            _exact(run).check(_exact(rest), where)


def _exact(delivery: Delivery) -> Delivery:
    states = {
        place: {name: value for name, value in state.items() if name != _ROUNDED}
        for place, state in delivery.states.items()
    }
    return replace(delivery, states=states)


@contextmanager
def _split(make_part: MakePart, shares: Sequence[np.ndarray]) -> Iterator[_Split]:
    with ExitStack() as stack:
        parts = [stack.enter_context(opened(partial(make_part, share))) for share in shares]
        for part, share in zip(parts, shares, strict=True):
            if not is_addressable(part):
                raise TypeError(f"make_part must return a DataLoader, got {type(part).__name__}")
            if not np.array_equal(part.slots.rows, share):
                raise AssertionError(
                    f"make_part was asked for the rows {share} and gave a loader of {part.slots.rows}"
                )
        yield _Split(parts, shares)


@dataclass(frozen=True)
class _Split:
    """Loaders that each read a share of the rows, as the one stream that they are together."""

    parts: Sequence[Any]
    shares: Sequence[np.ndarray]

    def __next__(self) -> Any:
        """The global batch: the rows of all parts, sorted by slot."""
        batches = [next_of(part) for part in self.parts]
        ended = [batch is END for batch in batches]
        if all(ended):
            raise StopIteration
        if any(ended):
            raise AssertionError(f"the parts {np.flatnonzero(ended).tolist()} end before the others")
        order = np.argsort(np.concatenate(self.shares))
        return jax.tree.map(
            lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[order], *batches
        )

    def get_state(self) -> dict[str, Any]:
        return self._together()[0]

    def set_state(self, state: dict[str, Any]) -> None:
        for part in self.parts:
            part.set_state(state)

    @property
    def digest(self) -> Any:
        return SimpleNamespace(to_state=lambda: self._together()[1] or {})

    def _together(self) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        contributions = [part.contribution() for part in self.parts]
        return self.parts[0].combined(contributions)
