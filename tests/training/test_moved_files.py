"""Files that were touched, copied or rewritten between two starts: looked at, and refused only if their content is another."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from datarax import ArrayRecordConfig, ArrayRecordSource, MemoryConfig, MemorySource
from datarax.checkpoint import Checkpointer, FileStamps, Snapshot
from datarax.cli.main import main
from datarax.core.errors import MismatchError
from datarax.core.tree import canonical_json
from datarax.sources.source import SourceConfig
from datarax.training.moved_files import FileWatch
from tests.sources.test_outline import Squares
from tests.support.processes import run_fleet
from tests.support.runs import finish_run, write_config


def shards(directory):
    return sorted(Path(directory, "data").glob("*.array_record"))


def rewrite(path, position, change=lambda record: record[:-2] + b"!\n"):
    """The file with one record changed, as large as it was. The quick fingerprint samples records 0, 33, 66 and 99."""
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    records[position] = change(records[position])
    size = path.stat().st_size
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    assert path.stat().st_size == size
    later = time.time_ns() + 10**9  # file systems count in ticks of some milliseconds
    os.utime(path, ns=(later, later))


def go_on(directory, steps, *settings):
    sets = [word for setting in (f"run.steps={steps}", *settings) for word in ("--set", setting)]
    return main(["run", str(directory / "config.toml"), *sets])


def recorded(directory):
    return sorted(path.name for path in (directory / "run" / "starts").glob("*.files.json"))


@pytest.fixture
def begun(tmp_path, capsys):
    """A run of 4 steps over 3 files of 100 records, with a manifest."""
    finish_run(tmp_path, steps=4)
    capsys.readouterr()
    return tmp_path


def test_files_that_lie_still_are_recorded_once_and_never_mentioned(begun, capsys):
    assert go_on(begun, 6) == go_on(begun, 8) == 0
    assert recorded(begun) == ["1.files.json"]
    assert "checking" not in capsys.readouterr().err


def test_a_rewritten_file_is_refused_with_its_record_until_it_is_put_back(begun, capsys):
    path = shards(begun)[1]
    content = path.read_bytes()
    rewrite(path, 50)
    for _ in range(2):  # a refusal is not an acceptance
        assert go_on(begun, 6) == 1
        errors = capsys.readouterr().err
        assert f"file {path.name} of source 'text' has another time or size" in errors
        assert f"{path} is not what the manifest says (SHA-256 differs); record 50 has changed" in errors
        assert "Restore them from a copy" in errors
    assert Snapshot.open(begun / "run").step == 4
    path.write_bytes(content)
    assert go_on(begun, 6) == 0
    assert "checking their content" in capsys.readouterr().err
    assert recorded(begun) == ["1.files.json", "2.files.json"]
    assert go_on(begun, 8) == 0
    assert "checking" not in capsys.readouterr().err
    assert main(["verify", str(begun / "run")]) == 0


def test_only_the_files_that_moved_are_read(begun, monkeypatch):
    read = []
    monkeypatch.setattr(
        "datarax.sources.manifest.file_sha256", lambda path: read.append(Path(path).name) or "another"
    )
    os.utime(shards(begun)[2], ns=(5, 5))
    assert go_on(begun, 6) == 1
    assert read == [shards(begun)[2].name]


def test_touched_and_copied_files_are_no_false_alarm(begun, capsys):
    for path in shards(begun):
        os.utime(path, ns=(7, 7))
    assert go_on(begun, 6) == 0
    assert capsys.readouterr().err.count("checking their content") == 1
    assert go_on(begun, 7) == 0
    assert "checking" not in capsys.readouterr().err
    shutil.copytree(begun / "data", begun / "elsewhere", copy_function=shutil.copyfile)
    assert go_on(begun, 8, f"source.files={begun}/elsewhere") == 0
    assert "checking their content" in capsys.readouterr().err


def test_a_data_directory_that_was_renamed_is_not_even_looked_at(begun, capsys):
    (begun / "data").rename(begun / "elsewhere")
    assert go_on(begun, 6, f"source.files={begun}/elsewhere") == 0
    assert "checking" not in capsys.readouterr().err
    assert recorded(begun) == ["1.files.json"]


def test_switched_off_nothing_is_looked_at_and_nothing_is_forgotten(begun, capsys):
    rewrite(shards(begun)[0], 10)
    assert go_on(begun, 6, "resume.check_moved_files=false") == 0
    assert "checking" not in capsys.readouterr().err
    assert go_on(begun, 8) == 1
    assert "record 10 has changed" in capsys.readouterr().err


def test_without_a_manifest_a_note_says_once_what_cannot_be_checked(tmp_path, capsys):
    finish_run(tmp_path, steps=4)
    shutil.rmtree(tmp_path / "run")
    for name in ("manifest.json", "records.blake2b64"):
        (tmp_path / "data" / name).unlink()
    config = (tmp_path / "config.toml").read_text()
    first, rest = config.split("[source.build]")
    config = (
        first.replace(f'files = "{tmp_path}/data"', f'files = "{tmp_path}/data/*.array_record"')
        + "[loader]"
        + rest.split("[loader]")[1]
    )
    (tmp_path / "config.toml").write_text(config)
    assert go_on(tmp_path, 4) == 0
    rewrite(shards(tmp_path)[1], 50)
    capsys.readouterr()
    assert go_on(tmp_path, 6) == 0
    errors = capsys.readouterr().err
    assert "note: 1 of 3 files of source 'text'" in errors
    assert shards(tmp_path)[1].name in errors
    assert "datarax build manifest" in errors
    assert go_on(tmp_path, 8) == 0
    assert "note:" not in capsys.readouterr().err


@pytest.mark.full
def test_two_processes_are_refused_together(tmp_path):
    write_config(tmp_path)
    command = ["run", tmp_path / "config.toml", "--set", "task.use=tests.support.tiny:task"]
    codes, output = run_fleet(*command, "--set", "run.steps=4", count=2, directory=tmp_path)
    assert codes == [0, 0], output
    assert recorded(tmp_path) == ["1.files.json"]
    rewrite(shards(tmp_path)[1], 50)
    codes, output = run_fleet(*command, count=2, directory=tmp_path)
    assert codes == [1, 1], output
    assert "record 50 has changed" in output


# The look itself, over sources of all kinds.


def look(source, run):
    """Watches a source and opens all its files; what is recorded then, and what was said."""
    said = []
    with source.clone() as fresh:
        watch = FileWatch(fresh, run, said.append)
        for file in fresh.files():
            fresh.read([file.first_index])
        return watch.stamps(), said


def record(run, stamps):
    """A run with one start, which recorded these."""
    (run / "starts").mkdir(parents=True, exist_ok=True)
    (run / "starts" / "1.json").write_text(json.dumps({"unix_seconds": time.time()}))
    (run / "starts" / "1.files.json").write_bytes(canonical_json({"sources": stamps}))
    return run


@pytest.fixture
def source(begun):
    with ArrayRecordSource(ArrayRecordConfig(name="text", files=str(begun / "data"))) as source:
        yield source


def test_a_first_look_only_records(source, begun):
    rewrite(shards(begun)[0], 1)
    os.utime(shards(begun)[0])
    stamps, said = look(source, begun / "another run")
    assert said == []
    assert list(stamps["text"]["files"]) == [file.name for file in source.files()]


def test_a_file_is_looked_at_when_it_is_opened_and_not_before(source, begun):
    watch = FileWatch(source, begun / "another run", print)
    assert watch.stamps() == {}
    rewrite(shards(begun)[1], 50)
    source.read([0])
    assert list(watch.stamps()["text"]["files"]) == [shards(begun)[0].name]
    with pytest.raises(MismatchError, match="record 50 has changed"):
        source.read([100])
    assert list(watch.stamps()["text"]["files"]) == [shards(begun)[0].name], "a refusal is not an acceptance"


def test_files_that_were_opened_before_are_looked_at_at_once(source, begun):
    rewrite(shards(begun)[1], 50)
    source.read([100])
    with pytest.raises(MismatchError, match="record 50 has changed"):
        FileWatch(source, begun / "run", print)


def test_a_file_that_no_start_opened_is_believed_if_it_is_older_than_the_run(source, begun):
    stamps, _ = look(source, begun / "another run")
    known = dict(list(stamps["text"]["files"].items())[:1])
    run = record(begun / "third run", {"text": {**stamps["text"], "files": known}})
    assert look(source, run)[0] == stamps
    rewrite(shards(begun)[2], 5)
    with pytest.raises(MismatchError, match="record 5 has changed"):
        look(source, run)


def test_another_manifest_makes_every_file_worth_a_look(source, begun):
    rewrite(shards(begun)[0], 1)
    os.utime(shards(begun)[0])
    stamps, _ = look(source, begun / "another run")
    then = {"text": {**stamps["text"], "content": {"num_records": 300, "sha256": "another"}}}
    with pytest.raises(MismatchError, match="record 1 has changed"):
        look(source, record(begun / "third run", then))


def test_stamps_that_cannot_be_read_trust_no_file(begun, source):
    (begun / "run" / "starts" / "1.files.json").write_bytes(b"{")
    assert Checkpointer(begun / "run").file_stamps() == FileStamps(1, {})
    assert len(look(source, begun / "run")[1]) == 1
    os.utime(shards(begun)[2], ns=(5, 5))  # older than the run
    rewrite(shards(begun)[2], 5)
    os.utime(shards(begun)[2], ns=(5, 5))
    with pytest.raises(MismatchError, match="record 5 has changed"):
        look(source, begun / "run")


def test_a_run_that_was_killed_knows_when_it_began(begun, source):
    (begun / "run" / "starts" / "1.files.json").unlink()
    assert look(source, begun / "run")[1] == []
    rewrite(shards(begun)[2], 5)
    with pytest.raises(MismatchError, match="record 5 has changed"):
        look(source, begun / "run")


# What may lie in the place of such a file, which is no evidence of anything: name -> how it comes there.
NO_STAMPS = {
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(100)),
    "not UTF-8": lambda path: path.write_bytes(b'{"sources": {"\xff": {"files": {}}}}'),
    "deep": lambda path: path.write_bytes(b'{"sources":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "deep objects": lambda path: path.write_bytes(b'{"sources":' * 200_000 + b"1" + b"}" * 200_000),
    "deep in a stamp": lambda path: path.write_bytes(stamped(b"[" * 3_000 + b"]" * 3_000)),
    "a huge number": lambda path: path.write_bytes(stamped(b"9" * 5_000)),
    "a number without end": lambda path: path.write_bytes(stamped(b"1e999")),
    "NaN": lambda path: path.write_bytes(stamped(b"NaN")),
    "half a letter": lambda path: path.write_bytes(stamped(b'"\\ud800"')),
    "a list": lambda path: path.write_bytes(b"[1]"),
    "a number": lambda path: path.write_bytes(b"1"),
    "sources is a list": lambda path: path.write_bytes(b'{"sources": [1]}'),
    "sources is null": lambda path: path.write_bytes(b'{"sources": null}'),
    "a stamp is a list": lambda path: path.write_bytes(b'{"sources": {"text": [1]}}'),
    "a stamp is a text": lambda path: path.write_bytes(b'{"sources": {"text": "files"}}'),
    "files is a list": lambda path: path.write_bytes(b'{"sources": {"text": {"files": ["a"]}}}'),
    "files is a number": lambda path: path.write_bytes(b'{"sources": {"text": {"files": 7, "content": 1}}}'),
    "no files": lambda path: path.write_bytes(b'{"sources": {"text": {}}}'),
    "a directory": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a file elsewhere": lambda path: path.symlink_to("/etc/passwd"),
}


def stamped(value):
    return b'{"sources": {"text": {"content": ' + value + b', "files": {}}}}'


@pytest.mark.parametrize("kind", NO_STAMPS)
@pytest.mark.few(6)
def test_what_is_no_stamp_stops_no_run_and_trusts_no_file(kind, begun, capsys):
    path = begun / "run" / "starts" / "1.files.json"
    path.unlink()
    NO_STAMPS[kind](path)
    assert go_on(begun, 5) == 0
    said = capsys.readouterr().err
    assert "of source 'text' has another time or size" in said
    assert "cannot" not in said
    assert go_on(begun, 6) == 0, "now they are recorded"
    assert "another time" not in capsys.readouterr().err
    assert main(["verify", str(begun / "run")]) == 0
    assert main(["inspect", str(begun / "run")]) == 0


@pytest.mark.parametrize("number", ["7", str(10**18), "9" * 200, "9" * 5 + "a", "-1", "01", "٣"])
@pytest.mark.few(3)
def test_what_is_no_stamp_hides_no_earlier_one(number, begun, capsys):
    (begun / "run" / "starts" / f"{number}.files.json").write_bytes(b"{")
    assert go_on(begun, 6) == 0
    assert "checking" not in capsys.readouterr().err
    rewrite(shards(begun)[1], 50)
    assert go_on(begun, 8) == 1
    assert "record 50 has changed" in capsys.readouterr().err


def test_sources_without_files_leave_no_stamp(tmp_path):
    for source in (
        MemorySource(MemoryConfig(), {"x": np.arange(3)}),
        Squares(SourceConfig(name="squares")),
    ):
        assert look(source, record(tmp_path, {}))[0] == {}


class Filed(Squares):
    """A source of one's own that can check all of its content, and no part of it."""

    content_recorded = True
    checked = 0

    def content_stamp(self):
        return {"a": [1, 2], "b": [3, 4]}

    def check_content(self):
        return ["b is bad"]

    def content_fingerprint(self):
        return {"num_records": 3, "sha256": "its own"}


def test_a_source_that_cannot_check_a_part_checks_all(tmp_path):
    source = Filed(SourceConfig(name="squares"))
    files = {"a": [1, 2], "b": [3, 5]}
    content = {"num_records": 3, "sha256": "its own"}
    with pytest.raises(MismatchError, match="b is bad"):
        look(source, record(tmp_path, {"squares": {"content": content, "files": files}}))
