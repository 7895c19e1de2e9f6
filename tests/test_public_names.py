"""The names that users, docs, configs and stored runs rely on, as plain data: a deletion here is one for them."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The whole `__all__` of each of these.
ALL = {
    "datarax": """
        ArrayRecordConfig ArrayRecordSource CheckpointableIteratorModule Checkpointer DataLoader DataLoaderConfig
        DataraxError DataraxModule DataraxModuleConfig GrainConfig GrainPipeline GrainPipelineConfig GrainSource
        MemoryConfig MemorySource OrderPolicy RangeConfig RangeSource Remainder SaveConfig TensorStoreConfig
        TensorStoreSource TrainingSession map_batch map_records random_map_batch random_map_records
    """,
    "datarax.core.module": """
        CheckpointableIteratorModule DataraxModule HostFlag HostInt IterationCount
    """,
    "datarax.checkpoint": """
        SNAPSHOT_FORMAT Change ChangePolicy Checkpointer EncodingError FileStamps HistoryEntry Record Restored
        SaveConfig Snapshot compare_model decode describe_model encode held_alone ledger_record ledger_steps
        list_steps make_global newest_good_step read_config read_identity restore_snapshot
    """,
    "datarax.grain_pipeline": """
        GrainPipeline GrainPipelineConfig GrainPipelineTable load_grain_pipeline
    """,
    "datarax.loader": """
        ROW_MASK DataLoader DataLoaderConfig
    """,
    "datarax.order": """
        DIGEST_VERSION MAX_POSITION ORDER_VERSION Digest GrainStyle Order OrderConfig OrderPolicy RecordKeys
        Remainder Rows Segment Timeline changed_algorithms derive_seed id64 key_hashes
        key_hashes_of_pass mix64 row_hashes row_seeds
    """,
    "datarax.run_config": """
        AnyRunConfig BaseRunConfig GrainRunConfig IdentitySection MeshSection RunConfig RunSection TaskSection TransformSection
        apply_environment batch_sharding build_grain_pipeline build_loader build_mesh build_session
        load_any_config load_config mesh_sizes open_loader parse_any_stored_config parse_config
        parse_stored_config
    """,
    "datarax.sources": """
        PYTHON_STDLIB ArrayRecordConfig ArrayRecordSource BuildConfig BuildError BuildProgress BuildResult
        DataSource FileEntry GrainConfig GrainSource InputKind Manifest MemoryConfig MemorySource RangeConfig
        RangeSource Records SourceConfig SourceFile TensorStoreConfig TensorStoreSource build_dataset load_manifest
        write_manifest
    """,
    "datarax.testing": """
        SourceLaws assert_resumes_everywhere
    """,
    "datarax.training": """
        LOADER_NAME LogConfig NonFiniteError Outcome ResumeConfig Task TrainingSession load_task total_steps
    """,
    "datarax.transforms": """
        IDENTITY_VERSION Level Randomness Transform apply_transforms check_pipeline function_identity
        function_impurities generator_from_seed impurities keys_from_seeds load_transform map_batch map_records
        pipeline_identity random_bits
        random_integers random_map_batch random_map_records random_uniform stack transform_identity unstack
        value_identity
    """,
}

# What the page of the module protocol names, with what every class inherits.
_MODULE = """
    config rngs name clone compute_statistics copy ensure_rng_streams get_operation_stats get_state get_statistics
    requires_rng_streams reset_operation_stats reset_statistics set_state set_statistics
    _applied_count _cache _computed_stats _skipped_count
"""
MEMBERS = {
    "DataraxModule": _MODULE,
    "CheckpointableIteratorModule": _MODULE + "current epoch idx position reset __iter__ __len__ __next__",
}

# Names without an `__all__` around them that README, docs, configs and stored runs name, or that many processes need.
SINGLE = """
    datarax:__version__
    datarax.checkpoint:Checkpointer.restore
    datarax.checkpoint:Checkpointer.save
    datarax.checkpoint:Checkpointer.wait
    datarax.cli.main:main
    datarax.core.config:DataraxModuleConfig
    datarax.core.errors:ConfigError
    datarax.core.errors:DataraxError
    datarax.core.errors:InputError
    datarax.core.errors:MismatchError
    datarax.core.errors:ReadError
    datarax.core.errors:SaveError
    datarax.core.errors:SnapshotDamagedError
    datarax.core.errors:SnapshotNotFoundError
    datarax.examples.byte_lm:task
    datarax.examples.byte_lm:tokens
    datarax.examples.grain_numbers:pipeline
    datarax.loader:DataLoader.batch_at
    datarax.loader:DataLoader.get_state
    datarax.loader:DataLoader.record_keys
    datarax.loader:DataLoader.seek
    datarax.loader:DataLoader.set_state
    datarax.multihost:MultihostConfig
    datarax.multihost:Slots
    datarax.multihost:check_slots
    datarax.multihost:current
    datarax.multihost:finish
    datarax.multihost:fitting_row_shards
    datarax.multihost:leading_axis
    datarax.multihost:slots_of
    datarax.multihost:start
"""


def loaded(path):
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("package", ALL)
def test_the_names_of_a_package_are_these_and_exist(package):
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(ALL[package].split())
    for name in module.__all__:
        assert getattr(module, name) is not None, name


@pytest.mark.parametrize("path", SINGLE.split())
def test_a_single_name_exists(path):
    assert loaded(path) is not None


@pytest.mark.parametrize("name", MEMBERS)
def test_the_module_protocol_is_complete(name):
    import datarax

    class Empty(getattr(datarax, name)):
        pass

    module = Empty(datarax.DataraxModuleConfig())
    missing = [member for member in MEMBERS[name].split() if not hasattr(module, member)]
    assert not missing


PAGES = [
    "README.md",
    "checkpoints/README.md",
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted(f"configs/{each.name}" for each in (ROOT / "configs").glob("*.toml"))]
)
def test_what_a_page_names_is_pinned_here(page):
    """So that a new example enters its names above, and a deletion of a name finds its pages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\bdatarax(?:\.\w+)+:\w+", text))
    for module, names in re.findall(r"^\s*from (datarax[.\w]*) import ([\w, ]+)", text, re.MULTILINE):
        named |= {f"{module}:{name.strip()}" for name in names.split(",")}
    packages = {f"{package}:{name}" for package, names in ALL.items() for name in names.split()}
    for path in sorted(named - packages - {"datarax:multihost"}):
        assert path in SINGLE.split(), f"{page} names {path}"
