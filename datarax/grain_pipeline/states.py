"""Grain's states as values: private copies, their form, and where two of them differ.

Grain hands out and keeps dicts that it goes on changing, and it reads a state without a look at its form; here a state is
copied at each border and compared with one of the same pipeline before Grain sees it. Knows nothing of iterators.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from datarax.core.errors import InputError

_SCALARS = (type(None), bool, int, float, str, bytes)
_FREE = frozenset({"iterators_in_use_states", "future_states"})
"""Lists and dicts whose content differs from place to place in a run: the states of whichever datasets are open."""
_WORKERS = "iterators_in_use_states"
_INDICES = "iterators_in_use_indices"
_MAY_RETURN_TO_ZERO = frozenset({"next_index_in_buffer"})
"""A flat map whose parent has ended forgets where it was in a buffer that it will never fill again."""


def frozen(state: Any, path: str = "") -> Any:
    """A copy of a state that shares nothing with it that anyone could change; tuples and int keys stay what they are.

    Raises:
        InputError: if it holds what a snapshot cannot hold, naming the place.
    """
    kind = type(state)
    if kind in _SCALARS:
        return state
    if kind in (dict, Unshared):
        return {key: frozen(value, f"{path}.{key}" if path else str(key)) for key, value in state.items()}
    if kind in (list, tuple):
        return kind(frozen(value, f"{path}[{i}]") for i, value in enumerate(state))
    if isinstance(state, np.generic):
        return state
    if kind is np.ndarray and not state.dtype.hasobject:
        return state.copy()
    raise InputError(
        f"Grain's state holds a {kind.__module__}.{kind.__qualname__} at {path or 'its top'}, which a snapshot cannot "
        f"hold; keep None, bool, int, float, str, bytes, list, tuple, dict or NumPy values in the state of your iterator"
    )


def check_form(start: Any, given: Any, path: str = "grain_state") -> None:
    """Compare a state with the one that the same pipeline starts from: keys, lengths and types.

    Raises:
        ValueError: naming the first place where they differ.
    """
    if isinstance(start, dict) and isinstance(given, dict):
        if set(start) != set(given):
            missing, extra = set(start) - set(given), set(given) - set(start)
            raise ValueError(f"{path} has other keys: missing={sorted(missing)}, extra={sorted(extra)}")
        for key in start:
            if key in _FREE:
                _check_length(start[key], given[key], f"{path}.{key}")
            else:
                check_form(start[key], given[key], f"{path}.{key}")
    elif isinstance(start, (list, tuple)) and type(start) is type(given):
        _check_length(start, given, path)
        for i, (a, b) in enumerate(zip(start, given, strict=True)):
            check_form(a, b, f"{path}[{i}]")
    elif start is not None and type(start) is not type(given):
        raise ValueError(f"{path} is of another kind: expected {type(start).__name__}, got {given!r}")


def _check_length(start: Any, given: Any, path: str) -> None:
    if type(start) is not type(given):
        raise ValueError(f"{path} is of another kind: expected {type(start).__name__}, got {given!r}")
    if isinstance(start, (list, tuple)) and len(start) != len(given):
        raise ValueError(f"{path} has {len(given)} entries, this pipeline has {len(start)}")


class Unshared(dict[str, Any]):
    """A state for Grain that gives another copy of the list of open datasets at each look.

    An interleave keeps that list and writes into it, and so do what stands above it and holds the same state for its next
    save (window shuffles, flat maps, packing): after a restore in place of the list itself, their saves would be wrong.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return list(value) if key == _INDICES else value


def for_grain(state: Any, start: Any) -> Any:
    """A private copy of a state that Grain may keep.

    Args:
        state: a frozen state.
        start: the one that the pipeline starts from, if processes read it, else None. A process slices the pipeline for
            itself, but the state of one that has delivered nothing was made of the whole: restored there it fails, or reads
            what belongs to another. So nothing is said of a process that is where it started.
    """
    if isinstance(state, dict):
        below = start if isinstance(start, dict) else {}
        copied = {
            key: for_grain(value, None if key == _WORKERS else below.get(key)) for key, value in state.items()
        }
        if _INDICES not in state:
            return copied
        if _WORKERS in below:
            copied[_WORKERS] = [
                {} if at_start and now is not None and difference(was, now) is None else for_grain(now, None)
                for at_start, was, now in zip(
                    _same_places(below, state), below[_WORKERS], state[_WORKERS], strict=True
                )
            ]
        return Unshared(copied)
    if isinstance(state, (list, tuple)):
        starts = (
            start if isinstance(start, (list, tuple)) and len(start) == len(state) else [None] * len(state)
        )
        return type(state)(for_grain(each, was) for each, was in zip(state, starts, strict=True))
    return frozen(state)


def _same_places(was: Any, now: Any) -> list[bool]:
    return [a == b for a, b in zip(was[_INDICES], now[_INDICES], strict=True)]


def difference(was: Any, now: Any, path: str = "grain_state") -> str | None:
    """Where two states differ, in words; None if they mean the same and are the same to the last type."""
    if type(was) is not type(now):
        return f"{path} was {was!r}, is {now!r}"
    if isinstance(was, dict):
        if not now and _WORKERS in path:
            return None  # nothing was said of it: see `for_grain`
        if set(was) != set(now):
            return f"{path} had the keys {sorted(map(str, was))}, has {sorted(map(str, now))}"
        found = (difference(was[key], now[key], f"{path}.{key}") for key in was)
        return next((each for each in found if each), None)
    if isinstance(was, (list, tuple)):
        if len(was) != len(now):
            return f"{path} had {len(was)} entries, has {len(now)}"
        found = (difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(was, now, strict=True)))
        return next((each for each in found if each), None)
    if path.split(".")[-1] in _MAY_RETURN_TO_ZERO and now == 0:
        return None
    same = np.array_equal(was, now) if isinstance(was, np.ndarray) else was == now
    return None if same else f"{path} was {was!r}, is {now!r}"
