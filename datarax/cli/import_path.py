"""Where a command finds modules: the working directory never comes before what is installed, and only for users' code.

A run directory holds what others may have written, and people stand in it: `cd RUN; datarax inspect .` must not run a `jax.py`
that lies there. Read next: `datarax/__main__.py`, which takes off what Python itself puts first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HERE = ""
"""Stands for the working directory on the import path."""


def append_working_directory() -> None:
    """For commands that load the user's code: tasks and transforms that a config names may lie where the user stands.

    Nothing with `python -P` or PYTHONSAFEPATH, which say that they may not.
    """
    if sys.flags.safe_path or HERE in sys.path:
        return
    sys.path.append(HERE)
    sys.meta_path.insert(0, _InstalledFirst)  # type: ignore[arg-type]  # finders are found by their methods


class _InstalledFirst:
    """Finds what is installed, wherever on the path and in whatever way, before Python looks into the working directory.

    The order of the path alone does not do that: a namespace package (`orbax`, `google`) gives way to a module of its name
    anywhere on the path, and what was installed with `pip install -e` may be found by a finder that comes after the path.
    """

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module at the top; None leaves it, and every other one, to the finders that follow."""
        if path is not None or HERE not in sys.path:
            return None
        elsewhere = [entry for entry in sys.path if entry != HERE]
        for finder in sys.meta_path:
            if finder is not cls and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, elsewhere if finder is PathFinder else None, target)
                if spec is not None:
                    return spec
        return None
