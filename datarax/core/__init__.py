"""The shared words: configs, modules and their state, errors, fingerprints. Needs numpy, jax, flax only."""

from datarax.core.config import DataraxModuleConfig, OperatorConfig, StructuralConfig
from datarax.core.errors import (
    ConfigError,
    DataraxError,
    InputError,
    MismatchError,
    ReadError,
    RunLockedError,
    SaveError,
    SnapshotDamagedError,
    SnapshotNotFoundError,
)
from datarax.core.module import CheckpointableIteratorModule, DataraxModule
from datarax.core.variables import HostFlag, HostInt, IterationCount

__all__ = [
    "CheckpointableIteratorModule",
    "ConfigError",
    "DataraxError",
    "DataraxModule",
    "DataraxModuleConfig",
    "HostFlag",
    "HostInt",
    "InputError",
    "IterationCount",
    "MismatchError",
    "OperatorConfig",
    "ReadError",
    "RunLockedError",
    "SaveError",
    "SnapshotDamagedError",
    "SnapshotNotFoundError",
    "StructuralConfig",
]
