"""Which records a quick fingerprint samples, and one SHA-256 over them.

Knows nothing of where records come from. A change here or of `hash_tree` changes every identity that holds a sample:
raise `SAMPLE_VERSION` then.
"""

from __future__ import annotations

import hashlib
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


def records_digest(records: Iterable[Any]) -> str:
    """SHA-256 over a sequence of records, as hex.

    Raises:
        TypeError: if a record holds something that has no plain bytes, naming the place and the type.
    """
    hasher = hashlib.sha256()
    for i, record in enumerate(records):
        hash_tree(hasher, record, f"record {i} of the sample")
    return hasher.hexdigest()
