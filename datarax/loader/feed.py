"""Where the batches of a stream come from: what a stream asks for, and what it gets.

`DataLoader` and `GrainPipeline` bring a `Feed` each. A feed counts nothing: `stream.py` does, when the loop takes a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from datarax.loader.recipe import HostRows, Recipe
from datarax.loader.statistics import Statistics


class Place(NamedTuple):
    """Where a stream is. A hand-over makes the next one whole and swaps it in by one assignment."""

    step: int
    """Batches handed over; the step of the next batch."""
    cursor: Any
    """What else the stream needs to go on from here: Grain's state; None where the step says all."""
    current: Any
    """The batch handed over last, as host arrays; None at the beginning and after a restore."""
    statistics: Statistics
    """Statistics of the batches."""


class Taken(NamedTuple):
    """A batch that the loop is about to get."""

    batch: Any
    """What the loop gets: the host's rows, or global arrays of them."""
    rows: HostRows
    """The host's rows, and what they count."""
    cursor: Any
    """What the stream goes on from after it."""


class Feed(ABC):
    """Makes the batch of any place, and says how steps are counted. What it says never changes."""

    recipe: Recipe | None
    """Which rows each step has; None if each step counts as one row: then there are no epochs, and no means over rows."""
    num_steps: int | None
    """Batches of the whole run; None if there is no end, or none that is known."""
    why_no_length: str
    """What is said to whoever asks for the length then."""
    hashes_bytes: bool
    """Whether the rows of every step are hashed."""
    part: str | None = None
    """Names the rows of a batch that count here, 16 hex digits; None if all of them do."""

    @abstractmethod
    def take(self, place: Place) -> Taken | None:
        """The batch of a place, and what follows it; None at the end: what is raised never means that."""

    @abstractmethod
    def at(self, state: Mapping[str, Any]) -> tuple[Feed, Any]:
        """What a stream goes on with from a state of it: a feed, this one or one that is ready in its place, and a cursor.

        Raises:
            ValueError: if the state is none of this feed's.
        """

    @abstractmethod
    def reopened(self) -> Feed:
        """The same batches, with threads and processes of its own."""

    @abstractmethod
    def drop(self) -> None:
        """Forgets what was prepared for places to come."""

    @abstractmethod
    def close(self) -> None:
        """Ends threads and processes; what is asked for later starts them again."""
