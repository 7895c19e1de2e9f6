"""What a user trains: two functions, and nothing that lives outside their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from datarax.core.errors import ConfigError
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
        del config, mesh
        return None

    def step(self, state: Any, batch: Any) -> tuple[Any, Mapping[str, Any]]:
        """Drops the batch."""
        del batch
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
