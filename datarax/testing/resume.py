"""`assert_resumes_everywhere`: from every place, into every module, through every medium, the stream goes on exactly.

The order of the laws, and those of restoring. What a module does undisturbed is in `recording.py`, what its states must
be in `states.py`, and splitting over processes in `parts.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.core.errors import DataraxError
from datarax.core.module import CheckpointableIteratorModule, DataraxModule
from datarax.multihost import Processes
from datarax.testing.difference import detached, must_equal, overwrite
from datarax.testing.parts import MakePart, check_parts
from datarax.testing.recording import (
    Make,
    Recording,
    digest_of,
    next_of,
    opened,
    recorded,
    step_digests_of,
)
from datarax.testing.states import check_sizes, damaged, through_json


@dataclass(frozen=True)
class _Medium:
    """How a state gets from one module to another."""

    name: str
    carry: Callable[[Any], Any]
    asks: bool
    """Whether the restored module is asked for its state at once and before each element. Who asks may hide that a state
    takes effect too late, so one medium does not."""


_MEDIA = (_Medium("in memory", detached, True), _Medium("through JSON", through_json, False))


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
    and the same digests; a damaged state is refused and changes nothing; states stay small. The time grows with the square
    of `steps`.

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
    _check_fresh(make_loader)
    run = recorded(make_loader, steps)
    check_sizes(run.states, max_state_bytes)
    for medium in _MEDIA:
        _check_fresh_modules(make_loader, run, medium)
        _check_module_gone_elsewhere(make_loader, run, medium)
        _check_module_going_backwards(make_loader, run, medium)
    _check_states_are_values(make_loader, run)
    _check_damaged_states(make_loader, run)
    if snapshots:
        _check_snapshots(make_loader, run)
    if make_part is not None:
        check_parts(make_loader, make_part, process_counts, run)


def _check_fresh(make: Make) -> None:
    with opened(make) as first, opened(make) as second:
        if first is second:
            raise AssertionError(
                "make_loader gave the same module twice; it must make a new one at each call"
            )


# States are values.


def _check_states_are_values(make: Make, run: Recording) -> None:
    """Whoever changes a state that was handed out, or handed in, changes no module."""
    with opened(make) as asked, opened(make) as told:
        for place in run.places:
            overwrite(asked.get_state())
            shared = f"the state taken before element {place} shares something with the module: changing it changed"
            _check_place(asked, run, place, shared)
            given = detached(run.states[place])
            _set_state(told, given, f"restoring the state before element {place}")
            overwrite(given)
            shared = f"set_state before element {place} keeps a part of its argument: changing that changed"
            _check_place(told, run, place, shared)


def _check_place(module: Any, run: Recording, place: int, claim: str) -> None:
    must_equal(run.states[place], module.get_state(), f"{claim} the module's state, at")
    if place < len(run.elements):
        run.check_element(place, next_of(module), f"{claim} the stream")


# Every state, restored everywhere.


def _check_fresh_modules(make: Make, run: Recording, medium: _Medium) -> None:
    for place in run.places:
        with opened(make) as module:
            where = f"restored before element {place} into a fresh module, {medium.name}"
            _restore(module, run, place, medium, where)
            _check_rest(module, run, place, where, medium.asks)


def _check_module_gone_elsewhere(make: Make, run: Recording, medium: _Medium) -> None:
    with opened(make) as module:
        for place in run.places:
            elsewhere = (5 * place + 3) % len(run.states)
            where = f"restored before element {place} into a module that was at element {elsewhere}, {medium.name}"
            _set_state(module, detached(run.states[elsewhere]), where)
            next_of(module)
            _restore(module, run, place, medium, where)
            _check_rest(module, run, place, where, medium.asks)


def _check_module_going_backwards(make: Make, run: Recording, medium: _Medium) -> None:
    with opened(make) as module:
        for place in reversed(run.places):
            where = (
                f"restored before element {place} into a module that had gone on to the end, {medium.name}"
            )
            _restore(module, run, place, medium, where)
            _check_rest(module, run, place, where, medium.asks)


def _restore(module: Any, run: Recording, place: int, medium: _Medium, where: str) -> None:
    given = medium.carry(run.states[place])
    _set_state(module, given, where)
    must_equal(run.states[place], given, f"{where}: set_state changed the dict that it was given, at")


def _set_state(module: Any, state: Any, where: str) -> None:
    try:
        module.set_state(state)
    except Exception as error:
        raise AssertionError(
            f"{where}: set_state refused a state that get_state of an equal module gave: {type(error).__name__}: "
            f"{error.__cause__ or error}"
        ) from error


def _check_rest(module: Any, run: Recording, place: int, where: str, asks: bool = True) -> None:
    """Elements, states and digests from here to the end."""
    last = len(run.elements)
    for step in range(place, last):
        if asks:
            _check_state(module, run, step, where)
        run.check_element(step, _next_noted(module, where), where)
    _check_state(module, run, last, where)
    if run.ended:
        for _ in range(2):  # an end stays an end
            run.check_element(last, _next_noted(module, where), where)
    _check_step_digests(module, run, place, where)


def _next_noted(module: Any, where: str) -> Any:
    try:
        return next_of(module)
    except Exception as error:
        error.add_note(where)
        raise


def _check_state(module: Any, run: Recording, place: int, where: str) -> None:
    when = f"{where}: the state before element {place}"
    must_equal(run.states[place], module.get_state(), f"{when} is not that of an undisturbed module, at")
    must_equal(run.digests[place], digest_of(module), f"{when} goes with another digest than undisturbed, at")


def _check_step_digests(module: Any, run: Recording, place: int, where: str) -> None:
    found = step_digests_of(module)
    if run.step_digests is None or found is None:
        return
    first, keys, of_bytes, has_bytes = run.step_digests
    found_first, found_keys, found_bytes, found_has_bytes = found
    skipped = found_first - first
    if not 0 <= skipped <= place or found_first + len(found_keys) != first + len(keys):
        raise AssertionError(
            f"{where}: take_step_digests says steps {found_first} to {found_first + len(found_keys) - 1}, but steps "
            f"{first + place} to {first + len(keys) - 1} were delivered since"
        )
    for kind, whole, part in (("keys", keys, found_keys), ("bytes", of_bytes, found_bytes)):
        claim = f"{where}: the digests of single steps differ in their {kind}, counted from step {found_first}, at"
        must_equal(whole[skipped:], part, claim)
    if len(found_keys):  # of no step anything may be said
        must_equal(has_bytes, found_has_bytes, f"{where}: whether steps have byte digests differs, at")


# Damaged states.


def _check_damaged_states(make: Make, run: Recording) -> None:
    """A module after its first element, where fields have their kinds, refuses damaged states of another place."""
    here, there = min(1, len(run.elements)), len(run.elements)
    with opened(make) as module:
        for _ in range(here):
            next_of(module)
        for what, state in damaged(run.states[there], run.states[here], _free_fields(module)):
            _check_refused(module, what, state)
            claim = f"set_state refused a state {what}, but changed the module"
            must_equal(run.states[here], module.get_state(), f"{claim}, at")
            must_equal(run.digests[here], digest_of(module), f"{claim}'s digest, at")
        for step in range(here, there):
            run.check_element(step, next_of(module), "after refused states")


def _free_fields(module: Any) -> frozenset[str]:
    """Fields that may hold anything: those that the module names, and what an iterator module within it shows."""
    if not isinstance(module, DataraxModule):
        return frozenset()
    return module.free_state | CheckpointableIteratorModule.free_state


def _check_refused(module: Any, what: str, state: Any) -> None:
    try:
        module.set_state(state)
    except (TypeError, ValueError):
        return
    except Exception as error:
        raise AssertionError(
            f"set_state of a state {what} must raise TypeError or ValueError with a reason, and raised "
            f"{type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"set_state accepted a state {what}; what does not fit must be refused")


# Snapshots on disk.


def _check_snapshots(make: Make, run: Recording) -> None:
    last = len(run.elements)
    places = sorted({0, 1, last // 2, last} & set(run.places))
    with tempfile.TemporaryDirectory(prefix="datarax-testing-") as directory:
        _save(make, run, places, directory)
        reader = Checkpointer(directory, processes=Processes())
        with opened(make) as used:
            for place in reversed(places):
                with opened(make) as fresh:
                    for module, kind in ((fresh, "fresh"), (used, "used")):
                        where = (
                            f"restored before element {place} into a {kind} module, from a snapshot on disk"
                        )
                        _restore_snapshot(reader, place, module, where)
                        _check_rest(module, run, place, where)


def _save(make: Make, run: Recording, places: Sequence[int], directory: str) -> None:
    config = SaveConfig(every_seconds=None, keep_latest=None)
    with (
        opened(make) as module,
        Checkpointer(directory, config=config, processes=Processes()) as checkpointer,
    ):
        for place in run.places:
            if place in places:
                checkpointer.save(place, data=module)
                checkpointer.wait()
            if place < len(run.elements):
                run.check_element(place, next_of(module), "saved to disk in between")


def _restore_snapshot(reader: Checkpointer, place: int, module: Any, where: str) -> None:
    try:
        reader.restore(place, data=module)
    except DataraxError as error:
        raise AssertionError(f"{where}: the restore was refused: {error}") from error
