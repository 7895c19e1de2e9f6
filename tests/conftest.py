"""Every test runs on CPU with a fixed XLA thread count: bit-identity of parameters needs the latter."""

import os
import signal
from multiprocessing import resource_tracker

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "2")

import pytest
from hypothesis import HealthCheck, settings

from tests.support.tiers import leave_out

# Tests never depend on timing: on a busy machine a slow example, or slow drawing of examples, is no failure. Nor do they depend
# on chance: whoever runs them sees the same examples. `make test-all` takes the second profile.
_ALWAYS = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("first", max_examples=25, **_ALWAYS)
settings.register_profile("full", max_examples=100, **_ALWAYS)
settings.load_profile("first")

# As in the foreground of a shell, wherever the tests run: ignored here, a signal would be ignored in every process they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A garbage collection in the midst of its start, in whatever test that falls, is an error of Python's own.
resource_tracker.ensure_running()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    leave_out(items, pytest.mark.full)
