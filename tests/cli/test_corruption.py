"""A dataset that was silently changed while a run was on its way: the first wrong step is found, and the record behind it.

The changed file keeps its name, size, time stamps and sampled records, so that no start can see it.
"""

import contextlib
import json
import os

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from datarax.cli.main import main
from tests.support.runs import finish_run, write_config

_KEEP = ("save.keep_latest=9",)


def rewrite(path, position, content):
    """Writes an ArrayRecord file anew with another record at `position`; its times and its size stay."""
    stat = path.stat()
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    assert len(records[position]) == len(content)
    records[position] = content
    path.unlink()
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def run(config, *overrides):
    sets = [word for override in overrides for word in ("--set", override)]
    assert main(["run", str(config), *sets]) == 0


def verify(directory, capsys, *arguments):
    capsys.readouterr()
    code = main(["verify", str(directory / "run"), "--json", *arguments])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def steps_of(config, capsys, index, steps):
    """The steps before `steps` that deliver a record."""
    capsys.readouterr()
    assert main(["order", str(config), "--find", f"text:{index}", "--json"]) == 0
    found = [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()]
    return [step for step in found if step < steps]


@pytest.fixture
def config(tmp_path):
    """A run of 12 of its 40 steps, snapshots each 4 steps; two epochs and more by the end."""
    return finish_run(tmp_path, *_KEEP, steps=12)


def find_record(config, capsys, *, first, last):
    """A record of the second shard, none that is sampled, which the steps from `first` to `last` deliver."""
    capsys.readouterr()
    assert main(["order", str(config), "--steps", f"{first}:{last}", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return next((row["index"], row["step"]) for row in rows if 101 < row["index"] < 130)


def shard(directory):
    return sorted((directory / "data").glob("*.array_record"))[1]


def test_a_file_that_was_changed_after_some_steps_is_found_with_the_first_of_them_and_the_record(
    config, tmp_path, capsys
):
    index, step = find_record(config, capsys, first=4, last=12)
    rewrite(shard(tmp_path), index - 100, b"*" * 32)
    code, report = verify(tmp_path, capsys)
    assert code == 1
    assert report["first_diverging_step"] == step
    wrong = next(each for each in report["snapshots"] if each["first_diverging_step"] == step)
    (record,) = wrong["records"]
    assert f"text:{index}" in record
    assert f"record {index - 100} has changed" in record
    assert shard(tmp_path).name in record
    others = [each for each in report["snapshots"] if each is not wrong]
    assert all(each["first_diverging_step"] is None for each in others)


def test_steps_that_were_delivered_from_a_file_changed_between_two_snapshots_are_found_while_it_is_there(
    tmp_path, capsys
):
    config = finish_run(tmp_path, *_KEEP, steps=4)
    index, step = find_record(config, capsys, first=6, last=12)
    rewrite(shard(tmp_path), index - 100, b"*" * 32)
    run(config, *_KEEP, "run.steps=12")
    code, report = verify(tmp_path, capsys)
    assert code == 1
    assert report["first_diverging_step"] == step
    (wrong,) = [each for each in report["snapshots"] if each["first_diverging_step"] is not None]
    assert f"text:{index}" in wrong["records"][0]
    assert "delivered records as they are now, which is not what the manifest says" in wrong["problems"][0]


def test_steps_that_were_delivered_from_a_file_that_has_been_put_right_since_are_found(tmp_path, capsys):
    config = finish_run(tmp_path, *_KEEP, steps=4)
    good = shard(tmp_path).read_bytes()
    index, step = find_record(config, capsys, first=6, last=12)
    rewrite(shard(tmp_path), index - 100, b"*" * 32)
    run(config, *_KEEP, "run.steps=12")
    shard(tmp_path).write_bytes(good)
    code, report = verify(tmp_path, capsys)
    assert code == 1
    assert report["first_diverging_step"] == step
    assert report["data_problems"] == []
    (wrong,) = [each for each in report["snapshots"] if each["first_diverging_step"] is not None]
    assert "every record of it is what the manifest says today" in " ".join(wrong["problems"])


def test_steps_before_and_after_a_change_of_the_batch_size_are_each_looked_up_by_their_own_rows(
    tmp_path, capsys
):
    config = finish_run(tmp_path, *_KEEP, steps=6)
    allowed = 'resume.allow_changed=["train.batch_size"]'
    run(config, *_KEEP, allowed, "loader.batch_size=10", "run.steps=14")
    steps = "0:14"
    capsys.readouterr()
    assert main(["order", str(tmp_path / "run"), "--steps", steps, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for first, last in ((0, 6), (6, 14)):
        index, step = next(
            (row["index"], row["step"])
            for row in rows
            if 101 < row["index"] < 130 and first <= row["step"] < last
        )
        good = shard(tmp_path).read_bytes()
        rewrite(shard(tmp_path), index - 100, b"*" * 32)
        code, report = verify(tmp_path, capsys, "--all")
        shard(tmp_path).write_bytes(good)
        assert (code, report["first_diverging_step"]) == (1, step)
        wrong = next(each for each in report["snapshots"] if each["first_diverging_step"] == step)
        assert f"text:{index}" in wrong["records"][0]


def test_without_byte_digests_the_manifest_still_names_the_first_step_and_the_record(tmp_path, capsys):
    config = finish_run(tmp_path, *_KEEP, "loader.byte_digest=false", steps=12)
    index, step = find_record(config, capsys, first=4, last=12)
    rewrite(shard(tmp_path), index - 100, b"*" * 32)
    code, report = verify(tmp_path, capsys)
    assert (code, report["first_diverging_step"]) == (1, step)
    (wrong,) = [each for each in report["snapshots"] if each["first_diverging_step"] is not None]
    assert "not known whether they had changed by then" in wrong["problems"][0]
    assert f"text:{index}" in wrong["records"][0]


def unrecorded(tmp_path):
    """A config over one file without a manifest."""
    write_config(tmp_path)
    with contextlib.chdir(tmp_path):
        assert main(["build", "text", "text.txt", "--output", "data", "--record-bytes", "32"]) == 0
    (path,) = (tmp_path / "data").glob("*.array_record")
    for other in (tmp_path / "data").iterdir():
        if other != path:
            other.unlink()
    config = tmp_path / "config.toml"
    text = config.read_text()
    build = text[text.index("[source.build]") : text.index("[loader]")]
    config.write_text(text.replace(build, "").replace(f'"{tmp_path}/data"', f'"{path}"'))
    return config, path


def test_without_a_manifest_the_first_step_is_still_exact(tmp_path, capsys):
    config, path = unrecorded(tmp_path)
    run(config, *_KEEP)
    index, step = find_record(config, capsys, first=4, last=12)
    rewrite(path, index, b"*" * 32)
    code, report = verify(tmp_path, capsys)
    assert code == 1
    assert report["first_diverging_step"] == step
    (wrong,) = [each for each in report["snapshots"] if each["first_diverging_step"] is not None]
    assert "cannot be said without a manifest" in " ".join(wrong["problems"])
    assert report["snapshots"][0]["ok"], "steps that do not deliver the record are as they were"


def test_without_a_manifest_a_file_that_changed_between_two_starts_is_noted_with_the_first_step_that_read_it(
    tmp_path, capsys
):
    """What it held before is known to nobody: it may have been copied, touched, or rewritten."""
    config, path = unrecorded(tmp_path)
    run(config, *_KEEP, "run.steps=8")
    os.utime(path)
    run(config, *_KEEP)
    code, report = verify(tmp_path, capsys)
    assert code == 0
    (note,) = [note for note in report["notes"] if "changed on the disk" in note]
    assert f"{path.name} changed on the disk between start 1 and start 2, after step 8" in note
    assert "nobody can say whether their records did: step 8 is the first that read them since" in note


def test_the_ledger_tells_of_steps_whose_snapshots_are_gone(tmp_path, capsys):
    config = finish_run(tmp_path, "save.keep_latest=1", steps=12)
    index, step = find_record(config, capsys, first=0, last=4)
    assert steps_of(config, capsys, index, 12) == [step]
    rewrite(shard(tmp_path), index - 100, b"*" * 32)
    _, report = verify(tmp_path, capsys)
    assert report["first_diverging_step"] is None, "no snapshot that is left delivered it"
    assert report["uncovered_steps"] == [[0, 8]]
    code, report = verify(tmp_path, capsys, "--all")
    assert code == 1
    assert (report["covered_steps"], report["uncovered_steps"]) == ([[0, 12]], [])
    assert report["first_diverging_step"] == step
