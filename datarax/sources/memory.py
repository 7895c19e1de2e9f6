"""Records that are in memory already: columns (a PyTree of arrays) or a list of anything.

Knows nothing of files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self, cast

import jax
import numpy as np
from flax import nnx

from datarax.core.errors import InputError
from datarax.core.tree import dtype_name, hash_tree
from datarax.sources.sampling import SAMPLE_VERSION, sample_positions
from datarax.sources.source import DataSource, SourceConfig

_NUM_SAMPLED_RECORDS = 1024
# Up to here the quick fingerprint hashes every byte (some 20 ms), so that no change at all escapes it.
_HASHED_WHOLE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(SourceConfig):
    """Settings of a `MemorySource`; the data itself is no setting."""


class MemorySource(DataSource):
    """Records in memory.

    A PyTree of arrays with one leading axis is columnar: record i is row i of every array, and a read gathers rows
    into new arrays. A *list* (and only a list, at the top) is a list of records of any kind.

    The data is not copied. Changing it while it is read changes the batches, and the fingerprints from then on:
    give a copy if the original goes on living.

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
        self._runtime: _Records | _Columns = _Records(data) if type(data) is list else _Columns(data)
        self.columnar = isinstance(self._runtime, _Columns)
        if self._runtime.length == 0:
            raise InputError(f"source {self.name!r} is empty: it has 0 records")

    def _length(self) -> int:
        return self._runtime.length

    def _read(self, indices: np.ndarray) -> Any:
        return self._runtime.read(indices)

    def identity(self) -> dict[str, Any]:
        """The outline, and a digest: of every byte up to 16 MiB, of sampled records beyond.

        Raises:
            InputError: if a record of a list holds something that has no plain bytes.
        """
        return {**self.outline(), "sample": self._digest(whole=False)}

    def outline(self) -> dict[str, Any]:
        """Kind, name, number of records, and dtypes and shapes of columns."""
        return {
            "kind": "memory",
            "name": self.name,
            "num_records": self._runtime.length,
            "layout": self._runtime.layout(),
            "sample_version": SAMPLE_VERSION,
        }

    def content_fingerprint(self) -> dict[str, Any]:
        """SHA-256 of every byte of the data.

        Raises:
            InputError: if a record of a list holds something that has no plain bytes.
        """
        return {"num_records": self._runtime.length, "sha256": self._digest(whole=True)}

    def _close(self) -> None:
        pass  # the data is the caller's

    def copy(self, *, config: Any = None, rngs: nnx.Rngs | None = None, name: str | None = None) -> Self:
        """A new source over the same data, at its beginning: see `DataraxModule.copy`."""
        return type(self)(
            cast(MemoryConfig, self.config if config is None else config),
            self._runtime.data,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )

    def _reopened(self) -> object:
        return self._runtime  # data that nobody changes needs no second copy

    def _digest(self, *, whole: bool) -> str:
        try:
            return self._runtime.digest(whole=whole)
        except TypeError as error:
            raise InputError(
                f"source {self.name!r} cannot be fingerprinted: {error}; use records of numbers, text, bytes, arrays "
                f"and containers of these, or a GrainSource with a version"
            ) from error


class _Columns:
    """A PyTree of arrays [length, ...]."""

    def __init__(self, data: Any) -> None:
        self.data = data
        found, self._structure = jax.tree.flatten_with_path(data)
        self._names = [jax.tree_util.keystr(path, simple=True, separator=".") or "data" for path, _ in found]
        self._leaves = [_column(name, leaf) for name, (_, leaf) in zip(self._names, found, strict=True)]
        if not self._leaves:
            raise InputError("the data holds no arrays; give a PyTree of arrays, or a list of records")
        self.length = len(self._leaves[0])
        if any(len(leaf) != self.length for leaf in self._leaves):
            lengths = ", ".join(
                f"{n}: {len(leaf)}" for n, leaf in zip(self._names, self._leaves, strict=True)
            )
            raise InputError(
                f"the arrays have different numbers of records: {lengths}; row i of each is record i"
            )

    def read(self, indices: np.ndarray) -> Any:
        # The indices are known to be in range; "clip" spares NumPy a second check and a buffer.
        taken = [np.take(leaf, indices, axis=0, mode="clip") for leaf in self._leaves]
        return jax.tree.unflatten(self._structure, taken)

    def layout(self) -> dict[str, str]:
        """Dtype and shape of a record's part in each array."""
        named = zip(self._names, self._leaves, strict=True)
        return {name: f"{dtype_name(leaf.dtype)}{list(leaf.shape[1:])}" for name, leaf in named}

    def digest(self, *, whole: bool) -> str:
        if whole or sum(leaf.nbytes for leaf in self._leaves) <= _HASHED_WHOLE_BYTES:
            picked = self._leaves
        else:
            at = sample_positions(self.length, _NUM_SAMPLED_RECORDS)
            picked = [leaf[at] for leaf in self._leaves]
        hasher = hashlib.sha256(str(self._structure).encode())
        for name, leaf in zip(self._names, picked, strict=True):
            hash_tree(hasher, leaf, name)
        return hasher.hexdigest()


class _Records:
    """A list of records of any kind."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data
        self.length = len(data)

    def read(self, indices: np.ndarray) -> list[Any]:
        return list(map(self.data.__getitem__, indices.tolist()))

    def layout(self) -> str:
        return "list"

    def digest(self, *, whole: bool) -> str:
        at = range(self.length) if whole else sample_positions(self.length, _NUM_SAMPLED_RECORDS)
        hasher = hashlib.sha256()
        for i in at:
            hash_tree(hasher, self.data[i], f"record {i}")
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
