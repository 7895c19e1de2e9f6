"""Whether code that a run names in its stored config may be imported without asking: who could have written that config.

Read next: `docs/trust.md`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from datarax.checkpoint.layout import RunLayout
from datarax.core.errors import ConfigError

TRUST_VARIABLE = "DATARAX_TRUST"
"""Environment variable with directories, separated as in PATH, below which every run is trusted."""


def distrusted(directory: Path, digest: str) -> str | None:
    """Why somebody else could have written the config of this digest that a run keeps; None if only the caller and root could.

    Raises:
        ConfigError: if the environment variable holds a path that is not absolute.
    """
    real = Path(os.path.realpath(directory))
    if any(real == prefix or prefix in real.parents for prefix in _trusted_prefixes()):
        return None
    config = RunLayout(real).config(digest)
    for path in (real, config.parent, config):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue  # what is missing is reported as such
        if status.st_uid not in (os.geteuid(), 0):
            return f"{path} belongs to another user (uid {status.st_uid})"
        if status.st_mode & stat.S_IWOTH:
            return f"everybody may write {path}"
    return None


def _trusted_prefixes() -> list[Path]:
    prefixes = [each for each in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if each]
    for each in prefixes:
        if not os.path.isabs(each):
            raise ConfigError(
                f"{TRUST_VARIABLE} must hold absolute paths, separated by {os.pathsep!r}, got {each!r}"
            )
    return [Path(os.path.realpath(each)) for each in prefixes]


__all__ = ["TRUST_VARIABLE", "distrusted"]
