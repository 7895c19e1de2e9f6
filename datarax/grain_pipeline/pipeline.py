"""An existing Grain pipeline as a stream: its elements, and a state that continues it exactly.

What a hand-over counts is `loader/stream.py`'s to say; what the pipeline is made of and how it is restored live in `graph.py`,
`identity.py` and `iterators.py`. Knows nothing of snapshots and processes.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import jax
import numpy as np
from flax import nnx

from datarax.core.config import Checked, DataraxModuleConfig, Positive, Text
from datarax.core.errors import InputError, tell_where
from datarax.core.tree import ARRAYS, check_plain, hash_tree
from datarax.core.variables import Held
from datarax.grain_pipeline.graph import ENDLESS, Shard, all_stages, is_grains, read_pipeline
from datarax.grain_pipeline.identity import (
    RULES_VERSION,
    check_resumable,
    num_elements,
    stages_identity,
    stages_impurities,
    warnings_of,
)
from datarax.grain_pipeline.iterators import close, is_end, opened, state_of
from datarax.loader.producer import in_turn
from datarax.loader.recipe import HostRows
from datarax.loader.runtime import Feed, Place, Runtime, Taken
from datarax.loader.stream import Stream
from datarax.order import id64, key_hashes, row_hashes
from datarax.order.digest import has_fixed_bytes

_OF_WHAT_THEY_TAKE = frozenset({"BatchIterDataset", "FilterIterDataset", "MapIterDataset"})
"""Stages whose state is that of the stage below, of which each element takes one or more."""
_KEY_BLOCK = 1024  # a key hash costs 15 µs alone and 10 ns in a block


@dataclass(frozen=True, kw_only=True)
class GrainPipelineConfig(DataraxModuleConfig):
    """Settings of a `GrainPipeline`.

    Raises:
        ConfigError: if a field has the wrong kind or range.
    """

    name: Text = "grain"
    """The pipeline's name: part of the identity and of every digest."""
    version: Text | int | None = None
    """Stands for what cannot be read of the pipeline (functions without source text, sources without plain records, stages
    that are not Grain's own); raise it whenever that changes. Functions are then not read at all."""
    impure: Checked[bool] = False
    """Whether functions may keep something between their calls (a global generator, a counter); else a new run refuses that."""
    identity_packages: tuple[str, ...] = ()
    """Top-level packages whose code counts by its text although they are installed as copies."""
    num_steps: Positive | None = None
    """Elements of the whole run; None for as many as the pipeline has. Never identity."""


class _Elements(Feed):
    """The elements of one pipeline; a place's cursor is Grain's state there, None for a fresh iterator.

    Raises:
        TypeError: if the pipeline is none of Grain's, or an iterator.
        ConfigError: if it cannot be described or cannot be resumed.
    """

    recipe = None
    hashes_bytes = True

    def __init__(self, config: GrainPipelineConfig, name: str, pipeline: Any) -> None:
        node = read_pipeline(pipeline)
        owner = f"Grain pipeline {name!r}"
        check_resumable(node, owner)
        self.read_by = functools.partial(
            stages_identity,
            node,
            owner,
            declared=config.version is not None,
            packages=config.identity_packages,
        )
        """Makes the identity of the stages, by the rules of a version."""
        # Once: what code and data say now counts, not what becomes of them in mid-run.
        self.identity = {
            "kind": "grain_pipeline",
            "name": name,
            "rules": RULES_VERSION,
            "version": config.version,
            "pipeline": self.read_by(rules=RULES_VERSION),
            **({"impure": True} if config.impure else {}),
        }
        self.impurities = [] if config.impure else stages_impurities(node, owner, config.identity_packages)
        self.name = name
        self.why_no_length = f"{owner} has no length that is known; say num_steps in its config"
        self.pipeline = pipeline
        count = num_elements(node) if config.num_steps is None else config.num_steps
        self.num_steps = None if count == ENDLESS else count
        self.shards: dict[str, Shard] = {
            path: stage.shard for path, stage in all_stages(node) if stage.shard is not None
        }
        """Which shard each stage takes that takes one, by its path."""
        self.node = node
        self._open: tuple[int, Any] | None = None
        """How many elements an iterator has given, and the iterator."""
        self._end: int | None = None
        self._part = next((index for index, _ in self.shards.values()), 0)

    def take(self, place: Place) -> Taken | None:
        """The next element, and Grain's state after it.

        Whatever is raised on the way, the iterator is given up: the next call goes on from the place's state with a fresh one.

        Raises:
            Exception: what Grain or the user's functions raise; a StopIteration of such a function as a RuntimeError.
        """
        step = place.step
        if step == self._end or (self.num_steps is not None and step >= self.num_steps):
            return None
        try:
            if self._open is None or self._open[0] != step:
                # None yet, or Ctrl-C came between an element and its hand-over: it would be left out.
                self.drop()
                self._open = step, opened(self.pipeline, self.node, place.cursor)
            iterator = self._open[1]
            element = next(iterator)
            state = state_of(iterator)
            rows = HostRows(
                element,
                1,
                int(_key_hashes(self.name, self._part, step // _KEY_BLOCK)[step % _KEY_BLOCK]),
                element_hash(element, step),
                None,
                1,
                _num_rows(element),
            )
            self._open = step + 1, iterator
        except BaseException as error:
            self.drop()
            if isinstance(error, StopIteration) and is_end(error):
                self._end = step
                return None
            tell_where(error, f"in Grain pipeline {self.name!r}, element {step}")
            raise
        return Taken(element, rows, state)

    def drop(self) -> None:
        if self._open is not None:
            iterator, self._open = self._open[1], None
            close(iterator)
        self._end = None

    close = drop  # what was prepared is all that is open

    def reopened(self) -> _Elements:
        made = copy.copy(self)
        made._open = made._end = None
        return made

    def at(self, state: Mapping[str, Any]) -> tuple[_Elements, Any]:
        idx, grain_state, given = state["idx"], state["grain_state"], state["shards"]
        for broken, told in (
            (state["digest_bytes"] is None, "digest_bytes: expected an int, got None"),
            (
                state["position"] != idx,
                f"position: {state['position']} is not idx ({idx}), the number of elements handed over",
            ),
            (
                self.num_steps is not None and idx > self.num_steps,
                f"idx: {idx} elements were handed over, but this pipeline has {self.num_steps}",
            ),
            (state["epoch"] is not None, f"epoch: a Grain pipeline has none, got {state['epoch']}"),
            (
                not isinstance(given, dict) or set(given) != set(self.shards),
                f"shards: this pipeline is sharded at {sorted(self.shards)}, the state says {given!r}; it belongs to another "
                f"pipeline",
            ),
            (
                type(grain_state) is not (dict if idx else type(None)),
                f"grain_state: after {idx} elements it must be {'a dict' if idx else 'None'}, got {grain_state!r}",
            ),
        ):
            if broken:
                raise ValueError(told)
        for path, shard in self.shards.items():
            if given[path] != shard:
                raise ValueError(
                    f"shards.{path}: this is the state of shard {given[path]!r} (index, count), but this process reads shard "
                    f"{shard}; give each process the state of its own shard"
                )
        node, least = self.node, idx
        while idx and node.kind in _OF_WHAT_THEY_TAKE and node.below is not None:
            if node.kind == "BatchIterDataset":  # the last batch may hold less than the others
                least = (least - 1) * node.parameters["batch_size"] + 1
            node = node.below
        next_index = grain_state.get("next_index") if idx and node.kind == "PrefetchIterDataset" else None
        # Each element of a MapDataset takes an index, and each None that a map gives takes one too.
        if type(next_index) is int and next_index < least:
            many = "as many" if least == idx else least
            raise ValueError(
                f"grain_state.next_index: {next_index}, but {idx} elements (idx) take {many} indices or more"
            )
        made = self.reopened()
        if idx:
            made._open = idx, opened(self.pipeline, self.node, grain_state)
        return made, grain_state


@functools.lru_cache(maxsize=16)
def _key_hashes(name: str, part: int, block: int) -> np.ndarray:
    """Key hashes of a block of elements: uint64[_KEY_BLOCK]."""
    steps = np.arange(block * _KEY_BLOCK, (block + 1) * _KEY_BLOCK, dtype=np.int64)
    return key_hashes(steps, np.array(id64(name), np.uint64), steps, np.zeros_like(steps), part=part)


# The digest of one element: every byte of a tree of arrays and plain values, with their paths, types and shapes. Lists and
# tuples count alike, and so does an empty container and none.


def element_hash(element: Any, position: int) -> int:
    """The row hash of an element, taken as one row: see `datarax.order.digest.row_hashes`.

    Arrays and NumPy scalars are hashed as they are; None, bool, int, float, str and bytes go through one SHA-256, with
    their paths, whose 32 bytes are a leaf of their own.

    Raises:
        InputError: if a leaf has no bytes that are the same everywhere, naming its path and what to do.
    """
    leaves = jax.tree_util.tree_leaves_with_path(element, is_leaf=lambda leaf: leaf is None)
    arrays: list[tuple[str, np.ndarray]] = []
    plain = hashlib.sha256()
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys)
        if isinstance(leaf, ARRAYS):
            arrays.append((path, _checked(leaf, path)[np.newaxis]))
        else:
            try:
                hash_tree(plain, path, path)
                hash_tree(plain, leaf, path)
            except TypeError:
                raise _unhashable(path, f"a {type(leaf).__module__}.{type(leaf).__qualname__}") from None
    if len(arrays) < len(leaves):
        arrays.append(("#plain", np.frombuffer(plain.digest(), np.uint8)[np.newaxis]))
    return int(row_hashes(np.array([position], np.int64), arrays)[0])


def _num_rows(element: Any) -> int:
    """Length of the leading axis that all arrays of an element share; 1 if there is none."""
    leaves = jax.tree.leaves(element)
    lengths = {len(each) if each.ndim else 1 for each in leaves if isinstance(each, (np.ndarray, jax.Array))}
    return lengths.pop() if len(lengths) == 1 else 1


def _checked(leaf: Any, path: str) -> np.ndarray:
    if not is_grains(leaf):  # it has a class of arrays in memory that processes share
        check_plain(type(leaf), f"the element at {path or 'its top'}")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise _unhashable(path, "a jax.Array that spans processes")
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise _unhashable(path, "an array of random keys")
    array = np.asarray(leaf)
    if not has_fixed_bytes(array.dtype):
        raise _unhashable(path, f"an array of {array.dtype}")
    return array


def _unhashable(path: str, what: str) -> InputError:
    return InputError(
        f"the element has {what} at {path or 'its top'}, whose bytes are not the same everywhere, so it can be neither "
        f"recorded nor verified; end the pipeline with a map that makes it arrays of numbers, fixed-width strings, str, "
        f"bytes or plain numbers"
    )


class GrainPipeline(Stream[Any], pytree=False):  # type: ignore[call-arg]
    """The elements of a Grain pipeline, one after the other, with a state that a snapshot can hold.

    `idx` and `position` are the number of elements handed over, for Grain does not say how many rows an element holds;
    `epoch` stays None, for Grain has none that all pipelines share; `current` is the last element. Grain's own state is
    `grain_state`, as it was when the last element was handed over, None before the first. State belongs to one process.

    A restore never goes into an iterator that was used: it makes a fresh one, checks what Grain makes of the state, and only
    then takes it.

    Args:
        config: name, version, number of steps.
        dataset: a `grain.MapDataset`, `grain.IterDataset` or `grain.DataLoader`; not an iterator.
        rngs: NNX random streams; part of the state, not used by the module itself.
        name: another name than the config's.

    Raises:
        TypeError: if `dataset` is something else.
        ConfigError: if the pipeline cannot be described, or is one that Grain cannot resume; says which stage and why.
    """

    state_scope: ClassVar[str] = "process"
    """Each process has its own shard, and a state of it."""
    addressable: ClassVar[bool] = False
    """Only Grain knows which records an element holds."""
    free_state: ClassVar[frozenset[str]] = frozenset({"grain_state", "shards"})
    """What only this pipeline can check."""

    def __init__(
        self,
        config: GrainPipelineConfig,
        dataset: Any,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(config, GrainPipelineConfig):
            raise TypeError(f"config must be a GrainPipelineConfig, got {type(config).__name__}")
        name = config.name if name is None else name
        super().__init__(config, _Elements(config, name, dataset), rngs=rngs, name=name)

    def _open(self, runtime: Runtime) -> None:
        super()._open(runtime)
        self.grain_state = Held(lambda: runtime.tally.place.cursor)
        self.shards = Held(lambda: cast(_Elements, runtime.tally.feed).shards)

    @property
    def _feed(self) -> _Elements:
        return cast(_Elements, self._runtime.tally.feed)

    # What it is

    @property
    def dataset(self) -> Any:
        """The pipeline as it was given."""
        return self._feed.pipeline

    def warnings(self) -> list[str]:
        """What the user of this pipeline should know before a run, one sentence each."""
        return list(warnings_of(self._feed.node))

    def identity(self, *, recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Everything that can change an element, as a tree; the same on all processes: see `Stream.identity`."""
        identity = copy.deepcopy(self._feed.identity)
        if recorded is not None and recorded.get("rules") == 1:
            identity |= {"rules": 1, "pipeline": self._feed.read_by(rules=1)}
        return identity

    def impurities(self) -> list[str]:
        """A sentence for each place where a function of the pipeline shows a memory of its own."""
        return list(self._feed.impurities)

    # Lifecycle

    @in_turn
    def reset(self) -> None:
        """Back to the first element, with a fresh iterator. Counters, statistics and digest stay, as in the base class."""
        self._go_to(0, 0)

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> GrainPipeline:
        """A new module over the same Grain pipeline at its beginning, with optional changes; carries no state."""
        return type(self)(
            cast(GrainPipelineConfig, self.config if config is None else config),
            self._feed.pipeline,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )
