"""Fresh iterators of a Grain pipeline, at its beginning or at a recorded state.

An iterator is never restored in place: Grain leaves flags, positions and buffers of what was before in it. Knows nothing of
modules and snapshots.
"""

from __future__ import annotations

import json
from typing import Any

from datarax.grain_pipeline.graph import close_iterator, mark_flags_parsed
from datarax.grain_pipeline.node import Node, all_stages
from datarax.grain_pipeline.states import check_form, difference, for_grain, frozen

# What a DataLoader writes into its state to recognise its parts: a repr, which for most objects holds an address. Our
# identity says what these are, so they are filled in anew.
_DESCRIPTIONS = ("sampler", "data_source")


class Iterators:
    """Makes iterators of one pipeline.

    Args:
        pipeline: what the user built.
        node: the same, as read.
    """

    def __init__(self, pipeline: Any, node: Node) -> None:
        self._pipeline = pipeline
        stages = [stage for _, stage in all_stages(node)]
        self._has_processes = any(stage.has_processes for stage in stages)
        self._all_known = all(stage.known for stage in stages)
        self._start: Any = None

    def open(self) -> Any:
        """A fresh iterator at the beginning."""
        if self._has_processes:
            mark_flags_parsed()
        return iter(self._pipeline)

    def state_of(self, iterator: Any) -> Any:
        """The state of an iterator, as a private copy that a snapshot can hold.

        Raises:
            InputError: if it holds something that no snapshot can hold.
        """
        state = iterator.get_state()
        if not isinstance(state, bytes):
            return frozen(state)
        return {key: value for key, value in json.loads(state).items() if key not in _DESCRIPTIONS}

    def restored(self, state: Any) -> Any:
        """A fresh iterator that goes on from `state`, which stays as it is.

        Raises:
            ValueError: if the state does not fit this pipeline, or if Grain gives back another one.
        OSError: if what Grain reads to take up its place cannot be read.
        """
        if self._all_known:
            check_form(self._start_state(), state)
        iterator = self.open()
        try:
            start = self._start_state() if self._has_processes else None
            self._set(iterator, for_grain(state, start))
            found = self.state_of(iterator)
        except OSError:
            close_iterator(iterator)
            raise  # the disk's fault, not the state's
        except Exception as error:
            close_iterator(iterator)
            raise ValueError(
                f"grain_state: Grain cannot restore it: {type(error).__name__}: {error}"
            ) from error
        changed = difference(state, found) if self._all_known else None
        if changed is not None:
            close_iterator(iterator)
            raise ValueError(f"Grain gives another state back than was set: {changed}")
        return iterator

    def close(self, iterator: Any) -> None:
        """Ends the threads and processes of an iterator."""
        close_iterator(iterator)

    def _start_state(self) -> Any:
        if self._start is None:
            iterator = self.open()
            try:
                self._start = self.state_of(iterator)
            finally:
                close_iterator(iterator)
        return self._start

    def _set(self, iterator: Any, state: Any) -> None:
        own = iterator.get_state()
        if not isinstance(own, bytes):
            iterator.set_state(state)
            return
        described = {key: value for key, value in json.loads(own).items() if key in _DESCRIPTIONS}
        iterator.set_state(json.dumps({**state, **described}).encode())
