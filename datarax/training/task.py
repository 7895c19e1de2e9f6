"""What a user trains: two functions, and nothing that lives outside their state.

What must hold for a run to resume exactly is asked early, not when a snapshot is needed: a state that no snapshot can hold, or
that is built otherwise than the one `init` makes, trains well and cannot be restored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from datarax.checkpoint import compare_model, held_alone, make_global
from datarax.core.errors import ConfigError
from datarax.multihost import Processes, check_agreement
from datarax.trust import load_attribute


@runtime_checkable
class Task(Protocol):
    """A training job as two functions.

    The state is a PyTree (or an `nnx.State`) that holds everything that changes: parameters, optimizer, random keys. A run
    resumes exactly because nothing else is carried from step to step.
    """

    def init(self, config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Any:
        """The state before the first step. `config` is the task's own parameters."""
        ...

    def step(self, state: Any, batch: Any) -> tuple[Any, Mapping[str, Any]]:
        """One step: the next state, and metrics by name (scalars, for instance `loss`).

        The next state is built like the one `init` made: the same leaves, each of the same kind, dtype and shape. Otherwise
        no snapshot of it could be restored, and the run ends at once.
        """
        ...


class Iterate:
    """The task of a run without one: it takes the batches and learns nothing."""

    def init(self, config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Any:
        """No state."""
        return None

    def step(self, state: Any, batch: Any) -> tuple[Any, Mapping[str, Any]]:
        """Drops the batch."""
        return state, {}


def load_task(use: str) -> Task:
    """The task named `module:attribute`: an object with `init` and `step`, or a class of such objects.

    Raises:
        ConfigError: if it cannot be imported or is no task.
    """
    task = load_attribute(use, "task.use")
    if not isinstance(task, Task):  # of a class too: it has the methods of its objects
        what = f"the class {task.__qualname__}" if isinstance(task, type) else f"a {type(task).__name__}"
        raise ConfigError(f"task.use = {use!r} is {what} without init(config, mesh) and step(state, batch)")
    return task() if isinstance(task, type) else task


def state_and_metrics(returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """What `step` returned, in its two parts.

    Raises:
        TypeError: if it is something else.
    """
    is_sequence = isinstance(returned, (tuple, list))
    if is_sequence and len(returned) == 2 and isinstance(returned[1], Mapping):
        return returned[0], returned[1]
    of = f" of {', '.join(type(each).__name__ for each in returned)}" if is_sequence else ""
    raise TypeError(
        f"step must return (state, metrics), metrics being a mapping from name to value such as {{'loss': loss}}; "
        f"got a {type(returned).__name__}{of}"
    )


def shared_state(state: Any, mesh: jax.sharding.Mesh, processes: Processes, timeout_seconds: float) -> Any:
    """The state that `init` made, with every array of one process alone made global.

    Raises:
        DisagreementError: if its values are not the same on all processes.
    """
    if processes.count == 1:
        return state
    about = "the task's init"
    alone = {"the part of the state that each process makes for itself": held_alone(state)}
    processes.exchange(
        "init",
        lambda: alone,
        lambda parts: check_agreement(parts, about),
        about=about,
        timeout_seconds=timeout_seconds,
    )
    return make_global(state, mesh)


def check_state(leaves: Sequence[Any], state: Any) -> None:
    """Holds a state that `step` returned against the one that `init` made.

    Args:
        leaves: of the one that `init` made, as `describe_model` has them.
        state: what `step` returned.

    Raises:
        InputError: if a snapshot cannot hold it.
        TypeError: if a snapshot of it could not be restored, naming each leaf.
    """
    differing = compare_model(leaves, state)
    if differing:
        raise TypeError(
            "\n  ".join(
                [
                    "the state that step returned is not built like the one that init makes, so a snapshot of it could "
                    "not be restored; let init return what step returns, in kind, dtype and shape:",
                    *map(str, differing),
                ]
            )
        )
