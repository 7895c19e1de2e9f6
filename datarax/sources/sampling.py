"""Which records a quick fingerprint samples, and their digest.

Knows nothing of where records come from. A change to either changes every identity that holds a sample: raise
`SAMPLE_VERSION` then.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

from datarax.core.tree import hash_tree

SAMPLE_VERSION = 1
"""Names the choice of samples and the encoding of records. Part of every identity that holds a sample."""


def sample_positions(length: int, count: int) -> list[int]:
    """At most `count` (>= 2) different positions in range(length), evenly spread, the first and the last among them."""
    if length <= count:
        return list(range(length))
    return [i * (length - 1) // (count - 1) for i in range(count)]


def records_digest(records: Iterable[Any], indices: Iterable[int] | None = None) -> str:
    """SHA-256 over a sequence of records, as hex. Their indices in a source are for messages only.

    Raises:
        TypeError: if a record holds something that has no plain bytes, naming the place and the type.
    """
    hasher = hashlib.sha256()
    names = itertools.count() if indices is None else indices
    suffix = " of the sample" if indices is None else ""
    for i, record in zip(names, records, strict=False):
        hash_tree(hasher, record, f"record {i}{suffix}")
    return hasher.hexdigest()
