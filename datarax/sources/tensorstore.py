"""Records from TensorStore arrays (zarr3): the first axis counts records, one read per array and batch.

The only file that calls TensorStore, which is slow to import: only when arrays are opened.
"""

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from flax import nnx

from datarax.core.config import Checked, Natural
from datarax.core.errors import ConfigError, InputError, ReadError
from datarax.core.tree import dtype_name, hash_tree
from datarax.sources.files import entries_of
from datarax.sources.records import FEW_RECORDS, WHOLE_BYTES, Records, one_length
from datarax.sources.source import DataSource, SourceConfig
from datarax.store.files import local_path

_BYTES_PER_READ = 64 << 20
# TensorStore waits for a pipe in the place of a file, so so many files of an array are looked at before.
_MOST_LOOKED_AT = 10_000
_METADATA = frozenset({"zarr.json", ".zarray", "attributes.json", "info"})
# The drivers that store chunks, and can tell a missing one from one full of zeros if they are told to.
_CHUNKED_DRIVERS = frozenset({"zarr3", "zarr2", "zarr", "n5", "neuroglancer_precomputed"})
_TELL = "fill_missing_data_reads"
# Those that hold an array in one piece, which is there or not.
_WHOLE_DRIVERS = frozenset({"array", "json", "avif", "bmp", "jpeg", "png", "tiff", "webp"})


@dataclass(frozen=True, kw_only=True)
class TensorStoreConfig(SourceConfig):
    """Which arrays a `TensorStoreSource` reads.

    Raises:
        ConfigError: if no array is named or a setting is of the wrong kind.
    """

    path: str | Mapping[str, Any]
    """Path of a zarr3 array, or a TensorStore spec (a mapping with a "driver"): records are arrays. Or a mapping from
    names to such paths or specs: records are dicts of arrays."""
    missing_chunks: Checked[Literal["error", "fill"]] = "error"
    """What a chunk that is not stored means: "error" (it was lost), or "fill" (it is full of the fill value). Writers
    may leave out such chunks; only who wrote the array knows. A spec may say it for itself (`fill_missing_data_reads`)."""
    cache_bytes: Natural = 0
    """Bytes of decoded chunks to keep in memory, which helps where the chunks hold many records."""

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        if not self.path or not isinstance(self.path, (str, Mapping)):
            raise ConfigError(f"path must be a path, a spec or a table of these by name, got {self.path!r}")

    @property
    def places(self) -> Mapping[str, Any]:
        """Path or spec of each array; one without a name is called "data"."""
        is_single = isinstance(self.path, str) or "driver" in self.path
        return {"data": self.path} if is_single else self.path  # type: ignore[dict-item, return-value]

    def resolved(self) -> Self:
        """With absolute paths; specs stay as they are."""
        absolute = {k: local_path(v, "path") if isinstance(v, str) else v for k, v in self.places.items()}
        return replace(super().resolved(), path=absolute if self.places is self.path else absolute["data"])

    def open(self) -> "TensorStoreSource":
        """The source of these arrays."""
        return TensorStoreSource(self)


class TensorStoreSource(DataSource):
    """Record i is row i of an array, or a dict with row i of each of several arrays; columnar.

    Args:
        config: the arrays.
        rngs: see `DataSource`.
        name: see `DataSource`.

    Raises:
        InputError: naming the array, if it cannot be opened, has no records, is not local, or has another number of
            records than the others, or a driver of which nobody knows whether it can tell that a chunk is missing.
    """

    def __init__(
        self, config: TensorStoreConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> None:
        super().__init__(config, TensorStoreRecords(config), rngs=rngs, name=name)


class TensorStoreRecords(Records):
    """The open arrays. How they are cut into chunks and compressed is no identity: it changes no record."""

    kind = "tensorstore"
    """See `Records.kind`."""
    columnar = True
    """See `Records.columnar`."""
    num_sampled = FEW_RECORDS  # each costs a whole chunk, which may be large
    """See `Records.num_sampled`."""
    whole_bytes = WHOLE_BYTES
    """See `Records.whole_bytes`."""
    sampled_by_version_1 = 0, 8
    """See `Records.sampled_by_version_1`."""

    def __init__(self, config: TensorStoreConfig) -> None:
        import tensorstore as ts

        self._config = config
        self._is_single = config.places is not config.path
        self._looked_at: dict[str, int] = {}
        specs = {name: _spec(name, each, config.missing_chunks) for name, each in config.places.items()}
        context = ts.Context({"cache_pool": {"total_bytes_limit": config.cache_bytes}})
        # Opened together: each waits for its metadata to come from the disk.
        opening = {name: self._opening(name, spec, context) for name, spec in specs.items()}
        self._stores = {name: opened() for name, opened in opening.items()}
        for name, store in self._stores.items():
            if config.missing_chunks == "error":
                self._stores[name] = self._guarded(name, specs[name], store, context)
        for name, store in self._stores.items():
            if store.rank == 0:
                raise InputError(
                    f"array {self._where(name)} is a single number; its first axis must be the records"
                )
            if store.domain.origin[0] != 0:
                raise InputError(
                    f"array {self._where(name)} does not begin at index 0 but at {store.domain.origin[0]}"
                )
        self._length = one_length({name: store.shape[0] for name, store in self._stores.items()})

    def _guarded(self, name: str, spec: Any, store: Any, context: Any) -> Any:
        """The store with whatever lies below casts, stacks and the like told to miss no chunk in silence."""

        def guarded(given: Any, resolved: Any) -> Any:
            driver = resolved["driver"]
            if not isinstance(given, Mapping):
                given = resolved
            if given.get("driver") == "auto":  # what was found has a driver
                given = {**given, **resolved}
            if driver in _CHUNKED_DRIVERS:
                return {_TELL: False, **given}
            if "base" in resolved:
                return {**given, "base": guarded(given["base"], resolved["base"])}
            if "layers" in resolved:  # these are opened when they are first read: nothing is resolved yet
                below = [self._opening(name, layer, context)().spec().to_json() for layer in given["layers"]]
                layers = [guarded(*each) for each in zip(given["layers"], below, strict=True)]
                return {**given, "layers": layers}
            if driver not in _WHOLE_DRIVERS:
                raise InputError(
                    f"array {self._where(name)} is read through the driver {driver!r}, of which it is not known whether it "
                    f'tells that a chunk is missing; set missing_chunks = "fill" if what is missing may be filled'
                )
            return given

        wanted = guarded(spec, store.spec().to_json())
        return store if wanted == spec else self._opening(name, wanted, context)()

    def _opening(self, name: str, spec: Any, context: Any) -> Callable[[], Any]:
        """Begins to open a spec; the result waits for the end of it."""
        import tensorstore as ts

        for each in _specs_in(spec):
            if each.get("driver") == "stack" and not each.get("layers"):  # TensorStore ends the process
                raise InputError(f"array {self._where(name)} is a stack without layers")
        try:
            parsed = ts.Spec(spec)
            spelled = parsed.to_json()  # with the places that were given as URLs
        except ValueError as error:
            raise InputError(f"array {self._where(name)} cannot be opened: {error}") from error
        for each in _specs_in(spelled):
            if each.get("driver") == "file" and isinstance(each.get("path"), str):
                path = os.path.normpath(each["path"])
                self._looked_at[path] = sum(1 for _ in _first_files(path))
        try:
            future = ts.open(parsed, open=True, read=True, context=context)
        except ValueError as error:
            raise InputError(f"array {self._where(name)} cannot be opened: {error}") from error
        return functools.partial(self._result, name, future, verb="opened", kind=InputError)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._config,)

    def __len__(self) -> int:
        return self._length

    def read(self, indices: np.ndarray) -> Any:
        """All arrays at once; a run of indices as a slice, which TensorStore reads 2 to 4 times as fast as a list."""
        rows: Any = indices
        if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        reading = {name: store[rows].read() for name, store in self._stores.items()}
        columns = {name: self._result(name, future) for name, future in reading.items()}
        return columns["data"] if self._is_single else columns

    def outline(self) -> dict[str, Any]:
        """Dtype and shape of a record's part in each array."""
        stores = sorted(self._stores.items())
        return {"layout": {n: f"{dtype_name(s.dtype.numpy_dtype)}{list(s.shape[1:])}" for n, s in stores}}

    def num_bytes(self) -> int:
        """Of all values, however they are compressed."""
        return sum(self._length * self._row_bytes(store) for store in self._stores.values())

    @staticmethod
    def _row_bytes(store: Any) -> int:
        return int(np.prod(store.shape[1:], dtype=np.int64)) * int(store.dtype.numpy_dtype.itemsize)

    def content_fingerprint(self) -> dict[str, Any]:
        """SHA-256 of all values, array after array, in blocks of a fixed number of bytes: where they end counts."""
        hasher = hashlib.sha256()
        for name, store in sorted(self._stores.items()):
            hasher.update(name.encode() + b"\0")
            step = max(1, _BYTES_PER_READ // max(1, self._row_bytes(store)))
            for start in range(0, self._length, step):
                block = store[start : min(start + step, self._length)].read()
                hash_tree(hasher, self._result(name, block), name)
        return {"num_records": self._length, "sha256": hasher.hexdigest()}

    def content_stamp(self) -> dict[str, Any]:
        """Of every chunk of an array of up to 10,000 files; of a larger one its metadata only."""
        stamp = {}
        for path, num_files in self._looked_at.items():
            all_files = num_files <= _MOST_LOOKED_AT
            for entry in _first_files(path) if all_files else entries_of(path, "array"):
                if all_files or entry.name in _METADATA:
                    stat = entry.stat()
                    name = os.path.relpath(entry.path, os.path.dirname(path))
                    stamp[name] = [stat.st_size, stat.st_mtime_ns]
        return stamp

    def close(self) -> None:
        """Lets go of the arrays and their cache."""
        self._stores = {}

    def _result(
        self, name: str, future: Any, *, verb: str = "read", kind: type[Exception] = ReadError
    ) -> Any:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            reason = str(error).split(" [", 1)[0]  # without the spec and the stack that TensorStore appends
            if "is missing" in reason:
                reason += (
                    '; if it was left out because it holds the fill value only, set missing_chunks = "fill"'
                )
            raise kind(f"array {self._where(name)} cannot be {verb}: {reason}") from error

    def _where(self, name: str) -> str:
        place = self._config.places[name]
        return place if isinstance(place, str) else json.dumps(place, default=str)


def _spec(name: str, place: Any, missing_chunks: str) -> dict[str, Any]:
    """The TensorStore spec of one array."""
    if isinstance(place, str):
        path = local_path(place, f"array {name!r}")
        spec: dict[str, Any] = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    elif isinstance(place, Mapping) and "driver" in place:
        spec = dict(place)
    else:
        raise InputError(f"array {name!r} must be a path or a TensorStore spec with a driver, got {place!r}")
    if spec["driver"] in _CHUNKED_DRIVERS:
        spec.setdefault(_TELL, missing_chunks == "fill")
    return spec


def _specs_in(spec: Any) -> Iterator[Mapping[str, Any]]:
    """A spec and those in it, at any depth: of arrays and of the places where they lie."""
    if isinstance(spec, Mapping):
        yield spec
        spec = list(spec.values())
    if isinstance(spec, list | tuple):
        for below in spec:
            yield from _specs_in(below)


def _first_files(path: str) -> Iterator[os.DirEntry[str]]:
    """The files of an array, one more than are looked at of a larger one.

    Raises:
        InputError: if a pipe, a device or a link to nowhere is the file, or lies among them.
    """
    waiting, left = [path] if os.path.isdir(path) else [], _MOST_LOOKED_AT + 1
    if os.path.exists(path) and not (waiting or os.path.isfile(path)):
        raise InputError(f"array {path} is no regular file; restore it from a copy")
    try:
        while waiting and left:
            with os.scandir(waiting.pop()) as entries:
                for entry in itertools.islice(entries, left):
                    left -= 1
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif not entry.is_file():
                        raise InputError(
                            f"array {path}: {entry.path} is no regular file; restore it from a copy"
                        )
                    else:
                        yield entry
    except OSError as error:
        raise InputError(f"array {path} cannot be opened: {error.filename}: {error.strerror}") from error
