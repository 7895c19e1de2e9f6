"""What a stream delivers, recorded, and the first difference between two recordings, bit for bit, in words.

`Delivery` is the one noun of the kit: every law takes deliveries and holds one against another. Knows nothing of restores.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from datarax.checkpoint.protocols import KeepsDigest, KeepsStepDigests, Stateful
from datarax.core.tree import ARRAYS, detached, plain_array, walk


@runtime_checkable
class Resumable(Stateful, Protocol):
    """What the kit can test: a stream with a state."""

    def __next__(self) -> Any:
        """The next element.

        Raises:
            StopIteration: at the end, again and again.
        """
        ...


@runtime_checkable
class Closable(Protocol):
    """What has something open."""

    def close(self) -> None:
        """Free it."""
        ...


Make = Callable[[], Any]
"""Makes a new module, at its beginning."""
END = object()
"""What `next_of` gives at the end of a stream."""
_NOTHING = object()


@contextmanager
def opened(make: Make) -> Iterator[Any]:
    """A fresh module, which is closed at the end.

    Raises:
        TypeError: if it is no stream with a state.
    """
    module = make()
    try:
        if not isinstance(module, Resumable):
            raise TypeError(
                f"make_loader must return a module with __next__, get_state and set_state, got {type(module).__name__}"
            )
        yield module
    finally:
        if isinstance(module, Closable):
            module.close()


def next_of(module: Any) -> Any:
    """A copy of the next element, or END."""
    try:
        return detached(next(module))
    except StopIteration:
        return END


# A recorded delivery


@dataclass(frozen=True)
class Delivery:
    """What a module delivered, and what it said of its place on the way; the key is the place, a number of elements."""

    elements: Mapping[int, Any]
    """To the last tested place, the one after it, and where an end came END and whatever came after that."""
    states: Mapping[int, dict[str, Any]]
    """The state before each element, and the one after the last; the latter only, if it was not asked on the way."""
    digests: Mapping[int, Mapping[str, Any] | None]
    """The digest that goes with each state; None if the module keeps none."""
    step_digests: Mapping[int, tuple[int, int | None]] | None
    """Step -> digest of its keys, and of its bytes if they are hashed; None if the module keeps none."""

    @property
    def num_elements(self) -> int | float:
        """How many elements there are; infinity if the end did not come."""
        return next((place for place, element in self.elements.items() if element is END), math.inf)

    def check(self, other: Delivery, where: str) -> None:
        """Holds another delivery, from the same place or a later one, against this one.

        Raises:
            AssertionError: with the first difference: naming the leaf, and which other element came, if it is one.
        """
        for place, element in other.elements.items():
            if place in other.states and place in self.states:
                when = f"{where}: the state before element {place}"
                must_equal(
                    self.states[place],
                    other.states[place],
                    f"{when} is not that of an undisturbed module, at",
                )
                must_equal(
                    self.digests[place],
                    other.digests[place],
                    f"{when} goes with another digest than undisturbed, at",
                )
            # An end stays an end.
            told = difference(self.elements[place] if place < self.num_elements else END, element)
            if told is not None:
                same = (i for i, each in self.elements.items() if difference(each, element) is None)
                came = _moved(place, next(same, place))
                raise AssertionError(f"{where}: element {place} differs at {told}{came}")
        if self.step_digests is not None and other.step_digests is not None:
            found, first = other.step_digests, min(self.step_digests, default=0) + min(other.elements)
            kept = {step: each for step, each in self.step_digests.items() if step >= first or step in found}
            must_equal(kept, found, f"{where}: the digests of single steps differ at")


def _moved(place: int, came: int) -> str:
    if came == place:
        return ""
    count = "one element" if abs(came - place) == 1 else f"{abs(came - place)} elements"
    return f"; what came is element {came}: {count} would {'be lost' if came > place else 'come twice'}"


def delivered(module: Any, places: range, where: str, *, asks: bool) -> Delivery:
    """Takes elements.

    Args:
        module: a stream with a state, at the first of `places`.
        places: of the elements; the one after them, and at the end what comes after that, are looked at too.
        where: noted on what the module raises.
        asks: whether it is asked for its state before each element; else only after the last. Who asks may hide that a state
            takes effect too late.
    """
    elements: dict[int, Any] = {}
    states: dict[int, dict[str, Any]] = {}
    digests: dict[int, Mapping[str, Any] | None] = {}
    step_digests: dict[int, tuple[int, int | None]] | None = None
    try:
        for place in range(places.start, places.stop + 1):
            if asks or place == places.stop:
                states[place] = detached(module.get_state())
                is_kept = isinstance(module, KeepsDigest)
                digests[place] = detached(dict(module.digest.to_state())) if is_kept else None
            if place == places.stop and isinstance(module, KeepsStepDigests):
                first, keys, of_bytes, has_bytes = module.take_step_digests()
                kept = of_bytes.tolist() if has_bytes else [None] * len(keys)
                step_digests = dict(enumerate(zip(keys.tolist(), kept, strict=True), first))
            elements[place] = next_of(module)
            if elements[place] is END:
                break
        elements[len(elements) + places.start] = next_of(module)
    except Exception as error:
        error.add_note(where)
        raise
    return Delivery(elements, states, digests, step_digests)


# The first difference


def must_equal(expected: Any, found: Any, claim: str) -> None:
    """Checks that two trees are the same.

    Raises:
        AssertionError: if they are not: the claim, and the first difference.
    """
    told = difference(expected, found)
    if told is not None:
        raise AssertionError(f"{claim} {told}" if claim.endswith(" at") else f"{claim}: {told}")


def difference(expected: Any, found: Any) -> str | None:
    """The first leaf that differs in type, dtype, shape or bits, as `path: expected …, got …`; None if none does.

    Trees are elements of a stream or states: dicts, lists, tuples, arrays, PyTrees, plain values. NaN equals NaN of the same
    bits; 0.0 and -0.0 differ.
    """
    if expected is END or found is END:
        told, found_told = ("the end" if each is END else "an element" for each in (expected, found))
        return None if expected is found else f"the whole: expected {told}, got {found_told}"
    (leaves, form), (found_leaves, found_form) = _flat(expected), _flat(found)
    for path in [*leaves, *found_leaves]:
        leaf, other = leaves.get(path, _NOTHING), found_leaves.get(path, _NOTHING)
        (told, value), (found_told, found_value) = _spelled(leaf), _spelled(other)
        if told == found_told and value == found_value:
            continue
        if told == found_told and isinstance(leaf, ARRAYS) and isinstance(value, bytes):
            return _first_value(path, plain_array(leaf), plain_array(other))
        return f"{path or 'the whole'}: expected {told}, got {found_told}"
    return None if form == found_form else f"the whole: expected {form}, got {found_form}"


def _flat(tree: Any) -> tuple[dict[str, Any], Any]:
    """Path -> leaf, and the structure."""
    pairs, form = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is None)
    return {jax.tree_util.keystr(keys, simple=True, separator="."): leaf for keys, leaf in pairs}, form


def _spelled(leaf: Any) -> tuple[str, Any]:
    """A leaf as it stands in messages, and what must be equal as well: of an array its bytes."""
    if leaf is _NOTHING:
        return "nothing", None
    if isinstance(leaf, ARRAYS):
        array = plain_array(leaf)
        kind = "jax.Array" if isinstance(leaf, jax.Array) else type(leaf).__name__
        told = f"{kind} of dtype {leaf.dtype} and shape {list(leaf.shape)}"
        return told, array.tolist() if array.dtype.hasobject else array.tobytes()
    text = repr(leaf) if len(repr(leaf)) <= 60 else f"{repr(leaf)[:57]}..."
    return f"{type(leaf).__name__} {text}", struct.pack(">d", leaf) if isinstance(leaf, float) else leaf


def _first_value(path: str, a: np.ndarray, b: np.ndarray) -> str:
    raw_a, raw_b = (np.frombuffer(each.tobytes(), np.uint8).reshape(a.size, -1) for each in (a, b))
    wrong = np.flatnonzero((raw_a != raw_b).any(axis=1))
    at = [int(i) for i in np.unravel_index(wrong[0], a.shape)]
    expected, found = (repr(each.reshape(-1)[wrong[0]].item()) for each in (a, b))
    count = f" ({len(wrong)} of {a.size} values differ)" if a.size > 1 else ""
    where = f"{path}{at}" if at else path or "the whole"
    return f"{where}: expected {expected}, got {found}{count}"


# Spoiling


def overwrite(tree: Any) -> None:
    """Spoils every dict, list and NumPy array of a tree in place."""
    for _, node in list(walk(tree)):
        if isinstance(node, dict):
            node.clear()
            node["overwritten"] = True
        elif isinstance(node, list):
            node[:] = ["overwritten"]
        elif isinstance(node, np.ndarray) and node.flags.writeable and not node.dtype.hasobject:
            flipped = np.frombuffer(node.tobytes(), np.uint8) ^ np.uint8(
                1
            )  # the bytes of a bool stay those of one
            node[...] = np.frombuffer(flipped.tobytes(), node.dtype).reshape(node.shape)
