"""Where a command finds modules: the working directory never comes before what is installed, and only for users' code.

A run directory holds what others may have written, and people stand in it: `cd RUN; datarax inspect .` must not run a `jax.py`
that lies there. Read next: `datarax/__main__.py`, which takes off what Python itself puts first.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Sequence
from dis import opmap
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HERE = ""
"""Stands for the working directory on the import path."""

_INSTALLED = tuple(
    place + os.sep
    for place in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        os.path.dirname(os.path.dirname(__file__)),
    )
)


def append_working_directory() -> None:
    """For commands that load the user's code: tasks and transforms that a config names may lie where the user stands.

    Nothing with `python -P` or PYTHONSAFEPATH, which say that they may not.
    """
    if sys.flags.safe_path or HERE in sys.path:
        return
    # Namespace packages look over the whole path again when it changes, and would take in what lies here.
    for module in list(sys.modules.values()):
        path = getattr(module, "__dict__", {}).get("__path__", [])
        if not isinstance(path, list):
            module.__path__ = list(path)
    sys.path.append(HERE)
    sys.meta_path.insert(0, _InstalledFirst)  # type: ignore[arg-type]  # finders are found by their methods


class _InstalledFirst:
    """Finds what is installed, wherever and however, before the working directory, where only users' code finds anything.

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
                    if spec.submodule_search_locations is not None:
                        spec.submodule_search_locations = list(spec.submodule_search_locations)
                    return spec
        if _asked_by_installed_code():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def _asked_by_installed_code() -> bool:
    """Whether an `import` statement of Python's library, of a package or of datarax asks, and no user's code or text.

    Many packages try an import of what need not be installed (Orbax one of `nest_asyncio`) and mean no file of the user's.
    Names that they got from the user they hand to functions: then no statement asks.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("importlib._"):
        frame = frame.f_back
    code = frame.f_code
    statement = frame.f_lasti >= 0 and code.co_code[frame.f_lasti] == opmap["IMPORT_NAME"]
    return statement and code.co_filename.startswith(_INSTALLED)
