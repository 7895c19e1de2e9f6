"""`assert_resumes_everywhere`: from every place, into every module, through every medium, the stream goes on exactly.

The order of the laws, and those of restoring. What a delivery is lies in `streams.py`, what states must be in `states.py`, and
splitting over processes in `parts.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.core.module import CheckpointableIteratorModule, DataraxModule
from datarax.core.tree import detached
from datarax.loader import DataLoader
from datarax.multihost import Processes
from datarax.testing.parts import MakePart, check_parts
from datarax.testing.states import check_states, damaged, through_json
from datarax.testing.streams import Delivery, Make, delivered, must_equal, next_of, opened, overwrite


def assert_resumes_everywhere(
    make_loader: Make,
    *,
    steps: int = 12,
    max_state_bytes: int = 4096,
    snapshots: bool = True,
    make_part: MakePart | None = None,
    process_counts: Sequence[int] = (1, 2, 4),
) -> None:
    """Checks that a stream can be stopped before any element and continued exactly, whatever is restored into what.

    Held are: two fresh modules give the same stream; `get_state` changes nothing and hands out a value that shares nothing
    with the module; every state, restored into a fresh module, one that has gone elsewhere, and one that goes backwards,
    in memory, through JSON and through a snapshot on disk, gives exactly the rest of the stream, the same later states
    and the same digests; a damaged state is refused and changes nothing; states stay small; each transform of a
    `DataLoader` gives the same bytes for the records of its first batch, again and in another order. The time grows with
    the square of `steps`.

    Args:
        make_loader: makes a new module at the beginning: a `DataLoader`, a source, or any module with `__next__`,
            `get_state` and `set_state`. Modules with `close` are closed.
        steps: how many elements are tested; a stream that ends before is tested to its end, the end included.
        max_state_bytes: how large the encoded state may be; a record of a snapshot holds no more than the default.
        snapshots: whether some states also go through a `Checkpointer` in a temporary directory.
        make_part: makes the `DataLoader` that reads only the given slots (int64, sorted) of the global batch: passes them
            as `rows`. Then splitting over processes is tested as well.
        process_counts: over how many processes; numbers beyond the batch size are left out.

    Raises:
        AssertionError: if a law does not hold: which, where, at which element, and what differs.
        TypeError: if `make_loader` or `make_part` gives something else.
        ValueError: if `steps` is less than 1, or all of `process_counts` are beyond the batch size.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    run = _undisturbed(make_loader, steps, max_state_bytes)
    memory = _Medium("in memory", lambda module, place: module.set_state(detached(run.states[place])))
    json = _Medium(
        "through JSON", lambda module, place: module.set_state(through_json(run.states[place])), asks=False
    )
    for medium in (memory, json):
        _check_restores(make_loader, run, medium, list(run.states))
    _check_states_are_values(make_loader, run)
    _check_damaged_states(make_loader, run)
    if snapshots:
        _check_snapshots(make_loader, run)
    if make_part is not None:
        check_parts(make_loader, make_part, process_counts, run)
    _check_transforms(make_loader)


def _undisturbed(make: Make, steps: int, max_state_bytes: int) -> Delivery:
    """What a module delivers that is asked for its state before each element, as one does that is not asked."""
    with opened(make) as one, opened(make) as other:
        if one is other:
            raise AssertionError(
                "make_loader gave the same module twice; it must make a new one at each call"
            )
        first = delivered(one, range(steps), "a fresh module", asks=False)
        first.check(first, "a fresh module")  # an end stays an end
        places = range(int(min(steps, first.num_elements)))
        plain = delivered(other, places, "another fresh module", asks=False)
    first.check(plain, "two fresh modules give different streams")
    with opened(make) as module:
        check_states(module, len(places), max_state_bytes)
    with opened(make) as module:
        asked = delivered(module, places, "asked for its state before each element", asks=True)
    plain.check(asked, "get_state changes the stream: asked for before each element, it gives another one")
    return asked


# Every state, restored everywhere.


@dataclass(frozen=True)
class _Medium:
    """How a state gets into a module."""

    name: str
    restore: Callable[[Any, int], object]
    """Given the module and the place."""
    asks: bool = True
    """See `delivered`: one medium does not ask."""


def _check_restores(make: Make, run: Delivery, medium: _Medium, places: Sequence[int]) -> None:
    for place in places:
        with opened(make) as fresh:
            _check_restored(fresh, "a fresh module", run, medium, place)
    with opened(make) as used:
        for place in places:
            elsewhere = (5 * place + 3) % len(run.states)
            used.set_state(detached(run.states[elsewhere]))
            next_of(used)
            _check_restored(used, f"a module that was at element {elsewhere}", run, medium, place)
    with opened(make) as used:
        for place in reversed(places):
            _check_restored(used, "a module that had gone on to the end", run, medium, place)


def _check_restored(module: Any, kind: str, run: Delivery, medium: _Medium, place: int) -> None:
    where = f"restored before element {place} into {kind}, {medium.name}"
    try:
        medium.restore(module, place)
    except Exception as error:
        raise AssertionError(
            f"{where}: the restore was refused, of a state that an equal module gave: {type(error).__name__}: "
            f"{error.__cause__ or error}"
        ) from error
    places = range(place, len(run.states) - 1)
    run.check(delivered(module, places, where, asks=medium.asks), where)


def _check_snapshots(make: Make, run: Delivery) -> None:
    last = len(run.states) - 1
    places = sorted({0, 1, last // 2, last} & set(run.states))
    config = SaveConfig(every_seconds=None, keep_latest=None)
    with tempfile.TemporaryDirectory(prefix="datarax-testing-") as directory:
        with (
            opened(make) as module,
            Checkpointer(directory, config=config, processes=Processes()) as checkpointer,
        ):
            for place in run.states:
                if place in places:
                    checkpointer.save(place, data=module)
                    checkpointer.wait()
                must_equal(
                    run.elements[place],
                    next_of(module),
                    f"saved to disk in between: element {place} differs at",
                )
        reader = Checkpointer(directory, processes=Processes())
        disk = _Medium("from a snapshot on disk", lambda module, place: reader.restore(place, data=module))
        _check_restores(make, run, disk, places)


# States are values.


def _check_states_are_values(make: Make, run: Delivery) -> None:
    """Whoever changes a state that was handed out, or handed in, changes no module."""
    with opened(make) as asked, opened(make) as told:
        for place, state in run.states.items():
            overwrite(asked.get_state())
            _check_place(
                asked,
                run,
                place,
                f"the state taken before element {place} shares something with the module: changing it changed",
            )
            given = detached(state)
            told.set_state(given)
            must_equal(
                state,
                given,
                f"restored before element {place}: set_state changed the dict that it was given, at",
            )
            overwrite(given)
            _check_place(
                told,
                run,
                place,
                f"set_state before element {place} keeps a part of its argument: changing that changed",
            )


def _check_place(module: Any, run: Delivery, place: int, claim: str) -> None:
    must_equal(run.states[place], module.get_state(), f"{claim} the module's state, at")
    must_equal(run.elements[place], next_of(module), f"{claim} the stream, at")


# Damaged states.


def _check_damaged_states(make: Make, run: Delivery) -> None:
    """A module after its first element, where fields have their kinds, refuses damaged states of another place."""
    there = len(run.states) - 1
    here = min(1, there)
    good = run.states[there]
    with opened(make) as module:
        free: frozenset[str] = frozenset()
        if isinstance(module, DataraxModule):
            free = module.free_state | CheckpointableIteratorModule.free_state
        for _ in range(here):
            next_of(module)
        none: list[tuple[str, Any]] = [
            ("None instead of a dict", None),
            ("a list instead of a dict", list(good)),
        ]
        for what, state in [*none, *damaged(good, run.states[here], free)]:
            try:
                module.set_state(detached(state))
            except (TypeError, ValueError):
                must_equal(
                    run.states[here],
                    module.get_state(),
                    f"set_state refused a state {what}, but changed the module, at",
                )
                continue
            except Exception as error:
                raise AssertionError(
                    f"set_state of a state {what} must raise TypeError or ValueError with a reason, and raised "
                    f"{type(error).__name__}: {error}"
                ) from error
            raise AssertionError(f"set_state accepted a state {what}; what does not fit must be refused")
        where = "after refused states"
        run.check(delivered(module, range(here, there), where, asks=True), where)


# Transforms.


def _check_transforms(make: Make) -> None:
    """What no restore shows: each transform run again on the records of the first batch, and on these in another order."""
    with opened(make) as module:
        if not isinstance(module, DataLoader):
            return
        step = int(module.idx.get_value() or 0)
        if step == module.num_steps:
            return
        found = module.unsteady_transforms(step)
    if found:
        raise AssertionError(
            f"{'; '.join(map(str, found))}; make it a function of the record, its parameters and its seed alone"
        )
