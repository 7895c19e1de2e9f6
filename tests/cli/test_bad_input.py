"""Bad input: one clear message on standard error, the right exit code, and nothing lost."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import datarax
from datarax.cli.main import main
from datarax.store import LocalStore
from tests.support.runs import copy_run, finish_run, flipped, replaced, tree, write_config


def refused(capsys, arguments, code):
    """Runs a command that must fail with `code` and one message, which is returned."""
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == code, capsys.readouterr()
    errors = capsys.readouterr().err
    assert errors.count("datarax: ") == 1, errors
    assert "Traceback" not in errors
    return errors


def sets(*overrides):
    return [word for override in overrides for word in ("--set", override)]


def snapshots(run):
    """What must never be lost: every file of the snapshots and of the ledger."""
    return {
        name: data for name, data in tree(run).items() if name.partition("/")[0].isdigit() or "ledger" in name
    }


@pytest.fixture
def existing(finished, tmp_path):
    """A finished run of one's own; what it holds must be the same afterwards."""
    run = copy_run(finished / "run", tmp_path / "existing")
    before = snapshots(run)
    yield run
    assert snapshots(run) == before


_BAD_CONFIGS = [
    ("[run\n", "is not valid TOML"),
    ("[run]\ndirectory = 'x'\nstpes = 3", "unknown key 'run.stpes'; did you mean 'steps'?"),
    ("[rum]\ndirectory = 'x'", "unknown key 'rum'; did you mean 'run'?"),
    ("[run]\nsteps = 3", "run.directory is required and missing"),
    ("[run]\ndirectory = 'x'", "source is required and missing"),
    ("run = 3", "run must be a table, got 3"),
    ("transforms = 'all'", "transforms must be a list, got 'all'"),
]


@pytest.mark.parametrize(("text", "message"), _BAD_CONFIGS)
def test_a_bad_config_is_refused_with_its_file_and_its_key_named(text, message, tmp_path, capsys):
    config = tmp_path / "bad.toml"
    config.write_text(text)
    errors = refused(capsys, ["run", config], 2)
    assert message in errors
    assert "bad.toml" in errors


def _nothing(path):
    pass


_UNREADABLE = {
    "nothing": (_nothing, os.strerror(errno.ENOENT)),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "it is not UTF-8 text"),
    "a directory": (Path.mkdir, "it is no regular file"),
    "a pipe": (os.mkfifo, "it is no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
    "a loop": (lambda path: path.symlink_to(path), "is a link or no file"),
    "10 GB": (lambda path: (path.touch(), os.truncate(path, 10 << 30)), "at most 16777216 make sense"),
}


@pytest.mark.parametrize("kind", _UNREADABLE)
def test_a_config_that_cannot_be_read_is_named(kind, finished, tmp_path, capsys):
    config = tmp_path / "config.toml"
    make, reason = _UNREADABLE[kind]
    make(config)
    commands = (["run"], ["plan"], ["doctor"], ["chaos"], ["verify", finished / "run", "--config"])
    # A directory is a run for `order`.
    for command in (*commands, *([["order", "--steps", "0"]] if kind != "a directory" else [])):
        errors = refused(capsys, [*command, config], 2)
        assert str(config) in errors
        assert reason in errors


_DIGITS, _DEEP = "9" * 5000, "[" * 3000 + "]" * 3000
_TOO_LONG, _TOO_DEEP = "an integer of more than 4,300 digits", "nested more than 200 deep"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("loader.seed", _DIGITS, _TOO_LONG),
        ("loader.seed", f"0x{'f' * 5000}", _TOO_LONG),
        ("loader.seed", _DEEP, _TOO_DEEP),
        (f"task.parameters.{'x.' * 4000}x", "1", _TOO_DEEP),
        ("save.every_seconds", f"0x{'f' * 400}", "save.every_seconds must be a number of at least 0"),
        (
            "loader.batch_size",
            f"{2**62}",
            f"loader.batch_size must be an integer of at most 2^24, got {2**62}",
        ),
        ("loader.batch_size", f"{2**24 + 1}", "loader.batch_size must be an integer of at most 2^24"),
    ],
    ids=lambda each: each[:40],
)
def test_a_value_that_no_config_can_hold_is_refused_in_a_file_and_in_a_setting(
    key, value, message, finished, existing, capsys
):
    table, _, name = key.partition(".")
    config = existing.parent / "config.toml"
    text = (finished / "config.toml").read_text().replace(f"{finished}/run", str(existing))
    text = re.sub(rf"(?m)^{name.split('.')[0]} = .*\n", "", text)
    config.write_text(text.replace(f"[{table}]\n", f"[{table}]\n{name} = {value}\n"))
    for command in (["run"], ["plan"], ["order", "--steps", "0"], ["verify", existing, "--config"]):
        errors = refused(capsys, [*command, config], 2)
        assert message in errors
        assert str(config) in errors
    assert main(["doctor", str(config)]) == 1
    assert message in capsys.readouterr().out
    errors = refused(capsys, ["plan", finished / "config.toml", *sets(f"{key}={value}")], 2)
    assert message in errors
    assert f"--set {key}: " in errors or str(finished / "config.toml") in errors


_BAD_SETTINGS = [
    ("run.steps", "--set needs key=value, got 'run.steps'"),
    ("=3", "--set needs key=value"),
    ("run..steps=3", "--set needs key=value"),
    ("run.stpes=3", "unknown key 'run.stpes'; did you mean 'steps'?"),
    ("transforms.decode.use=x:y", "transforms is a list of 2, so 'decode' is no index of it"),
    ("transforms.2.use=x:y", "transforms is a list of 2, so '2' is no index of it"),
    ("transforms.²=1", "transforms is a list of 2, so '²' is no index of it"),
    (f"transforms.{'1' * 5000}=1", "is no index of it"),
    ("task.use=.tests:task", "task.use must be 'module:attribute', got '.tests:task'"),
    ("run.steps.more=3", "run.steps is a value, not a table"),
    ("run.steps='12'", "run.steps must be an integer of at least 1, got '12'"),
    ("run.steps=1.5", "run.steps must be an integer of at least 1, got 1.5"),
    ("run.steps=true", "run.steps must be an integer of at least 1, got True"),
    ("run.steps=0", "run.steps must be an integer of at least 1, got 0"),
    ("run.steps=-3", "run.steps must be an integer of at least 1, got -3"),
    ("run.cpu_threads=0", "run.cpu_threads"),
    ("loader.batch_size=0", "batch_size must be an integer of at least 1, got 0"),
    ("loader.order=shuffle", "'none', 'global', 'block', 'grain'"),
    ("loader.order=block", "block_size"),
    ("loader.num_epochs=0", "num_epochs must be an integer of at least 1, got 0"),
    ("loader.read_ahead=-1", "read_ahead must be an integer of at least 0, got -1"),
    ("save.every_steps=0", "save.every_steps must be an integer of at least 1, got 0"),
    ("save.every_seconds=-1", "save.every_seconds must be a number of at least 0, got -1"),
    ("log.every_seconds=-1", "log.every_seconds must be a number of at least 0, got -1"),
    ("resume.on_damage=ignore", "resume.on_damage must be one of 'stop', 'previous', got 'ignore'"),
    ("resume.allow_changed=train.seed", "resume.allow_changed must be a list"),
    ("source.kind=tfrecord", "source.kind must be one of 'array_record'"),
    ("source.path=x", "path does not belong to kind = 'array_record'"),
    ("source.files=gs://bucket/data", "is not a local path"),
    ("run.directory=gs://bucket/run", "is not a local path"),
    ("run.directory=''", "run directory must be a path"),
    ("task.use=tests.support.tiny", "task.use must be 'module:attribute', got 'tests.support.tiny'"),
    ("task.use=no.such.module:task", "importing 'no.such.module' raised ModuleNotFoundError"),
    ("task.use=tests.support.tiny:tusk", "'tests.support.tiny' has no attribute 'tusk'"),
    ("task.use=tests.support.tiny:decode", "without init(config, mesh) and step(state, batch)"),
    ("transforms.0.use=tests.support.tiny:nothing", "has no attribute 'nothing'"),
    ("batch_stats_fn=tests.support.tiny:nothing", "has no attribute 'nothing'"),
]


@pytest.mark.parametrize(("override", "message"), _BAD_SETTINGS, ids=[each[0][:40] for each in _BAD_SETTINGS])
def test_a_bad_setting_is_refused_with_what_was_asked_and_what_to_do(
    override, message, finished, existing, capsys
):
    arguments = ["run", finished / "config.toml", *sets(f"run.directory={existing}", override)]
    assert message in refused(capsys, arguments, 2)


def test_a_run_must_end_somewhere(tmp_path, capsys):
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("steps = 12\n", ""))
    assert "set run.steps or loader.num_epochs" in refused(capsys, ["run", config], 2)
    assert "set run.steps or loader.num_epochs" in refused(capsys, ["plan", config], 2)


# Data.


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("missing.array_record", "missing.array_record does not exist"),
        ("*.nothing", "no ArrayRecord file matches"),
        ("", "files"),
        ("text.txt", "text.txt is not a complete ArrayRecord file"),
    ],
)
def test_data_that_are_not_there_are_named(files, message, finished, existing, capsys):
    place = finished / files if files else ""
    config = finished / "no-build.toml"
    text = (finished / "config.toml").read_text()
    config.write_text(text[: text.index("[source.build]")] + text[text.index("[loader]") :])
    arguments = ["run", config, *sets(f"run.directory={existing}", f"source.files={place}")]
    assert message in refused(capsys, arguments, 2)


@pytest.mark.parametrize("size", [0, 100, 70_000])
def test_a_truncated_shard_is_refused_by_name(size, finished, existing, capsys):
    shard = sorted((finished / "data").glob("*.array_record"))[1]
    arguments = ["run", finished / "config.toml", *sets(f"run.directory={existing}")]
    with replaced(shard, shard.read_bytes()[:size]):
        assert str(shard) in refused(capsys, arguments, 2)
        for manifest in ("manifest.json", "records.blake2b64", "inputs.stamp"):
            assert (finished / "data" / manifest).exists()
    bare = existing.parent / "bare"
    bare.mkdir()
    (bare / shard.name).write_bytes(shard.read_bytes()[:size])
    assert shard.name in refused(capsys, ["run", *_bare(finished, existing, bare)], 2)


def _bare(finished, run, directory):
    """Arguments for shards without a manifest."""
    config = directory / "config.toml"
    text = (finished / "config.toml").read_text()
    config.write_text(text[: text.index("[source.build]")] + text[text.index("[loader]") :])
    return [config, *sets(f"run.directory={run}", f"source.files={directory}/*.array_record")]


def test_text_without_a_record_is_refused(tmp_path, capsys):
    config = write_config(tmp_path)
    (tmp_path / "text.txt").write_text("too short")
    assert "hold 9 bytes, less than one record" in refused(capsys, ["run", config], 2)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "run").exists()


def test_plan_and_order_say_how_missing_data_are_made(tmp_path, capsys):
    config = write_config(tmp_path)
    for command in (["plan"], ["order", "--steps", "0"]):
        errors = refused(capsys, [*command, config], 2)
        assert "are not built yet" in errors
        assert "datarax run" in errors
    assert not (tmp_path / "data").exists(), "neither command writes"


# The run directory.


@pytest.mark.parametrize(
    "name", ["file", "file/below", "pipe", "loop", "loop/below", "n" * 300, "/dev/null", "/proc/run"]
)
def test_a_run_directory_that_can_be_none_is_refused_by_every_command(name, finished, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place, config = tmp_path / name, finished / "config.toml"
    for command in ("plan", "run"):
        assert str(place) in refused(capsys, [command, config, *sets(f"run.directory={place}")], 2)
    assert main(["doctor", str(config), str(place)]) == 1
    assert f"run directory {place} cannot be " in capsys.readouterr().out
    reason = "cannot be listed: " if name != "/proc/run" else ""
    for command in (["inspect"], ["verify"], ["diff", finished / "run"]):
        errors = refused(capsys, [*command, place], 2)
        assert str(place) in errors
        assert reason in errors
    assert (tmp_path / "file").read_text() == "precious"


def test_a_place_for_chaos_that_can_be_none_is_refused(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        errors = refused(capsys, ["chaos", finished / "config.toml", "--directory", place], 2)
        assert f"--directory {place} cannot be made" in errors


def _read_only(monkeypatch, directory, number=errno.EROFS):
    """`os.open` and `os.mkdir` for writing below `directory` fail, as for anybody but root they would."""
    real_open, real_mkdir = os.open, os.mkdir

    def below(path):
        return isinstance(path, (str, os.PathLike)) and str(path).startswith(str(directory))

    def opened(path, flags, *rest, **options):
        if below(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number), str(path))
        return real_open(path, flags, *rest, **options)

    def made(path, *rest, **options):
        if below(path) and not os.path.isdir(path):
            raise OSError(number, os.strerror(number), str(path))
        return real_mkdir(path, *rest, **options)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "mkdir", made)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_directory_that_cannot_be_written_is_refused(
    number, finished, existing, tmp_path, monkeypatch, capsys
):
    for place in (existing, tmp_path / "new"):
        with monkeypatch.context() as patched:
            _read_only(patched, place, number)
            arguments = ["run", finished / "config.toml", *sets(f"run.directory={place}")]
            errors = refused(capsys, arguments, 2)
        assert str(place) in errors
        assert os.strerror(number) in errors


@pytest.mark.parametrize("command", ["verify", "inspect", "diff"])
def test_a_directory_that_is_no_run_is_wrong_input(command, tmp_path, capsys):
    arguments = [command, tmp_path] + ([tmp_path] if command == "diff" else [])
    assert str(tmp_path) in refused(capsys, arguments, 2)


class _FullDisk:
    """The disk is full for a while: manifests, the last file of each snapshot, cannot be written."""

    def __init__(self, monkeypatch, *, times):
        self.left = times
        real = LocalStore.write

        def write(store, key, data, **options):
            if self.left > 0 and key.endswith("/manifest.json"):
                self.left -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), store.path(key))
            real(store, key, data, **options)

        monkeypatch.setattr(LocalStore, "write", write)


def test_a_full_disk_is_shown_at_once_and_tried_again_at_the_next_save(
    finished, tmp_path, monkeypatch, capsys
):
    _FullDisk(monkeypatch, times=2)
    arguments = ["run", finished / "config.toml", *sets(f"run.directory={tmp_path / 'run'}")]
    assert main([str(each) for each in arguments]) == 0
    errors = capsys.readouterr().err
    assert "save failed (1 of 3)" in errors
    assert "save failed (2 of 3)" in errors
    assert os.strerror(errno.ENOSPC) in errors
    assert main(["diff", str(finished / "run"), str(tmp_path / "run")]) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0


def test_a_disk_that_stays_full_ends_the_run_with_74_and_the_newest_snapshot_continues(
    finished, tmp_path, monkeypatch, capsys
):
    config, run = finished / "config.toml", tmp_path / "run"
    arguments = ["run", str(config), *sets(f"run.directory={run}")]
    assert main([*arguments, "--set", "run.steps=4"]) == 0
    before = snapshots(run)
    with monkeypatch.context() as patched:
        _FullDisk(patched, times=10**9)
        errors = refused(capsys, [*arguments, *sets("save.max_failures=2")], 74)
    assert "save failed (2 of 2)" in errors
    assert os.strerror(errno.ENOSPC) in errors
    assert snapshots(run) == before
    assert main(arguments) == 0
    assert main(["diff", str(finished / "run"), str(run)]) == 0


def test_metrics_that_cannot_be_written_do_not_end_a_run(finished, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    full = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115, the run closes it
    monkeypatch.setattr("datarax.training.progress._open_for_lines", lambda path: full)
    arguments = ["run", str(finished / "config.toml"), *sets(f"run.directory={run}", "log.every_seconds=0")]
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written (No space left on device)") == 1
    assert main(["diff", str(finished / "run"), str(run)]) == 0


# The user's own code.


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("FailingTask", "ValueError: the batch is odd"),
        ("FailingToRead", "FileNotFoundError: no vocabulary"),
        ("FailingToBegin", "RuntimeError: no weights"),
    ],
)
def test_an_exception_of_the_task_ends_the_run_with_70_and_the_newest_snapshot_stays(
    task, message, finished, tmp_path, capsys
):
    run = copy_run(finished / "run", tmp_path / "run")
    before = snapshots(run)
    overrides = sets(f"run.directory={run}", "run.steps=16", f"task.use=tests.support.tiny:{task}")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides], 70)
    assert message in errors
    assert "raised by the task's " + ("init" if "Begin" in task else "step, at step 15") in errors
    assert "snapshot 12 is committed; run again to continue after it" in errors
    assert snapshots(run) == before


def test_an_exception_of_a_transform_ends_the_run_with_70_naming_transform_and_step(
    finished, tmp_path, capsys
):
    run = tmp_path / "run"
    overrides = sets(f"run.directory={run}", "transforms.1.use=tests.support.tiny:add_failing_noise")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides], 70)
    assert "ZeroDivisionError: no noise today" in errors
    assert "jitter" in errors
    assert "step 0" in errors


def test_debug_shows_the_traceback(finished, tmp_path, capsys):
    overrides = sets(f"run.directory={tmp_path}/run", "task.use=tests.support.tiny:FailingToBegin")
    assert main(["run", str(finished / "config.toml"), *overrides, "--debug"]) == 70
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert "in init" in errors


# An existing run.


def test_going_to_a_snapshot_that_is_not_there_is_refused(finished, existing, capsys):
    overrides = sets(f"run.directory={existing}")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides, "--step", "5"], 2)
    assert "step 5" in errors
    assert "it has 8, 12" in errors


def test_fewer_steps_than_the_run_has_are_refused(finished, existing, capsys):
    overrides = sets(f"run.directory={existing}", "run.steps=10")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides], 2)
    assert "has 12 steps already" in errors
    assert "10" in errors
    assert main(["plan", str(finished / "config.toml"), *overrides]) == 1
    assert "steps: the run has 12 already, the config asks for 10" in capsys.readouterr().out
    errors = refused(
        capsys,
        ["run", finished / "config.toml", *sets(f"run.directory={existing}", "run.steps=7"), "--step", "8"],
        2,
    )
    assert "has 8 steps already" in errors


def test_a_damaged_newest_snapshot_stops_the_run_and_names_file_and_way_out(finished, existing, capsys):
    arguments = ["run", finished / "config.toml", *sets(f"run.directory={existing}", "run.steps=16")]
    for name in ("data/record.json", "data/steps.bin", "model/_METADATA", "manifest.json"):
        with flipped(existing / "12" / name, 20):
            errors = refused(capsys, arguments, 1)
        assert "snapshot of step 12" in errors
        assert name in errors
        assert "run with --step 8" in errors


def test_going_back_sets_the_newer_snapshots_aside_and_ends_the_same(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    damaged = bytearray((run / "12" / "data" / "record.json").read_bytes())
    damaged[20] ^= 1
    (run / "12" / "data" / "record.json").write_bytes(damaged)
    arguments = ["run", str(finished / "config.toml"), *sets(f"run.directory={run}")]
    assert main([*arguments, "--step", "8"]) == 0
    errors = capsys.readouterr().err
    assert "set aside, not deleted: snapshots 12" in errors
    assert (run / "set_aside" / "1" / "12" / "data" / "record.json").read_bytes() == damaged
    assert main(["diff", str(finished / "run"), str(run)]) == 0
    assert main(["verify", str(run)]) == 0


def test_an_unattended_run_goes_back_by_itself_if_told_so(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    (run / "12" / "model" / "_METADATA").unlink()
    overrides = sets(f"run.directory={run}", "resume.on_damage=previous")
    assert main(["run", str(finished / "config.toml"), *overrides]) == 0
    errors = capsys.readouterr().err
    assert "model/_METADATA: is missing" in errors
    assert "going back to step 8" in errors
    assert main(["diff", str(finished / "run"), str(run)]) == 0


def test_a_step_asked_for_by_name_is_never_replaced_by_another(finished, existing, capsys):
    overrides = sets(f"run.directory={existing}", "resume.on_damage=previous")
    with flipped(existing / "8" / "data" / "record.json", 20):
        errors = refused(capsys, ["run", finished / "config.toml", *overrides, "--step", "8"], 1)
    assert "snapshot of step 8" in errors


def test_a_run_without_any_good_snapshot_says_so(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    for step in ("8", "12"):
        (run / step / "data" / "record.json").write_bytes(b"{}")
    overrides = sets(f"run.directory={run}", "resume.on_damage=previous")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides], 1)
    assert "there is no earlier one" in errors
    assert "use another run directory" in errors


def test_a_directory_that_never_was_a_snapshot_is_skipped_and_said(finished, tmp_path, capsys):
    run = copy_run(finished / "run", tmp_path / "run")
    shutil.copytree(run / "12", run / "99")
    (run / "99" / "manifest.json").unlink()
    assert main(["run", str(finished / "config.toml"), *sets(f"run.directory={run}")]) == 0
    errors = capsys.readouterr().err
    assert "99 has no manifest: it never was a snapshot and is skipped" in errors
    assert "already complete" in errors


def test_a_task_of_another_shape_is_refused_leaf_by_leaf(finished, existing, capsys):
    overrides = sets(f"run.directory={existing}", "task.parameters.width=8")
    errors = refused(capsys, ["run", finished / "config.toml", *overrides], 1)
    assert "model.w: was jax float32[16], is jax float32[8]" in errors
    assert "model.momentum: was" in errors


def test_other_data_in_the_same_place_is_refused(tmp_path, capsys):
    config = finish_run(tmp_path)
    shutil.rmtree(tmp_path / "data")
    text = (tmp_path / "text.txt").read_text()
    (tmp_path / "text.txt").write_text(text.replace("aaaa", "aaab"))
    errors = refused(capsys, ["run", config, *sets("run.steps=13")], 1)
    assert "train.sources.text.content: was" in errors


def test_a_working_directory_that_was_deleted_is_said(finished, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [
            "bash",
            "-c",
            'rmdir "$PWD"; exec "$@"',
            "-",
            sys.executable,
            datarax.__path__[0] + "/__main__.py",
            "inspect",
            "run",
        ],
        cwd=gone,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, "the working directory was deleted" in done.stderr) == (2, True), done.stderr
