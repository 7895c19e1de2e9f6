"""What must hold for a run to resume exactly; asked early, not when a snapshot is needed.

A state that no snapshot can hold, or that is built otherwise than the one `init` makes, trains well and cannot be restored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax

from datarax.checkpoint import compare_model, describe_model

STEPS_AHEAD = 2
"""How many steps the loop may stand before what is done."""


class TaskContract:
    """What later states of a task are held to.

    Args:
        state: what `init` made.

    Raises:
        InputError: if a snapshot cannot hold it, naming the leaf.
    """

    def __init__(self, state: Any) -> None:
        self._leaves = describe_model(state)

    def check(self, state: Any) -> None:
        """Holds a state against that of `init`.

        Raises:
            InputError: if a snapshot cannot hold it.
            TypeError: if a snapshot of it could not be restored, naming each leaf.
        """
        found = compare_model(self._leaves, state)
        if found:
            raise TypeError(
                "\n  ".join(
                    [
                        "the state that step returned is not built like the one that init makes, so a snapshot of it could "
                        "not be restored; let init return what step returns, in kind, dtype and shape:",
                        *map(str, found),
                    ]
                )
            )


def state_and_metrics(returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """What `step` returned, in its two parts.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(returned, (tuple, list)) and len(returned) == 2 and isinstance(returned[1], Mapping):
        return returned[0], returned[1]
    kind = type(returned).__name__
    if isinstance(returned, (tuple, list)):
        kind += f" of {', '.join(type(each).__name__ for each in returned)}"
    raise TypeError(
        f"step must return (state, metrics), metrics being a mapping from name to value such as {{'loss': loss}}; got a {kind}"
    )


class Pace:
    """Keeps the loop from handing the device more than a few steps ahead.

    JAX returns before a step is computed. Without this the loop stands dozens of steps before what is done: a signal, a save
    that is due by time and a report would all wait for those.
    """

    def __init__(self) -> None:
        self._ahead: deque[Any] = deque()

    def handed_over(self, metrics: Mapping[str, Any]) -> None:
        """Waits for the step some before this one; `metrics` are those of the step just handed to the device.

        Raises:
            Exception: what that step raised on the device.
        """
        # Metrics and not the state: that one belongs to the next step, which may overwrite it.
        self._ahead.append(metrics)
        if len(self._ahead) > STEPS_AHEAD:
            done = jax.tree.leaves(dict(self._ahead.popleft()))
            jax.block_until_ready([a for a in done if isinstance(a, jax.Array) and not a.is_deleted()])
