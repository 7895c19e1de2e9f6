"""The test kit: what holds a loader, a source or an iterator module of your own against the laws of resuming.

`assert_resumes_everywhere` tests anything that iterates and has a state, and needs nothing but datarax.
`SourceLaws` is a pytest class for a source of your own, and needs pytest. `docs/testing.md` shows both. Nothing in
datarax imports this package. Names here load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datarax.testing.resume import assert_resumes_everywhere as assert_resumes_everywhere
    from datarax.testing.source_laws import SourceLaws as SourceLaws

_HOMES = {"SourceLaws": "source_laws", "assert_resumes_everywhere": "resume"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datarax.testing' has no attribute {name!r}")
    if name == "SourceLaws":
        _prepare_pytest()
    return getattr(importlib.import_module(f"datarax.testing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def _prepare_pytest() -> None:
    """Lets pytest show the values of a failed `assert` in the laws, which it does for a project's own tests only.

    Raises:
        ImportError: if pytest is not installed, saying how to install it.
    """
    try:
        import pytest
    except ImportError as error:
        raise ImportError(
            "datarax.testing.SourceLaws needs pytest, which is not installed: pip install datarax[test] "
            "(assert_resumes_everywhere works without it)"
        ) from error
    pytest.register_assert_rewrite("datarax.testing.source_laws")
