"""What a `GrainPipeline` is told, and how a run names the function that builds one."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datarax.core.config import DataraxModuleConfig, Positive, Text, check_fields
from datarax.core.errors import ConfigError


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
    num_steps: Positive | None = None
    """Elements of the whole run; None for as many as the pipeline has. Never identity."""


@dataclass(frozen=True, kw_only=True)
class GrainPipelineTable:
    """The table `[grain_pipeline]` of a run's config.

    Raises:
        ConfigError: if a field has the wrong kind.
    """

    use: str
    """`module:function` that returns a grain.MapDataset, grain.IterDataset or grain.DataLoader. If it has parameters
    named `process_index` and `process_count`, it is told them."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the function, by name."""
    name: Text = "grain"
    """See `GrainPipelineConfig.name`."""
    version: Text | int | None = None
    """See `GrainPipelineConfig.version`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.use, str) or ":" not in self.use:
            raise ConfigError(f"grain_pipeline.use must be 'module:function', got {self.use!r}")
        if not isinstance(self.parameters, Mapping) or not all(
            isinstance(key, str) for key in self.parameters
        ):
            raise ConfigError(
                f"grain_pipeline.parameters must be a table of arguments, got {self.parameters!r}"
            )


def arguments_for(
    fn: Any, parameters: Mapping[str, Any], process_index: int, process_count: int
) -> dict[str, Any]:
    """The arguments for a user's function: its parameters, and the topology if it asks for it by name.

    Raises:
        ConfigError: if the function does not take these parameters, saying which it has.
    """
    topology = {"process_index": process_index, "process_count": process_count}
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"grain_pipeline.use names {fn!r}, which cannot be called: {error}") from error
    asked = {name: value for name, value in topology.items() if name in signature.parameters}
    clash = sorted(asked.keys() & parameters.keys())
    if clash:
        raise ConfigError(f"grain_pipeline.parameters sets {clash}, which the run itself gives the function")
    arguments = {**parameters, **asked}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"grain_pipeline.parameters {sorted(parameters)} do not fit {getattr(fn, '__qualname__', fn)}{signature}: {error}"
        ) from error
    return arguments
