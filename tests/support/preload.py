"""What the fork server imports once for all its children. Importing starts no JAX backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "2")

import tests.support.tiny  # noqa: F401
