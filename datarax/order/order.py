"""The order: an endless, addressable sequence of record keys, pure in seed, policy and sources' lengths.

It reads no data, keeps no cursor and does not know which process it runs on. The key at a position never
depends on which other positions are asked for. `OrderConfig.version` names the algorithms, and `versions.py` holds
those of every version; golden files under `checkpoints/golden/order/` pin them, and a change to any key needs a new
version beside the old ones and a new golden file.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.core.config import to_tree
from datarax.core.errors import ConfigError, InputError
from datarax.order.grain import num_repeated
from datarax.order.permutation import Identity, Permutations
from datarax.order.seeds import MAX_POSITION, checked_positions, id64
from datarax.order.versions import (
    ALGORITHMS,
    GrainStyle,
    OrderConfig,
    OrderPolicy,
    named_version,
    order_name,
)

_EPOCHS_KEPT = 4  # epochs whose round keys are kept: a run reads from one or two at a time


@dataclass(frozen=True, eq=False)
class RecordKeys:
    """The keys of n rows; a pad slot has the key (-1, -1, -1)."""

    source: np.ndarray
    """int32[n], which source, an index into the order's `source_names`."""
    index: np.ndarray
    """int64[n], which record of that source."""
    epoch: np.ndarray
    """int64[n], which pass over that source."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | np.ndarray) -> RecordKeys:
        """The keys of some rows, by slice, int array or bool mask."""
        return RecordKeys(self.source[rows], self.index[rows], self.epoch[rows])

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """(source, index, epoch) of each row as Python ints."""
        return zip(self.source.tolist(), self.index.tolist(), self.epoch.tolist(), strict=True)


class Order:
    """Record keys by position, and positions by record key.

    Immutable, so calls from several threads at once are safe.

    Args:
        config: The policy and its seed.
        sources: Source name -> number of records; one source for now.

    Raises:
        ConfigError: if there is not exactly one source.
        InputError: if the source is empty.
    """

    def __init__(self, config: OrderConfig, sources: Mapping[str, int]) -> None:
        if len(sources) != 1:
            raise ConfigError(
                f"an order needs exactly one source, got {len(sources)} ({', '.join(map(repr, sources))}); "
                "mixtures of several sources are not available yet"
            )
        self.config = config
        self._algorithms = ALGORITHMS[config.version]
        self.source_names = tuple(sources)
        self.source_ids = np.array([id64(name) for name in sources], np.uint64)
        """uint64[k], the `id64` of each source name."""
        self.num_records = operator.index(*sources.values())
        """Number of records in one epoch."""
        if not 1 <= self.num_records <= MAX_POSITION:
            raise InputError(
                f"source {self.source_names[0]!r} has {self.num_records} records; an order needs 1 to 2^63 - 1"
            )
        # lru_cache is safe to call from several threads; at worst two of them build the same keys.
        self._kept = functools.lru_cache(maxsize=_EPOCHS_KEPT)(self._build)

    def __reduce__(self) -> tuple[Any, ...]:
        return Order, (self.config, dict(zip(self.source_names, [self.num_records], strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.config, self.source_names, self.num_records))

    def keys(self, positions: np.ndarray) -> RecordKeys:
        """The record keys at some positions, in any order and across any epochs.

        Args:
            positions: int64[n], each from 0 to 2^63 - 1, or -1 for a pad slot.

        Returns:
            n keys.

        Raises:
            TypeError: if the positions are not integers.
            InputError: if one is below -1 or beyond 2^63 - 1.
        """
        positions, lowest = checked_positions(positions)
        if lowest >= 0:
            return self._keys(positions)
        pads = positions < 0
        keys = RecordKeys(*(np.full(len(positions), -1, dtype) for dtype in (np.int32, np.int64, np.int64)))
        real = self._keys(positions[~pads])
        keys.source[~pads], keys.index[~pads], keys.epoch[~pads] = real.source, real.index, real.epoch
        return keys

    def positions(self, source: str, index: int, epoch: int) -> list[int]:
        """Where a record stands in one epoch: the inverse of `keys`.

        Returns:
            Ascending positions; exactly one, except under the `grain` policy at lengths where Grain's
            shuffle is not a permutation (none or two).

        Raises:
            InputError: if there is no such source, record or epoch, or the position would pass 2^63 - 1.
        """
        index = operator.index(index)  # exact, where np.int64 would wrap
        self.check_record(source, index)
        return self.positions_of(source, np.array([index]), epoch).tolist()

    def check_record(self, source: str, index: int) -> None:
        """Refuses what is no record of this order.

        Raises:
            InputError: if there is no such source or record.
        """
        if source not in self.source_names:
            raise InputError(f"no source is called {source!r}; this order has {', '.join(self.source_names)}")
        if not 0 <= index < self.num_records:
            raise InputError(f"source {source!r} has records 0 to {self.num_records - 1}, not {index}")

    def positions_of(self, source: str, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Where many records stand in one epoch, at the cost of as many keys: the inverse of `keys`.

        Args:
            source: name of their source.
            indices: int64[n], different records of it.
            epoch: one pass over it.

        Returns:
            int64[n] ascending positions; under the `grain` policy maybe more or fewer, see `positions`.

        Raises:
            InputError: as `positions` does.
        """
        indices, epoch = np.asarray(indices, np.int64), operator.index(epoch)
        for border in (indices.min(), indices.max()) if len(indices) else ():
            self.check_record(source, int(border))
        if not 0 <= epoch <= MAX_POSITION // self.num_records:
            raise InputError(f"epoch {epoch} does not exist: give 0 to {MAX_POSITION // self.num_records}")
        first = epoch * self.num_records
        offsets = np.sort(self._permutations((epoch,)).preimages(indices))
        if len(offsets) and first + int(offsets[-1]) > MAX_POSITION:
            last = int(self._shuffled(offsets[-1:], np.array([epoch]))[0])
            raise InputError(f"record {last} of epoch {epoch} stands beyond the last position, 2^63 - 1")
        return offsets + first

    def row_seeds(self, transform: str, keys: RecordKeys) -> np.ndarray:
        """One seed per row for one transform, a pure function of the record's key: uint64[n].

        Args:
            transform: the transform's name, unique in its pipeline.
            keys: n keys, no pad slots.
        """
        source_ids = self.source_ids[keys.source]
        return self._algorithms.row_seeds(self.config.seed, transform, source_ids, keys.index, keys.epoch)

    def identity(self) -> dict[str, Any]:
        """What decides the key at every position, as a JSON-able tree.

        `version` is a number, and text if this code does not give the keys that its version stands for.
        """
        sources = dict(zip(self.source_names, [self.num_records], strict=True))
        tree: dict[str, Any] = to_tree(self.config) | {"version": self._named_version, "sources": sources}
        if self.config.policy is OrderPolicy.NONE:
            del tree["seed"]
        if self.config.grain_style is GrainStyle.MAP_DATASET:
            tree.setdefault("grain_ops_between", 0)
        return tree

    @staticmethod
    def from_identity(tree: Mapping[str, Any]) -> Order:
        """The order that a recorded `identity` describes: no data are needed to tell what was delivered.

        Raises:
            InputError: if it is of a version that is not known here, or holds other fields than an order writes.
        """
        try:
            fields = {key: value for key, value in tree.items() if key != "sources"}
            order = Order(OrderConfig(**fields), tree["sources"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"the recorded order cannot be computed: {error}") from error
        # Code that does not do what its version says shows in the keys, which whoever asks holds against what was delivered.
        if {**order.identity(), "version": order.config.version} != tree:
            raise InputError(f"the recorded order {dict(tree)} is not one that this datarax writes")
        return order

    def warnings(self) -> list[str]:
        """What a user of this order should know before a run, one sentence each."""
        repeated = num_repeated(self.num_records) if self.config.policy is OrderPolicy.GRAIN else 0
        if not repeated:
            return []
        last = self.num_records - 1
        missing = f"record {last} is" if repeated == 1 else f"records {last - repeated + 1} to {last} are"
        return [
            f"the grain policy reproduces Grain's shuffle, which is no permutation of {self.num_records} "
            f"records: in every epoch {missing} never delivered and as many others are delivered twice"
        ]

    @functools.cached_property
    def _named_version(self) -> int | str:
        """Asked for once by each order: about a millisecond."""
        return named_version(order_name(self.config), self.config.version)

    def _keys(self, positions: np.ndarray) -> RecordKeys:
        epoch = positions // self.num_records
        offset = positions - epoch * self.num_records
        return RecordKeys(np.zeros(len(positions), np.int32), self._shuffled(offset, epoch), epoch)

    def _shuffled(self, offset: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        if not len(epoch):
            return offset
        if epoch[0] == epoch[-1] and (epoch == epoch[0]).all():
            return self._permutations((int(epoch[0]),))(offset)
        epochs, member = _distinct(epoch)
        return self._permutations(tuple(epochs.tolist()))(offset, member)

    def _permutations(self, epochs: tuple[int, ...]) -> Permutations:
        if self.num_records == 1 or self.config.policy is OrderPolicy.NONE:
            return Identity()
        return self._kept(epochs) if len(epochs) <= _EPOCHS_KEPT else self._build(epochs)

    def _build(self, epochs: tuple[int, ...]) -> Permutations:
        return self._algorithms.permutations(self.config, self.source_names[0], self.num_records, epochs)


def _distinct(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct epochs, ascending, and which of them each lane has: int64[k], int[n]. At least one lane."""
    if (epoch[1:] < epoch[:-1]).any():
        return np.unique(epoch, return_inverse=True)
    # Positions mostly ascend: then no sort is needed, which would be a good part of the whole cost.
    first = np.concatenate(([0], np.flatnonzero(epoch[1:] != epoch[:-1]) + 1))
    return epoch[first], np.arange(len(first)).repeat(np.diff(first, append=len(epoch)))
