"""A manifest says what is in the files, and is refused when it is damaged or belongs to others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.core.errors import InputError
from datarax.core.tree import digest
from datarax.sources import Manifest, load_manifest, write_manifest
from datarax.sources.manifest import RECORD_HASHES_NAME, load_record_hashes, record_hash


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name, records in (("a", [b"one", b"two"]), ("b", [b"three"]), ("c", [])):
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    return tmp_path


def test_it_holds_counts_sizes_and_hashes_of_files_and_records(dataset: Path):
    manifest = write_manifest(f"{dataset}/*")
    assert load_manifest(str(dataset)) == manifest
    assert [(file.name, file.num_records) for file in manifest.files] == [("a", 2), ("b", 1), ("c", 0)]
    assert [file.size for file in manifest.files] == [(dataset / name).stat().st_size for name in "abc"]
    hashes = load_record_hashes(manifest, str(dataset))
    assert hashes.tobytes() == b"".join(map(record_hash, [b"one", b"two", b"three"]))
    assert hashes.dtype == np.dtype("<u8")


def test_the_same_files_give_the_same_bytes_wherever_and_whenever(dataset: Path, tmp_path_factory):
    write_manifest(f"{dataset}/*")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in "abc":
        (elsewhere / name).write_bytes((dataset / name).read_bytes())
        os.utime(elsewhere / name, ns=(1, 1))
    write_manifest([str(elsewhere / name) for name in "cab"])
    for name in ("manifest.json", RECORD_HASHES_NAME):
        assert (elsewhere / name).read_bytes() == (dataset / name).read_bytes()
    assert sorted(os.listdir(elsewhere)) == ["a", "b", "c", "manifest.json", RECORD_HASHES_NAME]


def test_writing_it_again_finds_it_there_or_refuses_what_differs(dataset: Path):
    first = write_manifest(f"{dataset}/*")
    assert write_manifest(f"{dataset}/*") == first
    (dataset / "b").write_bytes((dataset / "a").read_bytes())
    before = (dataset / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"manifest.json records something else than these files"):
        write_manifest(f"{dataset}/*")
    assert (dataset / "manifest.json").read_bytes() == before


def test_a_file_that_is_no_array_record_file_gets_no_manifest(dataset: Path):
    (dataset / "d").write_bytes(b"text")
    with pytest.raises(InputError, match="/d is not a complete ArrayRecord file"):
        write_manifest(f"{dataset}/*")
    assert sorted(os.listdir(dataset)) == ["a", "b", "c", "d"]


def test_a_directory_is_no_list_of_files(dataset: Path):
    with pytest.raises(InputError, match=r"holds no manifest.json; name its files with a glob"):
        write_manifest(str(dataset))


def test_no_manifest_is_none(tmp_path: Path):
    assert load_manifest(str(tmp_path)) is None


CHANGES = [
    (lambda tree: {**tree, "more": 0}, "its fields are not those of a manifest"),
    (lambda tree: {key: tree[key] for key in tree if key != "build"}, "'build'"),
    (lambda tree: {**tree, "num_records": 4}, "or contradict each other"),
    (lambda tree: {**tree, "files": []}, "its files are none"),
    (lambda tree: {**tree, "files": tree["files"][::-1]}, "not sorted"),
    (lambda tree: _with_entry(tree, name="../a"), "leads elsewhere"),
    (lambda tree: _with_entry(tree, name="/a"), "leads elsewhere"),
    (lambda tree: _with_entry(tree, mtime=0), "unexpected keyword argument 'mtime'"),
    (lambda tree: {**tree, "record_hashes": {}}, "'sha256'"),
]


DAMAGES = [
    *(change for change, _ in CHANGES),
    lambda tree: _with_entry(tree, size=True),
    lambda tree: _with_entry(tree, num_records="2"),
    lambda tree: _with_entry(tree, num_records=-2),
    lambda tree: {**tree, "build": []},
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_manifest_that_was_changed_is_refused_by_its_checksum(dataset: Path, damage):
    write_manifest(f"{dataset}/*")
    path = dataset / "manifest.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(
        InputError, match=r"manifest .*manifest.json is damaged .*its checksum does not match"
    ):
        load_manifest(str(dataset))


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_manifest_that_does_not_say_what_it_must_is_refused(dataset: Path, change, message: str):
    """Written so, with a checksum that matches."""
    write_manifest(f"{dataset}/*")
    path = dataset / "manifest.json"
    tree = change(json.loads(path.read_text()))
    tree["checksum"] = digest({key: value for key, value in tree.items() if key != "checksum"})
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=rf"manifest .*manifest.json is damaged .*{message}"):
        load_manifest(str(dataset))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no JSON object"),
        ("{}", "no format number"),
        ('{"format": "1"}', "no format number"),
        ('{"format": 1}', "'checksum'"),
    ],
)
def test_json_that_is_no_manifest_is_refused(dataset: Path, text: str, message: str):
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=f"is damaged or not a manifest of datarax .*{message}"):
        load_manifest(str(dataset))


def _with_entry(tree: dict, **changes: object) -> dict:
    return {**tree, "files": [{**tree["files"][0], **changes}, *tree["files"][1:]]}


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "its format is 2; .* reads up to 1: use the version that wrote it"),
        (0, "its format is 0, which no"),
    ],
)
def test_a_manifest_of_a_format_without_a_reader_is_refused_by_its_number(
    dataset: Path, version: int, message: str
):
    write_manifest(f"{dataset}/*")
    path = dataset / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(InputError, match=rf"manifest .*manifest.json cannot be read: {message}"):
        load_manifest(str(dataset))


def test_text_that_is_no_json_is_refused(dataset: Path):
    (dataset / "manifest.json").write_text('{"format": 1, ')
    with pytest.raises(InputError, match="is damaged or not a manifest"):
        load_manifest(str(dataset))


def test_record_hashes_of_another_dataset_are_refused(dataset: Path):
    manifest = write_manifest(f"{dataset}/*")
    (dataset / RECORD_HASHES_NAME).write_bytes(b"\0" * 24)
    with pytest.raises(InputError, match=rf"record hashes .*{RECORD_HASHES_NAME} have SHA-256"):
        load_record_hashes(manifest, str(dataset))
    (dataset / RECORD_HASHES_NAME).unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_record_hashes(manifest, str(dataset))


def test_the_digest_of_the_content_does_not_know_how_it_was_made(dataset: Path):
    manifest = write_manifest(f"{dataset}/*")
    built = Manifest(manifest.files, manifest.record_hashes_sha256, {"kind": "text"})
    assert built.content_digest() == manifest.content_digest()
    assert built.content_digest() != Manifest(manifest.files[:2], "").content_digest()
