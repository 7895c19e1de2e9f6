"""Two finished runs for the whole session; tests that change one put it back, or copy it."""

import pytest

from datarax.cli.main import main
from tests.support.runs import ALLOWED, finish_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A directory with config.toml, data/ and run/: 12 steps, snapshots 8 and 12, step 4 in the ledger."""
    directory = tmp_path_factory.mktemp("finished")
    finish_run(directory)
    return directory


@pytest.fixture(scope="session")
def changed(tmp_path_factory):
    """A run with batch size 16 and seed 5 to step 6, batch size 10 to step 9, and seed 6 to step 14.

    Steps 0 to 5 take rows 0 to 95, steps 6 to 8 rows 96 to 125, steps 9 to 13 rows 126 to 175.
    """
    directory = tmp_path_factory.mktemp("changed")
    config = finish_run(directory, "save.keep_latest=9", steps=6)
    text = config.read_text().replace("keep_latest = 2", "keep_latest = 9")
    text += f"\n[resume]\n{ALLOWED.partition('.')[2]}\n"
    for old, new in [("batch_size = 16", "batch_size = 10"), ("seed = 5", "seed = 6")]:
        text = text.replace(old, new).replace("steps = 6", "steps = 9")
        config.write_text(text)
        assert main(["run", str(config)]) == 0
        text = text.replace("steps = 9", "steps = 14")
    return directory
