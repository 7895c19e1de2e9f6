"""A TOML file -> one frozen, strict config -> a loader (or a Grain pipeline) and a training session.

Every table is a dataclass (`config.py`), every key is known, every value has its kind; any key can be overridden with
`--set table.key=value` (`parse.py`). The resolved config, with defaults filled in and paths absolute, is what a run keeps,
so that it can be verified later from anywhere. `build.py` makes what it describes.
"""

from datarax.run_config.build import (
    apply_environment,
    batch_sharding,
    build_grain_pipeline,
    build_loader,
    build_mesh,
    build_session,
    mesh_sizes,
    open_loader,
)
from datarax.run_config.config import (
    BaseRunConfig,
    GrainRunConfig,
    IdentitySection,
    MeshSection,
    RunConfig,
    RunSection,
    TaskSection,
    TransformSection,
)
from datarax.run_config.parse import (
    AnyRunConfig,
    load_any_config,
    load_config,
    parse_any_stored_config,
    parse_config,
    parse_stored_config,
)

__all__ = [
    "AnyRunConfig",
    "BaseRunConfig",
    "GrainRunConfig",
    "IdentitySection",
    "MeshSection",
    "RunConfig",
    "RunSection",
    "TaskSection",
    "TransformSection",
    "apply_environment",
    "batch_sharding",
    "build_grain_pipeline",
    "build_loader",
    "build_mesh",
    "build_session",
    "load_any_config",
    "load_config",
    "mesh_sizes",
    "open_loader",
    "parse_any_stored_config",
    "parse_config",
    "parse_stored_config",
]
