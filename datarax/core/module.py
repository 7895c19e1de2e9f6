"""The base of all datarax modules: state, statistics, counters, cache, copies.

`DataraxModule` is an `nnx.Module` whose Variables are its state: `get_state` takes them out as plain values
and `set_state` puts them back, all or nothing. `CheckpointableIteratorModule` adds a place in an iteration.
Knows nothing of files, orders or batches. Read next: `datarax.core.state` (what a state must look like) and
`datarax.core.variables` (what counts and positions are made of).
"""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

import numpy as np
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import MismatchError
from datarax.core.state import Path, Variables, match_state, read_state, variables_below
from datarax.core.tree import detached, digest
from datarax.core.variables import Held, HostFlag, HostInt, IterationCount

__all__ = ["CheckpointableIteratorModule", "DataraxModule", "HostFlag", "HostInt", "IterationCount"]

T_co = TypeVar("T_co", covariant=True)

# Caches live beside their modules, not in them: as an attribute a dict would be static metadata of NNX,
# compared at every call of a jitted function and shared by every clone. A module inside a transform has an
# empty cache of its own.
_caches: weakref.WeakKeyDictionary[DataraxModule, dict[int, Any]] = weakref.WeakKeyDictionary()


class DataraxModule(nnx.Module):
    """Base class of all datarax modules: statistics, cache, operation counters, copies, checkpoint state.

    Args:
        config: The module's settings, kept as the given object.
        rngs: Random number streams, kept as the given object; part of the state.
        name: Name of the module.

    Attributes:
        config: The config.
        rngs: The streams, or None.
        name: The name, or None.
        _computed_stats: Variable with the statistics that were set or computed last, or None.
        _applied_count: IterationCount, int32 of shape ().
        _skipped_count: IterationCount, int32 of shape ().

    Raises:
        TypeError: if `config`, `rngs` or `name` is of another type.
    """

    free_state: ClassVar[frozenset[str]] = frozenset()
    """Attributes that hold a Variable whose content may be of another kind in each state."""

    unsaved_state: ClassVar[frozenset[str]] = frozenset()
    """Attributes that hold a Variable which no state contains: None in each, and anything else is refused."""

    def __init__(
        self, config: DataraxModuleConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        for what, value, kind in (
            ("config", config, DataraxModuleConfig),
            ("rngs", rngs, nnx.Rngs),
            ("name", name, str),
        ):
            if not isinstance(value, kind) and (value is not None or what == "config"):
                raise TypeError(f"{what} must be a {kind.__name__}, got {type(value).__name__} {value!r}")
        self.config = config
        self.rngs: nnx.Rngs | None = nnx.data(rngs)
        self.name = name
        self._computed_stats: nnx.Variable[Any] = nnx.Variable(None)
        self._is_stats_reset = HostFlag(False)
        self._applied_count = IterationCount(np.zeros((), np.int32))
        self._skipped_count = IterationCount(np.zeros((), np.int32))

    def __repr__(self) -> str:
        told = [f"name={self.name!r}"] if self.name else []
        told += ["cacheable=True"] if self.config.cacheable else []
        return f"{type(self).__name__}({', '.join(told)})"

    # Operation statistics

    def get_operation_stats(self) -> dict[str, int]:
        """How many items were applied and skipped: applied_count, skipped_count. Host only."""
        return {
            "applied_count": int(self._applied_count.get_value()),
            "skipped_count": int(self._skipped_count.get_value()),
        }

    def reset_operation_stats(self) -> None:
        """Set both counters to zero, in the same Variables and of the same shape and dtype."""
        for count in (self._applied_count, self._skipped_count):
            count.set_value(count.get_value() * 0)

    def _increment_applied_count(self) -> None:
        """Count one applied item; works inside transforms."""
        self._applied_count[...] += 1

    def _increment_skipped_count(self) -> None:
        """Count one skipped item; works inside transforms."""
        self._skipped_count[...] += 1

    # Statistics

    def compute_statistics(self, data: Any) -> dict[str, Any] | None:
        """Compute statistics of `data` with the config's `batch_stats_fn`, and keep them.

        Returns:
            What the function returned; None, and nothing changes, if no function is configured.
        """
        if self.config.batch_stats_fn is None:
            return None
        stats = cast(Any, self.config.batch_stats_fn)(data)
        self.set_statistics(stats)
        return stats

    def get_statistics(self) -> dict[str, Any] | None:
        """The statistics that were set or computed last; without any, the config's `precomputed_stats`.

        After `reset_statistics` there are none, `precomputed_stats` included, until some are set or computed.
        """
        kept = self._computed_stats.get_value()
        if kept is not None:
            return kept
        return None if self._is_stats_reset else self.config.precomputed_stats

    def set_statistics(self, stats: dict[str, Any] | None) -> None:
        """Keep `stats`; they hide computed and precomputed ones. None goes back to the precomputed."""
        self._computed_stats.set_value(stats)
        self._is_stats_reset.set_value(False)

    def reset_statistics(self) -> None:
        """Have no statistics, `precomputed_stats` included, until some are set or computed."""
        self._computed_stats.set_value(None)
        self._is_stats_reset.set_value(True)

    # Cache

    @property
    def _cache(self) -> dict[int, Any] | None:
        """This object's own cache: a plain dict if the config says cacheable, else None. Never state."""
        return _caches.setdefault(self, {}) if self.config.cacheable else None

    def _compute_cache_key(self, value: Any) -> int:
        """A key under which a result for `value` can be cached: see `cache_key`."""
        return cache_key(value)

    def reset_cache(self) -> None:
        """Empty the cache, if there is one."""
        _caches.pop(self, None)

    # Copies

    def copy(
        self,
        *,
        config: DataraxModuleConfig | None = None,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> DataraxModule:
        """A new module of this class in its initial state, with what is not given taken over from this one.

        It carries no state: counters, statistics and Variables start anew. The config and the rngs are
        shared. Subclasses whose constructor takes something else override this.

        Args:
            config: Another config.
            rngs: Other random number streams.
            name: Another name; "" is a name too.

        Raises:
            TypeError: if the class has another constructor.
        """
        return type(self)(
            config=self.config if config is None else config,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )

    def clone(self) -> Self:
        """A new module with the same state, that shares nothing with this one that either could change.

        Variables, random streams and lists, dicts and sets in attributes are its own, and its cache starts
        empty. The config is shared, and so are plain array attributes, which are data and not state.
        """
        clone = nnx.clone(self, graph=True)
        variables = variables_below(clone)
        for _, variable in variables:
            if not variable.ref:
                variable.set_raw_value(detached(variable.get_raw_value()))
        for _, module in _modules_among(clone, variables):
            for name, value in vars(module).items():
                if not module._pytree__nodes.get(name):
                    object.__setattr__(module, name, _with_own_containers(value))
            module._cloned()
        return clone

    def _cloned(self) -> None:
        """Called on each module of a clone, nested ones too, when all its Variables are its own.

        For what is open, which the clone still shares: files, queues, threads. The default does nothing.
        """

    # State

    def get_state(self) -> dict[str, Any]:
        """The module's state: nested dicts of what its Variables hold, sharing nothing that can change later.

        Python values stay Python values, integers of any size are exact, arrays are `jax.Array` or NumPy
        arrays as held, random streams are `{"count": uint32, "key": typed key}`. Config, name, cache and
        plain array attributes are not in it. A stream (`DataLoader`, `GrainPipeline`) gives plain JSON values, and says its
        format and identity: see `datarax.loader.stream`.
        """
        variables = variables_below(self)
        modules = _modules_among(self, variables)
        state = read_state(variables, unsaved=_named(modules, "unsaved_state"))
        for path, module in modules:
            state = _with_part(state, path, module._spelled_state)
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` gave, strictly: either all of it is taken over or nothing is.

        Args:
            state: A state with the same keys, kinds, shapes and dtypes at every depth: see
            `state.match_state`.

        Raises:
            TypeError: if `state` is not a dict.
            MismatchError: (a ValueError) if it does not fit; its cause names the path and both sides.
            ValueError: if a module's own check (`_validate_state`) refuses it.
        """
        if not isinstance(state, dict):
            raise TypeError(f"State must be a dict, got {type(state)}")
        variables = variables_below(self)
        modules = _modules_among(self, variables)
        free, unsaved = _named(modules, "free_state"), _named(modules, "unsaved_state")
        held = state
        try:
            for path, module in modules:
                held = _with_part(held, path, module._held_state)
            changes = match_state(variables, held, free=free, unsaved=unsaved)
        except ValueError as error:
            raise MismatchError(
                "Checkpoint state is structurally incompatible with module state. "
                "Regenerate checkpoints after architecture/config changes."
            ) from error
        for path, module in modules:
            module._validate_state(functools.reduce(operator.getitem, path, state))
        for variable, value in changes:
            if variable.ref or (isinstance(variable, Held) and variable.get_metadata("write")):
                variable.set_value(value)
            elif not isinstance(variable, Held):
                variable.set_raw_value(value)
        for _, module in modules:
            module._state_restored()

    def recorded_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state that was recorded by any version, in the form that `set_state` takes today.

        For whoever has compared identities already, as a restore does: what a record says of them, its states do not repeat.

        Raises:
            ValueError: if it is none.
        """
        for path, module in _modules_among(self, variables_below(self)):
            state = _with_part(state, path, module._today_state)
        return state

    def _spelled_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a state says of the values of this module's Variables, as they are held, or of what is kept beside them."""
        return state

    def _held_state(self, state: Any) -> Any:
        """The way back: what the Variables would hold. What cannot be read is left to `match_state`, which refuses it.

        Raises:
            ValueError: naming what is wrong.
        """
        return state

    def _today_state(self, state: Any) -> Any:
        """A recorded state of this module alone, in today's form: see `recorded_state`."""
        return state

    def _validate_state(self, state: dict[str, Any]) -> None:
        """Refuse a state whose structure is right and whose values are not, by raising ValueError.

        Called by `set_state` of this module or of one that contains it, before anything is changed; `state`
        is this module's part. The default accepts everything.
        """

    def _state_restored(self) -> None:
        """Called after `set_state` has written all Variables, of this module or of one that contains it.

        For what is derived from them. It must not raise. The default does nothing.
        """

    # Random number streams

    def requires_rng_streams(self) -> list[str] | None:
        """Names of the random number streams that the module needs, or None. Subclasses override this."""
        return None

    def ensure_rng_streams(self, stream_names: list[str]) -> None:
        """Check that the required random number streams are available.

        Args:
            stream_names: Names of the available streams.

        Raises:
            TypeError: if `stream_names` is a single string.
            ValueError: if a required stream is not among them.
        """
        if isinstance(stream_names, str):
            raise TypeError(f"stream_names must be a list of names, got the string {stream_names!r}")
        missing = [name for name in self.requires_rng_streams() or () if name not in stream_names]
        if missing:
            raise ValueError(
                f"RNG stream {missing[0]!r} is required but not available. Available streams: {list(stream_names)}"
            )


class CheckpointableIteratorModule(DataraxModule, Generic[T_co]):
    """Base class of modules that iterate and can be stopped and continued: sources, loaders, your own.

    Args:
        config: The module's settings.
        rngs: Random number streams.
        name: Name of the module.

    Attributes:
        epoch: HostInt, None until set.
        position: HostInt, None until set.
        idx: HostInt, None until set.
        current: Variable with the item at hand, None until set; anything may follow anything in it.
    """

    state_scope: ClassVar[str] = "process"
    """"process" if each process has a state of its own, "global" if the state is the same on all."""

    free_state: ClassVar[frozenset[str]] = frozenset({"current"})
    """See `DataraxModule.free_state`."""

    def __init__(
        self, config: DataraxModuleConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self.epoch = HostInt(None)
        self.position = HostInt(None)
        self.idx = HostInt(None)
        self.current: nnx.Variable[Any] = nnx.Variable(None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("epoch", "position", "idx") and type(value) is nnx.Variable:
            # `self.position = nnx.Variable(0)` in a subclass would wrap at 2**31 in the first jitted
            # function.
            value = HostInt(value.get_value())
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[T_co]:
        return self

    def __next__(self) -> T_co:
        raise NotImplementedError("Subclasses must implement __next__")

    def __len__(self) -> int:
        raise NotImplementedError("Subclasses must implement __len__")

    def reset(self) -> None:
        """Set `epoch`, `position`, `idx` and `current` to None; counters, statistics and streams stay.

        Subclasses extend this with what they need to start over.
        """
        for variable in (self.epoch, self.position, self.idx, self.current):
            variable.set_value(None)


def _modules_among(module: DataraxModule, variables: Variables) -> list[tuple[Path, DataraxModule]]:
    """The datarax modules in the graph of `module` with their paths, children before parents, itself last.

    Found along the paths of Variables, of which every module has some: static attributes can be large.
    """
    found: dict[Path, DataraxModule] = {(): module}
    for path, _ in variables:
        node: Any = module
        for depth, key in enumerate(path[:-1], start=1):
            node = getattr(node, str(key)) if isinstance(node, nnx.Pytree) else node[key]
            if isinstance(node, DataraxModule):
                found[path[:depth]] = node
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _named(modules: list[tuple[Path, DataraxModule]], which: str) -> set[int]:
    """The ids of the Variables that the class attribute `which` of the modules names."""
    return {id(vars(module)[name]) for _, module in modules for name in getattr(module, which)}


def _with_part(tree: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """The tree with another part at `path`; as it is if nothing lies there."""
    if not path:
        return change(tree)
    if not isinstance(tree, dict) or path[0] not in tree:
        return tree
    return {**tree, path[0]: _with_part(tree[path[0]], path[1:], change)}


def _with_own_containers(value: Any) -> Any:
    """Containers anew, what else they contain shared."""
    if type(value) in (list, tuple):
        return type(value)(map(_with_own_containers, value))
    if type(value) is dict:
        return {key: _with_own_containers(item) for key, item in value.items()}
    return copy.copy(value) if isinstance(value, (list, dict, set, bytearray, collections.deque)) else value


# Keys of the cache


def cache_key(value: Any) -> int:
    """A 128-bit key of `value`: equal for the same value in the same structure, never equal for anything else.

    Plain values count by type and value, containers by structure, and everything else (arrays above all: comparing their
    contents would copy them off the device) by identity, also inside lists, tuples and dicts. Keys of values that hold no
    objects by identity are the same in every process.
    """
    return int(digest(_spelled(value))[:32], 16)


def _spelled(value: Any) -> tuple[Any, ...]:
    """Nested tuples of texts and small numbers, which no other value has."""
    kind = type(value)
    if kind in (type(None), bool, int, float, complex, str, bytes):
        # hex, because Python refuses to write very large integers in decimal
        return kind.__name__, hex(value) if kind is int else repr(value)
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return f"numpy {value.dtype.str}", value.tobytes().hex()
    if kind is dict:
        return "dict", *sorted(((_spelled(key), _spelled(item)) for key, item in value.items()), key=repr)
    if kind is list or kind is tuple:
        return kind.__name__, *map(_spelled, value)
    return "object", _number(value)


_numbers: dict[int, tuple[int, Any]] = {}
_running = itertools.count()


def _number(value: Any) -> int:
    """A number that no other object ever had: it is found by the address, and forgotten before that is used again."""
    kept = None
    if id(value) not in _numbers:
        try:
            weakref.finalize(value, _numbers.pop, id(value), None)
        except TypeError:
            kept = value  # has no weak references: kept alive, so that its address stays its own
    return _numbers.setdefault(id(value), (next(_running), kept))[0]
