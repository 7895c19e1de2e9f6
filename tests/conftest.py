"""Every test runs on CPU with a fixed XLA thread count: bit-identity of parameters needs the latter."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "2")

from hypothesis import settings

# Tests never depend on timing; a slow example on a busy machine is no failure.
settings.register_profile("datarax", deadline=None)
settings.load_profile("datarax")
