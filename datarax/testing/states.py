"""What a state must be: small, the same size at every place, fit for a snapshot; and damaged ones to be refused.

Knows nothing of streams: it is given states.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from datarax.checkpoint import EncodingError, decode, encode
from datarax.core.tree import walk
from datarax.testing.difference import detached

_ARRAY_LIKE = (np.ndarray, np.generic)
_MIN_STATES_FOR_GROWTH = 4  # two or three sizes in a row may rise by chance


def through_json(state: Any) -> Any:
    """The state as a snapshot would hold and give it back."""
    return decode(json.loads(json.dumps(encode(state))))


def check_sizes(states: Sequence[Any], max_bytes: int) -> None:
    """Checks that no field of a state grows with the place, and that each state is small.

    Raises:
        AssertionError: naming the field, or its size and the largest field.
    """
    sizes = [encoded_size(state, place) for place, state in enumerate(states)]
    _check_growth(states)
    for place, size in enumerate(sizes):
        if size > max_bytes:
            raise AssertionError(
                f"the state before element {place} takes {size} bytes, more than {max_bytes}; {_largest(states[place])}. "
                f"A state says where the stream is and holds no data; pass max_state_bytes if it must be larger"
            )


def encoded_size(state: Any, place: int) -> int:
    """How many bytes the state takes in a snapshot.

    Raises:
        AssertionError: if it cannot be put into one, naming the field.
    """
    try:
        return len(json.dumps(encode(state)))
    except EncodingError as error:
        raise AssertionError(
            f"the state before element {place} cannot be put into a snapshot: {error}"
        ) from error


def _largest(state: dict[str, Any]) -> str:
    sizes = {key: len(json.dumps(encode(value))) for key, value in state.items()}
    key = max(sizes, key=lambda name: sizes[name])
    return f"its largest field is {key!r} with {sizes[key]} bytes"


def _check_growth(states: Sequence[Any]) -> None:
    """The first state is left out: before the first element much is None."""
    sizes = [dict(_sizes(state)) for state in states[1:]]
    if len(sizes) < _MIN_STATES_FOR_GROWTH:
        return
    for path in sizes[-1]:
        series = [each.get(path, 0) for each in sizes]
        rises = all(a <= b for a, b in itertools.pairwise(series))
        if rises and series[-1] - series[0] >= len(series) - 1:
            raise AssertionError(
                f"the state grows with the position: {path} has {series[0]} items after 1 element and {series[-1]} after "
                f"{len(series)}. Keep the place from which it can be computed, not a list of what was delivered"
            )


def _sizes(state: Any) -> Iterator[tuple[str, int]]:
    """The number of items of everything in a state that can have many."""
    for path, node in walk(state):
        if isinstance(node, str):
            yield (
                path,
                len(re.sub(r"\d+", "0", node)),
            )  # a number in a text gets more digits, which is no growth
        elif isinstance(node, bytes):
            yield path, len(re.sub(rb"\d+", b"0", node))
        elif isinstance(node, _ARRAY_LIKE):
            yield path, node.size
        elif isinstance(node, (dict, list, tuple)):
            yield path or "the state", len(node)


def damaged(state: dict[str, Any], here: Any, free: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Copies of a state, each with one thing wrong that a module can see, and what that is in words.

    Args:
        state: a good state.
        here: the state of the module that shall refuse them; what is None or empty there may take anything.
        free: names of fields that may hold anything.
    """
    yield "None instead of a dict", None
    yield "a list instead of a dict", list(state)
    for path in _dicts(state, here, (), free):
        for key in _at(state, path):
            copy = detached(state)
            del _at(copy, path)[key]
            yield f"without {_spelled((*path, key))}", copy
        copy = detached(state)
        _at(copy, path)["one_key_too_many"] = 1
        yield f"with an extra key {_spelled((*path, 'one_key_too_many'))}", copy
        for key, value in _at(state, path).items():
            if key not in free and _is_int(value) and _is_int(_at(here, path).get(key)):
                copy = detached(state)
                _at(copy, path)[key] = str(int(value))
                yield (
                    f"with the str {str(int(value))!r} in place of an integer at {_spelled((*path, key))}",
                    copy,
                )


def _dicts(node: Any, here: Any, path: tuple[Any, ...], free: frozenset[str]) -> Iterator[tuple[Any, ...]]:
    if isinstance(node, dict) and isinstance(here, dict) and node and node.keys() == here.keys():
        yield path
        for key, value in node.items():
            if key not in free:
                yield from _dicts(value, here[key], (*path, key), free)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _spelled(path: tuple[Any, ...]) -> str:
    return repr(".".join(map(str, path)))


def _is_int(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (
        isinstance(value, _ARRAY_LIKE) and value.shape == () and value.dtype.kind in "iu"
    )
