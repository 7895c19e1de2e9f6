"""The state of a stream as plain JSON, and back.

Integer arrays of shape () are ints, sums of digests 16 hex digits; the rest is as `datarax.core.tree.encode` spells it. Knows
nothing of what a state is about. Next: `stream.py`, which adds `format`, `identity` and `part`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from datarax.core.tree import EncodingError, decode, differences, encode

_SUMS = ("digest_keys", "digest_bytes")


def spelled(state: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of what Variables hold.

    Raises:
        EncodingError: if a value has no such form, naming it.
    """
    found = {name: encode(_plain_numbers(value), name) for name, value in state.items()}
    for name in _SUMS:
        if type(state.get(name)) is int:
            found[name] = f"{state[name]:016x}"
    return found


def unspelled(state: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was spelled like this.

    Args:
        state: the JSON form.
        now: what the Variables hold now: an int becomes an array where an array is.

    Raises:
        ValueError: if `spelled` gives no such thing, naming it.
    """
    found = {name: _numbers_as(now.get(name), decode(value)) for name, value in state.items()}
    for name in _SUMS:
        if isinstance(state.get(name), str):
            found[name] = int(state[name], 16)
    try:
        again = spelled(found)
    except EncodingError as error:
        raise ValueError(str(error)) from error
    for each in differences(again, state):
        raise ValueError(
            f"{each.path}: {each.now!r} is not spelled as in a state, where sums of digests are 16 hex digits and the rest is "
            f"as datarax.core.tree.encode gives it"
        )
    return found


def _plain_numbers(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain_numbers(value) for key, value in tree.items()}
    return int(tree) if _is_integer(tree) else tree


def _numbers_as(held: Any, value: Any) -> Any:
    """The way back from `_plain_numbers`: each int as an array like the one that is held there now."""
    if isinstance(held, dict) and isinstance(value, dict):
        return {key: _numbers_as(held.get(key), each) for key, each in value.items()}
    if not _is_integer(held) or type(value) is not int:
        return value
    try:
        return (jax.numpy.asarray if isinstance(held, jax.Array) else np.asarray)(value, held.dtype)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _is_integer(value: Any) -> bool:
    if type(value) is not np.ndarray and not isinstance(value, (jax.Array, np.generic)):
        return False
    return value.shape == () and jax.numpy.issubdtype(value.dtype, np.integer)
