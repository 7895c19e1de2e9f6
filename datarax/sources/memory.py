"""Records that are in memory already: columns (a PyTree of arrays) or a list of anything.

Knows nothing of files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.core.errors import InputError
from datarax.core.tree import dtype_name, hash_tree
from datarax.sources.records import Records, records_digest, sample_positions
from datarax.sources.source import DataSource, NamedDataConfig, SourceConfig

# Up to here the quick fingerprint hashes every byte (some 20 ms), so that no change at all escapes it.
_HASHED_WHOLE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(SourceConfig):
    """Settings of a `MemorySource`; the data itself is no setting."""


@dataclass(frozen=True, kw_only=True)
class NamedMemoryConfig(NamedDataConfig, MemoryConfig):
    """Arrays or a list in memory."""

    def open(self) -> "MemorySource":
        """A source of the data that `use` names."""
        return MemorySource(self, self.data())


class MemorySource(DataSource):
    """Records in memory.

    A PyTree of arrays with one leading axis is columnar: record i is row i of every array, and a read gathers rows
    into new arrays. A *list* (and only a list, at the top) is a list of records of any kind.

    The data is not copied. Changing it while it is read changes the batches, and the fingerprints from then on:
    give a copy if the original goes on living. A pickle holds all of it.

    Args:
        config: name and module settings.
        data: the arrays or the list.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: if there are no records, an array has no leading axis, or the lengths differ, naming the arrays.
    """

    def __init__(
        self, config: MemoryConfig, data: Any, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self._open(MemoryRecords(data, self.name))

    def _given(self) -> dict[str, Any]:
        return {"data": self._runtime.data}


class MemoryRecords(Records):
    """A PyTree of arrays [n, ...], or a list of anything."""

    kind = "memory"
    num_sampled = 1024

    def __init__(self, data: Any, name: str) -> None:
        self.data, self._name = data, name
        self.columnar = type(data) is not list
        if not self.columnar:
            return
        leaves, self._structure = jax.tree.flatten_with_path(data)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") or "data" for path, _ in leaves]
        self._columns = [(name, _column(name, leaf)) for name, (_, leaf) in zip(names, leaves, strict=True)]
        if not self._columns:
            raise InputError("the data holds no arrays; give a PyTree of arrays, or a list of records")
        if len({len(column) for _, column in self._columns}) > 1:
            lengths = ", ".join(f"{name}: {len(column)}" for name, column in self._columns)
            raise InputError(
                f"the arrays have different numbers of records: {lengths}; row i of each is record i"
            )
        self.data = jax.tree.unflatten(self._structure, [column for _, column in self._columns])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.data, self._name)  # JAX pickles no structure with nodes of the user's

    def __len__(self) -> int:
        return len(self._columns[0][1] if self.columnar else self.data)

    def read(self, indices: np.ndarray) -> Any:
        """Gathers the rows, or looks the records up."""
        if not self.columnar:
            return list(map(self.data.__getitem__, indices.tolist()))
        # The indices are known to be in range; "clip" spares NumPy a second check and a buffer.
        taken = [np.take(column, indices, axis=0, mode="clip") for _, column in self._columns]
        return jax.tree.unflatten(self._structure, taken)

    def outline(self) -> dict[str, Any]:
        """Dtype and shape of a record's part in each array, or that it is a list."""
        if not self.columnar:
            return {"layout": "list"}
        return {"layout": {name: f"{dtype_name(c.dtype)}{list(c.shape[1:])}" for name, c in self._columns}}

    def sample(self) -> str:
        """Every byte of arrays up to 16 MiB, sampled records beyond."""
        if self.columnar and sum(column.nbytes for _, column in self._columns) <= _HASHED_WHOLE_BYTES:
            return self._digest(range(len(self)))
        return self._digest(sample_positions(len(self), self.num_sampled))

    def content_fingerprint(self) -> dict[str, Any]:
        """SHA-256 of every byte of the arrays, or of every record."""
        return {"num_records": len(self), "sha256": self._digest(range(len(self)))}

    def _digest(self, at: Sequence[int]) -> str:
        if not self.columnar:
            try:
                return records_digest(map(self.data.__getitem__, at), at)
            except TypeError as error:
                raise InputError(
                    f"source {self._name!r} cannot be fingerprinted: {error}; use records of numbers, text, bytes, "
                    f"arrays and containers of these, or a GrainSource with a version"
                ) from error
        hasher = hashlib.sha256(str(self._structure).encode())
        for name, column in self._columns:
            hash_tree(hasher, column if len(at) == len(column) else column[at], name)
        return hasher.hexdigest()


def _column(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, (np.ndarray, jax.Array)):
        raise InputError(
            f"{name} of the data is a {type(leaf).__name__}, not an array; give arrays [records, ...], or a list of "
            f"records"
        )
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise InputError(f"{name} of the data is a single number; its first axis must be the records")
    if array.dtype.hasobject:
        raise InputError(f"{name} of the data is an array of Python objects; give a list of records instead")
    return array
