"""A dataset is built whole or not at all, from the same bytes always the same, and never mistaken for another."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from datarax.core.errors import ConfigError, InputError
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    BuildConfig,
    BuildError,
    BuildProgress,
    BuildResult,
    build_dataset,
    build_inputs,
    load_manifest,
)
from datarax.sources import build as build_module
from datarax.sources.files import file_stamps
from datarax.sources.manifest import INPUTS_STAMP_NAME as BUILD_STAMP_NAME
from datarax.sources.manifest import RECORD_HASHES_NAME


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two files with 26 letters each, and an empty one."""
    directory = tmp_path / "texts"
    (directory / "more").mkdir(parents=True)
    (directory / "lower.txt").write_text("abcdefghijklmnopqrstuvwxyz")
    (directory / "more" / "upper.txt").write_text("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    (directory / "nothing.txt").write_text("")
    return directory


def build(inputs: object, output: Path, **settings: object) -> BuildResult:
    named = str(inputs) if isinstance(inputs, Path) else inputs
    return build_dataset(BuildConfig(inputs=named, output=str(output), **settings))


def records_in(directory: Path) -> list[bytes]:
    with ArrayRecordSource(ArrayRecordConfig(files=str(directory))) as source:
        assert source.check_content() == []
        return list(source)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != BUILD_STAMP_NAME
    }


# Records


def test_text_is_cut_into_records_across_files_and_the_rest_is_said(texts: Path, tmp_path: Path):
    result = build(texts, tmp_path / "out", record_bytes=10)
    assert records_in(tmp_path / "out") == [
        b"abcdefghij",
        b"klmnopqrst",
        b"uvwxyzABCD",
        b"EFGHIJKLMN",
        b"OPQRSTUVWX",
    ]
    assert (result.dropped_bytes, result.skipped_files, result.reused) == (2, 1, False)
    assert result.directory == str(tmp_path / "out")


def test_without_a_record_length_each_file_is_a_record(texts: Path, tmp_path: Path):
    result = build(texts, tmp_path / "out")
    assert records_in(tmp_path / "out") == [b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert (result.dropped_bytes, result.skipped_files) == (0, 1)


def test_each_line_of_jsonl_is_a_record_as_it_was_written(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"x": 1}\r\n [1,\t2.5] \n')
    (tmp_path / "b.jsonl").write_bytes('"é"\n'.encode() + b"9" * 5000)
    build(f"{tmp_path}/*.jsonl", tmp_path / "out", kind="jsonl")
    assert records_in(tmp_path / "out") == [b'{"x": 1}', b" [1,\t2.5] ", '"é"'.encode(), b"9" * 5000]


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, [5]),
        ({"records_per_shard": 2}, [2, 2, 1]),
        ({"records_per_shard": 5}, [5]),
        ({"records_per_shard": 99}, [5]),
        ({"num_shards": 2}, [3, 2]),
        ({"num_shards": 5}, [1] * 5),
        ({"num_shards": 2, "group_size": 2, "compression": "zstd"}, [3, 2]),
    ],
)
def test_shards_hold_the_records_in_order(texts: Path, tmp_path: Path, settings: dict, lengths: list[int]):
    result = build(texts, tmp_path / "out", record_bytes=10, **settings)
    assert [file.num_records for file in result.manifest.files] == lengths
    assert [file.name for file in result.manifest.files] == [
        f"records-{i:06d}.array_record" for i in range(len(lengths))
    ]
    assert result.dropped_bytes == 2
    assert b"".join(records_in(tmp_path / "out")) == b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"


def test_the_standard_library_is_text_on_every_machine(tmp_path: Path, monkeypatch):
    library = tmp_path / "lib"
    for name, text in {
        "os.py": b"import sys",
        "json/decoder.py": b"# decoder",
        "test/bad.py": b"\xff\xfe",
        "site-packages/numpy/core.py": b"# not ours",
        "json/__pycache__/decoder.py": b"# cached",
        "data.txt": b"no source",
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_bytes(text)
    monkeypatch.setattr(build_inputs.sysconfig, "get_path", lambda name: str(library))
    result = build("python-stdlib", tmp_path / "out")
    assert records_in(tmp_path / "out") == [b"# decoder", b"import sys"]
    assert result.skipped_files == 1


def test_the_real_standard_library_builds(tmp_path: Path):
    result = build(("python-stdlib",), tmp_path / "out", record_bytes=4096, num_shards=3)
    assert result.manifest.num_records > 2000
    assert sum(file.size for file in result.manifest.files) > 8 << 20


# Refused inputs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'x': 1}", r"bad.jsonl:2 is not valid JSON: "),
        (b"", r"bad.jsonl:2 is empty; every line"),
        (b"   ", r"bad.jsonl:2 is empty"),
        (b'"\xff"', r"bad.jsonl:2 is not valid JSON: 'utf-8' codec"),
        (b"NaN", r"bad.jsonl:2 is not valid JSON: NaN is not JSON"),
        (b"01", r"bad.jsonl:2 is not valid JSON: Extra data"),
        (b"1 2", r"bad.jsonl:2 is not valid JSON: Extra data"),
        (b"[" * 100_000, r"bad.jsonl:2 is not valid JSON"),
    ],
)
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: bytes, message: str):
    (tmp_path / "bad.jsonl").write_bytes(b"1\n" + line + b"\n3\n")
    with pytest.raises(InputError, match=message):
        build(tmp_path / "bad.jsonl", tmp_path / "out", kind="jsonl")
    assert os.listdir(tmp_path) == ["bad.jsonl"]


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        ("{}/nowhere.txt", {}, "input file .*/nowhere.txt does not exist"),
        ("{}/*.csv", {}, r"no input file matches .*/\*.csv"),
        ("s3://bucket/x", {}, "is not a local path"),
        ("{}/texts/nothing.txt", {}, r"the inputs \(1 files, the first is .*/nothing.txt\) hold no record"),
        ("{}/texts", {"record_bytes": 99}, "hold 52 bytes, less than one record of record_bytes = 99"),
        ("{}/texts", {"num_shards": 3}, "2 records cannot fill num_shards = 3 files"),
        ("{}/latin.txt", {}, "input file .*/latin.txt is not UTF-8 text: .* at byte 3; convert it"),
        ("{}/empty", {}, "input directory .*/empty holds no files"),
    ],
)
def test_inputs_without_records_are_refused_and_leave_nothing(
    texts: Path, tmp_path: Path, inputs: str, settings: dict, message: str
):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 ")
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match=message):
        build(inputs.format(tmp_path), tmp_path / "out", **settings)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "csv"}, "kind must be one of 'text', 'jsonl', got 'csv'"),
        ({"record_bytes": 0}, "record_bytes must be an integer of at least 1, got 0"),
        ({"num_shards": 1.5}, "num_shards must be an integer of at least 1, got 1.5"),
        ({"group_size": None}, "group_size must be an integer of at least 1, got None"),
        ({"num_shards": 2, "records_per_shard": 2}, "not both"),
        ({"kind": "jsonl", "record_bytes": 5}, "record_bytes is for text"),
        ({"compression": "gzip"}, "compression must be one of 'uncompressed', 'zstd', got 'gzip'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        BuildConfig(inputs="x", output="y", **settings)


def test_an_input_that_changes_while_it_is_read_is_noticed(texts: Path, tmp_path: Path, monkeypatch):
    def stamp(*files):
        (texts / "lower.txt").write_text("changed before the last look")
        return file_stamps(*files)

    monkeypatch.setattr(build_module, "file_stamps", stamp)
    with pytest.raises(InputError, match="the input files changed while they were read"):
        build(texts, tmp_path / "out")
    assert os.listdir(tmp_path) == ["texts"]


# The same, and not the same


def test_the_same_bytes_give_the_same_files_wherever_they_lie(texts: Path, tmp_path: Path):
    build(texts, tmp_path / "one", record_bytes=10, num_shards=2)
    shutil.copytree(texts, tmp_path / "moved" / "texts")
    for path in (tmp_path / "moved").rglob("*.txt"):
        os.utime(path, ns=(1, 1))
    build(tmp_path / "moved" / "texts", tmp_path / "deep" / "er" / "two", record_bytes=10, num_shards=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "deep" / "er" / "two")
    assert str(tmp_path).encode() not in b"".join(contents(tmp_path / "one").values())


def test_a_finished_dataset_is_reused(texts: Path, tmp_path: Path):
    first = build(texts, tmp_path / "out")
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.suffix != ".stamp"
    }
    second = build(texts, tmp_path / "out")
    assert second.reused
    assert second.manifest == first.manifest
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_reused_dataset_needs_neither_its_inputs_read_nor_a_place_to_write(
    texts: Path, tmp_path: Path, monkeypatch
):
    build(texts, tmp_path / "out")
    monkeypatch.setattr(build_inputs, "open_input", lambda file: pytest.fail(f"{file} was read"))
    monkeypatch.setattr(os, "mkdir", lambda *_: pytest.fail("a directory was made"))
    assert build(texts, tmp_path / "out").reused


def test_touched_inputs_are_read_again_and_found_the_same(texts: Path, tmp_path: Path):
    build(texts, tmp_path / "out")
    os.utime(texts / "lower.txt", ns=(1, 1))
    assert build(texts, tmp_path / "out").reused


def test_another_content_or_setting_is_refused_by_its_field(texts: Path, tmp_path: Path):
    build(texts, tmp_path / "out", record_bytes=10)
    with pytest.raises(
        InputError,
        match=r"holds a dataset that was built from something else.*\n  record_bytes: was 10, is 11",
    ):
        build(texts, tmp_path / "out", record_bytes=11)
    (texts / "lower.txt").write_text("abcdefghijklmnopqrstuvwxy!")
    with pytest.raises(InputError, match=r"\n  inputs.sha256: was "):
        build(texts, tmp_path / "out", record_bytes=10)
    (texts / "third.txt").write_text("0")
    with pytest.raises(InputError, match=r"\n  inputs.count: was 3, is 4"):
        build(texts, tmp_path / "out", record_bytes=10)


def test_a_directory_of_something_else_is_left_alone(texts: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(InputError, match="/out exists and is no finished dataset"):
        build(texts, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


def test_an_empty_directory_is_filled(texts: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert not build(texts, tmp_path / "out").reused
    assert len(records_in(tmp_path / "out")) == 2


def test_a_dataset_holds_what_the_design_says_and_its_place_nothing_more(texts: Path, tmp_path: Path):
    build(texts, tmp_path / "place" / "out")
    assert os.listdir(tmp_path / "place") == ["out"]
    assert sorted(os.listdir(tmp_path / "place" / "out")) == [
        BUILD_STAMP_NAME,
        "manifest.json",
        "records-000000.array_record",
        RECORD_HASHES_NAME,
    ]
    assert json.loads((tmp_path / "place" / "out" / "manifest.json").read_text())["build"]["kind"] == "text"


def test_progress_tells_how_many_records_are_written(tmp_path: Path):
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(str, range(10_000))))
    told: list[BuildProgress] = []
    config = BuildConfig(kind="jsonl", inputs=str(tmp_path / "numbers.jsonl"), output=str(tmp_path / "out"))
    build_dataset(config, progress=told.append)
    assert [each.stage for each in told] == ["reading", "writing", "writing", "writing"]
    assert [each.num_records for each in told[1:]] == [4096, 8192, 10_000]


# Interrupted and failing


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, stop: type[BaseException]):
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(str, range(10_000))))
    config = BuildConfig(kind="jsonl", inputs=str(tmp_path / "numbers.jsonl"), output=str(tmp_path / "out"))

    def interrupt(progress: BuildProgress) -> None:
        if progress.num_records > 5000:
            raise stop

    with pytest.raises(stop):
        build_dataset(config, progress=interrupt)
    assert os.listdir(tmp_path) == ["numbers.jsonl"]
    assert build_dataset(config).manifest.num_records == 10_000


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "numbers.jsonl").write_text("\n".join(map(str, range(100_000))))
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        with pytest.raises(BuildError, match="No space left on device"):
            build(tmp_path / "numbers.jsonl", disk / "out", kind="jsonl")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EROFS, InputError, "cannot be written: .*Read-only file system.*; give another output"),
        (errno.EACCES, InputError, "cannot be written: .*Permission denied"),
        (errno.ENOSPC, BuildError, "cannot be written: .*No space left on device.*; nothing of it is left"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named(
    texts: Path, tmp_path: Path, code: int, kind: type[Exception], message: str, monkeypatch
):
    def refuse(path: str, *_: object) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(kind, match=f"dataset {tmp_path}/out {message}"):
        build(texts, tmp_path / "out")


def test_an_output_below_a_file_is_refused(texts: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot be written: .*(Not a directory|File exists)"):
        build(texts, texts / "lower.txt" / "out")


def test_a_remote_output_is_refused(texts: Path):
    with pytest.raises(InputError, match="output directory 'gs://bucket/out' is not a local path"):
        build_dataset(BuildConfig(inputs=str(texts), output="gs://bucket/out"))


def test_no_manifest_is_written_over(texts: Path, tmp_path: Path):
    build(texts, tmp_path / "out")
    before = load_manifest(str(tmp_path / "out"))
    with pytest.raises(InputError):
        build(texts, tmp_path / "out", record_bytes=3)
    assert load_manifest(str(tmp_path / "out")) == before
