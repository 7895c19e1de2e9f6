"""Configs: frozen dataclasses that check themselves when they are made, and are read from plain trees.

What a field may hold stands in its annotation (`batch_size: Positive`), and one check holds configs to it, whether they are
made in Python (`check_fields`) or of a table of a TOML file (`from_tree`). Knows nothing of modules. A module's config is
static metadata of it: NNX compares and hashes it each time the module is an argument of a transformed function, so equality
and hash are defined here for every config class, arrays in `precomputed_stats` included. Read next: `datarax.core.module`.
"""

import contextlib
import dataclasses
import difflib
import enum
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError as FrozenInstanceError
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flax import nnx

from datarax.core.errors import ConfigError
from datarax.core.tree import identical, joined

T = TypeVar("T")


# What a field may hold


@dataclass(frozen=True)
class Limit:
    """Metadata of an `Annotated` field: which values of its kind are allowed. Fields with one are checked."""

    allows: Callable[[Any], bool]
    """Whether a value is allowed."""
    text: str | Callable[[Any], str]
    """Follows the words for the kind in messages: "an integer" + "of at least 1"; or what makes it for a value."""

    def words(self, value: Any = None) -> str:
        """What follows the words for the kind, about a value that is not allowed or about none."""
        return self.text if isinstance(self.text, str) else self.text(value)


def at_least(least: float) -> Limit:
    """Numbers from `least` on; integers must fit into 64 bits."""
    return Limit(
        lambda value: least <= value and (value < 2**63 or type(value) is float), f"of at least {least}"
    )


Checked = Annotated[T, Limit(lambda _: True, "")]
"""Any value of the kind."""
Positive = Annotated[int, at_least(1)]
"""From 1 on."""
Natural = Annotated[int, at_least(0)]
"""From 0 on."""
BatchSize = Annotated[
    int,
    Limit(
        lambda rows: 1 <= rows <= 2**24,  # an array with a number for each row can be made
        lambda rows: "of at most 2^24" if type(rows) is int and rows > 1 else "of at least 1",
    ),
]
"""Rows of a batch."""
Text = Annotated[str, Limit(bool, "that is not empty")]
"""One character or more."""
Sha256 = Annotated[str, Limit(re.compile(r"[0-9a-f]{64}").fullmatch, "of 64 hex digits")]
"""It may name a file, so it must be nothing else."""


def check_fields(config: object, what: str | None = None) -> None:
    """Checks every field of a config that has a `Limit`, and puts enum members in the place of their values.

    Every `DataraxModuleConfig` does this; other dataclasses have it as their `__post_init__`, or call it there.

    Args:
        config: the config.
        what: what it is called in messages, where its class says too little.

    Raises:
        ConfigError: naming the field, what is allowed, and the value.
    """
    for name, hint in _limited_fields(type(config)).items():  # type: ignore[arg-type]
        path = f"{name} of {what}" if what else f"{type(config).__name__}.{name}"
        object.__setattr__(config, name, _value(hint, getattr(config, name), path))


@functools.cache
def _limited_fields(kind: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        # Annotations of a user's class may be any text, or name what only a function around it knows.
        with contextlib.suppress(Exception):
            hints |= get_type_hints(base, include_extras=True)
    return {name: hint for name, hint in hints.items() if _has_limit(hint)}


def _has_limit(hint: Any) -> bool:
    return isinstance(hint, Limit) or any(map(_has_limit, get_args(hint)))


# Configs of modules


@dataclass(frozen=True)
class DataraxModuleConfig:
    """What every datarax module can be told.

    Equality is by class and value, arrays by dtype, shape and bytes; every config is hashable. Subclasses are
    frozen dataclasses that add fields; those annotated with a limit (`size: Positive`) are checked, and other checks may
    follow in `__post_init__` after calling `super().__post_init__()`.

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
        for name in ("__eq__", "__hash__"):
            if cls.__dict__.get(name) is None:
                setattr(cls, name, getattr(DataraxModuleConfig, name))

    def __post_init__(self) -> None:
        """Checks the fields; subclasses call this first."""
        stats_fn, stats = self.batch_stats_fn, self.precomputed_stats
        is_function = callable(stats_fn) or isinstance(stats_fn, nnx.Module)
        for name, fits, kind in (
            ("cacheable", isinstance(self.cacheable, bool), "a bool"),
            ("batch_stats_fn", stats_fn is None or is_function, "callable, an nnx.Module or None"),
            ("precomputed_stats", stats is None or isinstance(stats, dict), "a dict or None"),
        ):
            if not fits:
                raise TypeError(f"{name} must be {kind}, got {getattr(self, name)!r}")
        check_fields(self)
        if stats_fn is not None and stats is not None:
            raise ConfigError(
                "Cannot specify both batch_stats_fn and precomputed_stats. "
                "Choose dynamic computation or static values, not both."
            )

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return identical(_compared(self), _compared(other))

    def __hash__(self) -> int:
        # Of the plain values only: cheap at each call of a jitted function, and equal for equal configs.
        plain = [value for value in _compared(self) if isinstance(value, tuple(_SCALARS))]
        return hash((type(self), *plain))


@dataclass(frozen=True)
class _WithStream(DataraxModuleConfig):
    stochastic: bool = False
    """Whether the module draws random numbers."""
    stream_name: str | None = None
    """The RNG stream it draws from: required if stochastic, refused if not."""

    def __post_init__(self) -> None:
        """Checks the fields; subclasses call this first."""
        super().__post_init__()
        if bool(self.stochastic) != (self.stream_name is not None):
            raise ConfigError(
                "Stochastic modules require stream_name (stochastic=True, stream_name=None)"
                if self.stochastic
                else f"Deterministic modules should not specify stream_name (got {self.stream_name!r}). "
                "Remove stream_name or set stochastic=True"
            )


@dataclass(frozen=True)
class OperatorConfig(_WithStream):
    """The config of a module that transforms batches and may hold learnable state.

    Raises:
        ConfigError: if `stochastic` and `stream_name` contradict each other or `batch_strategy` is unknown.
    """

    batch_strategy: Annotated[
        str, Limit(lambda name: name in ("vmap", "scan"), "that is 'vmap' or 'scan'")
    ] = "vmap"
    """"vmap" (all rows at once) or "scan" (one after the other, less memory)."""


@dataclass(frozen=True)
class StructuralConfig(_WithStream):
    """The config of a module whose behaviour is fixed when it is made.

    Raises:
        ConfigError: if `stochastic` and `stream_name` contradict each other.
    """


def _compared(config: Any) -> list[Any]:
    return [getattr(config, field.name) for field in dataclasses.fields(config) if field.compare]


# Trees


REST = {"rest": True}
"""Metadata of a field that takes all keys which are no field, unchecked, as a mapping."""


def from_tree(kind: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Builds the dataclass `kind` from a plain tree, strictly: nothing is converted but an int where a float is wanted.

    Args:
        kind: a dataclass.
        tree: its fields by name.
        path: dotted path of `tree` in the whole, for messages.

    Raises:
        ConfigError: naming the path of what is unknown (and the nearest known key), missing, or not allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for rest in (name for name, field in fields.items() if field.metadata == REST):
        others = {key: value for key, value in tree.items() if key == rest or key not in fields}
        tree = {**{key: value for key, value in tree.items() if key not in others}, rest: others}
    for key in tree:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"unknown key {joined(path, key)!r}; {hint}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {key: _value(hints[key], value, joined(path, key)) for key, value in tree.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{joined(path, name)} is required and missing")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"[{path}] {error}" if path else str(error)) from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def to_tree(config: Any) -> Any:
    """The plain tree of a config, such that `from_tree` gives an equal one. Fields that are None are left out."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
        config = {field.name: value for field, value in values.items() if field.metadata != REST}
        for field, value in values.items():
            config |= value if field.metadata == REST else {}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Mapping):
        return {key: to_tree(value) for key, value in config.items() if value is not None}
    if isinstance(config, (list, tuple)):
        return [to_tree(value) for value in config]
    return config


_UNIONS = (Union, UnionType)
_LISTS = (list, tuple, Sequence)
_TABLES = (dict, Mapping)
_SCALARS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    NoneType: "nothing",
}


def _value(hint: Any, value: Any, path: str) -> Any:
    """`value` as its annotation wants it.

    Raises:
        ConfigError: naming `path`, if it is of another kind or not allowed.
    """
    for taken in _taken(hint, value, path):
        return taken
    raise ConfigError(f"{path} must be {_described(hint, value)}, got {value!r}")


def _taken(hint: Any, value: Any, path: str) -> Iterator[Any]:
    """What the value is by each reading of its annotation that allows it; the first counts, and there may be none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if (
        hint is Any
        or (type(value) is hint and hint in _SCALARS)
        or (origin is Literal and value in arguments)
    ):
        yield value
    if hint is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            yield float(value)
    if origin is Annotated:
        yield from filter(arguments[1].allows, _taken(arguments[0], value, path))
    if origin in _UNIONS:
        for choice in arguments:
            yield from _taken(choice, value, path)
    if origin in _LISTS and isinstance(value, (list, tuple)):
        yield tuple(_value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in _TABLES and isinstance(value, Mapping):
        yield {key: _value(arguments[1], each, joined(path, key)) for key, each in value.items()}
    if isinstance(hint, enum.EnumType):
        yield from (member for member in list[Any](hint) if value in (member, member.value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        yield from_tree(hint, value, path)


def _described(hint: Any, value: Any) -> str:
    """What an annotation allows, in words, to say why it does not allow `value`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_described(arguments[0], value)} {arguments[1].words(value)}".rstrip()
    if origin in _UNIONS:
        return " or ".join(
            dict.fromkeys(_described(each, value) for each in arguments if each is not NoneType)
        )
    if origin is Literal or isinstance(hint, enum.EnumType):
        choices = arguments or [member.value for member in hint]
        return f"one of {', '.join(map(repr, choices))}"
    if origin in _LISTS:
        return "a list"
    if origin in _TABLES or dataclasses.is_dataclass(hint):
        return "a table"
    return _SCALARS.get(hint, "an object, which no config file can hold")
