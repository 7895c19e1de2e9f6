"""Sources of records: random access by index, batched reads, fingerprints, and a place to continue from.

Slow libraries are imported where data is opened: what reads no ArrayRecord file never imports that library.
"""

from datarax.sources.array_record import ArrayRecordConfig, ArrayRecordSource
from datarax.sources.build import BuildConfig, BuildError, BuildProgress, BuildResult, build_dataset
from datarax.sources.build_inputs import PYTHON_STDLIB, InputKind
from datarax.sources.dataset import write_manifest
from datarax.sources.files import SourceFile
from datarax.sources.manifest import FileEntry, Manifest, load_manifest
from datarax.sources.objects import GrainConfig, GrainSource, MemoryConfig, MemorySource
from datarax.sources.range import RangeConfig, RangeSource
from datarax.sources.records import Records
from datarax.sources.source import DataSource, SourceConfig
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
