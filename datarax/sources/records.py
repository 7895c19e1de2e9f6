"""`Records`: what a kind of source implements. Plain Python around whatever holds the data: no NNX, no JAX.

A `DataSource` is the one module around it, and adds all that kinds share: checks, iteration, state, identity. Read
next: `range.py`, the smallest kind, and `source.py`.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from datarax.core.errors import InputError
from datarax.core.tree import hash_tree
from datarax.sources.files import SourceFile

SAMPLE_VERSION = 2
"""Names the choice of samples and the encoding of records. Part of every identity that holds a sample: raise it when
either changes. A run is compared by the version that it recorded, which each kind goes on to make.

2: what lies in memory, or in an array on the disk, up to `WHOLE_BYTES` whole; else 4,096 records where one batched read gives
them, else 16. 1: memory up to 16 MiB whole, else 1,024 records; 8 of arrays on the disk; 16 of all others."""

WHOLE_BYTES = 64 << 20
"""Up to so many bytes data are sampled whole, where that is cheap."""
MANY_RECORDS = 4_096
"""Sampled of data that one batched read gives."""
FEW_RECORDS = 16
"""Sampled of all others."""


Look: TypeAlias = Callable[[Mapping[str, Any]], None]
"""Is shown stamps of files (see `content_stamp`) before what is in them is read, and raises where it should not be."""


class Records:
    """Records by index. An adapter defines `kind`, `__len__`, `read` and `outline`, and the rest where it can.

    A copy (`copy.copy` for a clone, `pickle` for another process) must not share what is open: an adapter that
    holds files defines `__reduce__`, as a rule `return type(self), (what it was made from, ...)`.
    """

    kind: str
    """Names the kind in the identity."""
    columnar: bool = False
    """True: `read` gives a PyTree of arrays [n, ...]. False: it gives a list of n records."""
    num_sampled: int = FEW_RECORDS
    """How many records the quick fingerprint reads; 0: none, because the outline says what is in them."""
    whole_bytes: int = 0
    """It reads all records if `num_bytes` is no more than this."""
    sampled_by_version_1: tuple[int, int] | None = None
    """(`whole_bytes`, `num_sampled`) as `SAMPLE_VERSION` 1 had them; None: it had the same."""

    empty: str = "it has 0 records"
    """Said of a source that is refused because it has no record."""

    content: Any = None
    """What the manifest of the source's config records: the source's business."""
    content_recorded: bool = False
    """Whether something was recorded that `check_content` can hold the data against."""

    def __len__(self) -> int:
        """Number of records, without reading one."""
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def read(self, indices: np.ndarray) -> Any:
        """The records at `indices`: int64[n] in [0, len), in any order; n may be 0, and indices may repeat.

        Called by several threads at once. The same index gives the same record every time, in new arrays.

        Raises:
            ReadError: if the data cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read")

    def outline(self) -> dict[str, Any]:
        """What tells this data from other data without reading a record, beside kind, name and number of records.

        A JSON-able tree that depends on no path, time or setting that leaves the records as they are.
        """
        raise NotImplementedError(f"{type(self).__name__} must define outline")

    def sample(self, version: int = SAMPLE_VERSION) -> str | None:
        """A digest of `num_sampled` records, evenly spread, or of all: with the outline it is the quick fingerprint."""
        whole_bytes, count = self.whole_bytes, self.num_sampled
        if version == 1 and self.sampled_by_version_1 is not None:
            whole_bytes, count = self.sampled_by_version_1
        is_whole = whole_bytes > 0 and self.num_bytes() <= whole_bytes
        return self.digest_of(
            np.array(sample_positions(len(self), len(self) if is_whole else count), np.int64)
        )

    def num_bytes(self) -> int:
        """Bytes of all records; asked where `whole_bytes` is not 0."""
        raise NotImplementedError(f"{type(self).__name__} must define num_bytes")

    def digest_of(self, indices: np.ndarray) -> str | None:
        """A digest of these records; None if they have none, and something else stands for them."""
        return records_digest([self.read(indices)])

    def files(self) -> Sequence[SourceFile]:
        """The files that the records lie in, in the order of the records; () where a record is in no one file."""
        return ()

    def content_fingerprint(self) -> dict[str, Any] | None:
        """The full fingerprint, which changes with every byte; None if none can be had."""
        return None

    def content_stamp(self) -> dict[str, Any]:
        """What a file system says of the files: {name: [bytes, mtime in ns]}."""
        return {}

    def watch(self, look: Look) -> None:
        """Shows the stamps of all files now; where there may be many of them, of each when it is opened."""
        look(self.content_stamp())

    def check_content(self, names: Sequence[str] | None = None) -> list[str]:
        """Reads what is in these files, or everything, and tells each difference from what was recorded."""
        return []

    def changed_among(self, indices: np.ndarray) -> dict[int, str]:
        """Reads these records; index -> where it lies and how it differs from what was recorded."""
        return {}

    def close(self) -> None:
        """Frees what is open; no read follows."""


def one_length(lengths: Mapping[str, int]) -> int:
    """The number of records that arrays have in common.

    Raises:
        InputError: naming them, if it is not the same in all.
    """
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(f"the arrays have different numbers of records: {listed}; row i of each is record i")
    return next(iter(lengths.values()))


def sample_positions(length: int, count: int) -> list[int]:
    """At most `count` (>= 2) different positions in range(length), evenly spread, the first and the last among them."""
    if length <= count:
        return list(range(length))
    return [i * (length - 1) // (count - 1) for i in range(count)]


def records_digest(records: Iterable[Any], indices: Iterable[int] | None = None) -> str:
    """SHA-256 over a sequence of records, as hex. Their indices in a source are for messages only.

    Raises:
        TypeError: if a record holds something that has no plain bytes, naming the place and the type.
    """
    hasher = hashlib.sha256()
    names = (f"{i} of the sample" for i in itertools.count()) if indices is None else indices
    for name, record in zip(names, records, strict=False):
        hash_tree(hasher, record, f"record {name}")
    return hasher.hexdigest()
