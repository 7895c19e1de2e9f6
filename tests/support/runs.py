"""Small finished runs, and one byte of them changed: what the tests of the command line share."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from datarax.cli.main import main
from tests.support.processes import LIMIT_SECONDS

_CONFIG = """
[run]
directory = "{directory}/run"
steps = {steps}
cpu_threads = 2

[task]
use = "tests.support.tiny:task"

[source]
kind = "array_record"
name = "text"
files = "{directory}/data"

[source.build]
kind = "text"
inputs = ["{directory}/text.txt"]
record_bytes = 32
num_shards = 3

[loader]
batch_size = 16
seed = 5
byte_digest = true

[[transforms]]
use = "tests.support.tiny:to_rows"

[[transforms]]
use = "tests.support.tiny:add_noise"

[save]
every_steps = 4
keep_latest = 2
"""

NUM_RECORDS = 300

ALLOWED = 'resume.allow_changed=["train.batch_size", "train.seed", "train.order.seed"]'
"""An override with which batch size and seed may be changed in mid-run."""


def write_config(directory, *, steps=12):
    """A config of a run of `steps` steps below `directory`, and the text it is made from: 300 records of 32 bytes."""
    directory = Path(directory)
    text = "".join(f"{i:5d} {chr(97 + i % 26) * 25}\n" for i in range(NUM_RECORDS))
    (directory / "text.txt").write_text(text)
    config = directory / "config.toml"
    config.write_text(_CONFIG.format(directory=directory, steps=steps))
    return config


def finish_run(directory, *overrides, steps=12):
    """Runs that config to its end in this process; returns its path."""
    config = write_config(directory, steps=steps)
    sets = [word for override in overrides for word in ("--set", override)]
    assert main(["run", str(config), *sets]) == 0
    return config


def copy_run(source, target):
    """A copy of a run directory, of its own to damage."""
    shutil.copytree(source, target)
    return target


@contextlib.contextmanager
def flipped(path, position, mask=0x01):
    """One byte of a file changed, and put back at the end."""
    path = Path(path)
    before = path.read_bytes()
    changed = bytearray(before)
    changed[position] ^= mask
    path.write_bytes(changed)
    try:
        yield bytes(changed)
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def replaced(path, content):
    """A file with other content (None: removed), and put back at the end."""
    path = Path(path)
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def positions_in(path, *, inner=2):
    """The first and the last byte of a file and some between, the same at every run."""
    size = Path(path).stat().st_size
    return sorted({0, size - 1, *((i + 1) * size // (inner + 1) for i in range(inner))} & set(range(size)))


def tree(directory):
    """Every file below a directory with its bytes: what must be the same where nothing may change."""
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def datarax(*arguments, directory=None, **options):
    """The command line in a fresh interpreter; for what must be seen from outside. Returns the completed process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", "datarax", *map(str, arguments)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
        **options,
    )
