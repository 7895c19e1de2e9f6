"""What an open `GrainPipeline` is made of, apart from NNX: the true place, the pipeline as read, and its iterator.

`Delivered` is the place as a value. Knows nothing of variables: `pipeline.py` mirrors and restores.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datarax.core.step_log import StepLog
from datarax.grain_pipeline.config import GrainPipelineConfig
from datarax.grain_pipeline.element import element_hash
from datarax.grain_pipeline.graph import read_pipeline
from datarax.grain_pipeline.identity import RULES_VERSION, Describer
from datarax.grain_pipeline.iterators import Iterators
from datarax.grain_pipeline.node import Shard, shards_of
from datarax.grain_pipeline.refusals import check_resumable, num_elements, warnings_of
from datarax.metrics import LoaderMetrics
from datarax.order import Digest, id64, key_hashes

_KEY_BLOCK = 1024  # a key hash costs 15 µs alone and 10 ns in a block


@dataclass(frozen=True)
class Delivered:
    """What was handed over so far. Plain Python ints: exact at any size."""

    idx: int
    """Elements handed over since the beginning of the pipeline."""
    applied: int
    """Elements handed over in all."""
    digest: Digest
    """Digest of all of them."""

    def after(self, keys: int, content: int) -> Delivered:
        """The place after one more element with these hashes."""
        return replace(
            self, idx=self.idx + 1, applied=self.applied + 1, digest=self.digest.add(keys, content, 1)
        )


class Runtime:
    """One pipeline and where it is. NNX sees it as static and compares it by identity.

    Raises:
        TypeError: if the pipeline is none of Grain's, or an iterator.
        ConfigError: if it cannot be described or cannot be resumed.
    """

    def __init__(self, config: GrainPipelineConfig, name: str, pipeline: Any) -> None:
        node = read_pipeline(pipeline)
        owner = f"Grain pipeline {name!r}"
        check_resumable(node, owner)
        described = Describer(owner, declared=config.version is not None).pipeline(node)
        # Once: what code and data say now counts, not what becomes of them in mid-run.
        self._identity = {
            "kind": "grain_pipeline",
            "name": name,
            "rules": RULES_VERSION,
            "version": config.version,
            "pipeline": described,
        }
        self.name = name
        self.pipeline = pipeline
        self.warnings = warnings_of(node)
        self.num_steps = config.num_steps if config.num_steps is not None else num_elements(node)
        self.shards: dict[str, Shard] = shards_of(node)
        self.metrics = LoaderMetrics()
        self.log = StepLog()
        self.current: Any = None
        self.delivered = Delivered(0, 0, Digest.zero(with_bytes=True))
        self.grain_state: Any = None  # None at the beginning: a fresh iterator is there
        self._iterators = Iterators(pipeline, node)
        self._iterator: Any = None
        self._iterator_at: int | None = (
            None  # elements that the iterator has given, once they were handed over
        )
        self._candidate: Any = None
        self._ended = False
        self._part = next((index for index, _ in self.shards.values()), 0)
        self._key_block: tuple[int, np.ndarray] = (-1, np.zeros(0, np.uint64))

    def identity(self) -> dict[str, Any]:
        """The identity tree; the caller's own."""
        return copy.deepcopy(self._identity)

    # Elements

    def next(self) -> tuple[Any, Any, Delivered]:
        """The next element, Grain's state after it, and the place after it; moves only the iterator.

        Whatever is raised on the way, the iterator is given up: the next call goes on from the last state with a fresh one.

        Raises:
            StopIteration: at the end.
            Exception: what Grain or the user's functions raise.
        """
        if self._ended or (self.num_steps is not None and self.delivered.idx >= self.num_steps):
            raise StopIteration
        try:
            if self._iterator_at != self.delivered.idx:
                # None yet, or Ctrl-C came between an element and its hand-over: it would be left out.
                self.drop()
                self._iterator = self._fresh()
            self._iterator_at = None
            element = next(self._iterator)
            state = self._iterators.state_of(self._iterator)
            return element, state, self._after(element)
        except StopIteration:
            self.drop()
            self._ended = True
            raise
        except BaseException as error:
            self.drop()
            error.add_note(f"in Grain pipeline {self.name!r}, element {self.delivered.idx}")
            raise

    def handed_over(self) -> None:
        """Told when the place has become that of the last element: the iterator is there too."""
        self._iterator_at = self.delivered.idx

    def _fresh(self) -> Any:
        return (
            self._iterators.open() if self.grain_state is None else self._iterators.restored(self.grain_state)
        )

    def _after(self, element: Any) -> Delivered:
        step = self.delivered.idx
        return self.delivered.after(self._key_hash(step), element_hash(element, step))

    def _key_hash(self, step: int) -> int:
        block, hashes = self._key_block
        if step // _KEY_BLOCK != block:
            block = step // _KEY_BLOCK
            steps = np.arange(block * _KEY_BLOCK, (block + 1) * _KEY_BLOCK, dtype=np.int64)
            source = np.full(1, id64(self.name), np.uint64)
            hashes = key_hashes(steps, source[0], steps, np.zeros_like(steps), part=self._part)
            self._key_block = block, hashes
        return int(hashes[step % _KEY_BLOCK])

    # Places

    def prepare(self, grain_state: Any) -> None:
        """Makes the iterator of a state that may become this pipeline's place, without taking it.

        Raises:
            ValueError: if the state is not one of this pipeline.
        """
        self._discard_candidate()
        if grain_state is not None:
            self._candidate = self._iterators.restored(grain_state)

    def go_to(self, delivered: Delivered, grain_state: Any) -> None:
        """Takes a place, with the iterator that was prepared for it or with a fresh one when an element is asked for."""
        self.drop()
        if self._candidate is not None and grain_state is not None:
            self._iterator, self._iterator_at = self._candidate, delivered.idx
            self._candidate = None
        self._discard_candidate()
        self.delivered, self.grain_state, self.current = delivered, grain_state, None
        self.log = StepLog(delivered.idx)
        self._ended = False

    def reopened(self) -> Runtime:
        """The same pipeline at the same place, with an iterator of its own."""
        made = copy.copy(self)
        made.metrics, made.log = LoaderMetrics(), StepLog(self.delivered.idx)
        made._iterator = made._candidate = None
        made.go_to(self.delivered, copy.deepcopy(self.grain_state))
        return made

    def drop(self) -> None:
        """Ends the iterator, with its threads and processes."""
        iterator, self._iterator, self._iterator_at = self._iterator, None, None
        if iterator is not None:
            self._iterators.close(iterator)

    def close(self) -> None:
        """Ends all threads and processes; an element asked for later starts them again."""
        self.drop()
        self._discard_candidate()

    def _discard_candidate(self) -> None:
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            self._iterators.close(candidate)
