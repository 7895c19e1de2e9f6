"""Where metrics go: appended to a regular file of the run, or nowhere, with a word; never a reason to stop or to hang."""

import io
import os
import threading

import numpy as np
import pytest

from datarax.training import LogConfig
from tests.training.test_session import session


@pytest.fixture
def told(tmp_path):
    """A run of 2 steps with something in the place of its `metrics.jsonl`; returns what it says."""

    def run():
        said = io.StringIO()
        assert session(tmp_path / "run", steps=2, stream=said).run().complete
        return said.getvalue()

    (tmp_path / "run").mkdir()
    return run


LOST = "metrics.jsonl cannot be written ({}); training goes on without it"


def test_a_link_is_not_followed(tmp_path, told):
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "run" / "metrics.jsonl").symlink_to(outside)
    assert LOST.format("it, or a directory on the way, is a link or no file") in told()
    assert outside.read_text() == "untouched"


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path, told):
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    assert LOST.format("it is no regular file") in told()


def test_a_pipe_with_a_reader_gets_nothing(tmp_path, told):
    path = tmp_path / "run" / "metrics.jsonl"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    assert LOST.format("it is no regular file") in told()
    reader.join(30)
    assert got == [b""]


def test_a_directory_is_none(tmp_path, told):
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    assert LOST.format("Is a directory") in told()


@pytest.mark.parametrize("before", [b"", b"{}\n", b'{"half'])
def test_lines_are_appended_to_whole_ones(before, tmp_path, told):
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(before)
    told()
    lines = path.read_bytes().splitlines()
    assert path.read_bytes().startswith(before)
    assert lines[: len(before.splitlines())] == before.splitlines()
    assert lines[-1].startswith(b'{"step": 2')


def test_a_file_that_is_another_directorys_too_is_copied_first(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.jsonl"
    run.mkdir()
    other.write_bytes(b'{"step": 1}\n')
    os.link(other, run / "metrics.jsonl")
    session(run).run()
    assert other.read_bytes() == b'{"step": 1}\n'
    assert (run / "metrics.jsonl").read_bytes().startswith(b'{"step": 1}\n{')


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_goes_in_mid_run_is_said_once(is_replaced, tmp_path):
    class Mover:
        def init(self, parameters, mesh):
            return {"w": np.zeros(2)}

        def step(self, state, batch):
            path = tmp_path / "run" / "metrics.jsonl"
            if not (tmp_path / "moved").exists() and path.stat().st_size > 0:
                path.rename(tmp_path / "moved")
                if is_replaced:
                    os.mkfifo(path)
            return state, {}

    said = io.StringIO()
    log = LogConfig(every_seconds=0)
    assert session(tmp_path / "run", task=Mover(), steps=8, stream=said, log=log).run().complete
    assert said.getvalue().count(LOST.format("it was deleted, moved or replaced")) == 1
    assert len((tmp_path / "moved").read_text().splitlines()) < 8
