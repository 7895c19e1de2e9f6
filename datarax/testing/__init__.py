"""The test kit: what holds a loader, a source or an iterator module of your own against the laws of resuming.

`assert_resumes_everywhere` tests anything that iterates and has a state, and needs nothing but datarax.
`SourceLaws` is a pytest class for a source of your own, needs pytest, and loads on first use. `docs/testing.md` shows both.
`kills.py` is what `datarax chaos` does. Nothing else in datarax imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datarax.testing.resume import assert_resumes_everywhere

if TYPE_CHECKING:
    from datarax.testing.sources import SourceLaws

__all__ = ["SourceLaws", "assert_resumes_everywhere"]


def __getattr__(name: str) -> Any:
    if name != "SourceLaws":
        raise AttributeError(f"module 'datarax.testing' has no attribute {name!r}")
    try:
        import pytest
    except ImportError as error:
        raise ImportError(
            "datarax.testing.SourceLaws needs pytest, which is not installed: pip install datarax[test] "
            "(assert_resumes_everywhere works without it)"
        ) from error
    # Else pytest shows the values of a failed `assert` for a project's own tests only.
    pytest.register_assert_rewrite("datarax.testing.sources")
    from datarax.testing.sources import SourceLaws

    return SourceLaws
