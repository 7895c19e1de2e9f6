"""What a transform may declare to depend on: packages and a few settings, by their present version or value, and files.

Versions and devices are provenance for everyone else; a stage that declares a dependence makes one of them identity.
"""

from __future__ import annotations

import hashlib
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


def checked_names(names: Iterable[str], field: str, what: str, transform: str) -> tuple[str, ...]:
    """The names, sorted and each once, if they are names.

    Raises:
        ConfigError: if they are not; says that `field` of the transform must hold `what`.
    """
    if isinstance(names, str):
        raise ConfigError(
            f"{field} of transform {transform!r} must be a list of {what}, not the text {names!r}"
        )
    checked = [os.fspath(name) if isinstance(name, os.PathLike) else name for name in names]
    for name in checked:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{field} of transform {transform!r} must hold names of {what}, got {name!r}")
    return tuple(sorted(set(checked)))


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


def file_digests(paths: Iterable[str], transform: str) -> dict[str, str]:
    """SHA-256 of each file, by its name relative to the deepest directory that holds all of them: where that lies is no matter.

    Raises:
        ConfigError: naming a file that cannot be read.
    """
    absolute = [os.path.abspath(path) for path in paths]
    base = os.path.commonpath([os.path.dirname(path) for path in absolute])
    found = {}
    for path in absolute:
        try:
            with open(path, "rb") as file:
                found[os.path.relpath(path, base).replace(os.sep, "/")] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
        except OSError as error:
            raise ConfigError(
                f"transform {transform!r} depends on the file {path}, which cannot be read: {error.strerror}; put it back, or "
                f"correct depends_on_files"
            ) from error
    return found
