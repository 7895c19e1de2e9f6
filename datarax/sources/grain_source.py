"""Records from any object that meets Grain's random-access protocol: `len(data)` and `data[i]`.

Hugging Face and TFDS data sets, PyTorch map-style datasets, Grain's own `MapDataset`, your own class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx

from datarax.core.config import Text
from datarax.core.errors import InputError
from datarax.sources.records import Records, records_digest, sample_positions
from datarax.sources.source import DataSource, NamedDataConfig, SourceConfig


@runtime_checkable
class ReadsBatches(Protocol):
    """What an object offers that answers a list of indices at once (Hugging Face, PyTorch, ArrayRecord)."""

    def __getitems__(self, indices: Sequence[int], /) -> Sequence[Any]:
        """The records at `indices`, in their order."""


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
        return GrainSource(self, self.data())


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

    def __init__(self, data: Any, version: str | None, name: str) -> None:
        import grain  # here, because it is slow to import and other kinds have no use for it

        if isinstance(data, type) or not isinstance(data, grain.sources.RandomAccessDataSource):
            raise TypeError(
                f"the data of source {name!r} is a {type(data).__name__}, which has no len() and [index]; give an "
                f"object that meets Grain's RandomAccessDataSource protocol"
            )
        self.data = data
        self._version, self._name, self._length = version, name, len(data)
        if self._length == 0:
            raise InputError(f"source {name!r} is empty: its {type(data).__name__} has 0 records")

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> list[Any]:
        """One call for all records where the object can, else one for each."""
        wanted = indices.tolist()
        if not isinstance(self.data, ReadsBatches):
            return [self.data[i] for i in wanted]
        if not wanted:
            return []  # some implementations fail on an empty list
        records = list(self.data.__getitems__(wanted))
        if len(records) != len(wanted):
            raise ValueError(
                f"{type(self.data).__name__}.__getitems__ gave {len(records)} records for {len(wanted)} indices"
            )
        return records

    def outline(self) -> dict[str, Any]:
        """Class of the object, and the declared version.

        Where the class lies counts no more than where a function lies: libraries move their own between versions.
        """
        return {"type": type(self.data).__qualname__, "version": self._version}

    def sample(self) -> str | None:
        """Of 16 records; None if they cannot be hashed.

        Raises:
            InputError: if the records cannot be hashed and no version is declared, or if a record is another one
                when it is read again.
        """
        at = np.array(sample_positions(self._length, self.num_sampled), dtype=np.int64)
        try:
            once, again = (records_digest(self.read(at), at) for _ in range(2))
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
        return once
