"""Sources of records: random access by index, batched reads, fingerprints, and a place to continue from.

The kinds load on first use: what reads no ArrayRecord file never imports that kind.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from datarax.sources.build import BuildConfig, BuildError, BuildProgress, BuildResult, build_dataset
from datarax.sources.build_inputs import PYTHON_STDLIB, InputKind
from datarax.sources.files import SourceFile
from datarax.sources.manifest import FileEntry, Manifest, load_manifest, write_manifest
from datarax.sources.records import Records
from datarax.sources.source import DataSource, SourceConfig

if TYPE_CHECKING:
    from datarax.sources.array_record import ArrayRecordConfig, ArrayRecordSource
    from datarax.sources.grain_source import GrainConfig, GrainSource
    from datarax.sources.memory import MemoryConfig, MemorySource
    from datarax.sources.range import RangeConfig, RangeSource
    from datarax.sources.tensorstore import TensorStoreConfig, TensorStoreSource

__all__ = [
    "PYTHON_STDLIB",
    "ArrayRecordConfig",
    "ArrayRecordSource",
    "BuildConfig",
    "BuildError",
    "BuildProgress",
    "BuildResult",
    "DataSource",
    "FileEntry",
    "GrainConfig",
    "GrainSource",
    "InputKind",
    "Manifest",
    "MemoryConfig",
    "MemorySource",
    "RangeConfig",
    "RangeSource",
    "Records",
    "SourceConfig",
    "SourceFile",
    "TensorStoreConfig",
    "TensorStoreSource",
    "build_dataset",
    "load_manifest",
    "write_manifest",
]

_KINDS = {
    "ArrayRecord": "array_record",
    "Grain": "grain_source",
    "Memory": "memory",
    "Range": "range",
    "TensorStore": "tensorstore",
}


def __getattr__(name: str) -> Any:
    kind = _KINDS.get(name.removesuffix("Config").removesuffix("Source"))
    if name not in __all__ or kind is None:
        raise AttributeError(f"module 'datarax.sources' has no attribute {name!r}")
    return getattr(importlib.import_module(f"datarax.sources.{kind}"), name)
