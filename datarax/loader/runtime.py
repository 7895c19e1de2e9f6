"""What is open behind a stream, apart from the module that NNX sees: the feed of its batches, its place, and what it counts.

`DataLoader` and `GrainPipeline` bring a `Feed` each. Knows nothing of states and identities. Read first: `tally.py`; next:
`stream.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from datarax.core.variables import looked_up
from datarax.loader.producer import Turns
from datarax.loader.recipe import HostRows, Recipe
from datarax.loader.statistics import Statistics
from datarax.loader.tally import Delivered, StepLog
from datarax.order import Digest


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


class Tally:
    """What was handed over as of now, and the contents of a stream's variables; left behind, it keeps what it said last.

    A hand-over writes into the log and then swaps the place, and only that counts. Sums go on from the last look, so a look
    costs what was delivered since: made at each hand-over they would cost a small batch more than its digest does. A look
    changes no answer, so a signal's handler may look at any moment. NNX looks here too: to set a variable costs 3 us and more,
    so the variables of a stream hold content that looks into a tally when asked.

    Args:
        delivered: what to begin with.
        place: the same place.
        feed: of the batches from there on.
        log: of the steps from there on.
    """

    def __init__(self, delivered: Delivered, place: Place, feed: Feed, log: StepLog) -> None:
        self.place = place
        self.log = log
        self.feed = feed
        self.recipe = recipe = feed.recipe
        self._summed = delivered
        self.contents: dict[str, Any] = {
            "idx": looked_up(lambda: self.place.step),
            "position": looked_up(lambda: self.position),
            "epoch": None
            if recipe is None
            else looked_up(lambda: self.position // recipe.timeline.last.order.num_records),
            "_applied_count": looked_up(lambda: self.delivered.applied),
            "_skipped_count": looked_up(lambda: self.delivered.skipped),
            "digest_rows": looked_up(lambda: self.delivered.digest.rows),
            "digest_keys": looked_up(lambda: self.delivered.digest.keys),
            # None is no number that could be looked up; only a restore brings another kind.
            "digest_bytes": None
            if delivered.digest.bytes is None
            else looked_up(lambda: self.delivered.digest.bytes or 0),
        }
        """The raw content of each variable, by the name of the attribute that holds it."""
        if recipe is not None:
            self.contents["stats_rows"] = looked_up(lambda: self.place.statistics.total.rows)

    @property
    def position(self) -> int:
        """Where the next step begins."""
        summed, step = self._summed, self.place.step
        if self.recipe is None:
            return step
        return summed.position if step == summed.idx else self.recipe.timeline.position_of(step)

    @property
    def delivered(self) -> Delivered:
        """All that was handed over."""
        summed, step = self._summed, self.place.step
        if step == summed.idx:
            return summed
        log = self.log  # after the step, so that it has it
        if summed.idx < log.first and log.known is not None:
            # Another thread has dropped steps since, or a slower one has left an older sum here.
            summed = log.known
        if step <= summed.idx:
            return summed
        keys, hashed = log.sums(summed.idx, step)
        steps, recipe = range(summed.idx, step), self.recipe
        digest, rows = summed.digest, len(steps) if recipe is None else recipe.counted_in(steps)
        # A stretch without byte digests leaves none: a sum over some of the rows would compare with nothing.
        if digest.bytes is None or hashed is None:
            digest, hashed = Digest(digest.rows, digest.keys, None), None
        made = Delivered(
            step,
            step if recipe is None else recipe.timeline.position_of(step),
            summed.applied + rows,
            summed.skipped,
            digest.add(keys, hashed, rows),
        )
        self._summed = made  # one assignment; an older sum that a slower thread puts here is as right
        return made


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

    def set_means(self, means: Any) -> None:
        """Has these in their place, until the next batch."""
        self.tally.place = self.tally.place._replace(statistics=Statistics.restored(means, 0))
