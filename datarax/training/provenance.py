"""With what a run was made: recorded and shown, never refused."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import jax

_PACKAGES = ("datarax", "jax", "jaxlib", "flax", "orbax-checkpoint", "grain", "tensorstore", "numpy")


def provenance(process_count: int = 1) -> dict[str, str]:
    """Versions, device kind, x64, counts of devices and processes, and XLA's CPU thread count. Starts the backend."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return {
        **found,
        "python": platform.python_version(),
        "jax_enable_x64": str(bool(jax.config.read("jax_enable_x64"))).lower(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": str(jax.device_count()),
        "process_count": str(process_count),
        "xla_cpu_threads": os.environ.get("NPROC", "default"),
    }
