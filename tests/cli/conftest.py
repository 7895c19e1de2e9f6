"""One finished run for the whole session; tests that change it put it back, or copy it."""

import pytest

from tests.support.runs import finish_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A directory with config.toml, data/ and run/: 12 steps, snapshots 8 and 12, step 4 in the ledger."""
    directory = tmp_path_factory.mktemp("finished")
    finish_run(directory)
    return directory
