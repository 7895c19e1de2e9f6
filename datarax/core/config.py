"""The configs of modules: frozen dataclasses that check themselves when they are made.

Knows nothing of modules. A config is static metadata of the module that holds it: NNX compares and hashes it
each time the module is an argument of a transformed function, so equality and hash are defined here for every
config class, arrays in `precomputed_stats` included. Read next: `datarax.core.module`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.core.errors import ConfigError

__all__ = ["DataraxModuleConfig", "FrozenInstanceError", "OperatorConfig", "StructuralConfig"]


@dataclass(frozen=True)
class DataraxModuleConfig:
    """What every datarax module can be told.

    Equality is by class and value, arrays by dtype, shape and bytes; every config is hashable. Subclasses are
    frozen dataclasses that add fields and may add checks in `__post_init__` after calling
    `super().__post_init__()`.

    Raises:
        ConfigError: (a ValueError) if both `batch_stats_fn` and `precomputed_stats` are given.
        TypeError: if a field is of the wrong kind.
    """

    cacheable: bool = False
    """Whether the module keeps a cache of results (`_cache`), which is never part of its state."""
    batch_stats_fn: Callable[..., Any] | nnx.Module | None = None
    """Computes statistics of a batch; what it returns is kept as the module's statistics."""
    precomputed_stats: dict[str, Any] | None = None
    """Statistics known beforehand. Kept as the given object, not a copy."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # @dataclass would generate both anew, and the generated ones fail on arrays and on dicts.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = DataraxModuleConfig.__eq__  # type: ignore[method-assign]
        if cls.__dict__.get("__hash__") is None:
            cls.__hash__ = DataraxModuleConfig.__hash__  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        """Checks the fields; subclasses call this first."""
        if not isinstance(self.cacheable, bool):
            raise TypeError(f"cacheable must be a bool, got {self.cacheable!r}")
        stats_fn = self.batch_stats_fn
        if stats_fn is not None and not (callable(stats_fn) or isinstance(stats_fn, nnx.Module)):
            raise TypeError(f"batch_stats_fn must be callable, an nnx.Module or None, got {stats_fn!r}")
        if self.precomputed_stats is not None and not isinstance(self.precomputed_stats, dict):
            raise TypeError(f"precomputed_stats must be a dict or None, got {self.precomputed_stats!r}")
        if self.batch_stats_fn is not None and self.precomputed_stats is not None:
            raise ConfigError(
                "Cannot specify both batch_stats_fn and precomputed_stats. "
                "Choose dynamic computation or static values, not both."
            )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return all(
            _same(mine, theirs) for mine, theirs in zip(_compared(self), _compared(other), strict=True)
        )

    def __hash__(self) -> int:
        # Of the shape of the values only: cheap at each call of a jitted function, and equal for equal
        # configs.
        return hash((type(self), tuple(_outline(value) for value in _compared(self))))


@dataclass(frozen=True)
class OperatorConfig(DataraxModuleConfig):
    """The config of a module that transforms batches and may hold learnable state.

    Raises:
        ConfigError: if `stochastic` and `stream_name` contradict each other or `batch_strategy` is unknown.
    """

    stochastic: bool = False
    """Whether the module draws random numbers."""
    stream_name: str | None = None
    """The RNG stream it draws from: required if stochastic, refused if not."""
    batch_strategy: str = "vmap"
    """"vmap" (all rows at once) or "scan" (one after the other, less memory)."""

    def __post_init__(self) -> None:
        """Checks the fields; subclasses call this first."""
        super().__post_init__()
        _check_stochastic(self.stochastic, self.stream_name)
        if self.batch_strategy not in ("vmap", "scan"):
            raise ConfigError(f"batch_strategy must be 'vmap' or 'scan', got {self.batch_strategy!r}")


@dataclass(frozen=True)
class StructuralConfig(DataraxModuleConfig):
    """The config of a module whose behaviour is fixed when it is made.

    Raises:
        ConfigError: if `stochastic` and `stream_name` contradict each other.
    """

    stochastic: bool = False
    """Whether the module draws random numbers."""
    stream_name: str | None = None
    """The RNG stream it draws from: required if stochastic, refused if not."""

    def __post_init__(self) -> None:
        """Checks the fields; subclasses call this first."""
        super().__post_init__()
        _check_stochastic(self.stochastic, self.stream_name)


def _check_stochastic(stochastic: bool, stream_name: str | None) -> None:
    if stochastic and stream_name is None:
        raise ConfigError("Stochastic modules require stream_name (stochastic=True, stream_name=None)")
    if not stochastic and stream_name is not None:
        raise ConfigError(
            f"Deterministic modules should not specify stream_name (got {stream_name!r}). "
            "Remove stream_name or set stochastic=True"
        )


def _compared(config: Any) -> list[Any]:
    return [getattr(config, field.name) for field in dataclasses.fields(config) if field.compare]


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic, jax.Array))


def _same(a: Any, b: Any) -> bool:
    """Whether two field values are equal; never raises for arrays, and NaN equals NaN in them."""
    if a is b:
        return True
    if _is_array(a) or _is_array(b):
        return _is_array(a) and _is_array(b) and _same_array(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _same_array(a: Any, b: Any) -> bool:
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False  # `a is b` was false, and a tracer has no bytes to compare
    if a.dtype != b.dtype or a.shape != b.shape or type(a) is not type(b):
        return False
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _outline(value: Any) -> Any:
    """Something hashable that is equal for equal values; contents of containers and arrays are left out."""
    if _is_array(value):
        return (str(value.dtype), value.shape)
    if isinstance(value, (dict, list, tuple)):
        return (type(value), len(value))
    try:
        hash(value)
    except TypeError:
        return type(value)
    return (type(value), value)
