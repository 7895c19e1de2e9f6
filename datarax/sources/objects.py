"""Records from a Python object: arrays or a list in memory, or whatever meets Grain's random-access protocol.

Hugging Face and TFDS data sets, PyTorch map-style datasets, Grain's own `MapDataset`, your own class: all of them have
`len(data)` and `data[i]`. Knows nothing of files.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from datarax.core.config import Text
from datarax.core.errors import ConfigError, InputError
from datarax.core.tree import check_plain, dtype_name, hash_tree
from datarax.sources.files import SourceFile
from datarax.sources.records import (
    FEW_RECORDS,
    MANY_RECORDS,
    WHOLE_BYTES,
    Records,
    one_length,
    records_digest,
    sample_positions,
)
from datarax.sources.source import DataSource, SourceConfig
from datarax.trust import call, load_attribute

_RECORDS_PER_READ = 256  # of a sample: records may be large images


@dataclass(frozen=True, kw_only=True)
class NamedDataConfig(SourceConfig):
    """For kinds around an object: a config file cannot hold it, so it names it."""

    use: str
    """`module:attribute` of the data, or of a function that returns it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of that function."""

    def data(self) -> Any:
        """The object; what is callable is called."""
        found = load_attribute(self.use, "source.use")
        return call(found, self.parameters, f"source.use = {self.use!r}") if callable(found) else found

    def list_files(self) -> Sequence[SourceFile]:
        """None: an object lies in no files, and to know that it need not be made."""
        return ()


# In memory


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
    """See `Records.kind`."""
    num_sampled = MANY_RECORDS
    """See `Records.num_sampled`."""
    whole_bytes = WHOLE_BYTES
    """See `Records.whole_bytes`."""
    sampled_by_version_1 = 16 << 20, 1024
    """See `Records.sampled_by_version_1`."""

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
        one_length({name: len(column) for name, column in self._columns})
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

    def num_bytes(self) -> int:
        """Of arrays; of other objects nobody knows it."""
        return sum(column.nbytes for _, column in self._columns) if self.columnar else WHOLE_BYTES + 1

    def content_fingerprint(self) -> dict[str, Any]:
        """SHA-256 of every byte of the arrays, or of every record."""
        return {"num_records": len(self), "sha256": self.digest_of(np.arange(len(self)))}

    def digest_of(self, indices: np.ndarray) -> str:
        """Array after array, or record after record."""
        if not self.columnar:
            try:
                return records_digest(map(self.data.__getitem__, indices), indices)
            except TypeError as error:
                raise InputError(
                    f"source {self._name!r} cannot be fingerprinted: {error}; use records of numbers, text, bytes, "
                    f"arrays and containers of these, or a GrainSource with a version"
                ) from error
        hasher = hashlib.sha256(str(self._structure).encode())
        for name, column in self._columns:
            hash_tree(hasher, column if len(indices) == len(column) else column[indices], name)
        return hasher.hexdigest()


def _column(name: str, leaf: Any) -> np.ndarray:
    if not isinstance(leaf, (np.ndarray, jax.Array)):
        raise InputError(
            f"{name} of the data is a {type(leaf).__name__}, not an array; give arrays [records, ...], or a list of "
            f"records"
        )
    check_plain(type(leaf), f"{name} of the data")
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise InputError(f"{name} of the data is a single number; its first axis must be the records")
    if array.dtype.hasobject:
        raise InputError(f"{name} of the data is an array of Python objects; give a list of records instead")
    return array


# Of Grain's protocol


@dataclass(frozen=True, kw_only=True)
class GrainConfig(SourceConfig):
    """Settings of a `GrainSource`.

    Raises:
        ConfigError: if the version is an empty text.
    """

    version: Text | None = None
    """Your name for the present content of the data, part of the identity: change it when the content changes. Needed
    if the records cannot be hashed; else samples of them are hashed as well."""


@dataclass(frozen=True, kw_only=True)
class NamedGrainConfig(NamedDataConfig, GrainConfig):
    """Any object of Grain's random-access protocol."""

    def open(self) -> "GrainSource":
        """A source of the object that `use` names."""
        data = self.data()
        try:
            return GrainSource(self, data)
        except TypeError as error:
            raise ConfigError(f"source.use = {self.use!r}: {error}") from error


class GrainSource(DataSource):
    """Records of an object with `len(data)` and `data[i]`, read through its `__getitems__` where it has one.

    As Grain's protocol demands, the object must give the same record for the same index every time, and to several
    threads at once. It is not copied, and clones share it; it stays open when the source is closed. The source pickles
    if the object does.

    Args:
        config: name and version.
        data: the object.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        TypeError: if the object does not meet the protocol.
        InputError: if it has no records.
    """

    def __init__(
        self, config: GrainConfig, data: Any, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        self._open(GrainRecords(data, config.version, self.name))

    def _given(self) -> dict[str, Any]:
        return {"data": self._runtime.data}


class GrainRecords(Records):
    """The user's object."""

    kind = "grain"
    """See `Records.kind`."""

    def __init__(self, data: Any, version: str | None, name: str) -> None:
        # What `isinstance` of Grain's protocol asks, without Grain, which is slow to import.
        if not all(hasattr(type(data), each) for each in ("__len__", "__getitem__")):
            raise TypeError(
                f"the data of source {name!r} is a {type(data).__name__}, which has no len() and [index]; give an "
                f"object that meets Grain's RandomAccessDataSource protocol"
            )
        self.data = data
        self._version, self._name, self._length = version, name, len(data)
        self.num_sampled = MANY_RECORDS if hasattr(data, "__getitems__") else FEW_RECORDS
        self.sampled_by_version_1 = 0, FEW_RECORDS
        self.empty = f"its {type(data).__name__} has 0 records"

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> list[Any]:
        """One call for all records where the object can, else one for each."""
        wanted = indices.tolist()
        if not hasattr(self.data, "__getitems__"):  # Hugging Face, PyTorch and ArrayRecord have it
            return [self.data[i] for i in wanted]
        if not wanted:
            return []  # some implementations fail on an empty list
        records = list(self.data.__getitems__(wanted))
        if len(records) != len(wanted):
            raise ValueError(
                f"{type(self.data).__name__}.__getitems__ gave {len(records)} records for {len(wanted)} indices"
            )
        return records

    def content_stamp(self) -> dict[str, Any]:
        """The content id that the object has of its own, as Hugging Face's datasets do: another one is a reason to look."""
        own = getattr(self.data, "_fingerprint", None)
        return {"content id": own} if isinstance(own, str) else {}

    def outline(self) -> dict[str, Any]:
        """Class of the object, and the declared version.

        Where the class lies counts no more than where a function lies: libraries move their own between versions.
        """
        return {"type": type(self.data).__qualname__, "version": self._version}

    def digest_of(self, indices: np.ndarray) -> str | None:
        """None if they cannot be hashed. A few are read twice.

        Raises:
            InputError: if the records cannot be hashed and no version is declared, or if a record is another one
                when it is read again.
        """
        few = indices[sample_positions(len(indices), FEW_RECORDS)]
        try:
            once, again = self._digest(few), self._digest(few)
            found = self._digest(indices) if len(indices) > len(few) else once
        except TypeError as error:
            if self._version is None:
                raise InputError(
                    f"source {self._name!r} cannot be fingerprinted: {error}; declare a version in its config, and "
                    f"change it whenever the data changes"
                ) from error
            return None
        if once != again:
            raise InputError(
                f"source {self._name!r} gives other records when it is read again; a source must be deterministic, "
                f"randomness belongs in a random transform"
            )
        return found

    def _digest(self, indices: np.ndarray) -> str:
        starts = range(0, len(indices), _RECORDS_PER_READ)
        blocks = (self.read(indices[start : start + _RECORDS_PER_READ]) for start in starts)
        return records_digest(itertools.chain.from_iterable(blocks), indices)
