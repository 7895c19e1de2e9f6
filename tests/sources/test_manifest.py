"""A manifest says what is in the files, and is refused when it is damaged or belongs to others."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import InputError, ReadError
from datarax.core.tree import digest
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, Manifest, load_manifest, write_manifest
from datarax.sources.dataset import DataFiles
from datarax.sources.manifest import RECORD_HASHES_NAME, load_record_hashes, record_hash


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for name, records in (("a", [b"one", b"two"]), ("b", [b"three"]), ("c", [])):
        write_records(tmp_path / name, records)
    return tmp_path


def write_records(path: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


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
    (lambda tree: _with_entry(tree, mtime=0), "unknown key 'files.*mtime'"),
    (lambda tree: {**tree, "record_hashes": {}}, "'sha256'"),
]


FORGERIES = [
    *(
        (lambda tree, name=name: _with_entry(tree, name=name), "leads elsewhere")
        for name in (
            "",
            ".",
            "..",
            "a/",
            "/etc/passwd",
            "../../../../etc/passwd",
            "a/../a",
            "./a",
            "a//b",
            "a\0",
            "a\\b",
        )
    ),
    *(
        (lambda tree, name=name: _with_entry(tree, name=name), r"name must be a string")
        for name in (1, None, ["a"])
    ),
    *(
        (lambda tree, size=size: _with_entry(tree, size=size), r"size must be an integer of at least 0")
        for size in (
            -1,
            1.0,
            "7",
            None,
            True,
            2**63,
            10**400,
            [],
        )
    ),
    *(
        (lambda tree, n=n: _with_entry(tree, num_records=n), r"num_records must be an integer")
        for n in (
            -2,
            2.0,
            "2",
            None,
            2**64,
        )
    ),
    *(
        (lambda tree, sha=sha: _with_entry(tree, sha256=sha), r"sha256 must be a string of 64 hex")
        for sha in (
            "",
            "x" * 64,
            "A" * 64,
            "0" * 63,
            "0" * 64 + "\n",
            7,
            None,
        )
    ),
    (lambda tree: {**_with_entry(tree, num_records=2**63 - 1), "num_records": 2**63}, "more records than"),
    (lambda tree: {**tree, "num_records": 3.0}, "contradict each other"),
    (lambda tree: {**tree, "files": "abc"}, "files must be a list"),
    (lambda tree: {**tree, "files": {"a": 1}}, "files must be a list"),
    (lambda tree: {**tree, "files": [1]}, "must be a table"),
    (lambda tree: {**tree, "build": [1]}, "build must be a table"),
    (lambda tree: {**tree, "record_hashes": "x"}, "indices"),
    (lambda tree: {**tree, "record_hashes": {**tree["record_hashes"], "name": "/etc/passwd"}}, "contradict"),
    (lambda tree: {**tree, "format": True}, "no format number"),
    (lambda tree: {**tree, "format": [1]}, "no format number"),
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


@pytest.mark.parametrize(("change", "message"), CHANGES + FORGERIES)
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


def test_record_hashes_are_read_up_to_their_size(dataset: Path):
    manifest = write_manifest(f"{dataset}/*")
    os.truncate(dataset / RECORD_HASHES_NAME, 10 << 30)
    with pytest.raises(InputError, match=f"at most {8 * manifest.num_records} make sense"):
        load_record_hashes(manifest, str(dataset))


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


@pytest.mark.parametrize(
    ("listed", "beside", "found"),
    [
        (["x-0.array_record"], "x-1.array_record", True),
        (["x-0.array_record"], "another.array_record", True),
        (["x.array_record-00000-of-00002"], "x.array_record-00001-of-00002", True),
        (["data-00000"], "data-00001", True),
        (["data-00000"], "words-00001", False),
        (["x-0.array_record"], "x-1.array_record.tmp", False),
        (["x-0.array_record"], ".x-1.array_record", False),
        (["x-0.array_record"], "README", False),
        (["a/x-0.ar", "b/x-1.ar"], "b/x-2.ar", True),
        (["a/x-0.ar", "b/x-1.ar"], "c/x-2.ar", True),
        (["a/x-0.ar", "b/x-1.ar"], "x-2.ar", True),
        (["x-0.ar"], "new/x-1.ar", True),
        (["x-0.ar"], ".cache/x-1.ar", False),
    ],
)
def test_a_file_that_ends_like_data_below_a_manifest_is_unlisted(
    tmp_path: Path, listed, beside: str, found: bool
):
    for name in (*listed, beside):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_records(tmp_path / name, [b"x"])
    write_manifest([str(tmp_path / name) for name in listed])
    assert DataFiles(str(tmp_path)).unlisted() == ([str(tmp_path / beside)] if found else [])
    assert DataFiles([str(tmp_path / name) for name in listed]).unlisted() == []


def test_a_directory_below_with_a_manifest_of_its_own_is_another_dataset(dataset: Path):
    write_manifest(f"{dataset}/*")
    other = dataset / "other"
    other.mkdir()
    shutil.copy(dataset / "a", other / "a")
    assert DataFiles(str(dataset)).unlisted() == [str(other / "a")]
    write_manifest(f"{other}/*")
    assert DataFiles(str(dataset)).unlisted() == []


def test_a_linked_directory_beside_the_data_is_looked_into_once(dataset: Path, tmp_path: Path):
    write_manifest(f"{dataset}/*")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(dataset / "a", elsewhere / "a")
    (dataset / "link").symlink_to(elsewhere)
    (dataset / "loop").symlink_to(dataset)
    (dataset / "once more").symlink_to(elsewhere)
    assert DataFiles(str(dataset)).unlisted() == [str(dataset / "once more" / "a")]


def open_and_check(dataset: Path) -> None:
    with ArrayRecordSource(ArrayRecordConfig(files=str(dataset))) as source:
        problems = source.check_content()
    if problems:
        raise InputError("; ".join(problems))


@pytest.mark.parametrize("name", ["manifest.json", RECORD_HASHES_NAME, "a"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "directory", "socket", "loop", "huge", "full"])
def test_what_is_no_file_is_named_and_waits_for_nobody(dataset: Path, name: str, kind: str, tmp_path: Path):
    write_manifest(f"{dataset}/*")
    path = dataset / name
    path.unlink()
    make = {
        "fifo": lambda: os.mkfifo(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
        "full": lambda: path.symlink_to("/dev/full"),
        "directory": path.mkdir,
        "socket": lambda: os.mknod(path, 0o600 | stat.S_IFSOCK),
        "loop": lambda: path.symlink_to(path),
        "huge": lambda: (path.touch(), os.truncate(path, 1 << 41)),
    }
    make[kind]()
    with pytest.raises(InputError, match=str(path)):
        open_and_check(dataset)
    if name == "a" and kind != "huge":
        with pytest.raises(InputError, match=str(path)):
            write_manifest([str(path), str(dataset / "b")])


@pytest.mark.parametrize(
    "text", ['{"format": ' + "[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"format": NaN}', ""]
)
def test_json_that_nobody_wrote_is_refused(dataset: Path, text: str):
    (dataset / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="is damaged or not a manifest of datarax"):
        load_manifest(str(dataset))


MUTATIONS = st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    place = tmp_path_factory.mktemp("fuzzed")
    write_records(place / "a", [b"one", b"two"])
    write_manifest(str(place / "a"))
    return place, {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.mark.parametrize("name", ["manifest.json", RECORD_HASHES_NAME, "a"])
@given(changes=st.one_of(MUTATIONS, st.binary(max_size=200)))
def test_bytes_that_nobody_wrote_are_an_error_of_ours_or_the_same_data(fuzzed, name: str, changes):
    place, good = fuzzed
    data = bytearray(good[name])
    if isinstance(changes, bytes):
        data = bytearray(changes)
    else:
        for at, new in changes:
            data[at % len(data) : at % len(data) + len(new)] = new
    (place / name).write_bytes(data)
    try:
        with ArrayRecordSource(ArrayRecordConfig(files=str(place))) as source:
            assert source.check_content() or list(source) == [b"one", b"two"]
    except (InputError, ReadError):
        pass
    finally:
        (place / name).write_bytes(good[name])


@given(
    tree=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    ),
    field=st.sampled_from(
        ["format", "num_records", "files", "record_hashes", "build", "name", "size", "sha256", None]
    ),
)
def test_any_tree_with_a_good_checksum_is_a_manifest_or_refused(fuzzed, tree, field):
    place, good = fuzzed
    whole = json.loads(good["manifest.json"])
    if field is None:
        whole = tree if isinstance(tree, dict) else {"files": tree}
    elif field in whole:
        whole[field] = tree
    else:
        whole["files"][0][field] = tree
    whole = {key: value for key, value in whole.items() if key != "checksum"}
    (place / "manifest.json").write_text(json.dumps({**whole, "checksum": digest(whole)}))
    try:
        manifest = load_manifest(str(place))
        assert manifest is not None
        assert manifest.tree() == {**whole}
    except InputError:
        pass
    finally:
        (place / "manifest.json").write_bytes(good["manifest.json"])
