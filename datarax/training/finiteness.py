"""Metrics that are not finite: said once by name, or the end of the run.

A loss that has become NaN stays so, and a run that goes on with it costs weeks and ends "complete". Looks only at metrics whose
step the loop has waited for, so the device is never waited for here but before a save: no snapshot is begun of a step whose
metrics were not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from datarax.core.errors import DataraxError

_LARGEST = (
    1 << 16
)  # values; a larger array is no number that somebody watches, and would be copied from the device each step


class NonFiniteError(DataraxError, ArithmeticError):
    """A metric of a task is inf or NaN, and `run.on_nonfinite` says that this ends the run; nothing was saved since."""


class FiniteMetrics:
    """What a run's metrics are held to.

    Args:
        stop: whether one that is not finite ends the run.
        say: told of each such metric once.
    """

    def __init__(self, *, stop: bool, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say
        self._said: set[str] = set()
        self._waiting: deque[tuple[int, str, jax.Array]] = deque()

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
        for path, leaf in leaves:
            if not _is_watched(leaf):
                continue
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if isinstance(leaf, jax.Array):
                if not leaf.is_deleted():
                    leaf.copy_to_host_async()
                self._waiting.append((step, name, leaf))
            else:  # at once: the task may use the same dict or array again
                self._look(step, name, leaf)

    def look(self, step: int) -> None:
        """Looks at the metrics of all steps up to this one; waits for them if they are not there yet.

        With many processes all look at the same metrics at the same step of the loop, so all end there, or go on.

        Raises:
            NonFiniteError: if one is not finite, and that is to end the run.
        """
        while self._waiting and self._waiting[0][0] <= step:
            self._look(*self._waiting.popleft())

    def _look(self, step: int, name: str, leaf: Any) -> None:
        value = _not_finite(leaf)
        if value is not None:
            self._found(name, value, step)

    def _found(self, name: str, value: str, step: int) -> None:
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
    for values in _on_the_host(leaf):
        try:
            wrong = ~np.isfinite(values)
        except TypeError:  # a structured array
            return None
        if wrong.any():
            return str(values[wrong].flat[0])
    return None


def _on_the_host(leaf: Any) -> Iterator[np.ndarray]:
    """The values of a leaf, those that this process holds."""
    if not isinstance(leaf, jax.Array):
        yield np.asarray(leaf)
    elif leaf.is_deleted():  # given away to a later step
        return
    elif leaf.is_fully_addressable or leaf.is_fully_replicated:
        yield np.asarray(leaf)
    else:
        for shard in leaf.addressable_shards:
            yield np.asarray(shard.data)


__all__ = ["FiniteMetrics", "NonFiniteError"]
