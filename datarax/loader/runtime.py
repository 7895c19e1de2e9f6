"""What is open behind a stream, apart from the module that NNX sees: turns, counters, the place, and the feed.

Knows nothing of states and identities. Next: `stream.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from datarax.loader.producer import Turns
from datarax.loader.statistics import Statistics
from datarax.loader.tally import Delivered, Tally

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class StreamMetrics:
    """Live counters of what a stream did since it was opened. Counted per batch, never per record; read from the side."""

    batches: int = 0
    """Batches handed over."""
    rows: int = 0
    """Rows handed over, of the whole global batch; padding is not counted."""
    wait_seconds: float = 0.0
    """Time the training loop spent waiting for batches, in seconds."""


class Runtime:
    """What is open behind a stream, apart from NNX, which sees it as static and compares it by identity.

    Args:
        base: what all processes have in common.
        tally: of what was handed over.
    """

    def __init__(self, base: Delivered, tally: Tally) -> None:
        self.turns = Turns()
        """What hands over and what looks at all of it: one at a time."""
        self.metrics = StreamMetrics()
        self.base = base
        """What all processes have in common: the last restore, or the beginning."""
        self.identity: dict[str, str] | None = None
        """Digest of each field of the stream's identity, 16 hex digits, once somebody asks: it never changes."""
        self.tally = tally
        """Feed, place and log: whoever goes elsewhere makes all of it first, and swaps this reference."""
        self.prepared = tally
        """That of a state that was found good and is not restored yet; else the one above."""

    def prepare(self, tally: Tally) -> None:
        """Keeps a tally for a restore to come, in place of the one that was kept."""
        before, self.prepared = self.prepared, tally
        if before.feed is not self.tally.feed:
            before.feed.close()

    def means(self) -> Any:
        """The means over rows as of now, or what was set in their place."""
        return self.tally.place.statistics.total.values()

    def set_means(self, means: Any) -> None:
        """Has these in their place, until the next batch."""
        place = self.tally.place
        self.tally.place = place._replace(statistics=Statistics.restored(means, 0))


def in_turn(method: F) -> F:
    """A method of a stream that is called alone: between the hand-overs of other threads, and all else that is in turn."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._runtime.turns.call(partial(method, self, *args, **kwargs))

    return cast(F, called)
