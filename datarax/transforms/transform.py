"""What a transform is: a function, the name that keys its randomness, and what it is given.

A transform is a value. It holds no cursor, no generator and no cache; what it does to a row depends on the
row, on its parameters and, if it asks, on the row's own seed. Knows nothing of how it is applied (`apply.py`)
nor of how its identity is made (`identity.py`).
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from datarax.core.config import Checked, Text, check_fields
from datarax.core.errors import ConfigError
from datarax.transforms.dependencies import checked_names


class Level(enum.StrEnum):
    """What one call of the function gets."""

    RECORD = "record"
    """One record (a row of every column, as views, when the input is columns); called once per row."""
    BATCH = "batch"
    """All rows of the process at once: a PyTree of arrays `[n, ...]`, or a `list` of n records as the stage
    before left them. No Python call per record."""


class Randomness(enum.StrEnum):
    """What the function gets as its second argument. All of it is made from the row's 64-bit seed alone."""

    NONE = "none"
    """Nothing; the function takes the rows only."""
    SEED = "seed"
    """`int` in [0, 2**64) for a record, `uint64[n]` for a batch."""
    GENERATOR = "generator"
    """A `numpy.random.Generator` (Philox) of the row's own; for records only. What its methods draw is
    NumPy's, and NumPy may change it between versions: its version is provenance."""
    KEY = "key"
    """A typed JAX PRNG key (threefry2x32) that holds all 64 bits, on the CPU device; a key array `[n]` for"
    " a batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """One stage of a pipeline.

    Make one with `map_records`, `map_batch`, `random_map_records` or `random_map_batch`. Compares by object,
    since parameters may hold arrays; what makes two of them *the same* is `transform_identity`.

    Raises:
        ConfigError: if a field is of the wrong kind, if the function cannot be called with what it would be
            given, or if a batch transform asks for a generator.
    """

    fn: Callable[..., Any]
    """`fn(rows, **parameters)` or, with randomness, `fn(rows, randomness, **parameters)`."""
    name: Text
    """Keys the randomness and names the transform in errors and identity. Unique in a pipeline."""
    level: Checked[Level]
    """Called per record or per batch."""
    randomness: Checked[Randomness] = Randomness.NONE
    """What the second argument is."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every call; part of the identity."""
    version: Checked[str | int | None] = None
    """Stands for the function in the identity *instead of* its source: a promise that is raised by hand. For
    what has no readable source, and for code whose text changes more often than its meaning."""
    depends_on: Sequence[str] = ()
    """Packages whose version counts as identity of this transform, or `python`, `device_kind`, `jax_enable_x64`,
    `xla_cpu_threads`. What is not declared here may change between two starts without a word."""
    depends_on_files: Sequence[str] = ()
    """Files that the function reads (a tokenizer, a vocabulary), relative to the working directory. Their content is identity,
    and their names below the deepest directory that holds all of them; where that lies is not."""
    impure: Checked[bool] = False
    """Whether the function may keep something between its calls (a global generator, a counter), which is refused otherwise.
    Its rows may then differ after a resume. Part of the identity."""

    def __post_init__(self) -> None:
        check_fields(self, f"transform {self.name!r}")
        object.__setattr__(self, "parameters", _checked_parameters(self.parameters, self.name))
        object.__setattr__(
            self, "depends_on", checked_names(self.depends_on, "depends_on", "packages", self.name)
        )
        files = checked_names(self.depends_on_files, "depends_on_files", "files", self.name)
        object.__setattr__(self, "depends_on_files", files)
        if self.level is Level.BATCH and self.randomness is Randomness.GENERATOR:
            raise ConfigError(
                f"transform {self.name!r} asks for one generator for a whole batch: its rows would depend on"
                " who shares the batch. Take seeds (uint64[n], see random_uniform) or keys, or make it a"
                " record transform"
            )
        _check_callable(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy can neither be pickled nor deep-copied; the plain dict is what __init__ was given.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return functools.partial(Transform, **{**values, "parameters": dict(self.parameters)}), ()


def map_records(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    version: str | int | None = None,
    depends_on: Sequence[str] = (),
    depends_on_files: Sequence[str] = (),
    impure: bool = False,
) -> Transform:
    """A transform that calls `fn(record, **parameters)` for each record.

    Args:
        fn: Pure; returns the new record.
        name: Of the transform; the function's own name if None.
        parameters: Keyword arguments of every call.
        version: Stands for the function in the identity instead of its source.
        depends_on: Packages whose version is identity, see `Transform.depends_on`.
        depends_on_files: Files whose content is identity, see `Transform.depends_on_files`.
        impure: Whether `fn` may keep something between its calls, see `Transform.impure`.

    Raises:
        ConfigError: as `Transform` does, and if `fn` has no name of its own and none is given.
    """
    return _make(
        fn,
        name,
        Level.RECORD,
        Randomness.NONE,
        parameters=parameters,
        version=version,
        depends_on=depends_on,
        depends_on_files=depends_on_files,
        impure=impure,
    )


def map_batch(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    version: str | int | None = None,
    depends_on: Sequence[str] = (),
    depends_on_files: Sequence[str] = (),
    impure: bool = False,
) -> Transform:
    """A transform that calls `fn(batch, **parameters)` once for all n rows.

    Args:
        fn: Pure, and row by row: row i of the result depends on row i alone. Gets a PyTree of arrays `[n,
            ...]` or a `list` of n records, whichever the stage before left; returns either, with n rows.
        name: Of the transform; the function's own name if None.
        parameters: Keyword arguments of every call.
        version: Stands for the function in the identity instead of its source.
        depends_on: Packages whose version is identity, see `Transform.depends_on`.
        depends_on_files: Files whose content is identity, see `Transform.depends_on_files`.
        impure: Whether `fn` may keep something between its calls, see `Transform.impure`.

    Raises:
        ConfigError: as `map_records` does.
    """
    return _make(
        fn,
        name,
        Level.BATCH,
        Randomness.NONE,
        parameters=parameters,
        version=version,
        depends_on=depends_on,
        depends_on_files=depends_on_files,
        impure=impure,
    )


def random_map_records(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    randomness: Checked[Randomness] = Randomness.GENERATOR,
    parameters: Mapping[str, Any] | None = None,
    version: str | int | None = None,
    depends_on: Sequence[str] = (),
    depends_on_files: Sequence[str] = (),
    impure: bool = False,
) -> Transform:
    """A transform that calls `fn(record, rng, **parameters)` for each record.

    Args:
        fn: Draws from `rng` only; returns the new record.
        name: Of the transform and of its randomness; the function's own name if None.
        randomness: What `rng` is: a NumPy generator, an `int` seed or a JAX key, the row's own in each case.
        parameters: Keyword arguments of every call.
        version: Stands for the function in the identity instead of its source.
        depends_on: Packages whose version is identity, see `Transform.depends_on`.
        depends_on_files: Files whose content is identity, see `Transform.depends_on_files`.
        impure: Whether `fn` may keep something between its calls, see `Transform.impure`.

    Raises:
        ConfigError: as `map_records` does, and if `randomness` is `NONE`.
    """
    return _make(
        fn,
        name,
        Level.RECORD,
        _random(randomness),
        parameters=parameters,
        version=version,
        depends_on=depends_on,
        depends_on_files=depends_on_files,
        impure=impure,
    )


def random_map_batch(
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    randomness: Checked[Randomness] = Randomness.SEED,
    parameters: Mapping[str, Any] | None = None,
    version: str | int | None = None,
    depends_on: Sequence[str] = (),
    depends_on_files: Sequence[str] = (),
    impure: bool = False,
) -> Transform:
    """A transform that calls `fn(batch, seeds, **parameters)` once for all n rows.

    Args:
        fn: As for `map_batch`; draws row i from seed i only (`random_uniform`, `random_integers`,
            `random_bits`).
        name: Of the transform and of its randomness; the function's own name if None.
        randomness: What the second argument is: `uint64[n]` seeds, or a JAX key array `[n]`.
        parameters: Keyword arguments of every call.
        version: Stands for the function in the identity instead of its source.
        depends_on: Packages whose version is identity, see `Transform.depends_on`.
        depends_on_files: Files whose content is identity, see `Transform.depends_on_files`.
        impure: Whether `fn` may keep something between its calls, see `Transform.impure`.

    Raises:
        ConfigError: as `map_records` does, and if `randomness` is `NONE` or `GENERATOR`.
    """
    return _make(
        fn,
        name,
        Level.BATCH,
        _random(randomness),
        parameters=parameters,
        version=version,
        depends_on=depends_on,
        depends_on_files=depends_on_files,
        impure=impure,
    )


def check_pipeline(transforms: Iterable[Transform]) -> tuple[Transform, ...]:
    """The transforms as a tuple, if each is one and their names are unique.

    Raises:
        ConfigError: naming the offender.
    """
    checked: list[Transform] = []
    for i, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise ConfigError(
                f"transforms[{i}] is {transform!r}, not a Transform; wrap the function in map_records or"
                " map_batch"
            )
        if any(transform.name == before.name for before in checked):
            raise ConfigError(
                f"transforms[{i}] is a second one with the name {transform.name!r}; names key the"
                " randomness, so give each its own (name=...)"
            )
        checked.append(transform)
    return tuple(checked)


def _make(
    fn: Callable[..., Any],
    name: str | None,
    level: Level,
    randomness: Randomness,
    *,
    parameters: Mapping[str, Any] | None,
    **declared: Any,
) -> Transform:
    return Transform(
        fn=fn,
        name=function_name(fn) if name is None else name,
        level=level,
        randomness=randomness,
        parameters={} if parameters is None else parameters,
        **declared,
    )


def function_name(fn: Any) -> str:
    """The name that a function, a partial of one or a callable object goes by.

    Raises:
        ConfigError: if it has none (a lambda).
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", type(fn).__name__)
    if name == "<lambda>":
        raise ConfigError(
            "a lambda has no name to key its randomness and name it in errors; give it one: name='...'"
        )
    return str(name)


def _random(randomness: Randomness) -> Randomness:
    if randomness == Randomness.NONE:
        raise ConfigError("a random transform cannot have randomness 'none'; use map_records or map_batch")
    return randomness


def _checked_parameters(parameters: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"the parameters of transform {name!r} must be a mapping, are {parameters!r}")
    for key in parameters:
        if not isinstance(key, str):
            raise ConfigError(
                f"transform {name!r} has the parameter {key!r}; parameters are keyword arguments"
            )
    return MappingProxyType(dict(parameters))


def _check_callable(transform: Transform) -> None:
    fn, name = transform.fn, transform.name
    if not callable(fn):
        raise ConfigError(f"transform {name!r} needs something callable, got {fn!r}")
    for kind, lazy in (
        ("coroutine", inspect.iscoroutinefunction),
        ("generator", inspect.isgeneratorfunction),
    ):
        if lazy(fn):
            raise ConfigError(f"transform {name!r} is a {kind} function; a transform returns its rows")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # C code often has none
        return
    given = 1 if transform.randomness is Randomness.NONE else 2
    try:
        signature.bind(*[None] * given, **transform.parameters)
    except TypeError as error:
        keywords = "".join(f", {key}=..." for key in transform.parameters)
        call = f"fn({', '.join(('rows', 'randomness')[:given])}{keywords})"
        raise ConfigError(
            f"transform {name!r} would be called as {call}, but its signature is {signature}: {error}"
        ) from None
