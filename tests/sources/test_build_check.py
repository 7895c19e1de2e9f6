"""Built data and their inputs: the same, moved, gone or others."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from datarax.core.errors import InputError
from datarax.sources import ArrayRecordConfig, BuildConfig, BuildError, build_dataset, load_manifest
from datarax.sources import build as build_module
from datarax.sources import build_check as check_module
from datarax.sources.build import build_if_missing
from datarax.sources.build_config import BuildTable
from datarax.sources.manifest import INPUTS_STAMP_NAME


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """german/a.txt, german/deep/b.txt and french/a.txt, as long as the first and of the same time."""
    for name, text in {
        "german/a.txt": "G" * 40,
        "german/deep/b.txt": "H" * 40,
        "french/a.txt": "F" * 40,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(5, 5))
    return tmp_path


def table(place: Path, *inputs: str, **settings: object) -> BuildTable:
    given = {"record_bytes": 10, **settings}
    return BuildTable(inputs=tuple(str(place / each) for each in inputs or ("german",)), **given)  # type: ignore[arg-type]


def prepare(place: Path, *inputs: str, **settings: object) -> list[str]:
    """What is said when a run with these inputs begins."""
    said: list[str] = []
    build_if_missing(table(place, *inputs, **settings), str(place / "data"), said.append)
    return said


@pytest.fixture
def built(place: Path) -> Path:
    prepare(place)
    return place


def everything(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() if path.stat().st_size < 1 << 20 else b"" for path in files}


def assert_refused(place: Path, message: str, *inputs: str, **settings: object) -> None:
    """By what a run does, and by what doctor and plan ask; neither changes anything."""
    before = everything(place)
    config = ArrayRecordConfig(files=str(place / "data"), build=table(place, *inputs, **settings))
    for ask in (config.prepare, config.check_prepared):
        with pytest.raises(InputError, match=f"(?s)built from something else.*{message}.*--again"):
            ask(lambda text: None)
    assert everything(place) == before


def test_what_is_taken_is_said(place: Path):
    assert prepare(place)[-1] == f"built 8 records in {place}/data from 2 input files, 80 bytes"
    assert prepare(place) == []


def test_other_inputs_are_refused(built: Path):
    assert_refused(built, r"inputs: was .*/german, is .*/french\n  .*/french/a.txt has changed", "french")
    assert_refused(built, r"/french/a.txt was not among them", "german", "french")
    assert_refused(built, r"inputs.count: was 2, is 1", "german/a.txt")


def test_inputs_that_were_edited_are_refused(built: Path):
    (built / "german" / "a.txt").write_text("Z" * 40)
    assert_refused(built, r"\n  .*/german/a.txt has changed")


def test_inputs_that_came_after_the_build_are_refused(built: Path):
    (built / "german" / "deep" / "c.txt").write_text("C")
    assert_refused(built, r"inputs.count: was 2, is 3\n.*/german/deep/c.txt was not among them")


def test_other_options_are_refused_though_the_inputs_are_gone(built: Path):
    shutil.rmtree(built / "german")
    assert_refused(built, r"\n  record_bytes: was 10, is 8", record_bytes=8)


def test_the_same_bytes_elsewhere_are_the_same_inputs(built: Path, monkeypatch):
    shutil.copytree(built / "german", built / "copy")
    assert prepare(built, "copy") == [f"reading the inputs of {built}/data"]
    monkeypatch.setattr(check_module, "input_sha256", lambda path: pytest.fail(f"{path} was read"))
    assert prepare(built, "copy") == []


def test_equal_names_sizes_and_times_elsewhere_are_no_proof(place: Path):
    prepare(place, "german/a.txt")
    assert_refused(place, r"/french/a.txt has changed", "french/a.txt")


def test_only_inputs_that_moved_are_read(built: Path, monkeypatch):
    read: list[str] = []
    real = check_module.input_sha256
    monkeypatch.setattr(check_module, "input_sha256", lambda path: read.append(path) or real(path))
    assert prepare(built) == []
    os.utime(built / "german" / "a.txt", ns=(6, 6))
    assert prepare(built) == [f"reading the inputs of {built}/data"]
    assert prepare(built) == []
    assert read == [str(built / "german" / "a.txt")]


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("german", r"2 of 2 inputs of .*/data are not there any more, the first is .*/german/a.txt"),
        ("german/a.txt", r"1 of 2 inputs of .*, the first is .*/german/a.txt"),
        ("german/deep", r"1 of 2 inputs of .*, the first is .*/german/deep/b.txt"),
    ],
)
def test_inputs_that_are_gone_are_a_note(built: Path, gone: str, note: str):
    removed = built / gone
    shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    (said,) = prepare(built)
    assert said.startswith("note: ")
    assert said.endswith("; the built data are used as recorded")
    assert re.search(note, said)


def test_a_place_that_moved_as_a_whole_without_its_inputs_is_a_note(built: Path, tmp_path_factory):
    there = tmp_path_factory.mktemp("there")
    shutil.copytree(built / "data", there / "data")
    (said,) = prepare(there)
    assert "2 of 2 inputs" in said
    shutil.copytree(built / "german" / "deep", there / "german" / "deep")
    assert "1 of 2 inputs" in prepare(there)[-1]


def test_inputs_that_are_gone_and_others_that_are_named_are_refused(built: Path):
    assert_refused(built, "inputs: was .*/german, is .*/spanish", "spanish")


def test_what_is_left_of_the_inputs_must_be_as_it_was(built: Path):
    shutil.rmtree(built / "german" / "deep")
    (built / "german" / "a.txt").write_text("Z" * 40)
    assert_refused(built, "/german/a.txt has changed")


def test_asking_writes_nothing(built: Path):
    os.utime(built / "german" / "a.txt", ns=(6, 6))
    before = everything(built)
    said: list[str] = []
    ArrayRecordConfig(files=str(built / "data"), build=table(built)).check_prepared(said.append)
    assert said == [f"reading the inputs of {built}/data"]
    assert everything(built) == before


STAMPS = [
    lambda path: path.unlink(),
    lambda path: path.write_text("9" * 64),  # as it was written once
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_bytes(b"\xff\x00"),
    lambda path: (path.unlink(), os.mkfifo(path)),
    lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    lambda path: os.truncate(path, 1 << 40),
    lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {}})),
]


@pytest.mark.parametrize("damage", STAMPS)
def test_without_a_list_of_what_was_read_the_inputs_are_read(built: Path, damage):
    damage(built / "data" / INPUTS_STAMP_NAME)
    assert prepare(built) == [f"reading the inputs of {built}/data"]
    assert prepare(built) == []
    damage(built / "data" / INPUTS_STAMP_NAME)
    (built / "german" / "a.txt").write_text("Z" * 40)
    assert_refused(built, "inputs.sha256: was ")
    shutil.rmtree(built / "german")
    assert prepare(built) == [
        f"note: the inputs of {built}/data are not there any more; the built data are used as recorded"
    ]


def test_a_forged_list_of_what_was_read_is_not_believed(built: Path):
    path = built / "data" / INPUTS_STAMP_NAME
    (built / "german" / "a.txt").write_text("Z" * 40)
    tree = json.loads(path.read_text())
    stat = (built / "german" / "a.txt").stat()
    tree["files"]["a.txt"] |= {"mtime_ns": stat.st_mtime_ns, "sha256": "0" * 64}
    path.write_text(json.dumps(tree))
    assert_refused(built, "inputs.sha256: was ")


def test_data_that_were_built_among_their_inputs_are_no_inputs(built: Path):
    shutil.rmtree(built / "data")
    assert prepare(built, ".")[-1].endswith("from 3 input files, 120 bytes")
    (built / ".data.build-lock").touch()
    assert prepare(built, ".") == []
    again = build_dataset(BuildConfig(output=str(built / "data"), **vars(table(built, "."))), again=True)
    assert (again.num_inputs, again.set_aside) == (3, f"{built}/data.replaced-1")
    assert prepare(built, ".") == []
    itself = BuildConfig(inputs=str(built / "data"), output=str(built / "data"))
    with pytest.raises(InputError, match="are what was built from them"):
        build_dataset(itself, again=True)


def test_inputs_that_are_only_called_like_what_builds_make_are_inputs(built: Path):
    shutil.rmtree(built / "data")
    for name in ("data.replaced-notes.txt", ".data.build.yaml", ".data.builder"):
        (built / name).write_text("N" * 40)
    assert prepare(built, ".")[-1].endswith("from 6 input files, 240 bytes")
    assert prepare(built, ".") == []


def test_data_that_were_built_among_their_inputs_behind_a_link_are_no_inputs(place: Path):
    (place / "link").symlink_to("german")
    for _ in range(2):
        said: list[str] = []
        build_if_missing(table(place), str(place / "link" / "data"), said.append)
    assert said == []


# Again


def rebuild(place: Path, **settings: object):
    config = BuildConfig(output=str(place / "data"), **vars(table(place, "french", **settings)))
    return build_dataset(config, again=True)


def test_built_again_the_old_dataset_is_set_aside(built: Path):
    before = load_manifest(str(built / "data"))
    result = rebuild(built)
    assert result.set_aside == f"{built}/data.replaced-1"
    assert load_manifest(result.set_aside) == before
    assert load_manifest(str(built / "data")) == result.manifest != before
    assert prepare(built, "french") == []
    assert rebuild(built).set_aside == f"{built}/data.replaced-2"


def test_built_again_where_nothing_is_is_built(place: Path):
    assert rebuild(place).set_aside is None


def test_a_damaged_dataset_can_be_built_again(built: Path):
    (built / "data" / "manifest.json").write_text("{")
    assert rebuild(built).set_aside == f"{built}/data.replaced-1"


def test_what_is_no_dataset_is_never_set_aside(place: Path):
    (place / "data").mkdir()
    (place / "data" / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(InputError, match="is no finished dataset"):
        rebuild(place)
    assert os.listdir(place / "data") == ["thesis.tex"]


@pytest.mark.parametrize("fails", ["_write_shards", "inventory", "write_inventory", "sync"])
def test_a_build_that_fails_leaves_the_old_dataset_where_it_is(built: Path, fails: str, monkeypatch):
    before = everything(built)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, fails, fail)
    with pytest.raises(BuildError):
        rebuild(built)
    assert everything(built) == before


def test_a_dataset_that_cannot_take_its_place_gives_it_back(built: Path, monkeypatch):
    before, real = everything(built), os.rename

    def rename(source: str, target: str) -> None:
        if ".building-" in str(source):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(BuildError, match="Input/output error"):
        rebuild(built)
    assert everything(built) == before


@pytest.mark.parametrize(
    "settings", [{}, {"num_shards": 2, "compression": "zstd"}, {"records_per_shard": 3, "group_size": 4}]
)
def test_the_command_that_is_named_builds_what_is_meant(built: Path, settings: dict, capsys):
    import shlex

    from datarax.cli.main import main

    wanted = table(built, "french", **settings)
    words = shlex.split(wanted.command(str(built / "data")))
    assert words[:2] == ["datarax", "build"]
    assert main([*words[1:], "--again"]) == 0
    told = capsys.readouterr().out
    assert "taken: 1 input files, 40 bytes" in told
    assert f"the dataset that was there is now {built}/data.replaced-1" in told
    build_if_missing(wanted, str(built / "data"), lambda text: pytest.fail(text))
