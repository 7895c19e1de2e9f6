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
                claim = f"{when} is not that of an undisturbed module, at"
                must_equal(self.states[place], other.states[place], claim)
                claim = f"{when} goes with another digest than undisturbed, at"
                must_equal(self.digests[place], other.digests[place], claim)
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
    nodes, found_nodes = dict(_nodes(expected)), dict(_nodes(found))
    for path in [*nodes, *found_nodes]:
        node, other = nodes.get(path, _NOTHING), found_nodes.get(path, _NOTHING)
        if (node.told, node.value) != (other.told, other.value):
            if node.told == other.told and node.array is not None and other.array is not None:
                return _first_value(path, node.array, other.array)
            return f"{path or 'the whole'}: expected {node.told}, got {other.told}"
    return None


@dataclass(frozen=True)
class _Node:
    told: str
    value: Any = None
    array: np.ndarray | None = None


_NOTHING = _Node("nothing")


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[str, _Node]]:
    """Each node of a tree by its path, before what lies in it."""
    below: Iterator[tuple[str, Any]] = iter(())
    if tree is END:
        yield path, _Node("the end of the stream")
    elif isinstance(tree, ARRAYS):
        array = plain_array(tree)
        kind = "jax.Array" if isinstance(tree, jax.Array) else type(tree).__name__
        told = f"{kind} of dtype {tree.dtype} and shape {list(tree.shape)}"
        if array.dtype.hasobject:
            yield path, _Node(told)
            below = ((f"{path}[{i}]", each) for i, each in enumerate(array.ravel().tolist()))
        else:
            yield path, _Node(told, array.tobytes(), array)
    elif isinstance(tree, dict):
        yield path, _Node(type(tree).__name__, type(tree))
        below = ((_joined(path, key), value) for key, value in tree.items())
    elif isinstance(tree, (list, tuple)):
        yield path, _Node(f"{type(tree).__name__} of {len(tree)} items", type(tree))
        below = ((f"{path}[{i}]", each) for i, each in enumerate(tree))
    else:
        leaves, structure = jax.tree.flatten(tree)
        if tree is None or (len(leaves) == 1 and leaves[0] is tree):
            text = repr(tree)
            text = text if len(text) <= 60 else f"{text[:57]}..."
            value = struct.pack(">d", tree) if isinstance(tree, float) else tree
            yield (
                path,
                _Node("None" if tree is None else f"{type(tree).__name__} {text}", (type(tree), value)),
            )
        else:
            yield path, _Node(str(structure), structure)
            below = ((f"{path}[{i}]", each) for i, each in enumerate(leaves))
    for at, each in below:
        yield from _nodes(each, at)


def _joined(path: str, key: Any) -> str:
    if not isinstance(key, str):
        return f"{path}[{key!r}]"
    return f"{path}.{key}" if path else key


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
