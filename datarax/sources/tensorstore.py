"""Records from TensorStore arrays (zarr3): the first axis counts records, one read per array and batch.

The only file that calls TensorStore.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorstore as ts
from flax import nnx

from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.core.tree import dtype_name, hash_tree
from datarax.sources.local_files import require_local
from datarax.sources.sampling import SAMPLE_VERSION, sample_positions
from datarax.sources.source import DataSource, SourceConfig

# A sampled record costs a whole chunk, which may be large.
_NUM_SAMPLED_RECORDS = 8
_BYTES_PER_READ = 64 << 20
# The drivers that store chunks, and can tell a missing one from one full of zeros.
_CHUNKED_DRIVERS = frozenset({"zarr3", "zarr", "n5"})


@dataclass(frozen=True, kw_only=True)
class TensorStoreConfig(SourceConfig):
    """Which arrays a `TensorStoreSource` reads.

    Raises:
        ConfigError: if no array is named or a setting is of the wrong kind.
    """

    path: str | Mapping[str, Any]
    """Path of a zarr3 array, or a TensorStore spec (a mapping with a "driver"): records are arrays. Or a mapping from
    names to such paths or specs: records are dicts of arrays."""
    missing_chunks: Literal["error", "fill"] = "error"
    """What a chunk that is not stored means: "error" (it was lost), or "fill" (it is full of the fill value). Writers
    may leave out such chunks; only who wrote the array knows."""
    cache_bytes: int = 0
    """Bytes of decoded chunks to keep in memory, which helps where the chunks hold many records."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        if not self.path or not isinstance(self.path, (str, Mapping)):
            raise ConfigError(f"path must be a path, a spec or a table of these by name, got {self.path!r}")
        if self.missing_chunks not in ("error", "fill"):
            raise ConfigError(f"missing_chunks must be 'error' or 'fill', got {self.missing_chunks!r}")
        if type(self.cache_bytes) is not int or self.cache_bytes < 0:
            raise ConfigError(f"cache_bytes must be an integer >= 0, got {self.cache_bytes!r}")


class TensorStoreSource(DataSource):
    """Record i is row i of an array, or a dict with row i of each of several arrays; columnar.

    Args:
        config: the arrays.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: naming the array, if it cannot be opened, has no records, is not local, or has another number of
            records than the others.
    """

    columnar = True

    def __init__(
        self, config: TensorStoreConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self._runtime = _Arrays(config, self.name)

    def _length(self) -> int:
        return self._runtime.length

    def _read(self, indices: np.ndarray) -> Any:
        return self._runtime.read(_as_slice(indices))

    def identity(self) -> dict[str, Any]:
        """The outline, and 8 sampled records.

        How the arrays are cut into chunks and compressed is not in it: it changes no record.

        Raises:
            InputError: if a sampled record cannot be read.
        """
        at = np.array(sample_positions(self._length(), _NUM_SAMPLED_RECORDS), dtype=np.int64)
        hasher = hashlib.sha256()
        try:
            hash_tree(hasher, self._runtime.read(at), "the sample")
        except ReadError as error:
            raise InputError(str(error)) from error
        return {**self.outline(), "sample": hasher.hexdigest()}

    def outline(self) -> dict[str, Any]:
        """Kind, name, number of records, and dtype and shape of each array's part."""
        return {
            "kind": "tensorstore",
            "name": self.name,
            "num_records": self._length(),
            "layout": self._runtime.layout(),
            "sample_version": SAMPLE_VERSION,
        }

    def content_fingerprint(self) -> dict[str, Any]:
        """SHA-256 of all values, array after array; reads everything.

        Raises:
            ReadError: if something cannot be read.
        """
        return {"num_records": self._length(), "sha256": self._runtime.sha256()}

    def _close(self) -> None:
        self._runtime.close()

    def _reopened(self) -> object:
        assert isinstance(self.config, TensorStoreConfig)
        return _Arrays(self.config, self.name)


class _Arrays:
    """The open arrays."""

    def __init__(self, config: TensorStoreConfig, source_name: str) -> None:
        self._is_single = isinstance(config.path, str) or "driver" in config.path
        named: Mapping[str, Any] = {"data": config.path} if self._is_single else config.path  # type: ignore[assignment]
        # Opened together: each waits for its metadata to come from the disk.
        self._places = {name: _spec(name, place, config.missing_chunks) for name, place in named.items()}
        context = ts.Context({"cache_pool": {"total_bytes_limit": config.cache_bytes}})
        opening = {
            name: ts.open(ts.Spec(spec), open=True, read=True, context=context)
            for name, spec in self._places.items()
        }
        self._stores = {name: self._opened(name, future) for name, future in opening.items()}
        lengths = {name: store.shape[0] for name, store in self._stores.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise InputError(
                f"the arrays of source {source_name!r} have different numbers of records: {listed}; row i of each is "
                f"record i"
            )
        self.length = next(iter(lengths.values()))
        if self.length == 0:
            raise InputError(f"source {source_name!r} is empty: its arrays have 0 records")

    def _opened(self, name: str, future: ts.Future) -> ts.TensorStore:
        try:
            store = future.result()
        except (ValueError, OSError) as error:
            raise InputError(f"array {self._where(name)} cannot be opened: {_reason(error)}") from error
        if store.rank == 0:
            raise InputError(
                f"array {self._where(name)} is a single number; its first axis must be the records"
            )
        if store.domain.origin[0] != 0:
            raise InputError(
                f"array {self._where(name)} does not begin at index 0 but at {store.domain.origin[0]}"
            )
        return store

    def read(self, rows: np.ndarray | slice) -> Any:
        reading = {name: store[rows].read() for name, store in self._stores.items()}
        columns = {name: self._finished(name, future) for name, future in reading.items()}
        return columns["data"] if self._is_single else columns

    def layout(self) -> dict[str, str]:
        """Dtype and shape of a record's part in each array."""
        return {
            name: f"{dtype_name(store.dtype.numpy_dtype)}{list(store.shape[1:])}"
            for name, store in sorted(self._stores.items())
        }

    def sha256(self) -> str:
        hasher = hashlib.sha256()
        for name, store in sorted(self._stores.items()):
            hasher.update(name.encode() + b"\0")
            for rows in _blocks(store):
                hash_tree(hasher, self._finished(name, store[rows].read()), name)
        return hasher.hexdigest()

    def close(self) -> None:
        self._stores = {}

    def _finished(self, name: str, future: ts.Future) -> np.ndarray:
        try:
            return np.asarray(future.result())
        except (ValueError, OSError) as error:
            hint = (
                '; if it was left out because it holds the fill value only, set missing_chunks = "fill"'
                if "is missing" in str(error)
                else ""
            )
            raise ReadError(f"array {self._where(name)} cannot be read: {_reason(error)}{hint}") from error

    def _where(self, name: str) -> str:
        store = self._places[name].get("kvstore")
        path = store.get("path") if isinstance(store, Mapping) else None
        return str(path or json.dumps(self._places[name], default=str))


def _spec(name: str, place: Any, missing_chunks: str) -> dict[str, Any]:
    """The TensorStore spec of one array."""
    if isinstance(place, str):
        path = require_local(place, f"array {name!r}")
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    elif isinstance(place, Mapping) and "driver" in place:
        spec = dict(place)
    else:
        raise InputError(f"array {name!r} must be a path or a TensorStore spec with a driver, got {place!r}")
    if spec["driver"] in _CHUNKED_DRIVERS:
        spec.setdefault("fill_missing_data_reads", missing_chunks == "fill")
    return spec


def _as_slice(indices: np.ndarray) -> np.ndarray | slice:
    """A run of consecutive indices as a slice, which TensorStore reads 2 to 4 times as fast as a list of indices."""
    if len(indices) > 1 and indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def _blocks(store: ts.TensorStore) -> Iterator[slice]:
    """Slices of the first axis, a fixed number of bytes each: where they end decides the hash."""
    row_bytes = max(1, int(np.prod(store.shape[1:], dtype=np.int64)) * store.dtype.numpy_dtype.itemsize)
    step = max(1, _BYTES_PER_READ // row_bytes)
    for start in range(0, store.shape[0], step):
        yield slice(start, min(start + step, store.shape[0]))


def _reason(error: Exception) -> str:
    """TensorStore's message without the spec and the stack that it appends."""
    return str(error).split(" [", 1)[0]
