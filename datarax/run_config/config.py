"""What a run is: one frozen, strict tree of dataclasses, a table of the TOML file each. The text under a field documents it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tomli_w

from datarax.checkpoint import SaveConfig
from datarax.core.config import Checked, Positive, check_fields, to_tree
from datarax.core.errors import ConfigError
from datarax.grain_pipeline import GrainPipelineTable
from datarax.loader import DataLoaderConfig
from datarax.multihost import MultihostConfig
from datarax.sources.open import SourceTable
from datarax.training import LogConfig, ResumeConfig


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives and when it ends."""

    directory: str
    """The run's directory; run again in it = continue."""
    steps: Positive | None = None
    """Steps of the whole run; with `loader.num_epochs` as well, whichever ends first. None: as many as the loader has."""
    cpu_threads: Positive | None = None
    """XLA's CPU thread count (NPROC). Bit-identical parameters need the same number at every start."""
    on_nonfinite: Checked[Literal["warn", "stop"]] = "warn"
    """What a metric that is inf or NaN means. 'warn' says so once for each name, with the step; 'stop' ends the run with exit
    code 70 before any snapshot of that step is begun. Arrays of more than 65,536 values are not looked at."""

    def __post_init__(self) -> None:
        check_fields(self)


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
    depends_on_files: Sequence[str] | None = None
    """Files that the function reads (a tokenizer, a vocabulary); by content they are identity of this stage, not by place."""
    impure: bool | None = None
    """Whether the function may keep something between its calls (a global generator, a counter); else a new run refuses it."""


@dataclass(frozen=True, kw_only=True)
class IdentitySection:
    """Whose code decides what is in a batch."""

    packages: Sequence[str] = ()
    """Top-level packages whose code counts by its text although they are installed as copies; what is not installed so, and the
    package that a function itself lies in, always does."""


@dataclass(frozen=True, kw_only=True)
class BaseRunConfig:
    """What every run says, wherever its batches come from."""

    run: RunSection
    """Directory and length."""
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
    identity: IdentitySection = field(default_factory=IdentitySection)
    """Whose code counts."""

    def to_toml(self) -> str:
        """The resolved config, such that parsing it gives an equal one."""
        return tomli_w.dumps(to_tree(self))


@dataclass(frozen=True, kw_only=True)
class RunConfig(BaseRunConfig):
    """One run over a source of records, completely described."""

    source: SourceTable
    """Where the records are, and how to build them if they are not there yet."""
    loader: DataLoaderConfig
    """Which records make which batch."""
    transforms: Sequence[TransformSection] = ()
    """Stages from records to rows, in turn."""
    batch_stats_fn: str | None = None
    """`module:attribute` of a function of each batch whose results are averaged and reported."""


@dataclass(frozen=True, kw_only=True)
class GrainRunConfig(BaseRunConfig):
    """One run over an existing Grain pipeline, completely described. Its elements stay NumPy, also with a mesh."""

    grain_pipeline: GrainPipelineTable
    """The pipeline."""
