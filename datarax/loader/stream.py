"""The one envelope of everything that a training loop takes batches from: what a hand-over counts, and what the state says.

A `Stream` is the module that NNX, snapshots and loops see; a `Feed` makes its batches and says how their steps are counted:
`DataLoader` and `GrainPipeline` bring one each. A batch counts when the loop receives it: then one assignment makes the place
behind it the stream's. Read first: `recipe.py`; next: `loader.py`.
"""

from __future__ import annotations

import copy
import functools
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, cast

import jax
import numpy as np
from flax import nnx
from flax.errors import TraceContextError

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import InputError, MismatchError, tell_where
from datarax.core.module import CheckpointableIteratorModule, HostInt, IterationCount, T_co
from datarax.core.state import read_state, variables_below
from datarax.core.tree import ARRAYS, EncodingError, decode, differences, digest, encode
from datarax.core.variables import Held, looked_up, on_host
from datarax.loader.producer import Turns
from datarax.loader.recipe import HostRows, Recipe
from datarax.loader.tally import MAX_STEPS, Delivered, Statistics, StepLog
from datarax.order import Digest

# Of a state, what each process has of its own; the rest is the same on all.
_OWN = frozenset(
    {
        "_applied_count",
        "_skipped_count",
        "digest_rows",
        "digest_keys",
        "digest_bytes",
        "_is_stats_reset",
        "part",
    }
)
_OWN_MEANS = frozenset({"_computed_stats", "stats_rows"})
_WRAP = (1 << 64) - 1

STATE_FORMAT = 2
"""Raise this when the meaning of a key of a stream's state changes; `Stream._today_state` then reads the one before too."""
_SUMS = ("digest_keys", "digest_bytes")
_SAID = frozenset({"format", "identity", "part"})


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
    """Where batches come from: makes that of any place, and says how steps are counted. What it says never changes."""

    recipe: Recipe | None
    """Which rows each step has; None if each step counts as one row, and there are no epochs."""
    num_steps: int | None
    """Batches of the whole run; None if there is no end, or none that is known."""
    why_no_length: str
    """What is said to whoever asks for the length then."""
    hashes_bytes: bool
    """Whether the rows of every step are hashed."""
    part: str | None = None
    """Names the rows of a batch that count here, 16 hex digits; None if all of them do."""
    averages: ClassVar[bool]
    """Whether `batch_stats_fn` is called on each batch, and means over their rows are kept."""

    @abstractmethod
    def take(self, place: Place) -> Taken | None:
        """The batch of a place, and what follows it; None at the end: what is raised never means that."""

    @abstractmethod
    def at(self, state: Mapping[str, Any]) -> Feed:
        """The feed of what follows a state of its stream: this one, or one that is ready in its place.

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
        if feed.averages:
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
        kept = self.log.kept  # after the step, so that it has it
        if summed.idx < kept.first and kept.known is not None:
            # Another thread has dropped steps since, or a slower one has left an older sum here.
            summed = kept.known
        if step <= summed.idx:
            return summed
        keys, hashed = kept.sums(summed.idx, step)
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


class _OfPlace:
    """A field of the runtime's place as an attribute that can be set: what a `Held` variable reads and a restore writes."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, runtime: Runtime, owner: type) -> Any:
        value = getattr(runtime.tally.place, self._name)
        return value.total.values() if self._name == "statistics" else value

    def __set__(self, runtime: Runtime, value: Any) -> None:
        value = Statistics.restored(value, 0) if self._name == "statistics" else value
        runtime.tally.place = runtime.tally.place._replace(**{self._name: value})


class Runtime:
    """What is open behind a stream, apart from NNX, which sees it as static and compares it by identity.

    Args:
        base: what all processes have in common.
        tally: of what was handed over.
    """

    current, cursor, statistics = _OfPlace(), _OfPlace(), _OfPlace()

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
        self.prepared = tally.feed
        """The feed of a state that was found good and is not restored yet; else the tally's."""

    def prepare(self, feed: Feed) -> None:
        """Keeps a feed for a restore to come, in place of the one that was kept."""
        before, self.prepared = self.prepared, feed
        if before is not self.tally.feed:
            before.close()


F = TypeVar("F", bound=Callable[..., Any])


def in_turn(method: F) -> F:
    """A method of a stream that is called alone: between the hand-overs of other threads, and all else that is in turn."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._runtime.turns.call(partial(method, self, *args, **kwargs))

    return cast(F, called)


class Stream(CheckpointableIteratorModule[T_co], pytree=False):  # type: ignore[call-arg]
    """Batches, one after the other, with a state that counts what was handed over: see `DataLoader` and `GrainPipeline`.

    To JAX a stream is a leaf and no pytree; to NNX a module as any other. `current` is the last batch (host arrays); in a state
    it is None, for a batch is data.

    A state is plain JSON: ints, and each sum of a digest as 16 hex digits; floats, arrays and random keys as
    `datarax.core.tree.encode` spells them. Beside what the variables hold it says `format`, `identity` (field -> 16 hex digits)
    and `part` (16 hex digits that name the rows of a batch which its counts are about, None for all of them); what is of
    another identity or part is refused.

    Args:
        config: the settings.
        feed: where the batches come from, at its beginning.
        rngs: NNX random streams; part of the state.
        name: used in messages.
    """

    unsaved_state: ClassVar[frozenset[str]] = frozenset({"current"})
    state_format: ClassVar[int] = STATE_FORMAT
    """Of `get_state()`, which has JSON."""
    addressable: ClassVar[bool]
    """Whether it has a timeline: keys of any step without a read, seek, search."""

    def __init__(
        self,
        config: DataraxModuleConfig,
        feed: Feed,
        *,
        rngs: nnx.Rngs | None,
        name: str | None,
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self._applied_count = IterationCount(np.asarray(0, np.int64))
        self._skipped_count = IterationCount(np.asarray(0, np.int64))
        self.digest_rows = HostInt(0)
        self.digest_keys = HostInt(0)
        self.digest_bytes = HostInt(None)
        if feed.averages:
            self.stats_rows = HostInt(0)
        start = Delivered(0, 0, 0, 0, Digest.zero(feed.hashes_bytes))
        self._open(Runtime(start, Tally(start, Place(0, None, None, Statistics()), feed, StepLog())))

    def _open(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.current = Held(runtime, "current")
        self._computed_stats = Held(runtime, "statistics")
        self._swap(runtime.tally)

    # Where it is

    def _swap(self, tally: Tally) -> None:
        """What was delivered, and what comes, is from now on this; the variables look it up there."""
        runtime = self._runtime
        before, runtime.tally = runtime.tally, tally
        runtime.prepare(tally.feed)
        for name, content in tally.contents.items():
            vars(self)[name].set_raw_value(content)
        if tally.feed is not before.feed:
            before.feed.close()

    def _go_on_from(self, delivered: Delivered, feed: Feed, cursor: Any = None) -> None:
        """`delivered` is from now on what was received, wherever that is; log and contents start anew."""
        before = self._runtime.tally
        here = before.place._replace(step=delivered.idx, cursor=cursor, current=None)
        self._swap(Tally(delivered, here, feed, StepLog(delivered.idx)))
        if feed is before.feed:
            feed.drop()

    def _show_again(self, delivered: Delivered, feed: Feed | None = None) -> None:
        """`delivered`, of as many steps as before, is what was received; contents that looked before keep what they showed.

        With a feed, batches come from that one from now on.
        """
        before = self._runtime.tally
        self._swap(Tally(delivered, before.place, feed or before.feed, before.log))

    # Iteration

    def __len__(self) -> int:
        """Batches in the whole run.

        Raises:
            TypeError: if there is no end, or none that is known before it comes.
        """
        if self.num_steps is None:
            raise TypeError(self._runtime.tally.feed.why_no_length)
        return self.num_steps

    def __bool__(self) -> bool:
        """True: an endless stream has no length to ask."""
        return True

    def __next__(self) -> T_co:
        """The next batch; only now does the state count it. Each goes to one thread, whichever ask.

        Raises:
            StopIteration: after the last batch.
            TraceContextError: inside a jax transform, which would see one and the same batch for ever.
            RuntimeError: if another batch was taken from within this hand-over, by a signal's handler or a transform; or in
                place of what would end the loop in silence, as a StopIteration of the user's code.
            Exception: what a read or a transform raised, with notes naming step and record; the state has not moved,
                so the same batch may be asked for again.
        """
        taken = self._runtime.turns.call(self._hand_over)
        if taken is None:
            raise StopIteration
        return cast(T_co, taken.batch)

    def _hand_over(self) -> Taken | None:
        runtime = self._runtime
        tally = runtime.tally
        # Two of nine, because looks at all of them would cost a batch more than its digest.
        if (
            self.idx.get_raw_value() is not tally.contents["idx"]
            or self.position.get_raw_value() is not tally.contents["position"]
        ):
            self._check_shown()
            tally = runtime.tally
        if not on_host():
            raise TraceContextError("a batch cannot be taken inside a jax transform; take it before the call")
        place = tally.place
        if place.step % MAX_STEPS == 0:  # nobody may ever say "committed"
            self._forget_before(place.step - MAX_STEPS)
        asked = time.perf_counter()
        taken = tally.feed.take(place)
        metrics = runtime.metrics
        metrics.wait_seconds += time.perf_counter() - asked
        if taken is None:
            return None
        rows, statistics = taken.rows, place.statistics
        if self.config.batch_stats_fn is not None and tally.feed.averages and rows.counted:
            statistics = self._statistics_after(rows, place)
        following = Place(place.step + 1, taken.cursor, rows.batch, statistics)
        tally.log.put(place.step, rows.keys, rows.bytes)
        if tally.place is not place:
            raise RuntimeError("another batch was taken within this hand-over; take one at a time")
        # Only this line counts the batch. Ctrl-C before it leaves the stream where it was.
        tally.place = following
        metrics.batches += 1
        metrics.rows += rows.real
        return taken

    def _statistics_after(self, rows: HostRows, place: Place) -> Statistics:
        try:
            owned = rows.owned
            host = rows.batch if owned is None else jax.tree.map(lambda leaf: leaf[owned], rows.batch)
            return place.statistics.after(cast(Any, self.config.batch_stats_fn)(host), rows.counted)
        except BaseException as error:
            tell_where(error, f"in batch_stats_fn, on the batch of step {place.step}")
            raise

    @in_turn
    def reset_operation_stats(self) -> None:
        """Set both counters to zero; the digest keeps all rows."""
        runtime = self._runtime
        self._check_shown()
        runtime.base = runtime.base._replace(applied=0, skipped=0)
        self._show_again(runtime.tally.delivered._replace(applied=0, skipped=0))

    # What it did

    @property
    def num_steps(self) -> int | None:
        """Batches of the whole run; None if there is no end, or none that is known before it comes."""
        return self._runtime.tally.feed.num_steps

    @property
    def metrics(self) -> StreamMetrics:
        """Live counters: batches, rows, seconds waited."""
        return self._runtime.metrics

    @property
    def digest(self) -> Digest:
        """Digest of everything handed over: up to the last restore by all processes, since then of the rows that count here."""
        return self._runtime.tally.delivered.digest

    @in_turn
    def take_step_digests(self) -> tuple[int, np.ndarray, np.ndarray, bool]:
        """Per-step digests since the last committed snapshot.

        Returns:
            The first step, uint64[steps] sums of key hashes, uint64[steps] sums of row hashes (0 where bytes were not
            digested), and whether every one of the steps has its bytes digested.
        """
        tally = self._runtime.tally
        return tally.log.arrays(tally.place.step)

    @in_turn
    def committed(self, step: int) -> None:
        """Told by the checkpointer once the snapshot after `step` steps is safe: older digests may go."""
        self._forget_before(step)

    def _forget_before(self, step: int) -> None:
        tally = self._runtime.tally
        delivered = tally.delivered
        tally.log.forget_before(min(step, delivered.idx), delivered)  # once they are in the sums

    # State

    get_state = in_turn(CheckpointableIteratorModule.get_state)
    set_state = in_turn(CheckpointableIteratorModule.set_state)
    set_statistics = in_turn(CheckpointableIteratorModule.set_statistics)
    reset_statistics = in_turn(CheckpointableIteratorModule.reset_statistics)
    clone = in_turn(CheckpointableIteratorModule.clone)
    recorded_state = in_turn(CheckpointableIteratorModule.recorded_state)

    def _state_asked(self) -> None:
        self._check_shown()
        if self._runtime.tally.place.statistics.total.rows:
            self._is_stats_reset.set_value(False)

    @abstractmethod
    def identity(self, *, recorded: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Everything that can change a batch, as a tree of named values; nothing that cannot.

        Args:
            recorded: an identity of this stream; what it says of its versions is followed, so that the two can be compared.
        """

    def _identity_fields(self) -> dict[str, str]:
        runtime = self._runtime
        if runtime.identity is None:
            runtime.identity = {name: digest(tree)[:16] for name, tree in self.identity().items()}
        return dict(runtime.identity)

    def adopt(
        self, state: dict[str, Any], *, allow_changed: Sequence[str] = (), identity: str = "checked"
    ) -> None:
        """`set_state` for a state that is known to belong here though its identity, or a part of it, says something else.

        Args:
            state: of any format.
            allow_changed: fields of the identity that may differ.
            identity: "unchecked" takes a state whatever its identity, also one of format 1, which has none.

        Raises:
            InputError: if `identity` is neither "checked" nor "unchecked", or there is no such field.
            TypeError: as `set_state`.
            ValueError: as `set_state`.
        """
        own = self._identity_fields()
        if identity not in ("checked", "unchecked"):
            raise InputError(f'identity must be "checked" or "unchecked", got {identity!r}')
        if unknown := sorted(set(allow_changed) - set(own)):
            raise InputError(f"allow_changed names {unknown[0]!r}; the fields are {', '.join(sorted(own))}")
        if isinstance(state, dict) and identity == "unchecked":
            state = self.recorded_state({key: value for key, value in state.items() if key != "identity"})
        elif isinstance(state, dict) and isinstance(state.get("identity"), dict):
            state = {
                **state,
                "identity": {**state["identity"], **{name: own[name] for name in allow_changed}},
            }
        self.set_state(state)

    def _spelled_state(self, state: dict[str, Any]) -> dict[str, Any]:
        spelled = {name: encode(_plain_numbers(value), name) for name, value in state.items()}
        for name in _SUMS:
            if type(state.get(name)) is int:
                spelled[name] = f"{state[name]:016x}"
        said = {"format": STATE_FORMAT, "identity": self._identity_fields()}
        return {**spelled, **said, "part": self._runtime.tally.feed.part}

    def _held_state(self, state: Any) -> Any:
        if not isinstance(state, dict) or type(state.get("format")) is not int:
            return state  # of format 1: plain values already
        if missing := sorted(_SAID - state.keys()):
            raise ValueError(f"State keys mismatch at <root>: missing={missing}, extra=[]")
        if state["format"] != STATE_FORMAT:
            raise ValueError(f"format: {state['format']} is not read here, {STATE_FORMAT} is")
        now = read_state(variables_below(self))
        held = {name: value for name, value in state.items() if name not in _SAID}
        for name, value in held.items():
            held[name] = _numbers_as(now.get(name), _decoded(value, name))
            if name in _SUMS and value is not None:
                if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{16}", value):
                    raise ValueError(f"{name}: expected 16 hex digits or None, got {value!r}")
                held[name] = int(value, 16)
        return held

    def _today_state(self, state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        if "format" not in state:
            state = {**self._spelled_state(state), "part": None}
        return {"identity": self._identity_fields(), "part": None, **state}

    def _validate_state(self, state: dict[str, Any]) -> None:
        if "format" not in state:
            raise MismatchError(
                "this state is of format 1, which does not say what data it belongs to; if it belongs to this stream, take it "
                'over with adopt(state, identity="unchecked"); the snapshot that it is from can be restored as it is'
            )
        feed = self._runtime.tally.feed
        if found := differences(state["identity"], self._identity_fields(), "identity"):
            raise MismatchError(
                "the state belongs to other data; make the stream as it was made then, or take over what was changed on "
                "purpose with adopt(state, allow_changed=[field])",
                found,
            )
        if state["part"] not in (None, feed.part):
            raise ValueError(
                f"part: the state counts the rows of part {state['part']} of each batch, this stream those of "
                f"{feed.part or 'all'}; give each process its own state, or that of all of them together"
            )
        state = self._held_state(state)
        for field in self._runtime.tally.contents:
            if state[field] is None and field not in ("epoch", "digest_bytes"):
                raise ValueError(f"{field}: expected an int, got None")
            # Counts stop below the end of int64: what comes after them must fit as well.
            bits = 64 if field in ("digest_keys", "digest_bytes") else 62
            if int(state[field] or 0) >= 1 << bits:
                raise ValueError(f"{field}: {state[field]} does not fit {bits} bits")
        rows = state.get("stats_rows", 0)
        if rows and (state["_is_stats_reset"] or not isinstance(state["_computed_stats"], dict)):
            raise ValueError(f"_computed_stats: there are no means of the {rows} stats_rows")
        Statistics.restored(state["_computed_stats"], rows)
        self._runtime.prepare(self._runtime.tally.feed.at(state))

    def _state_restored(self) -> None:
        runtime = self._runtime
        # What a restore has just written; `_validate_state` has seen to it that no count is None.
        said = {name: getattr(self, name).get_value() for name in runtime.tally.contents}
        hashed = said["digest_bytes"] if runtime.prepared.hashes_bytes else None
        digest = Digest(said["digest_rows"], said["digest_keys"], hashed)
        counts = int(said["_applied_count"]), int(said["_skipped_count"])
        runtime.base = Delivered(said["idx"], said["position"], *counts, digest)
        statistics = Statistics.restored(runtime.statistics, said.get("stats_rows", 0))
        runtime.tally.place = runtime.tally.place._replace(statistics=statistics)
        self._go_on_from(runtime.base, runtime.prepared, runtime.cursor)

    def _check_shown(self) -> None:
        """Sees to it that the variables show what was delivered.

        Raises:
            RuntimeError: if they say something else.
        """
        runtime, held = self._runtime, vars(self)
        if all(held[name].get_raw_value() is content for name, content in runtime.tally.contents.items()):
            return
        # A transform brings the same numbers back; a merged copy of this stream has variables of its own.
        now = runtime.tally.delivered
        if self.idx.get_value() != now.idx or self.position.get_value() != now.position:
            raise RuntimeError(
                f"this stream has handed over {now.idx} batches, but its variables say {self.idx.get_value()}: they were "
                f"written from outside, or a merged copy shares this stream; use seek(), set_state() or clone()"
            )
        self._show_again(now)

    # Many processes: the state that all share (that of the last restore, or of the beginning) is counted once; each adds what
    # it has delivered since.

    @in_turn
    def contribution(self) -> dict[str, Any]:
        """What this process has added since the last restore or the beginning, and what it must have in common with others.

        Values with JSON; see `combined`.
        """
        runtime, state = self._runtime, self.get_state()
        base, now, statistics = runtime.base, runtime.tally.delivered, runtime.tally.place.statistics
        # With a function each process averages statistics of its own rows, even if it had no row so far.
        own = _OWN if self.config.batch_stats_fn is None else _OWN | _OWN_MEANS
        began = [
            base.digest.to_state(),
            base.applied,
            base.skipped,
            statistics.base.rows,
            statistics.base.values(),
        ]
        return {
            "idx": now.idx,
            "position": now.position,
            "the state they began with": digest(encode(began))[:16],
            "the rest of the state": digest(encode({k: v for k, v in state.items() if k not in own}))[:16],
            "applied": now.applied - base.applied,
            "skipped": now.skipped - base.skipped,
            "rows": now.digest.rows - base.digest.rows,
            "keys": (now.digest.keys - base.digest.keys) & _WRAP,
            # All rows since are hashed if those before were, and none if not.
            "bytes": None
            if base.digest.bytes is None
            else (cast(int, now.digest.bytes) - base.digest.bytes) & _WRAP,
            "means": encode([statistics.added.values(), statistics.added.rows]),
        }

    @in_turn
    def combined(
        self, contributions: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        """The state and the digest as if one process had read all rows.

        Counters and digests are sums over the rows that each process owns, so they are exact whoever read what; running means
        agree with those of one process within rounding.

        Args:
            contributions: one of each process, in the order of processes.

        Raises:
            ValueError: if they are not of one moment, naming what differs.
        """
        for name in ("idx", "position", "the state they began with", "the rest of the state"):
            values = [each[name] for each in contributions]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} differs between the processes: {', '.join(map(str, values[:8]))}")
        runtime, state = self._runtime, self.get_state()
        base, means = runtime.base, runtime.tally.place.statistics.base
        total = base.digest
        for each in contributions:
            total = total.add(each["keys"], each["bytes"], each["rows"])
            added, rows = decode(each["means"])
            means = means.after(added, rows) if rows else means
        state["_applied_count"] = base.applied + sum(each["applied"] for each in contributions)
        state["_skipped_count"] = base.skipped + sum(each["skipped"] for each in contributions)
        state["digest_rows"], state["digest_keys"] = total.rows, f"{total.keys:016x}"
        state["digest_bytes"] = None if total.bytes is None else f"{total.bytes:016x}"
        state["part"] = None
        if len(contributions) > 1 and means.rows:
            state["_computed_stats"], state["stats_rows"] = encode(means.values()), means.rows
        return state, total.to_state()

    # Lifecycle

    def _cloned(self) -> None:
        self._runtime = shared = copy.copy(self._runtime)  # what is put right here is the clone's
        self._check_shown()
        before, place = shared.tally, shared.tally.place
        here = place._replace(cursor=copy.deepcopy(place.cursor), current=None)
        tally = Tally(before.delivered, here, before.feed.reopened(), StepLog(place.step))
        self._open(Runtime(shared.base, tally))

    @in_turn
    def close(self) -> None:
        """Ends threads and processes. What it reads stays open; it belongs to whoever made it."""
        runtime = self._runtime
        runtime.prepare(runtime.tally.feed)
        runtime.tally.feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _decoded(value: Any, name: str) -> Any:
    """What `encode` made this of.

    Raises:
        ValueError: if it made it of nothing.
    """
    decoded = decode(value)
    try:
        as_made = encode(decoded, name) == value
    except EncodingError as error:
        raise ValueError(str(error)) from error
    if not as_made:
        raise ValueError(f"{name}: {value!r} is not spelled as in a state")
    return decoded


def _plain_numbers(tree: Any) -> Any:
    """The tree with each integer array of shape () as an int."""
    if isinstance(tree, dict):
        return {key: _plain_numbers(value) for key, value in tree.items()}
    return int(tree) if _is_integer(tree) else tree


def _numbers_as(held: Any, value: Any) -> Any:
    """The way back from `_plain_numbers`: each int as an array like the one that is held there now.

    Raises:
        ValueError: if it does not fit the dtype.
    """
    if isinstance(held, dict) and isinstance(value, dict):
        return {key: _numbers_as(held.get(key), each) for key, each in value.items()}
    if not _is_integer(held) or type(value) is not int:
        return value
    try:
        return (jax.numpy.asarray if isinstance(held, jax.Array) else np.asarray)(value, held.dtype)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _is_integer(value: Any) -> bool:
    return isinstance(value, ARRAYS) and value.shape == () and jax.numpy.issubdtype(value.dtype, np.integer)
