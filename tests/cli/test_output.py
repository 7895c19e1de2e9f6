"""Output that cannot be written never changes an answer, and never ends in somebody's file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])

ANSWERS = {
    "yes": (["inspect", "run"], 0),
    "no": (["diff", "run/8", "run/12"], 1),
    "rows": (["order", "run", "--steps", "0:12"], 0),
    "usage": (["fly"], 2),
    "refusal": (["inspect", "nowhere"], 2),
    "help": (["--help"], 0),
}
PLACES = {
    "closed": ">&-",
    "errors closed": "2>&-",
    "all closed": "<&- >&- 2>&-",
    "full": ">/dev/full",
    "all full": ">/dev/full 2>&1",
}
FIRST = [("no", "all closed"), ("refusal", "all full")]


def shell(directory, arguments, place, **settings):
    words = [sys.executable, "-m", "datarax", *arguments]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(
        ["bash", "-c", f'"$@" {place}', "-", *words], cwd=directory, env=environment, timeout=240, **settings
    )


@pytest.mark.parametrize(("answer", "place"), FIRST)
def test_an_answer_that_cannot_be_printed_is_the_same_answer(answer, place, finished):
    arguments, code = ANSWERS[answer]
    assert shell(finished, arguments, PLACES[place]).returncode == code


@pytest.mark.full
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_no_answer_depends_on_where_it_is_printed(answer, place, finished):
    arguments, code = ANSWERS[answer]
    done = shell(finished, arguments, PLACES[place], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("answer", ["yes", "no", "help", "refusal"])
def test_a_reader_that_has_left_changes_no_answer(answer, finished):
    arguments, code = ANSWERS[answer]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "datarax", *arguments],
        cwd=finished,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=write,
        stderr=write,
        timeout=240,
    )
    os.close(write)
    assert process.returncode == code


@pytest.mark.full
def test_a_run_with_every_descriptor_closed_trains_and_its_files_hold_no_output(finished, tmp_path):
    """What is opened first would get number 1, and a print of a library would land in it."""
    words = ["run", "config.toml", "--set", f"run.directory={tmp_path}/run", "--set", "log.every_seconds=0"]
    assert shell(finished, words, PLACES["all closed"]).returncode == 0
    assert shell(finished, ["diff", "run", str(tmp_path / "run")], "").returncode == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(line.startswith("{") for line in metrics)


@pytest.mark.full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_table_without_end_ends_with_its_reader(unbuffered, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        f'[run]\ndirectory = "{tmp_path}/run"\n[source]\nkind = "range"\nstop = 1000\n[loader]\nbatch_size = 4\n'
    )
    words = ["order", str(config), "--steps", f"0:{10**12}"]
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "-", sys.executable, "-m", "datarax", *words],
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (0, "")


SLOW_READER = """
import os, sys
from datarax.cli.output import use_sure_streams
os.set_blocking(1, False)
use_sure_streams()
print("x" * 10**6)
"""


def test_a_pipe_that_does_not_block_gets_all_of_it():
    done = subprocess.run(
        [sys.executable, "-c", SLOW_READER], env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True
    )
    assert (done.returncode, len(done.stdout)) == (0, 10**6 + 1)


CLOSED = """
import os, sys
for descriptor in (1, 2):
    os.close(descriptor)
from datarax.cli.output import use_sure_streams
use_sure_streams()
with open(sys.argv[1], "w") as file:
    print("lost", flush=True)
    print("lost", file=sys.stderr)
    os.system("echo lost; echo lost >&2")
"""


def test_what_is_printed_to_a_closed_descriptor_lands_in_no_file(tmp_path):
    subprocess.run(
        [sys.executable, "-c", CLOSED, tmp_path / "file"], env={**os.environ, "PYTHONPATH": ROOT}, check=True
    )
    assert (tmp_path / "file").read_bytes() == b""


PRINTS_BYTES = """
import os
from datarax.cli.output import use_sure_streams
use_sure_streams()
print(os.fsdecode(b"run\\xff"))
"""


def test_a_name_that_is_no_text_can_be_printed():
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", PRINTS_BYTES], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"run\\udcff\n")
