"""A TOML file -> one frozen, strict config -> a loader (or a Grain pipeline) and a training session.

Every table is a dataclass (`config.py`), every key is known, every value has its kind; any key can be overridden with
`--set table.key=value` (`parse.py`). The resolved config, with defaults filled in and paths absolute, is what a run keeps,
so that it can be verified later from anywhere. `build.py` makes what it describes.
"""

from datarax.run_config.build import apply_environment as apply_environment
from datarax.run_config.build import batch_sharding as batch_sharding
from datarax.run_config.build import build_grain_pipeline as build_grain_pipeline
from datarax.run_config.build import build_loader as build_loader
from datarax.run_config.build import build_mesh as build_mesh
from datarax.run_config.build import build_session as build_session
from datarax.run_config.build import mesh_sizes as mesh_sizes
from datarax.run_config.build import open_loader as open_loader
from datarax.run_config.config import BaseRunConfig as BaseRunConfig
from datarax.run_config.config import GrainRunConfig as GrainRunConfig
from datarax.run_config.config import IdentitySection as IdentitySection
from datarax.run_config.config import MeshSection as MeshSection
from datarax.run_config.config import RunConfig as RunConfig
from datarax.run_config.config import RunSection as RunSection
from datarax.run_config.config import TaskSection as TaskSection
from datarax.run_config.config import TransformSection as TransformSection
from datarax.run_config.parse import AnyRunConfig as AnyRunConfig
from datarax.run_config.parse import load_any_config as load_any_config
from datarax.run_config.parse import load_config as load_config
from datarax.run_config.parse import parse_any_stored_config as parse_any_stored_config
from datarax.run_config.parse import parse_config as parse_config
from datarax.run_config.parse import parse_stored_config as parse_stored_config

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
