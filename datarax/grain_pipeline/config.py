"""The table `[grain_pipeline]` of a run's config, which names a function, and the pipeline that it stands for."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from datarax.core.config import Checked, Limit, Text, check_fields
from datarax.core.errors import ConfigError
from datarax.grain_pipeline.pipeline import GrainPipeline, GrainPipelineConfig
from datarax.trust import load_attribute


@dataclass(frozen=True, kw_only=True)
class GrainPipelineTable:
    """The table `[grain_pipeline]` of a run's config.

    Raises:
        ConfigError: if a field has the wrong kind.
    """

    use: Annotated[str, Limit(lambda use: ":" in use, "of the form 'module:function'")]
    """`module:function` that returns a grain.MapDataset, grain.IterDataset or grain.DataLoader. If it has parameters
    named `process_index` and `process_count`, it is told them."""
    parameters: Checked[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Arguments of the function, by name."""
    name: Text = "grain"
    """See `GrainPipelineConfig.name`."""
    version: Text | int | None = None
    """See `GrainPipelineConfig.version`."""
    impure: Checked[bool] = False
    """See `GrainPipelineConfig.impure`."""

    def __post_init__(self) -> None:
        check_fields(self)


def load_grain_pipeline(
    use: str,
    parameters: Mapping[str, Any] | None = None,
    name: str = "grain",
    version: str | int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    *,
    impure: bool = False,
    identity_packages: Sequence[str] = (),
) -> GrainPipeline:
    """Call the user's function and wrap what it returns.

    Args:
        use: `module:function`.
        parameters: its arguments.
        name: see `GrainPipelineConfig.name`.
        version: see `GrainPipelineConfig.version`.
        process_index: given to the function if it has a parameter of this name.
        process_count: given to the function if it has a parameter of this name.
        impure: see `GrainPipelineConfig.impure`.
        identity_packages: see `GrainPipelineConfig.identity_packages`.

    Raises:
        ConfigError: if the function cannot be found, does not take these parameters or returns something else, or if its
            pipeline is refused.
    """
    fn = load_attribute(use, "grain_pipeline.use")
    if not callable(fn):
        raise ConfigError(f"grain_pipeline.use = {use!r} is a {type(fn).__name__}, not a function")
    made = fn(**arguments_for(fn, parameters or {}, process_index, process_count))
    try:
        config = GrainPipelineConfig(
            name=name, version=version, impure=impure, identity_packages=tuple(identity_packages)
        )
        return GrainPipeline(config, made)
    except TypeError as error:
        raise ConfigError(f"grain_pipeline.use = {use!r}: {error}") from error


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
