"""A TOML file -> one frozen, strict `RunConfig` -> a loader and a training session.

Every table is a dataclass, every key is known, every value has its kind; any key can be overridden with
`--set table.key=value`. Relative paths are relative to the working directory. The resolved config, with defaults filled
in and paths absolute, is what a run keeps, so that it can be verified later from anywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import tomli_w

from datarax.checkpoint import SaveConfig
from datarax.checkpoint.layout import local_directory
from datarax.core.attributes import load_attribute
from datarax.core.decode import decode, encode
from datarax.core.errors import ConfigError, InputError
from datarax.core.processes import Processes
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.multihost import MultihostConfig
from datarax.sources import DataSource
from datarax.sources.open import SourceTable, open_source
from datarax.training import LogConfig, ResumeConfig, TrainingSession, load_task
from datarax.transforms import Transform, load_transform


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives and when it ends."""

    directory: str
    """The run's directory; run again in it = continue."""
    steps: int | None = None
    """Steps of the whole run; with `loader.num_epochs` as well, whichever ends first. None: as many as the loader has."""
    cpu_threads: int | None = None
    """XLA's CPU thread count (NPROC). Bit-identical parameters need the same number at every start."""

    def __post_init__(self) -> None:
        for name in ("steps", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"run.{name} must be an integer of at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """What to train."""

    use: str
    """`module:attribute` of an object with init(config, mesh) and step(state, batch)."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Handed to init as they are."""


@dataclass(frozen=True, kw_only=True)
class MeshSection:
    """How the devices of all processes are arranged, and which of the axes split the batch. Not identity."""

    axes: Mapping[str, int] = field(default_factory=lambda: {"data": -1})
    """Size of each axis by name, the slowest first; one may be -1: all devices that are left."""
    batch_axes: Sequence[str] = ("data",)
    """Axes over which the rows of a batch are split; over the others they are repeated (model parallelism)."""

    def __post_init__(self) -> None:
        for name, size in self.axes.items():
            if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
                raise ConfigError(f"mesh.axes.{name} must be an integer of at least 1, or -1, got {size!r}")
        if sum(size == -1 for size in self.axes.values()) > 1:
            raise ConfigError("only one of mesh.axes may be -1")
        for name in self.batch_axes:
            if name not in self.axes:
                raise ConfigError(
                    f"mesh.batch_axes names {name!r}, but mesh.axes has {', '.join(self.axes) or 'none'}"
                )


@dataclass(frozen=True, kw_only=True)
class TransformSection:
    """One stage between record and row."""

    use: str
    """`module:attribute` of a Transform, or of a function if `level` is given."""
    name: str | None = None
    """Name of the stage; it keys its randomness."""
    level: str | None = None
    """'record' or 'batch', for plain functions."""
    randomness: str | None = None
    """'none', 'seed', 'generator' or 'key', for plain functions."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    version: str | int | None = None
    """Declared version, for functions whose source cannot be read."""
    depends_on: Sequence[str] | None = None
    """Packages (or "python", "device_kind", "jax_enable_x64", "xla_cpu_threads") whose version is identity of this stage."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, completely described."""

    run: RunSection
    """Directory and length."""
    source: SourceTable
    """Where the records are, and how to build them if they are not there yet."""
    loader: DataLoaderConfig
    """Which records make which batch."""
    transforms: Sequence[TransformSection] = ()
    """Stages from records to rows, in turn."""
    task: TaskSection | None = None
    """What to train; without it the run only takes the batches."""
    mesh: MeshSection | None = None
    """How devices are arranged. With it, or with many processes, batches are global arrays on the devices; without, NumPy."""
    multihost: MultihostConfig = field(default_factory=MultihostConfig)
    """How many processes find each other."""
    save: SaveConfig = field(default_factory=SaveConfig)
    """When to snapshot and what to keep."""
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    """What may change between two starts."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often to report."""
    batch_stats_fn: str | None = None
    """`module:attribute` of a function of each batch whose results are averaged and reported."""

    def to_toml(self) -> str:
        """The resolved config, such that `parse_config` gives an equal one."""
        return tomli_w.dumps(encode(self))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a TOML file and applies `key=value` overrides.

    Raises:
        InputError: if the file cannot be read.
        ConfigError: if it is not TOML, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the config {str(path)!r}: {reason}") from None
    return parse_config(text, overrides, where=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, where: str = "the config") -> RunConfig:
    """Builds a config from TOML text and `key=value` overrides; `where` names the text in messages.

    Raises:
        ConfigError: if it is not TOML, or a key or value is wrong.
    """
    return _built(_parsed(text, where), overrides, where)


def parse_stored_config(text: str, overrides: Sequence[str] = (), *, where: str) -> RunConfig:
    """Builds a config from what a run has kept, as `parse_config` does from what a user has written.

    What the version that stored it left out, it implied: that is filled in, not today's default.

    Raises:
        ConfigError: if it is not TOML, or a key or value is wrong.
    """
    tree = _parsed(text, where)
    if isinstance(loader := tree.get("loader"), dict):
        loader.setdefault("order_version", 1)  # kept since there could be two
    return _built(tree, overrides, where)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None


def _built(tree: dict[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    for override in overrides:
        _apply_override(tree, override)
    try:
        return _resolved(decode(RunConfig, tree))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.0.c=value` in `tree`; numbers index lists. The value is TOML, or else taken as text."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set needs key=value, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    node: Any = tree
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"--set {key}: {'.'.join(parts[:i])} is a list of {len(node)}, so {part!r} is no index of it"
                )
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            raise ConfigError(f"--set {key}: {'.'.join(parts[:i])} is a value, not a table")
        if last:
            node[index] = value
        elif isinstance(node, dict) and index not in node:
            node[index] = {}
        node = node[index] if not last else None


def _resolved(config: RunConfig) -> RunConfig:
    """With absolute paths, so that the stored config means the same from any working directory."""
    run = dataclasses.replace(config.run, directory=str(local_directory(config.run.directory)))
    return dataclasses.replace(config, run=run, source=config.source.resolved())


def apply_environment(config: RunConfig) -> None:
    """Sets what must stand in the environment before JAX starts its backend."""
    if config.run.cpu_threads is not None:
        os.environ["NPROC"] = str(config.run.cpu_threads)


def build_mesh(config: RunConfig, processes: Processes | None = None) -> jax.sharding.Mesh | None:
    """The mesh that a config describes over the devices of all processes; None if it describes none and there is one process.

    Raises:
        ConfigError: if its axes do not fit the number of devices.
    """
    section = config.mesh
    if section is None:
        if (processes or Processes()).count == 1:
            return None
        section = MeshSection()
    sizes = mesh_sizes(section, jax.device_count())
    kinds = (jax.sharding.AxisType.Auto,) * len(
        sizes
    )  # the compiler splits the model's work, as most tasks expect
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def mesh_sizes(section: MeshSection, devices: int) -> dict[str, int]:
    """The size of each axis over this many devices.

    Raises:
        ConfigError: if the axes do not fit them.
    """
    fixed = math.prod(size for size in section.axes.values() if size != -1)
    sizes = {name: devices // fixed if size == -1 else size for name, size in section.axes.items()}
    if math.prod(sizes.values()) != devices:
        shown = ", ".join(f"{name} = {size}" for name, size in section.axes.items())
        raise ConfigError(
            f"mesh.axes ({shown}) does not fit {devices} devices; their product must be that number"
        )
    return sizes


def batch_sharding(config: RunConfig, mesh: jax.sharding.Mesh | None) -> jax.sharding.NamedSharding | None:
    """The sharding of a batch over a mesh: rows over the batch axes, all else whole. None without a mesh."""
    if mesh is None:
        return None
    axes = (config.mesh or MeshSection()).batch_axes
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(tuple(axes) or None))


def build_loader(config: RunConfig, source: DataSource, **placement: Any) -> DataLoader:
    """The loader that a config describes, over an opened source.

    Args:
        config: the run.
        source: its source, already open.
        placement: `sharding` and `rows`, handed on to the loader.

    Raises:
        ConfigError: if a setting does not fit the source or a transform cannot be loaded.
    """
    loader_config = config.loader
    if config.batch_stats_fn is not None:
        function = load_attribute(config.batch_stats_fn, "batch_stats_fn")
        loader_config = dataclasses.replace(loader_config, batch_stats_fn=function)
    return DataLoader(loader_config, source, transforms=_transforms(config), name="train", **placement)


@contextlib.contextmanager
def open_loader(
    config: RunConfig,
    *,
    build: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **placement: Any,
) -> Iterator[DataLoader]:
    """The loader that a config describes, over its source; both are closed at the end.

    Args:
        config: the run.
        build: make the data first if they are missing and the config says how.
        say: told about building, a line at a time.
        placement: handed on to `build_loader`.

    Raises:
        ConfigError: if the config does not fit its source.
        InputError: if data are missing, empty or malformed.
        BuildError: if building fails on the way.
    """
    with (
        open_source(config.source, build=build, say=say) as source,
        build_loader(config, source, **placement) as loader,
    ):
        yield loader


def _transforms(config: RunConfig) -> list[Transform]:
    stages = []
    for section in config.transforms:
        given = {key: value for key, value in encode(section).items() if key not in ("use", "parameters")}
        stages.append(load_transform(section.use, parameters=dict(section.parameters), **given))
    return stages


def build_session(config: RunConfig, loader: DataLoader, **output: Any) -> TrainingSession:
    """The session that a config describes; `output` is handed on (`stream`, `mesh`, `processes`).

    Raises:
        ConfigError: if the task cannot be loaded or nothing says when the run ends.
    """
    task = config.task
    return TrainingSession(
        config.run.directory,
        loader=loader,
        task=load_task(task.use) if task else None,
        parameters=task.parameters if task else None,
        steps=config.run.steps,
        save=config.save,
        resume=config.resume,
        log=config.log,
        config_text=config.to_toml(),
        **output,
    )


__all__ = [
    "MeshSection",
    "RunConfig",
    "apply_environment",
    "batch_sharding",
    "build_loader",
    "build_mesh",
    "build_session",
    "load_config",
    "mesh_sizes",
    "open_loader",
    "parse_config",
    "parse_stored_config",
]
