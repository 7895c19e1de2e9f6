"""The one envelope of everything that a training loop takes batches from: what a hand-over counts, and what the state says.

A `Stream` is the module that NNX, snapshots and loops see; a `Feed` (`runtime.py`) makes its batches. A batch counts when the
loop receives it: then one assignment makes the place behind it the stream's. Sums of what was handed over are made when
somebody looks. Read first: `recipe.py`; next: `loader.py`.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
from flax import nnx
from flax.errors import TraceContextError

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import InputError, MismatchError
from datarax.core.module import CheckpointableIteratorModule, HostInt, IterationCount, T_co
from datarax.core.state import read_state, variables_below
from datarax.core.tree import differences, digest
from datarax.core.variables import Held, on_host
from datarax.loader.producer import in_turn
from datarax.loader.runtime import Feed, Place, Runtime, StreamMetrics, Taken, Tally
from datarax.loader.state import spelled, unspelled
from datarax.loader.statistics import Statistics
from datarax.loader.tally import MAX_STEPS, Delivered, StepLog, share, summed
from datarax.order import Digest

STATE_FORMAT = 2
"""Raise this when the meaning of a key of a stream's state changes; `Stream._today_state` then reads the one before too."""
_SAID = frozenset({"format", "identity", "part"})


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
    """See `DataraxModule.unsaved_state`."""
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
        if feed.recipe is not None:
            self.stats_rows = HostInt(0)
        start = Delivered(0, 0, 0, 0, Digest.zero(feed.hashes_bytes))
        self._open(Runtime(start, Tally(start, Place(0, None, None, Statistics()), feed, StepLog())))

    def _open(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.current = Held(lambda: runtime.tally.place.current)
        self._computed_stats = Held(lambda: runtime.tally.place.statistics.total.values(), runtime.set_means)
        self._swap(runtime.tally)

    # Where it is

    def _swap(self, tally: Tally) -> None:
        """What was delivered, and what comes, is from now on this; the variables look it up there."""
        runtime = self._runtime
        before, runtime.tally = runtime.tally, tally
        runtime.prepare(tally)
        for name, content in tally.contents.items():
            vars(self)[name].set_raw_value(content)
        if tally.feed is not before.feed:
            before.feed.close()
        elif tally.log is not before.log:
            tally.feed.drop()

    def _go_to(self, step: int, position: int) -> None:
        """Goes on from another step, without what comes before it; counters and digest stay."""
        now = self._runtime.tally
        place = now.place._replace(step=step, cursor=None, current=None)
        delivered = now.delivered._replace(idx=step, position=position)
        self._swap(Tally(delivered, place, now.feed, StepLog(step)))

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
        function = cast(Any, self.config.batch_stats_fn)
        if function is not None and tally.recipe is not None and rows.counted:
            statistics = statistics.after(function, rows, place.step)
        following = Place(place.step + 1, taken.cursor, rows.batch, statistics)
        tally.log = tally.log.put(place.step, rows.keys, rows.bytes)
        if tally.place is not place:
            raise RuntimeError("another batch was taken within this hand-over; take one at a time")
        # Only this line counts the batch. Ctrl-C before it leaves the stream where it was.
        tally.place = following
        metrics.batches += 1
        metrics.rows += rows.real
        return taken

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
        # Once they are in the sums, and at one stroke: an interrupt finds either all of it or nothing done.
        tally.log = tally.log.since(min(step, delivered.idx), delivered)

    # State

    get_state = in_turn(CheckpointableIteratorModule.get_state)
    """As of every module, between two batches."""
    set_state = in_turn(CheckpointableIteratorModule.set_state)
    """As of every module, between two batches."""
    set_statistics = in_turn(CheckpointableIteratorModule.set_statistics)
    """As of every module, between two batches."""
    reset_statistics = in_turn(CheckpointableIteratorModule.reset_statistics)
    """As of every module, between two batches."""
    clone = in_turn(CheckpointableIteratorModule.clone)
    """As of every module, between two batches."""
    recorded_state = in_turn(CheckpointableIteratorModule.recorded_state)
    """As of every module, between two batches."""

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

    def leave_out_identity(self) -> None:
        """From now on states of this stream say nothing of its identity, and none is compared: its data need not be there.

        For whoever compares identities otherwise, as `verify` does. Other streams refuse such a state.
        """
        self._runtime.identity = {}

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
        if not self._check_shown():
            state = state | {name: vars(self)[name].get_value() for name in self._runtime.tally.contents}
        if self._runtime.tally.place.statistics.total.rows:
            state = {**state, "_is_stats_reset": False}
        return self._said(state)

    def _said(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state that says what it belongs to."""
        return {
            **spelled(state),
            "format": STATE_FORMAT,
            "identity": self._identity_fields(),
            "part": self._runtime.tally.feed.part,
        }

    def _held_state(self, state: Any) -> Any:
        if not isinstance(state, dict) or type(state.get("format")) is not int:
            return state  # of format 1: plain values already
        if missing := sorted(_SAID - state.keys()):
            raise ValueError(f"State keys mismatch at <root>: missing={missing}, extra=[]")
        if state["format"] != STATE_FORMAT:
            raise ValueError(f"format: {state['format']} is not read here, {STATE_FORMAT} is")
        return unspelled(
            {name: value for name, value in state.items() if name not in _SAID},
            now=read_state(variables_below(self)),
        )

    def _today_state(self, state: Any) -> Any:
        if not isinstance(state, dict):
            return state
        if "format" not in state:
            state = {**self._said(state), "part": None}
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
        place = Place(state["idx"], None, None, Statistics.restored(state["_computed_stats"], rows))
        feed, cursor = feed.at(state)
        hashed = state["digest_bytes"] if feed.hashes_bytes else None
        delivered = Delivered(
            idx=place.step,
            position=state["position"],
            applied=int(state["_applied_count"]),
            skipped=int(state["_skipped_count"]),
            digest=Digest(state["digest_rows"], state["digest_keys"], hashed),
        )
        self._runtime.prepare(Tally(delivered, place._replace(cursor=cursor), feed, StepLog(place.step)))

    def _state_restored(self) -> None:
        runtime = self._runtime
        runtime.base = runtime.prepared.delivered
        self._swap(runtime.prepared)

    def _check_shown(self) -> bool:
        """Sees to it that the variables show what was delivered; whether they did already.

        Raises:
            RuntimeError: if they say something else.
        """
        runtime, held = self._runtime, vars(self)
        if all(held[name].get_raw_value() is content for name, content in runtime.tally.contents.items()):
            return True
        # A transform brings the same numbers back; a merged copy of this stream has variables of its own.
        now = runtime.tally.delivered
        if self.idx.get_value() != now.idx or self.position.get_value() != now.position:
            raise RuntimeError(
                f"this stream has handed over {now.idx} batches, but its variables say {self.idx.get_value()}: they were "
                f"written from outside, or a merged copy shares this stream; use seek(), set_state() or clone()"
            )
        self._show_again(now)
        return False

    @in_turn
    def contribution(self) -> dict[str, Any]:
        """What this process has added since the last restore or the beginning, and what it must have in common with others.

        Values with JSON; see `combined`.
        """
        runtime = self._runtime
        return share(
            runtime.base,
            runtime.tally.delivered,
            runtime.tally.place.statistics,
            self.get_state(),
            # With a function each process averages statistics of its own rows, even if it had no row so far.
            own_means=self.config.batch_stats_fn is not None,
        )

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
        runtime = self._runtime
        totals, digest = summed(contributions, runtime.base, runtime.tally.place.statistics.base)
        return {**self.get_state(), **totals, "part": None}, digest.to_state()

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
        runtime.prepare(runtime.tally)
        runtime.tally.feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
