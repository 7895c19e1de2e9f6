"""Order + source + transforms -> batches: the stream that can say, for every step, which records it has.

Rows come from a `Recipe` (`recipe.py`), are computed ahead (`producer.py`), placed on devices (`placement.py`) and counted when
the loop takes them (`stream.py`). Knows nothing of files, snapshots or processes: which rows are read here is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import jax
import numpy as np
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import ConfigError, InputError, MismatchError
from datarax.core.tree import differences, digest, with_spelled_arrays
from datarax.loader.config import DataLoaderConfig
from datarax.loader.placement import place
from datarax.loader.producer import ReadAhead, Threads, in_turn
from datarax.loader.recipe import Reader, Recipe
from datarax.loader.runtime import Feed, Place, Taken
from datarax.loader.stream import Stream
from datarax.multihost import Slots, chosen_slots
from datarax.order import Digest, Order, RecordKeys, Remainder, Segment, Timeline
from datarax.sources import DataSource
from datarax.sources.records import SAMPLE_VERSION
from datarax.transforms import Transform, check_pipeline, impurities, pipeline_identity
from datarax.transforms.steadiness import Rebuild, Unsteady, unsteady_transforms

_Rows = np.ndarray | Sequence[int] | None
_MOST_TRIED = 256  # each is run four times


class _Settings(NamedTuple):
    """What a loader was given."""

    config: DataLoaderConfig
    source: DataSource
    transforms: tuple[Transform, ...]
    rows: _Rows
    owned: _Rows
    sharding: jax.sharding.Sharding | None
    packages: Sequence[str]
    pipeline: dict[str, Any]
    """Identity of the transforms, asked for once: what the code says now counts, not what an editor makes of it in mid-run."""
    sources: dict[Any, dict[str, Any]]
    """Identity of the source by the version of its sample, each asked for once: it reads records."""

    def recipe(
        self, timeline: Timeline, byte_digest: bool, not_again: tuple[tuple[range, str], ...] = ()
    ) -> Recipe:
        """What makes the rows of a timeline here."""
        config = self.config
        slots = {config.batch_size: chosen_slots(self.rows, self.owned, self.sharding, config.batch_size)}
        for size in {segment.batch_size for segment in timeline.segments} - set(slots):
            if self.rows is None:  # else nobody said which rows of such a batch are read here
                with suppress(ConfigError):
                    slots[size] = chosen_slots(None, None, self.sharding, size)
        return Recipe(
            timeline=timeline,
            sources=(self.source,),
            transforms=self.transforms,
            slots=slots,
            byte_digest=byte_digest,
            not_again=not_again,
        )

    def timeline_from(self, step: int, position: int) -> Timeline:
        """The whole run by this recipe, from a step and a position on."""
        config, source = self.config, self.source
        order = Order(config.order_config(), {source.name: len(source)})
        first = Segment(order=order, batch_size=config.batch_size, first_step=step, first_position=position)
        num_rows = None if config.num_epochs is None else config.num_epochs * order.num_records
        if num_rows is not None and num_rows >= 2**63:
            raise ConfigError(
                f"loader.num_epochs is {config.num_epochs}, which makes {num_rows} rows of {order.num_records} records; fewer "
                "than 2^63 can be counted: ask for fewer, or leave it out for a run that goes on for ever"
            )
        return Timeline(segments=(first,), num_rows=num_rows, remainder=config.remainder)


class _Batches(Feed):
    """The batches of a recipe, read ahead."""

    why_no_length = "this loader has no length: num_epochs is None, so it goes on for ever"

    def __init__(self, settings: _Settings, recipe: Recipe) -> None:
        config = settings.config
        self.settings = settings
        self.recipe: Recipe = recipe
        self.reader = reader = recipe.open()
        self.num_steps = recipe.timeline.num_steps
        self.hashes_bytes = recipe.byte_digest
        owned = recipe.slots[config.batch_size].owned
        self.part = None if len(owned) == config.batch_size else digest(owned.tolist())[:16]
        # Refers to no stream, or the threads would keep it alive.
        self.compute = compute = partial(_taken, reader, settings.sharding)
        self._ahead = ReadAhead(lambda: Threads(compute, config.num_threads), config.read_ahead)

    def take(self, place: Place) -> Taken | None:
        step, ahead = place.step, self._ahead
        if self.num_steps is not None and step >= self.num_steps:
            return None
        return ahead.take(step, self.num_steps) if ahead.depth else self.compute(step)

    def drop(self) -> None:
        self._ahead.drop()

    def close(self) -> None:
        self._ahead.close()

    def reopened(self) -> _Batches:
        return _Batches(self.settings, self.recipe)

    def at(self, state: Mapping[str, Any]) -> tuple[_Batches, None]:
        """See `Feed.at`.

        Each batch had a row or more, by the batch size of its time: behind `idx` batches lie `idx` rows or more, never fewer,
        and behind none none. What fits no timeline that is known here is of a run that was changed on its way.
        """
        idx, position, epoch = state["idx"], state["position"], state["epoch"]
        now, whole = self.recipe.timeline, self.settings.timeline_from(0, 0)
        num_records = now.last.order.num_records
        if epoch != position // num_records:
            raise ValueError(
                f"epoch: {epoch} does not belong to position {position} of a source with {num_records} records"
            )
        if now.num_rows is not None and position > now.num_rows:
            raise ValueError(f"position: {position} is beyond the {now.num_rows} rows of this run")
        if position < idx or (position and not idx):
            raise ValueError(f"idx: {idx} batches cannot have handed over {position} rows")
        for timeline in (now, whole):
            # Only by the own recipe: a state goes on alike in a loader that was used and in a fresh one.
            with suppress(IndexError):
                if timeline.last.first_step <= idx and timeline.position_of(idx) == position:
                    return self.by(timeline), None
        return self.by(self.settings.timeline_from(idx, position)), None  # nothing is known of its past

    def by(self, timeline: Timeline, not_again: tuple[tuple[range, str], ...] = ()) -> _Batches:
        """The feed of another timeline; this one if it is the same."""
        if timeline == self.recipe.timeline and not_again in ((), self.recipe.not_again):
            return self
        return _Batches(self.settings, self.settings.recipe(timeline, self.recipe.byte_digest, not_again))


def _taken(reader: Reader, sharding: jax.sharding.Sharding | None, step: int) -> Taken:
    """The batch of a step, on its devices; runs ahead of need."""
    rows = reader(step)
    return Taken(rows.batch if sharding is None else place(rows.batch, sharding, rows.size), rows, None)


class DataLoader(Stream[Any], pytree=False):  # type: ignore[call-arg]
    """Batches of transformed records in a resumable, addressable order.

    Batch `s` is a pure function of `s`: it never depends on read-ahead, threads, or what was run before. The state
    (`get_state`, `set_state`) counts what was handed over, so a snapshot taken at any moment loses and repeats nothing.
    `position` is the number of global rows handed over, `idx` the number of batches, `epoch` the epoch of the next row,
    `current` the last batch (host arrays).

    Several threads may take from one loader: each batch goes to one of them, and counts once. Which of them gets it is not
    said. Whatever else is asked of a loader comes between two batches; what puts it elsewhere (`set_state`, `seek`, `reset`)
    does so for all of them. After an interrupt (Ctrl-C) inside `next` either nothing has moved, or the state has by one batch,
    which is `current`; the loader goes on.

    Args:
        config: batch size, seed, order, epochs, read-ahead.
        source: where the records are; it stays open when the loader is closed.
        transforms: stages applied in turn, see `datarax.transforms`.
        rows: int64[rows], sorted slots of the global batch [0, batch_size) to read here; by default those that the sharding's
            devices hold in this process, and without a sharding all of them.
        owned: int64[...], sorted, a subset of `rows`: the slots that count here, in digests, counters and statistics, where
            several processes read the same; by default those that the sharding gives to no lower process, without one all rows.
        sharding: if given, batches are global `jax.Array`s under it; else NumPy arrays.
        identity_packages: top-level packages whose code counts by its text in the identity of the transforms although they are
            installed as copies; what is not, and the package that a transform itself lies in, always does.
        rngs: NNX random streams; part of the state, not used by the loader itself.
        name: used in messages.

    Raises:
        ConfigError: if the settings contradict each other or the source.
    """

    state_scope: ClassVar[str] = "global"
    """All processes have one state."""
    addressable: ClassVar[bool] = True
    """It has a timeline."""

    def __init__(
        self,
        config: DataLoaderConfig,
        source: DataSource,
        *,
        transforms: Sequence[Transform] = (),
        rows: np.ndarray | Sequence[int] | None = None,
        owned: np.ndarray | Sequence[int] | None = None,
        sharding: jax.sharding.Sharding | None = None,
        identity_packages: Sequence[str] = (),
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(config, DataLoaderConfig):
            raise TypeError(f"config must be a DataLoaderConfig, got {type(config).__name__}")
        if not isinstance(source, DataSource):
            raise TypeError(
                f"source must be a datarax source (wrap other random-access objects in GrainSource), "
                f"got {type(source).__name__}"
            )
        stages = check_pipeline(transforms)
        pipeline = pipeline_identity(stages, packages=identity_packages)
        settings = _Settings(config, source, stages, rows, owned, sharding, identity_packages, pipeline, {})
        recipe = settings.recipe(settings.timeline_from(0, 0), bool(config.byte_digest))
        super().__init__(config, _Batches(settings, recipe), rngs=rngs, name=name)

    @property
    def _feed(self) -> _Batches:
        return cast(_Batches, self._runtime.tally.feed)

    # Random access

    def batch_at(self, step: int) -> Any:
        """The batch of any step, in this loader's form; the state does not move.

        Raises:
            IndexError: if there is no such step, or nothing is known of it.
            InputError: if it was made by another source or other transforms, naming what differs.
        """
        return self._feed.compute(_checked_step(step)).batch

    def record_keys(self, step: int) -> RecordKeys:
        """Which record each row of `step` is: source int32[rows], index int64[rows], epoch int64[rows].

        Padding has (-1, -1, -1). Reads no data.

        Raises:
            IndexError: if there is no such step, or nothing is known of it.
        """
        return self._feed.reader.keys(_checked_step(step))[0]

    def step_digest(self, step: int, *, with_bytes: bool = False) -> tuple[int, int | None, int]:
        """Digest of one step: sum of key hashes, sum of row hashes (None without `with_bytes`), and rows.

        With `with_bytes` the batch is read and transformed.
        """
        reader, step = self._feed.reader, _checked_step(step)
        if not with_bytes:
            return reader.keys(step)[1], None, reader.recipe.counted_in(range(step, step + 1))
        rows = replace(reader.recipe, byte_digest=True).open()(step)
        return rows.keys, rows.bytes, rows.counted

    def position_of(self, step: int) -> int:
        """The global row at which the batch of `step` begins; at the end of the run the number of all rows.

        Raises:
            IndexError: if `step` is negative or beyond the end (the end itself is allowed), or nothing is known of it.
        """
        return self.timeline.position_of(_checked_step(step))

    @in_turn
    def seek(self, step: int) -> None:
        """Continues with the batch of `step`; counters and digest stay what was really delivered.

        Raises:
            IndexError: as `position_of` does.
        """
        self._go_to(int(step), self.position_of(step))

    # What it is

    @property
    def source(self) -> DataSource:
        """The source that this loader reads."""
        return self._feed.settings.source

    @property
    def slots(self) -> Slots:
        """The slots of the global batch that are read here, and those that count here."""
        return self.recipe.slots[cast(DataLoaderConfig, self.config).batch_size]

    @property
    def order(self) -> Order:
        """The order of this loader's records."""
        return self.timeline.last.order

    @property
    def timeline(self) -> Timeline:
        """Which records each step covers, past and future."""
        return self.recipe.timeline

    @property
    def recipe(self) -> Recipe:
        """What makes the rows of this process: it pickles, and makes the same rows in any other process."""
        return self._feed.recipe

    @in_turn
    def keep_byte_digests(self) -> None:
        """From now on hash every delivered byte, unless the config says whether to.

        For whoever knows that it costs nothing worth naming: a session that trains a task. Call it before the first batch or a
        restore; a digest of a stretch that was delivered without stays without.
        """
        runtime, feed = self._runtime, self._feed
        if feed.settings.config.byte_digest is not None or feed.recipe.byte_digest:
            return
        self._check_shown()
        delivered = runtime.tally.delivered
        if delivered.idx == 0 and delivered.digest.rows == 0:
            delivered = delivered._replace(digest=Digest.zero(with_bytes=True))
            runtime.base = delivered
        self._show_again(delivered, _Batches(feed.settings, replace(feed.recipe, byte_digest=True)))

    def identity(self, *, sample: bool = True, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that can change a batch, as a tree of named values; nothing that cannot.

        Args:
            sample: whether to read the sampled records of the source; without, `sources.<name>.sample` is left out.
            recorded: see `Stream.identity`.
        """
        config, source = self._feed.settings.config, self.source
        identity: dict[str, Any] = {
            "batch_size": config.batch_size,
            "order": self.order.identity(),
            "row_mask": config.remainder is Remainder.PAD,
            "seed": config.seed,
            "sources": {source.name: self._source_by(_of(recorded, "sources", source.name), sample=sample)},
            "pipeline": self._pipeline_by(recorded),
        }
        if config.precomputed_stats is not None:
            identity["precomputed_stats"] = digest(with_spelled_arrays(config.precomputed_stats))
        return identity

    def _source_by(self, recorded: Mapping[str, Any] | None, *, sample: bool) -> dict[str, Any]:
        known = self._feed.settings.sources
        version = 1 if recorded is not None and recorded.get("sample_version") == 1 else SAMPLE_VERSION
        if not sample:
            return self.source.identity_by(recorded, sample=False)
        if version not in known:
            known[version] = self.source.identity_by(recorded)
        return dict(known[version])

    def _pipeline_by(self, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        settings, pipeline = self._feed.settings, _of(recorded, "pipeline")
        if pipeline is None or pipeline.get("version") != 1:
            return settings.pipeline
        return pipeline_identity(settings.transforms, version=1, packages=settings.packages)

    def impurities(self) -> list[str]:
        """A sentence for each place where a transform shows a memory of its own: see `datarax.transforms.impurities`."""
        return impurities(self._feed.settings.transforms, packages=self._feed.settings.packages)

    def unsteady_transforms(self, step: int, *, rebuild: Rebuild | None = None) -> list[Unsteady]:
        """The transforms that do not give the same bytes every time, tried on the first 256 records of a step.

        One that is declared impure may do so, and is left out.

        Args:
            step: any that has records.
            rebuild: makes the transforms anew, for a comparison in a fresh process; None: nothing is compared there.

        Raises:
            InputError: see `datarax.transforms.steadiness.unsteady_transforms`, as all else that is raised.
        """
        keys, order, source = self.record_keys(step), self.order, self.source
        keys = keys[keys.source >= 0][:_MOST_TRIED]
        found = unsteady_transforms(
            self.recipe.transforms,
            source.read(keys.index),
            lambda transform: order.row_seeds(transform.name, keys),
            lambda i: f"{source.name}:{keys.index[i]} (epoch {keys.epoch[i]})",
            rebuild=rebuild,
        )
        impure = {each.name for each in self.recipe.transforms if each.impure}
        return [each for each in found if impure.isdisjoint(each.transform.split(" → "))]

    # State

    def _made_otherwise(
        self, history: Sequence[tuple[int, int, Mapping[str, Any]]], end: int
    ) -> tuple[tuple[range, str], ...]:
        """The steps that were made by other sources or transforms than those of today's identity, and what differs."""
        found = []
        ends = [*(first for first, _, _ in history[1:]), end]
        for (first, _, was), stop in zip(history, ends, strict=True):
            now = self.identity(recorded=was)
            differ = [
                str(each)
                for field in ("sources", "pipeline", "row_mask")
                for each in differences(was.get(field), now.get(field), field)
            ]
            if differ and first < stop:
                found.append((range(first, stop), differ[0]))
        return tuple(found)

    @in_turn
    def recall(self, history: Sequence[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Told by a restore how the steps before were made, so that this loader answers for them too.

        What the records do not explain stays unknown.

        Args:
            history: (first step, first position, identity) of each recipe, ascending.
        """
        feed = self._feed
        here, own = self._runtime.tally.delivered, feed.settings.timeline_from(0, 0)
        try:
            past = Timeline.recorded(history, (here.idx, here.position), _not_known, _not_known)
            timeline = replace(
                past.changed_at(
                    here.idx, here.position, order=own.last.order, batch_size=own.last.batch_size
                ),
                num_rows=own.num_rows,
                remainder=own.remainder,
            )
        except (InputError, MismatchError, KeyError, TypeError):
            return
        not_again = self._made_otherwise(history, here.idx)
        self._show_again(here, feed.by(timeline, not_again))

    # Lifecycle

    @in_turn
    def reset(self) -> None:
        """Back to the first batch of the run; drops the read-ahead. Counters, statistics and digest stay, as in the base class.

        Raises:
            InputError: if the first batch cannot be made again; `copy()` then begins a run of its own.
        """
        timeline, why = self.timeline, None
        if timeline.segments[0].first_step:
            why = f"nothing is known of the steps before {timeline.segments[0].first_step}"
        elif timeline.segments[0].batch_size not in self.recipe.slots:
            why = f"nobody said which rows of its {timeline.segments[0].batch_size} are read here"
        elif self.recipe.not_again and 0 in self.recipe.not_again[0][0]:
            why = self.recipe.not_again[0][1]
        if why is not None:
            raise InputError(
                f"the first batch of this run cannot be made again: {why}; copy() gives a loader that begins a run of its own"
            )
        self.seek(0)

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> DataLoader:
        """A new loader over the same source at step 0, with optional changes; carries no state."""
        own, source, transforms, rows, owned, sharding, packages, *_ = self._feed.settings
        return type(self)(
            own if config is None else cast(DataLoaderConfig, config),
            source,
            transforms=transforms,
            rows=rows,
            owned=owned,
            sharding=sharding,
            identity_packages=packages,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        config, _, _, rows, owned, sharding, packages, *_ = self._feed.settings
        where: dict[str, Any] = {
            "rows": rows,
            "owned": owned,
            "sharding": sharding,
            "identity_packages": packages,
        }
        make = partial(type(self), config, **where, rngs=self.rngs, name=self.name)
        return _unpickled, (make, self.recipe, self.get_state())


def _unpickled(make: Callable[..., DataLoader], recipe: Recipe, state: Any) -> DataLoader:
    loader = make(*recipe.sources, transforms=recipe.transforms)
    loader.set_state(state)
    return loader


def _not_known(steps: Any) -> Any:
    raise InputError(f"some batch of the steps {steps} was padded; which one is not known")


def _of(tree: Any, *path: str) -> Mapping[str, Any] | None:
    """What lies in a recorded tree, if that is a tree again."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else None


def _checked_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
        raise TypeError(f"a step is an int, got {step!r}")
    if step < 0:
        raise IndexError(f"step {step} is negative; steps count from 0")
    return int(step)
