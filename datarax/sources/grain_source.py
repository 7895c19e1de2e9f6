"""Records from any object that meets Grain's random-access protocol: `len(data)` and `data[i]`.

Hugging Face and TFDS data sets, PyTorch map-style datasets, Grain's own `MapDataset`, your own class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast, runtime_checkable

import grain
import numpy as np
from flax import nnx

from datarax.core.errors import ConfigError, InputError
from datarax.core.tree import hash_tree
from datarax.sources.sampling import SAMPLE_VERSION, sample_positions
from datarax.sources.source import DataSource, SourceConfig

_NUM_SAMPLED_RECORDS = 16


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

    version: str | None = None
    """Your name for the present content of the data, part of the identity: change it when the content changes. Needed
    if the records cannot be hashed; else samples of them are hashed as well."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        if self.version is not None and (not isinstance(self.version, str) or not self.version):
            raise ConfigError(f"version must be a non-empty text, got {self.version!r}")


class GrainSource(DataSource):
    """Records of an object with `len(data)` and `data[i]`, read through its `__getitems__` where it has one.

    As Grain's protocol demands, the object must give the same record for the same index every time, and to several
    threads at once. It is not copied, and clones share it; it stays open when the source is closed.

    Args:
        config: name and version.
        data: the object.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        TypeError: if the object does not meet the protocol.
        InputError: if it has no records.
    """

    columnar = False

    def __init__(
        self, config: GrainConfig, data: Any, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, rngs=rngs, name=name)
        if isinstance(data, type) or not isinstance(data, grain.sources.RandomAccessDataSource):
            raise TypeError(
                f"the data of source {self.name!r} is a {type(data).__name__}, which has no len() and [index]; give an "
                f"object that meets Grain's RandomAccessDataSource protocol"
            )
        self._runtime = _Foreign(data)
        if self._runtime.length == 0:
            raise InputError(f"source {self.name!r} is empty: its {type(data).__name__} has 0 records")

    def _length(self) -> int:
        return self._runtime.length

    def _read(self, indices: np.ndarray) -> list[Any]:
        return self._runtime.read(indices.tolist())

    def identity(self) -> dict[str, Any]:
        """The outline, and a digest of 16 sampled records, or None if they cannot be hashed.

        Raises:
            InputError: if the records cannot be hashed and no version is declared, or if a record is another one
                when it is read again.
        """
        try:
            sample = self._sample_digest()
            if sample != self._sample_digest():
                raise InputError(
                    f"source {self.name!r} gives other records when it is read again; a source must be deterministic, "
                    f"randomness belongs in a random transform"
                )
        except TypeError as error:
            if self._version is None:
                raise InputError(
                    f"source {self.name!r} cannot be fingerprinted: {error}; declare a version in its config, and "
                    f"change it whenever the data changes"
                ) from error
            sample = None
        return {**self.outline(), "sample": sample}

    def outline(self) -> dict[str, Any]:
        """Kind, name, class and length of the object, and the declared version.

        Where the class lies counts no more than where a function lies: libraries move their own between versions.
        """
        return {
            "kind": "grain",
            "name": self.name,
            "type": type(self._runtime.data).__qualname__,
            "num_records": self._length(),
            "version": self._version,
            "sample_version": SAMPLE_VERSION,
        }

    def copy(self, *, config: Any = None, rngs: nnx.Rngs | None = None, name: str | None = None) -> Self:
        """A new source over the same object, at its beginning: see `DataraxModule.copy`."""
        return type(self)(
            cast(GrainConfig, self.config if config is None else config),
            self._runtime.data,
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
        )

    @property
    def _version(self) -> str | None:
        return cast(GrainConfig, self.config).version

    def _close(self) -> None:
        pass  # the object is the caller's

    def _reopened(self) -> object:
        return self._runtime

    def _sample_digest(self) -> str:
        at = sample_positions(self._length(), _NUM_SAMPLED_RECORDS)
        hasher = hashlib.sha256()
        for i, record in zip(at, self._runtime.read(at), strict=True):
            hash_tree(hasher, record, f"record {i}")
        return hasher.hexdigest()


class _Foreign:
    """The user's object, which NNX must not look into."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.length = len(data)

    def read(self, indices: list[int]) -> list[Any]:
        if not isinstance(self.data, ReadsBatches):
            return [self.data[i] for i in indices]
        if not indices:
            return []  # some implementations fail on an empty list
        records = list(self.data.__getitems__(indices))
        if len(records) != len(indices):
            raise ValueError(
                f"{type(self.data).__name__}.__getitems__ gave {len(records)} records for {len(indices)} indices"
            )
        return records
