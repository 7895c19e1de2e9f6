"""What an undisturbed module delivers and what its states are: what every restore is held against.

Two plain runs say whether the stream is a stream at all; a third one is asked for its state before every element.
Knows nothing of restores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from datarax.checkpoint.protocols import KeepsDigest, KeepsStepDigests, StepDigests
from datarax.testing.difference import detached, difference, must_equal
from datarax.testing.states import encoded_size


@runtime_checkable
class Resumable(Protocol):
    """What the kit can test: a stream with a state."""

    def __next__(self) -> Any:
        """The next element.

        Raises:
            StopIteration: at the end, again and again.
        """
        ...

    def get_state(self) -> dict[str, Any]:
        """Where the stream is."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where the stream was when it had `state`."""
        ...


@runtime_checkable
class Closable(Protocol):
    """What has something open."""

    def close(self) -> None:
        """Free it."""
        ...


Make = Callable[[], Any]
END = object()
"""What `next_of` gives at the end of a stream."""


@dataclass(frozen=True)
class Recording:
    """The stream and the states of a module that nobody has disturbed."""

    elements: list[Any]
    states: list[dict[str, Any]]
    """The state before each element, and the one after the last: one more than elements."""
    digests: list[Mapping[str, Any] | None]
    """The digest that goes with each state; None if the module keeps none."""
    step_digests: StepDigests | None
    """Those of all elements, if the module keeps them."""
    ended: bool
    """Whether the stream ends after these elements; it may go on otherwise."""

    @property
    def places(self) -> range:
        """How many elements had been taken when each state was taken."""
        return range(len(self.states))

    def check_element(self, place: int, found: Any, where: str) -> None:
        """Holds what came against the element that belongs there.

        Raises:
            AssertionError: naming the leaf, and which other element it is, if it is one.
        """
        if place == len(self.elements):
            if found is not END:
                raise AssertionError(
                    f"{where}: after element {place - 1} the stream ends, but another element came"
                    f"{self._which(found, place)}"
                )
            return
        if found is END:
            raise AssertionError(f"{where}: the stream ended before element {place} of {len(self.elements)}")
        told = difference(self.elements[place], found)
        if told is not None:
            raise AssertionError(f"{where}: element {place} differs at {told}{self._which(found, place)}")

    def _which(self, found: Any, place: int) -> str:
        others = (i for i, each in enumerate(self.elements) if i != place and difference(each, found) is None)
        other = next(others, None)
        if other is None:
            return ""
        return f"; what came is element {other}: {_moved(other - place)}"


def _moved(distance: int) -> str:
    count = "one element" if abs(distance) == 1 else f"{abs(distance)} elements"
    if distance > 0:
        return f"{count} would be lost"
    return f"{count} would come twice"


def recorded(make: Make, steps: int) -> Recording:
    """Runs fresh modules over up to `steps` elements, and records one of them.

    Raises:
        AssertionError: if two runs differ, or asking for the state makes a difference.
        TypeError: if what is made is no stream with a state.
    """
    plain = _plain_run(make, steps)
    plain.must_equal(_plain_run(make, steps), "two fresh modules give different streams")
    with opened(make) as module:
        run = _recorded_run(module, steps, plain.ended)
    asked = _Run(run.elements, run.ended, run.digests[-1])
    plain.must_equal(
        asked, "get_state changes the stream: asked for before each element, it gives another one"
    )
    return run


@dataclass(frozen=True)
class _Run:
    """What a module delivered without being asked for its state."""

    elements: list[Any]
    ended: bool
    digest: Mapping[str, Any] | None

    def must_equal(self, other: _Run, claim: str) -> None:
        for place, (a, b) in enumerate(zip(self.elements, other.elements, strict=False)):
            must_equal(a, b, f"{claim}; element {place} differs at")
        if len(self.elements) != len(other.elements) or self.ended != other.ended:
            raise AssertionError(f"{claim}; {self._length()} and {other._length()}")
        must_equal(self.digest, other.digest, f"{claim}; their digests differ at")

    def _length(self) -> str:
        return f"one {'ends' if self.ended else 'goes on'} after {len(self.elements)} elements"


def _plain_run(make: Make, steps: int) -> _Run:
    with opened(make) as module:
        elements = list(_elements(module, steps))
        digest = digest_of(module)
        return _Run(elements, len(elements) < steps or next_of(module) is END, digest)


def _elements(module: Any, steps: int) -> Iterator[Any]:
    for _ in range(steps):
        element = next_of(module)
        if element is END:
            return
        yield element


def _recorded_run(module: Any, steps: int, ended: bool) -> Recording:
    elements: list[Any] = []
    live = [_state_of(module, 0)]
    states, digests = [detached(live[0])], [digest_of(module)]
    for element in _elements(module, steps):
        place = len(elements)
        shared = f"the state taken before element {place} shares something with the module, and changed when it was taken"
        must_equal(states[-1], live[-1], f"{shared}, at")
        elements.append(element)
        live.append(_state_of(module, place + 1))
        states.append(detached(live[-1]))
        digests.append(digest_of(module))
    for place, (kept, state) in enumerate(zip(states, live, strict=True)):
        must_equal(
            kept, state, f"the state taken before element {place} was changed by the module later on, at"
        )
    return Recording(elements, states, digests, step_digests_of(module), ended)


def _state_of(module: Any, place: int) -> dict[str, Any]:
    state = module.get_state()
    if not isinstance(state, dict):
        raise AssertionError(f"get_state must give a dict, got {type(state).__name__} {state!r}")
    encoded_size(state, place)
    kept = detached(state)
    changed = f"get_state changes the state: asked twice before element {place} it does not say the same, at"
    must_equal(kept, module.get_state(), changed)
    return state


def next_of(module: Any) -> Any:
    """A copy of the next element, or END."""
    try:
        element = next(module)
    except StopIteration:
        return END
    return detached(element)


def digest_of(module: Any) -> Mapping[str, Any] | None:
    """The digest of what was delivered, if the module keeps one."""
    return detached(dict(module.digest.to_state())) if isinstance(module, KeepsDigest) else None


def step_digests_of(module: Any) -> StepDigests | None:
    """A copy of the digests of single steps, if the module keeps them."""
    if not isinstance(module, KeepsStepDigests):
        return None
    first, keys, of_bytes, has_bytes = module.take_step_digests()
    return first, np.array(keys), np.array(of_bytes), has_bytes


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
