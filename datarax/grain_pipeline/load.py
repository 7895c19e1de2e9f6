"""From a `[grain_pipeline]` table to a `GrainPipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datarax.core.config import load_attribute
from datarax.core.errors import ConfigError
from datarax.grain_pipeline.config import GrainPipelineConfig, arguments_for
from datarax.grain_pipeline.pipeline import GrainPipeline


def load_grain_pipeline(
    use: str,
    parameters: Mapping[str, Any] | None = None,
    name: str = "grain",
    version: str | int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> GrainPipeline:
    """Call the user's function and wrap what it returns.

    Args:
        use: `module:function`.
        parameters: its arguments.
        name: see `GrainPipelineConfig.name`.
        version: see `GrainPipelineConfig.version`.
        process_index: given to the function if it has a parameter of this name.
        process_count: given to the function if it has a parameter of this name.

    Raises:
        ConfigError: if the function cannot be found, does not take these parameters or returns something else, or if its
            pipeline is refused.
    """
    fn = load_attribute(use, "grain_pipeline.use")
    if not callable(fn):
        raise ConfigError(f"grain_pipeline.use = {use!r} is a {type(fn).__name__}, not a function")
    made = fn(**arguments_for(fn, parameters or {}, process_index, process_count))
    try:
        return GrainPipeline(GrainPipelineConfig(name=name, version=version), made)
    except TypeError as error:
        raise ConfigError(f"grain_pipeline.use = {use!r}: {error}") from error
