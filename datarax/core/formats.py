"""Which reader reads which version of a format: a table for each format, and one refusal of what no table has.

Each reader gives today's form. A version that is no longer written keeps its reader: it puts its tree into the form of
the next version and hands it to the reader of that. Knows nothing of the formats themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class UnknownFormatError(ValueError):
    """A file is of a version that has no reader here."""


def reader_of(version: Any, readers: Mapping[int, T], what: str = "format") -> T:
    """The reader of a version.

    Args:
        version: what the file says of itself.
        readers: version -> reader, today's version and all before it.
        what: what the number is called in the file.

    Raises:
        ValueError: if it is no number.
        UnknownFormatError: if it is of a later version, or of none that ever was.
    """
    if type(version) is not int:
        raise ValueError(f"it holds no {what} number")
    if version in readers:
        return readers[version]
    if version > max(readers):
        raise UnknownFormatError(
            f"its {what} is {version}; this version of datarax reads up to {max(readers)}: use the version that wrote it, "
            "or a later one"
        )
    raise UnknownFormatError(f"its {what} is {version}, which no version of datarax has written")
