"""Every test runs on CPU with a fixed XLA thread count: bit-identity of parameters needs the latter."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "2")
