"""What a transform may declare to depend on: installed packages and a few settings, each with its present version or value.

Versions and devices are provenance for everyone else; a stage that declares a dependence makes one of them identity.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterable

import jax

from datarax.core.errors import ConfigError

_SETTINGS: dict[str, Callable[[], str]] = {
    "python": lambda: platform.python_version(),
    "device_kind": lambda: jax.devices()[0].device_kind,
    "jax_enable_x64": lambda: str(bool(jax.config.read("jax_enable_x64"))).lower(),
    "xla_cpu_threads": lambda: os.environ.get("NPROC", "default"),
}
"""What is no package, under the names that a run's provenance uses."""


def checked_dependencies(depends_on: Iterable[str], transform: str) -> tuple[str, ...]:
    """The names, sorted and each once, if they are names.

    Raises:
        ConfigError: if they are not.
    """
    if isinstance(depends_on, str):
        raise ConfigError(
            f"depends_on of transform {transform!r} must be a list of packages, not the text {depends_on!r}"
        )
    names = list(depends_on)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"depends_on of transform {transform!r} must hold names of packages, got {name!r}"
            )
    return tuple(sorted(set(names)))


def present_versions(depends_on: Iterable[str], transform: str) -> dict[str, str]:
    """The version or value of each dependence, here and now.

    Raises:
        ConfigError: if one is neither an installed package nor a setting.
    """
    return {name: _present(name, transform) for name in depends_on}


def _present(name: str, transform: str) -> str:
    if name in _SETTINGS:
        return _SETTINGS[name]()
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"transform {transform!r} depends on {name!r}, which is no installed package; give the name under which it is "
            f"installed, or one of {', '.join(sorted(_SETTINGS))}"
        ) from None
