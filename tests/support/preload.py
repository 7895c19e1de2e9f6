"""What the fork server imports once for all its children: all that a command needs. Importing starts no JAX backend."""

import importlib
import os
import pkgutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "2")

import datarax.cli

# A command imports its packages when it is asked for, which would cost every child a second of a core.
_COMMANDS = [module.name for module in pkgutil.iter_modules(datarax.cli.__path__, "datarax.cli.")]

for name in (*_COMMANDS, "datarax.grain_pipeline", "datarax.testing", "tests.support.tiny"):
    importlib.import_module(name)
