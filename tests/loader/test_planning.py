"""Who reads what, for 4,096 processes: together exactly the global batch, each slot counted once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from tests.support.simulated import check_all, force_devices
force_devices()
assert check_all({"data": 4096}) == 4096
assert check_all({"data": 1024, "model": 4}, rows_per_shard=3) == 1024
"""


@pytest.mark.full
def test_the_rows_of_all_4096_processes_together_are_the_global_batch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
