"""Whether every name that a config calls by `use` can be imported, and not only from where the user stands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from datarax.core.errors import ConfigError
from datarax.doctor.checks import Finding, failure, warning
from datarax.training import load_task
from datarax.trust import load_attribute


def imports(named: Sequence[tuple[str, str]]) -> Finding:
    """Imports all of them, so that one that fails hides no other.

    Args:
        named: the key of each in the config, and what stands there.
    """
    problems = []
    for key, use in named:
        try:
            load_task(use) if key == "task.use" else load_attribute(use, key)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        return failure(
            f"{len(problems)} of {len(named)} names cannot be imported",
            "install what is missing in the environment of the launch, or correct the name",
            details=problems,
        )
    found = ", ".join(dict.fromkeys(use for _, use in named)) or "the config names no code"
    here = sorted({module for module in map(_module, named) if _only_from_here(module)})
    if here:
        return warning(
            f"{', '.join(here)} can be imported only because it lies in the working directory {os.getcwd()}",
            "install it, or start every process of the launch in this directory, on a disk that all of them see",
        )
    return Finding(found=found, numbers={"names": len(named)})


def _module(named: tuple[str, str]) -> str:
    return named[1].partition(":")[0].partition(".")[0]


def _only_from_here(module: str) -> bool:
    """Whether it was found through "", which stands for the working directory, and through nothing else."""
    found = sys.modules.get(module)
    file = None if found is None else found.__file__
    if file is None:
        return False
    place = os.path.dirname(os.path.abspath(file))
    if os.path.basename(file) == "__init__.py":
        place = os.path.dirname(place)
    return place == os.getcwd() and place not in map(os.path.abspath, filter(None, sys.path))
