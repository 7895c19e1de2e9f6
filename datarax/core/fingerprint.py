"""Canonical JSON, its digest, and the readable difference of two trees of named values.

Knows nothing of what is fingerprinted: sources, orders and transforms each return a plain tree; this file gives
trees one spelling, one digest and one way to say where two of them part.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from datarax.core.errors import MISSING, Difference


def canonical_json(tree: Any) -> bytes:
    """The one spelling of a tree of None, bool, int, finite float, str, list/tuple and str-keyed mappings.

    Keys are sorted, there is no white space, integers of any size are exact, and text is UTF-8.

    Raises:
        TypeError: if the tree holds anything else, naming the path.
        ValueError: if a float is not finite.
    """
    return json.dumps(
        _plain(tree, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(tree: Any) -> str:
    """SHA-256 of the canonical JSON of `tree`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def _plain(tree: Any, path: str) -> Any:
    if tree is None or type(tree) in (bool, int, str):
        return tree
    if type(tree) is float:
        if not math.isfinite(tree):
            raise ValueError(f"{path or 'the value'} is {tree}, which has no canonical JSON")
        return tree
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str):
                raise TypeError(
                    f"{path or 'the tree'} has the key {key!r}; only str keys have canonical JSON"
                )
        return {key: _plain(value, f"{path}.{key}" if path else key) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(value, f"{path}[{i}]") for i, value in enumerate(tree)]
    raise TypeError(f"{path or 'the value'} is a {type(tree).__name__}, which has no canonical JSON")


def differences(was: Any, now: Any, path: str = "") -> list[Difference]:
    """Every leaf at which two trees differ, in path order. A field absent on one side differs.

    Values of different kinds differ even if Python calls them equal (`1`, `1.0`, `True`).
    """
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        found: list[Difference] = []
        for key in sorted({*was, *now}):
            below = f"{path}.{key}" if path else str(key)
            found += differences(was.get(key, MISSING), now.get(key, MISSING), below)
        return found
    if isinstance(was, (list, tuple)) and isinstance(now, (list, tuple)):
        found = []
        for i in range(max(len(was), len(now))):
            a = was[i] if i < len(was) else MISSING
            b = now[i] if i < len(now) else MISSING
            found += differences(a, b, f"{path}[{i}]")
        return found
    # repr tells -0.0 from 0.0, as the canonical spelling does.
    same = was is now or (type(was) is type(now) and was == now and repr(was) == repr(now))
    return [] if same else [Difference(path, was, now)]
