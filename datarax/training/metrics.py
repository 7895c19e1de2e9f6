"""The metrics of the steps that the device still computes: waited for, and said by name where they are not finite.

JAX returns before a step is computed. The loop stays a few steps ahead of what is done, not dozens: a signal, a save that is
due by time and a report would all wait for those. And a loss that has become NaN stays so; a run that goes on with it costs
weeks and ends "complete". Only metrics of steps that the loop has waited for are looked at, so nothing but a save waits for the
device longer: no snapshot is begun of a step whose metrics were not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from datarax.core.errors import DataraxError

STEPS_AHEAD = 2
"""How many steps the loop may stand before what is done."""

_LARGEST = 1 << 16
"""Values; a larger array is no number that somebody watches, and would be copied from the device each step."""


class NonFiniteError(DataraxError, ArithmeticError):
    """A metric of a task is inf or NaN, and `run.on_nonfinite` says that this ends the run; nothing was saved since."""


class MetricsAhead:
    """The metrics of the newest steps of a run.

    Args:
        stop: whether one that is not finite ends the run.
        say: told of each such metric once.
    """

    def __init__(self, *, stop: bool, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say
        self._said: set[str] = set()
        self._ahead: deque[tuple[int, list[tuple[Any, jax.Array]]]] = deque()

    def handed_over(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Looks at what a step returned as plain numbers, and lets what is on the device set out for the host.

        Raises:
            NonFiniteError: if one is not finite, and that is to end the run.
            TypeError: if their names cannot be brought into an order, such as a text and a number.
        """
        try:
            leaves = jax.tree_util.tree_leaves_with_path(dict(metrics))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the metrics that the task's step returned at step {step} have names of several kinds "
                f"({', '.join(map(repr, metrics))}, or in one of these): use text for all of them"
            ) from error
        on_device = [(path, leaf) for path, leaf in leaves if isinstance(leaf, jax.Array)]
        for path, leaf in leaves:
            if not isinstance(leaf, jax.Array):  # at once: the task may use the same dict or array again
                self._look(step, path, leaf)
            elif _is_watched(leaf) and not leaf.is_deleted():
                leaf.copy_to_host_async()
        self._ahead.append((step, on_device))

    def wait(self, step: int) -> None:
        """Waits until all steps up to this one are computed.

        Raises:
            Exception: what one of them raised on the device.
        """
        # For metrics and not for the state: that one belongs to the next step, which may overwrite it.
        arrays = [leaf for at, leaves in self._ahead if at <= step for _, leaf in leaves]
        jax.block_until_ready([array for array in arrays if not array.is_deleted()])

    def look(self, step: int) -> None:
        """Looks at the metrics of all steps up to this one; waits for them if they are not there yet.

        With many processes all look at the same metrics at the same step of the loop, so all end there, or go on.

        Raises:
            NonFiniteError: if one is not finite, and that is to end the run.
        """
        while self._ahead and self._ahead[0][0] <= step:
            at, leaves = self._ahead.popleft()
            for path, leaf in leaves:
                self._look(at, path, leaf)

    def _look(self, step: int, path: Any, leaf: Any) -> None:
        value = _not_finite(leaf) if _is_watched(leaf) else None
        if value is None:
            return
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found = f"metric {name!r} is {value} at step {step}"
        if self._stop:
            raise NonFiniteError(f'{found}, and run.on_nonfinite = "stop": nothing was saved since')
        if name not in self._said:
            self._said.add(name)
            self._say(f'warning: {found} (said once; run.on_nonfinite = "stop" ends a run there)')


def _is_watched(leaf: Any) -> bool:
    # bfloat16 and its like are "V" to NumPy.
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return getattr(leaf.dtype, "kind", "O") in "fcV" and leaf.size <= _LARGEST
    return isinstance(leaf, (float, complex))


def _not_finite(leaf: Any) -> str | None:
    """The first value of a leaf that is inf or NaN, as text; None if there is none, or the leaf holds no such numbers."""
    if isinstance(leaf, jax.Array) and leaf.is_deleted():  # given away to a later step
        return None
    is_whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
    for part in [leaf] if is_whole else [shard.data for shard in leaf.addressable_shards]:
        values = np.asarray(part)
        try:
            wrong = ~np.isfinite(values)
        except TypeError:  # a structured array
            return None
        if wrong.any():
            return str(values[wrong].flat[0])
    return None
