"""Data loading for JAX that resumes exactly, and proves it.

The model in twenty lines:

1. An *order* is an endless, addressable sequence of record keys: a pure function of seed, source and policy.
2. Step s takes a slice of its positions; a *source* reads those records; *transforms* turn them into rows.
3. A `DataLoader` hands the batches over and counts what the training loop has received: that count is its state.
4. A `Checkpointer` writes model and data state in one Orbax commit, with a digest of what was delivered.
5. A `TrainingSession` restores strictly, trains, saves, and leaves on a signal: run again = continue exactly.
6. `datarax verify` restores in a fresh process, replays, and compares.

    source = MemorySource(MemoryConfig(), {"x": x, "y": y})
    loader = DataLoader(DataLoaderConfig(batch_size=256, seed=1, num_epochs=10), source)
    TrainingSession("runs/first", loader=loader, task=MyTask()).run()

Names here load on first use, so that importing datarax costs nothing.
"""

# Nothing is imported here that Python has not imported itself before a program begins: of `python -m datarax` these lines run
# while the working directory still stands first on the import path (`__main__.py`).
import importlib

# Type checkers take it for True; to import it from typing would take longer than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from datarax.checkpoint import (
        Checkpointer,
        SaveConfig,
    )
    from datarax.core.config import DataraxModuleConfig
    from datarax.core.errors import DataraxError
    from datarax.core.module import (
        CheckpointableIteratorModule,
        DataraxModule,
    )
    from datarax.grain_pipeline import (
        GrainPipeline,
        GrainPipelineConfig,
    )
    from datarax.loader import (
        DataLoader,
        DataLoaderConfig,
    )
    from datarax.order import (
        OrderPolicy,
        Remainder,
    )
    from datarax.sources import (
        ArrayRecordConfig,
        ArrayRecordSource,
        GrainConfig,
        GrainSource,
        MemoryConfig,
        MemorySource,
        RangeConfig,
        RangeSource,
        TensorStoreConfig,
        TensorStoreSource,
    )
    from datarax.training import TrainingSession
    from datarax.transforms import (
        map_batch,
        map_records,
        random_map_batch,
        random_map_records,
    )

__version__ = "0.1.0"

_HOMES = {
    "ArrayRecordSource": "sources",
    "ArrayRecordConfig": "sources",
    "CheckpointableIteratorModule": "core.module",
    "Checkpointer": "checkpoint",
    "DataLoader": "loader",
    "DataLoaderConfig": "loader",
    "DataraxError": "core.errors",
    "DataraxModule": "core.module",
    "DataraxModuleConfig": "core.config",
    "GrainPipeline": "grain_pipeline",
    "GrainPipelineConfig": "grain_pipeline",
    "GrainSource": "sources",
    "GrainConfig": "sources",
    "MemorySource": "sources",
    "MemoryConfig": "sources",
    "OrderPolicy": "order",
    "RangeSource": "sources",
    "RangeConfig": "sources",
    "Remainder": "order",
    "SaveConfig": "checkpoint",
    "TensorStoreSource": "sources",
    "TensorStoreConfig": "sources",
    "TrainingSession": "training",
    "map_batch": "transforms",
    "map_records": "transforms",
    "random_map_batch": "transforms",
    "random_map_records": "transforms",
}

__all__ = [
    "ArrayRecordConfig",
    "ArrayRecordSource",
    "CheckpointableIteratorModule",
    "Checkpointer",
    "DataLoader",
    "DataLoaderConfig",
    "DataraxError",
    "DataraxModule",
    "DataraxModuleConfig",
    "GrainConfig",
    "GrainPipeline",
    "GrainPipelineConfig",
    "GrainSource",
    "MemoryConfig",
    "MemorySource",
    "OrderPolicy",
    "RangeConfig",
    "RangeSource",
    "Remainder",
    "SaveConfig",
    "TensorStoreConfig",
    "TensorStoreSource",
    "TrainingSession",
    "map_batch",
    "map_records",
    "random_map_batch",
    "random_map_records",
]


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module 'datarax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"datarax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
