"""What a state must be: a value, small, the same size at every place, fit for a snapshot; and damaged ones to be refused."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from datarax.checkpoint import EncodingError, decode, encode
from datarax.core.tree import detached, walk
from datarax.testing.streams import must_equal, next_of

_MIN_STATES_FOR_GROWTH = 4  # two or three sizes in a row may rise by chance


def through_json(state: Any) -> Any:
    """The state as a snapshot would hold and give it back."""
    return decode(json.loads(json.dumps(encode(state))))


def check_states(module: Any, steps: int, max_bytes: int) -> None:
    """Checks the states that a module at its beginning gives before each of its first elements.

    Raises:
        AssertionError: if one is no dict, cannot be put into a snapshot, changes by asking or later on, is too large, or
            grows with the place: naming the field.
    """
    live, kept, sizes = [], [], []
    for place in range(steps + 1):
        state = module.get_state()
        if not isinstance(state, dict):
            raise AssertionError(f"get_state must give a dict, got {type(state).__name__} {state!r}")
        try:
            sizes.append(len(json.dumps(encode(state))))
        except EncodingError as error:
            raise AssertionError(
                f"the state before element {place} cannot be put into a snapshot: {error}"
            ) from error
        live.append(state)
        kept.append(detached(state))
        must_equal(
            kept[-1],
            module.get_state(),
            f"get_state changes the state: asked twice before element {place} it does not say the same, at",
        )
        if place < steps:
            next_of(module)
    for place, (then, now) in enumerate(zip(kept, live, strict=True)):
        must_equal(
            then,
            now,
            f"the state taken before element {place} shares something with the module, and was changed later on, at",
        )
    _check_growth(kept)
    for place, (state, size) in enumerate(zip(kept, sizes, strict=True)):
        if size > max_bytes:
            fields = {key: len(json.dumps(encode(value))) for key, value in state.items()}
            largest = max(fields, key=lambda key: fields[key])
            raise AssertionError(
                f"the state before element {place} takes {size} bytes, more than {max_bytes}; its largest field is "
                f"{largest!r} with {fields[largest]} bytes. A state says where the stream is and holds no data; pass "
                f"max_state_bytes if it must be larger"
            )


def _check_growth(states: Sequence[Any]) -> None:
    """The first state is left out: before the first element much is None."""
    sizes = [dict(_sizes(state)) for state in states[1:]]
    for path in sizes[-1] if len(sizes) >= _MIN_STATES_FOR_GROWTH else ():
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
        if isinstance(node, (np.ndarray, np.generic)):
            yield path, node.size
        elif isinstance(node, (str, bytes)):
            # A number in a text gets more digits, which is no growth.
            yield path, len(re.sub(r"\d+", "0", node if isinstance(node, str) else node.decode("latin-1")))
        elif isinstance(node, (dict, list, tuple)):
            yield path or "the state", len(node)


def damaged(
    state: Mapping[str, Any], here: Any, free: frozenset[str], path: str = ""
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Copies of a state, each with one thing wrong that a module can see, and what that is in words.

    Args:
        state: a good state, or a dict in it.
        here: the state of the module that shall refuse them; what is None or empty there may take anything.
        free: names of fields that may hold anything.
        path: of the dict, with a dot at its end.
    """
    if not (isinstance(here, dict) and state and state.keys() == here.keys()):
        return
    for key in state:
        yield f"without {f'{path}{key}'!r}", {name: state[name] for name in state if name != key}
    yield f"with an extra key {f'{path}one_key_too_many'!r}", {**state, "one_key_too_many": 1}
    for key, value in state.items():
        if key in free:
            continue
        if _is_int(value) and _is_int(here[key]):
            text = str(int(value))
            yield (
                f"with the str {text!r} in place of an integer at {f'{path}{key}'!r}",
                {**state, key: text},
            )
        if isinstance(value, dict):
            for what, changed in damaged(value, here[key], free, f"{path}{key}."):
                yield what, {**state, key: changed}


def _is_int(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape == () and value.dtype.kind in "iu"
    return isinstance(value, int) and not isinstance(value, bool)
