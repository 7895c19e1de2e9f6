"""`datarax build`: raw text or JSONL to ArrayRecord shards with a manifest, or a manifest for shards that are there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_json, answer
from datarax.cli.import_path import append_working_directory

if TYPE_CHECKING:
    from datarax.sources import BuildResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument(
        "kind", choices=["text", "jsonl", "manifest"], help="what the inputs hold; 'manifest' only records"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        help="files, globs or directories; python-stdlib: the standard library's source; manifest: or a run config (.toml)",
    )
    parser.add_argument("--output", metavar="DIRECTORY", help="the dataset's directory (not for 'manifest')")
    parser.add_argument(
        "--record-bytes", type=int, metavar="N", help="text: bytes per record (default: one record per file)"
    )
    parser.add_argument("--num-shards", type=int, metavar="N", help="number of files of about equal length")
    parser.add_argument(
        "--records-per-shard", type=int, metavar="N", help="records in each file but the last"
    )
    parser.add_argument(
        "--group-size", type=int, default=1, metavar="N", help="records compressed together (default: 1)"
    )
    parser.add_argument(
        "--compression",
        choices=["uncompressed", "zstd"],
        default="uncompressed",
        help="of the records (default: uncompressed)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="build although a dataset is there; it is set aside when the new one is done",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Builds, or finds it built; or records what is there."""
    from datarax.core.errors import InputError
    from datarax.sources import BuildConfig, build_dataset

    if arguments.kind == "manifest":
        facts = _facts(_manifest_of(tuple(arguments.inputs)))
        return answer(arguments, facts, [f"recorded: {facts['records']:,} records in {facts['files']} files"])
    if not arguments.output:
        raise InputError("build needs --output DIRECTORY")
    config = BuildConfig(
        kind=arguments.kind,
        inputs=tuple(arguments.inputs),
        output=arguments.output,
        record_bytes=arguments.record_bytes,
        num_shards=arguments.num_shards,
        records_per_shard=arguments.records_per_shard,
        group_size=arguments.group_size,
        compression=arguments.compression,
    )
    result = build_dataset(config, again=arguments.again)
    facts = _facts(result.manifest) | {
        "directory": result.directory,
        "reused": result.reused,
        "skipped_files": result.skipped_files,
        "dropped_bytes": result.dropped_bytes,
    }
    return answer(arguments, facts, _lines(facts, result))


def _manifest_of(inputs: tuple[str, ...]) -> Any:
    if len(inputs) > 1 or not inputs[0].endswith(".toml"):
        from datarax.sources import write_manifest

        return write_manifest(inputs)
    append_working_directory()  # the config may name the user's code
    from datarax.run_config import load_config

    return load_config(inputs[0]).source.config().write_manifest()


def _facts(manifest: Any) -> dict[str, Any]:
    return {"records": manifest.num_records, "files": len(manifest.files)}


def _lines(facts: dict[str, Any], result: BuildResult) -> Iterator[str]:
    verb = "already built" if result.reused else "built"
    yield f"{verb}: {facts['records']:,} records in {facts['files']} files, {result.directory}"
    yield f"taken: {result.inputs_taken}"
    if result.set_aside:
        yield f"the dataset that was there is now {result.set_aside}"
    if result.skipped_files:
        yield f"skipped {result.skipped_files} input files without a record"
    if result.dropped_bytes:
        yield f"dropped the last {result.dropped_bytes} bytes, which do not fill a record"
