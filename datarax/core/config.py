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

from flax import nnx

from datarax.core.errors import ConfigError
from datarax.core.tree import ARRAYS, identical

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
            identical(mine, theirs) for mine, theirs in zip(_compared(self), _compared(other), strict=True)
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


def _outline(value: Any) -> Any:
    """Something hashable that is equal for equal values; contents of containers and arrays are left out."""
    if isinstance(value, ARRAYS):
        return (str(value.dtype), value.shape)
    if isinstance(value, (dict, list, tuple)):
        return (type(value), len(value))
    try:
        hash(value)
    except TypeError:
        return type(value)
    return (type(value), value)
