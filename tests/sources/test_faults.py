"""Disks that fail under reads: the file is named, nothing is made up, nothing hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from datarax.cli.main import main
from datarax.core.errors import InputError, ReadError
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    BuildConfig,
    array_record_files,
    build_dataset,
    build_inputs,
    load_manifest,
    manifest,
    write_manifest,
)
from datarax.sources.array_record_files import ArrayRecordFiles
from tests.support.processes import LIMIT_SECONDS
from tests.support.runs import write_config

ROOT = Path(__file__).parents[2]

READS = """
    import os, sys
    import numpy as np
    from datarax.core.errors import DataraxError
    from datarax.sources import ArrayRecordConfig, ArrayRecordSource
    place, flag = sys.argv[1:]
    here = ArrayRecordSource(ArrayRecordConfig(files=place))
    here.read([1, 150])
    open(flag, "w").close()
    for what in ("open", "fresh"):
        for indices in ([3, 151], range(90, 300), [120]):
            try:
                records = here.read(list(indices))
                right = records == [b"%05d" % i * 9 for i in indices]
                print(what, "right" if right else "WRONG")
            except DataraxError as error:
                print(what, error.exit_code, error)
        here = ArrayRecordSource(ArrayRecordConfig(files=place))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "faulty_reads.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no C compiler here")
    source = ROOT / "tests" / "support" / "faulty_reads.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def make_shards(place: Path, count: int, records: int) -> None:
    for shard in range(count):
        writer = ArrayRecordWriter(str(place / f"s-{shard:04d}.array_record"), "group_size:1,uncompressed")
        for i in range(shard * records, (shard + 1) * records):
            writer.write(b"%05d" % i * 9)
        writer.close()
    write_manifest(f"{place}/*.array_record")


@pytest.mark.parametrize("kind", ["eio", "end", "short"])
@pytest.mark.few(1)
def test_records_are_right_or_an_error_when_reads_below_the_library_fail(
    shim: Path, tmp_path: Path, kind: str
):
    data = tmp_path / "data"
    data.mkdir()
    make_shards(data, 3, 100)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READS), data, tmp_path / "flag"],
        env={
            **os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT),
            "FAULT_KIND": kind, "FAULT_PATH": "s-0001", "FAULT_FLAG": str(tmp_path / "flag"),
        },
        capture_output=True, text=True, timeout=LIMIT_SECONDS,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 6, done.stderr
    for line in lines:
        what = line.split(" ", 1)[1]
        assert (
            what == "right" if kind == "short" else what.startswith("74 ") and "s-0001.array_record" in what
        )
    assert ("Input/output error" in lines[-1]) == (kind == "eio")


class Faulty:
    """A file whose reads fail after so many."""

    def __init__(self, file: object, after: int) -> None:
        self._file, self._left = file, after

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> Faulty:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _read(self, name: str, *arguments: object) -> bytes:
        if self._left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._left -= 1
        return getattr(self._file, name)(*arguments)

    def read(self, *arguments: object) -> bytes:
        return self._read("read", *arguments)

    def readline(self, *arguments: object) -> bytes:
        return self._read("readline", *arguments)

    def readinto(self, buffer: object) -> int:
        return self._read("readinto", buffer)


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_an_input_that_fails_under_reads_is_named(tmp_path: Path, kind: str, after: int, monkeypatch):
    (tmp_path / "in.txt").write_text("1\n2\n3\n")
    real = build_inputs.open_input
    monkeypatch.setattr(build_inputs, "open_input", lambda path: Faulty(real(path), after))
    if kind == "text" and after:  # one read is all it takes to hash such a file
        monkeypatch.setattr(build_inputs, "_BLOCK_BYTES", 1)
    with pytest.raises(InputError, match=f"input file {tmp_path}/in.txt cannot be read: Input/output error"):
        build_dataset(
            BuildConfig(
                kind=kind, inputs=str(tmp_path / "in.txt"), output=str(tmp_path / "out"), record_bytes=None
            )
        )
    assert os.listdir(tmp_path) == ["in.txt"]


def test_a_shard_that_cannot_be_opened_in_mid_run_ends_it_by_name(tmp_path: Path, capsys, monkeypatch):
    config = str(write_config(tmp_path))
    assert main(["run", config, "--set", "run.steps=4"]) == 0
    real, opened = array_record_files.open_file, []

    def open_file(path: str) -> int:
        opened.append(path)
        if len(opened) > 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path)

    monkeypatch.setattr(array_record_files, "open_file", open_file)
    code = main(["run", config, "--set", "run.steps=12", "--set", "source.max_open_files=1"])
    assert code == 74
    assert f"{tmp_path}/data/records-" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["read_file", "open_file"])
def test_side_files_that_fail_under_reads_are_named(tmp_path: Path, reader: str, monkeypatch):
    make_shards(tmp_path, 1, 3)
    with ArrayRecordSource(ArrayRecordConfig(files=str(tmp_path))) as source:

        def fail(path: str, *_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

        monkeypatch.setattr(manifest, reader, fail)
        (problem,) = source.check_content()
        assert "Input/output error" in problem
        assert str(tmp_path) in problem
    if reader == "read_file":
        with pytest.raises(InputError, match=r"manifest .*/manifest.json cannot be read: Input/output error"):
            load_manifest(str(tmp_path))


@pytest.mark.full
def test_five_thousand_shards_are_read_with_few_open_files(tmp_path: Path):
    count = 5_000
    make_shards(tmp_path, 1, 2)
    first = tmp_path / "s-0000.array_record"
    recorded = load_manifest(str(tmp_path))
    assert recorded is not None
    for shard in range(1, count):
        os.link(first, tmp_path / f"s-{shard:04d}.array_record")
    entries = [
        manifest.FileEntry(f"s-{i:04d}.array_record", *list(vars(recorded.files[0]).values())[1:])
        for i in range(count)
    ]
    manifest.write_inventory(str(tmp_path), manifest.Manifest(entries, recorded.record_hashes_sha256), b"")
    before = len(os.listdir("/proc/self/fd"))
    started = time.perf_counter()
    with ArrayRecordSource(ArrayRecordConfig(files=str(tmp_path))) as source:
        assert source.unlisted_files() == []
        for start in range(0, 2 * count, 500):
            records = source.read((np.arange(start, start + 500) * 7919) % (2 * count))
            assert set(records) <= {b"00000" * 9, b"00001" * 9}
            assert len(os.listdir("/proc/self/fd")) <= before + 256 + 8
    assert time.perf_counter() - started < LIMIT_SECONDS
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@contextlib.contextmanager
def files_left(number: int) -> Iterator[None]:
    """This process may open `number` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(number + 1)]
    try:
        # The limit is of descriptors' numbers, which have gaps: each below the highest of these is taken now.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), hard))
        for descriptor in free:
            os.close(descriptor)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_more_files_are_kept_open_than_the_process_may_have(tmp_path: Path):
    room = 2 * len(os.listdir("/proc/self/fd"))  # so the share of the limit is less than what is left
    make_shards(tmp_path, room, 1)
    with files_left(room):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = ArrayRecordFiles(
            sorted(map(str, tmp_path.glob("*.array_record"))), [1] * room, max_open_files=room
        )
        assert len(files.read(range(room))) == room
        assert files.num_open_files == limit // 4
        files.close()


def test_idle_files_make_room_where_others_have_opened_nearly_all_that_the_process_may_have(
    tmp_path: Path,
):
    make_shards(tmp_path, 40, 2)
    paths = sorted(map(str, tmp_path.glob("*.array_record")))
    files = ArrayRecordFiles(paths, [2] * 40, max_open_files=256)
    with files_left(6):
        assert len(files.read(range(80))) == 80
        assert 0 < files.num_open_files <= 6
    files.close()
    with files_left(0), pytest.raises(ReadError, match=r"Too many open files \(`ulimit -n`"):
        files.read([0])
