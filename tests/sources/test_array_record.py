"""Files that are missing, damaged, replaced, many; and what an ArrayRecord source knows without opening them."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.cli.main import main
from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.core.tree import canonical_json
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, Manifest, load_manifest, write_manifest
from datarax.sources import array_record_files as files_module
from datarax.sources.files import listed, recorded_files
from datarax.sources.manifest import load_record_hashes, write_inventory
from datarax.sources.open import SourceTable


def write(path: Path, records: list[bytes], options: str = "group_size:1,uncompressed") -> Path:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def records(first: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(first)
    return [b"%06d" % i + rng.bytes(200) for i in range(first, first + count)]


def open_source(files: object, **settings: object) -> ArrayRecordSource:
    return ArrayRecordSource(ArrayRecordConfig(files=files, **settings))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three files of 300 records, with a manifest."""
    for k in range(3):
        write(tmp_path / f"part-{k}.array_record", records(300 * k, 300))
    write_manifest(f"{tmp_path}/*.array_record")
    return tmp_path


# Which files


def test_files_say_which_records_they_hold(tmp_path: Path):
    counts = [3, 0, 5, 0]
    for k, count in enumerate(counts):
        write(tmp_path / f"part-{k}.array_record", records(100 * k, count))
    source = open_source(f"{tmp_path}/*.array_record")
    assert [file.num_records for file in source.files()] == counts
    for k, file in enumerate(source.files()):
        assert file.size == (tmp_path / file.name).stat().st_size
        held = source.read(np.arange(file.first_index, file.first_index + file.num_records))
        assert held == records(100 * k, file.num_records)
    assert source.records.num_open_files <= len(counts)


@pytest.mark.parametrize("count", [3, 20])
def test_an_identity_keeps_the_files_or_what_proves_a_list_of_them(tmp_path: Path, count: int):
    for k in range(count):
        (tmp_path / "data" / f"{k % 2}").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "data" / f"{k % 2}" / f"part-{k}.array_record", records(100 * k, k + 1))
    write_manifest(f"{tmp_path}/data/*/*.array_record")
    source = open_source(str(tmp_path / "data"))
    identity = source.identity()
    assert recorded_files(identity) == (tuple(source.files()) if count == 3 else None)
    table = SourceTable(kind="array_record", settings={"files": str(tmp_path / "data")})
    for path in (tmp_path / "data").glob("*/*.array_record"):
        path.unlink()
    assert table.config().list_files() == source.files(), "the manifest alone says it"
    assert listed(table.config().list_files()) == identity["files"]


def test_files_are_ordered_by_name_however_they_are_listed(three: Path):
    paths = [str(three / f"part-{k}.array_record") for k in (2, 0, 1)]
    source = open_source(paths)
    assert [file.name for file in source.files()] == [
        "part-0.array_record",
        "part-1.array_record",
        "part-2.array_record",
    ]
    assert [record[:6] for record in source.read([0, 300, 899])] == [b"000000", b"000300", b"000899"]
    assert source.identity() == open_source(f"{three}/*").identity() == open_source(str(three)).identity()


def test_names_are_relative_to_the_deepest_common_directory(tmp_path: Path):
    for name in ("a/x", "b/y"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, [name.encode()])
    source = open_source(f"{tmp_path}/**/[xy]")
    assert (source.base_directory, [file.name for file in source.files()]) == (str(tmp_path), ["a/x", "b/y"])


def test_a_path_that_exists_is_taken_literally(tmp_path: Path):
    path = write(tmp_path / "odd[0:2].array_record", records(0, 3))
    assert len(open_source(str(path))) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("{}/nowhere.array_record", r"ArrayRecord file .*nowhere.array_record does not exist"),
        ("{}/*.records", r"no ArrayRecord file matches .*\*.records"),
        ("gs://bucket/data/*", r"'gs://bucket/data/\*' is not a local path"),
        ("{}", r"directory .* holds no manifest.json; name its files with a glob"),
        (("{}/a", "{}/[a]"), "is named twice, by '.*/a' and by '.*/\\[a\\]'"),
    ],
)
def test_what_names_no_files_is_refused(tmp_path: Path, files: object, message: str):
    write(tmp_path / "a", records(0, 3))
    named = files.format(tmp_path) if isinstance(files, str) else tuple(f.format(tmp_path) for f in files)
    with pytest.raises(InputError, match=message):
        open_source(named)


@pytest.mark.parametrize(
    "settings",
    [{"files": ""}, {"files": ()}, {"files": "x", "max_open_files": 0}, {"files": "x", "name": ""}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict):
    with pytest.raises(ConfigError):
        ArrayRecordConfig(**settings)


def test_datasets_side_by_side_keep_their_manifests(tmp_path: Path):
    for name in ("books", "code"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x", records(len(name), 10))
        write_manifest(f"{tmp_path}/{name}/*")
    source = open_source([str(tmp_path / "code"), str(tmp_path / "books")])
    assert [file.name for file in source.files()] == ["books/x", "code/x"]
    assert source.content_recorded
    flip(tmp_path / "code" / "x", 70_000)
    (problem,) = source.check_content()
    assert problem.startswith(f"{tmp_path}/code/x is not what the manifest says")
    (tmp_path / "books" / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"some of the files have a manifest, but those in .*/books have none"
    ):
        open_source(f"{tmp_path}/*/x")


# Damaged files


@pytest.mark.parametrize("damage", ["truncated", "other format", "zero bytes", "one byte less"])
def test_a_damaged_file_is_refused_by_name_and_not_taken_for_an_empty_one(tmp_path: Path, damage: str):
    write(tmp_path / "good", records(0, 500))
    bad = write(tmp_path / "wrong", records(500, 500))
    data = bad.read_bytes()
    bad.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "other format": b"hello" * 50_000,
            "zero bytes": b"",
            "one byte less": data[:-1],
        }[damage]
    )
    with pytest.raises(
        InputError, match=r"/wrong is not a complete ArrayRecord file .*truncated, damaged or"
    ):
        open_source(f"{tmp_path}/*")


def test_files_without_records_are_an_empty_source(tmp_path: Path):
    write(tmp_path / "none", [])
    with pytest.raises(InputError, match=r"source 'data' is empty: its 1 files in .* hold 0 records"):
        open_source(f"{tmp_path}/none")


def test_a_file_of_another_size_than_its_manifest_says_is_refused(three: Path):
    write(three / "part-1.array_record", records(0, 2000))
    message = r"part-1.array_record has \d+ bytes, its manifest says \d+"
    with open_source(str(three)) as source:  # it is looked at when it is opened
        assert source[0][:6] == b"000000"
        with pytest.raises(ReadError, match=message):
            source[300]
        with pytest.raises(InputError, match=message):
            source.identity()


def test_a_file_that_the_manifest_does_not_list_is_refused(three: Path):
    write(three / "part-9.array_record", records(900, 5))
    assert len(open_source(str(three))) == 900
    with pytest.raises(InputError, match=r"manifest.json does not list part-9.array_record"):
        open_source(f"{three}/*.array_record")


def test_a_damaged_record_is_named_and_the_others_stay_readable(three: Path):
    path = three / "part-1.array_record"
    flip(path, path.read_bytes().index(b"000507") + 9)
    with open_source(str(three)) as source:
        with pytest.raises(
            ReadError, match=r"record 207 of ArrayRecord file .*part-1.array_record cannot be read: "
        ):
            source.read(np.arange(300, 600))
        assert source[506][:6] == b"000506"
        assert source[508][:6] == b"000508"


# Opening late


def replace_by_junk(path: Path) -> None:
    path.write_bytes(b"\1" * path.stat().st_size)


def test_with_a_manifest_no_file_is_opened_before_it_is_read(three: Path):
    for k in range(3):
        replace_by_junk(three / f"part-{k}.array_record")
    source = open_source(str(three))
    assert len(source) == 900
    assert source.records.num_open_files == 0
    with pytest.raises(ReadError, match=r"part-2.array_record is not a complete ArrayRecord file"):
        source.read([899])


def test_a_file_that_goes_away_is_named_when_it_is_read(three: Path):
    source = open_source(str(three))
    os.rename(three / "part-1.array_record", three / "moved")
    assert source[0][:6] == b"000000"
    with pytest.raises(
        ReadError, match=r"ArrayRecord file .*part-1.array_record cannot be opened: No such file"
    ):
        source.read([0, 450])


def test_a_file_that_was_replaced_by_a_shorter_one_is_named_when_it_is_read(three: Path):
    (three / "manifest.json").unlink()
    source = open_source(f"{three}/*.array_record")
    write(three / "part-1.array_record", records(0, 7))
    with pytest.raises(ReadError, match=r"part-1.array_record has 7 records, had 300"):
        source[300]


def test_no_more_files_stay_open_than_allowed(tmp_path: Path):
    for k in range(8):
        write(tmp_path / f"{k}", records(10 * k, 10))
    with open_source(f"{tmp_path}/*", max_open_files=3) as source:
        for _ in range(2):
            assert [r[:6] for r in source.read(np.arange(80))] == [b"%06d" % i for i in range(80)]
            assert source.records.num_open_files == 3
    assert source.records.num_open_files == 0


# Reading


@pytest.mark.parametrize("options", ["group_size:1", "group_size:16", "group_size:16,uncompressed"])
@pytest.mark.parametrize("by_list", [False, True])
def test_both_ways_to_read_give_the_same_records(tmp_path: Path, options: str, by_list: bool, monkeypatch):
    monkeypatch.setattr(files_module, "list_read_pays", lambda *_: by_list)
    written = records(0, 700)
    write(tmp_path / "a", written[:500], options)
    write(tmp_path / "b", written[500:], options)
    rng = np.random.default_rng(0)
    with open_source(f"{tmp_path}/*") as source:
        for order in (rng.integers(0, 700, 256), np.arange(400, 600), np.arange(699, 100, -1)):
            assert source.read(order) == [written[i] for i in order]


@pytest.mark.parametrize(
    ("seconds_per_record", "num_records", "num_chunks", "pays"),
    [
        (6e-6, 256, 200_000, False),  # in the page cache
        (100e-6, 256, 200_000, True),  # on the disk
        (100e-6, 256, 2_000_000, False),  # on the disk, but a pass over the file's index costs more
        (50e-6, 256, 4_000, True),  # compressed in groups
    ],
)
def test_the_list_read_is_used_where_it_is_faster(seconds_per_record, num_records, num_chunks, pays):
    assert files_module.list_read_pays(seconds_per_record, num_records, num_chunks) is pays


# Identity and content


def test_the_identity_of_many_files_stays_small(tmp_path: Path):
    for k in range(40):
        write(tmp_path / f"{k:02}", records(k, 1))
    identity = open_source(f"{tmp_path}/*").identity()
    assert identity["num_files"] == 40
    assert len(canonical_json(identity)) < 1000


def test_a_renamed_file_is_another_identity(tmp_path: Path):
    path = write(tmp_path / "a", records(0, 3))
    before = open_source(str(path)).identity()
    assert open_source(str(path.rename(tmp_path / "b"))).identity() != before


def test_times_of_change_move_the_stamp_and_not_the_identity(three: Path):
    source = open_source(str(three))
    identity, stamp = source.identity(), source.content_stamp()
    assert list(stamp) == [file.name for file in source.files()]
    os.utime(three / "part-0.array_record", ns=(1, 1))
    assert source.identity() == open_source(str(three)).identity() == identity
    assert source.content_stamp() != stamp


def test_the_manifest_binds_content_that_no_sample_sees(three: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "copy"
    shutil.copytree(three, other)
    changed = records(0, 300)
    changed[150] = changed[150][:-1] + b"!"  # the sample has records 0, 99, 199 and 299
    write(other / "part-0.array_record", changed)
    assert open_source(str(three)).identity() == open_source(str(other)).identity()
    (other / "manifest.json").unlink()
    write_manifest(f"{other}/*")
    assert open_source(str(three)).identity()["content"] != open_source(str(other)).identity()["content"]


def test_without_a_manifest_nothing_is_recorded(tmp_path: Path):
    source = open_source(str(write(tmp_path / "a", records(0, 3))))
    assert (source.content_recorded, source.content_fingerprint(), source.check_content()) == (
        False,
        None,
        [],
    )
    assert source.identity()["content"] is None


def test_a_changed_byte_anywhere_in_a_file_is_found_and_the_file_named(three: Path):
    path = three / "part-1.array_record"
    source = open_source(str(three))
    assert source.content_recorded
    assert source.check_content() == []
    for offset in np.linspace(0, path.stat().st_size - 1, 25).astype(int):
        flip(path, offset)
        (problem,) = source.check_content()
        assert problem.startswith(f"{path} is not what the manifest says (SHA-256 differs); ")
        flip(path, offset)


def test_the_check_names_the_records(three: Path):
    path = three / "part-1.array_record"
    flip(path, path.read_bytes().index(b"000507") + 9)
    (problem,) = open_source(str(three)).check_content()
    assert "record 207 cannot be read (Corrupted" in problem


def test_the_check_names_a_record_that_still_parses(three: Path):
    changed = records(300, 300)
    changed[17] = changed[17][:-1] + b"!"
    write(three / "part-1.array_record", changed)
    (problem,) = open_source(str(three)).check_content()
    assert problem.endswith("; record 17 has changed")


def test_a_file_that_is_gone_is_named(three: Path):
    source = open_source(str(three))
    (three / "part-2.array_record").unlink()
    with pytest.raises(
        InputError, match=r"ArrayRecord file .*part-2.array_record cannot be read: No such file"
    ):
        source.content_stamp()
    assert source.check_content() == [
        f"{three}/part-2.array_record cannot be read: No such file or directory"
    ]


def test_clones_open_files_of_their_own(three: Path):
    source = open_source(str(three))
    source.read([0])
    clone = source.clone()
    assert clone.records.num_open_files == 0
    source.close()
    assert clone[0][:6] == b"000000"


def test_a_glob_that_finds_more_than_the_manifest_lists_is_refused_unless_it_may_be_ignored(tmp_path: Path):
    for name in ("a.ar", "b.ar"):
        write(tmp_path / name, [name.encode()])
    write_manifest(str(tmp_path / "a.ar"))
    with pytest.raises(InputError, match=r"the manifest.json does not list b.ar"):
        open_source(f"{tmp_path}/*.ar")
    assert list(open_source(f"{tmp_path}/*.ar", unlisted="ignore")) == [b"a.ar"]
    with pytest.raises(InputError, match=r"lists none of the files"):
        open_source(f"{tmp_path}/b.ar", unlisted="ignore")


class Calls:
    """Counts what is asked of the file system below a directory; an audit hook stays for ever, so it is switched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.below, self.counts = (
            f"{directory}/",
            dict.fromkeys(("stat", "lstat", "open", "scandir", "listdir"), 0),
        )
        for name in self.counts:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, call: Any) -> Any:
        def counted(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, (str, os.PathLike)) and f"{os.fspath(path)}/".startswith(self.below):
                self.counts[name] += 1
            return call(path, *args, **kwargs)

        return counted


def test_a_start_over_2000_files_looks_at_their_directory_once_and_at_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "part-0000.array_record", records(0, 2))
    recorded = write_manifest(f"{data}/*").files[0]
    names = [f"part-{number:04d}.array_record" for number in range(2_000)]
    for name in names[1:]:
        os.link(data / names[0], data / name)
    entries = tuple(replace(recorded, name=name) for name in names)
    hashes = load_record_hashes(load_manifest(str(data)), str(data)).tobytes() * len(names)
    write_inventory(str(data), Manifest(entries, hashlib.sha256(hashes).hexdigest()), hashes)
    text = f'run = {{ directory = "{tmp_path}/run", steps = 1 }}\nsource = {{ kind = "array_record", files = "{data}" }}\n'
    (tmp_path / "config.toml").write_text(text + "loader = { batch_size = 2, seed = 1 }\n")
    calls = Calls(monkeypatch, data)
    for _ in range(2):  # a new run, and one that goes on
        assert main(["run", str(tmp_path / "config.toml")]) == 0
        # The directory itself, its manifest, and the few files that are sampled or read.
        assert calls.counts["scandir"] == 1
        assert sum(calls.counts.values()) <= 40, calls.counts
        calls.counts = dict.fromkeys(calls.counts, 0)
