"""What every data source is: a number of records, read by index in any order, with an identity and a place.

Reading (`read`, `source[i]`) never changes a source and may be done by several threads. Iterating one hands over its
records once, first to last, and can be stopped and continued like any iterator module. Sources know nothing of
orders, batches or processes, and the module nothing of where records lie: that is `records.py`.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Self, cast

import jax
import numpy as np
from flax import nnx

from datarax.core.config import DataraxModuleConfig, Text
from datarax.core.errors import SILENT_ENDS, ConfigError, InputError, ReadError, silent_end
from datarax.core.module import CheckpointableIteratorModule
from datarax.core.variables import IterationCount
from datarax.sources.content import Content, load_content, write_content
from datarax.sources.files import SourceFile
from datarax.sources.manifest import Manifest, file_sha256
from datarax.sources.records import SAMPLE_VERSION, Look, Records
from datarax.store.files import local_path


@dataclass(frozen=True, kw_only=True)
class SourceConfig(DataraxModuleConfig):
    """What every source can be told. That of a kind in the `[source]` table describes all of it, and opens it.

    Raises:
        ConfigError: if the name is empty.
    """

    name: Text = "data"
    """The source's name in orders, seeds and record keys: another name gives another shuffle. Part of the identity."""
    depends_on_files: tuple[str, ...] = ()
    """Files that the records depend on beside their own, such as a tokenizer's. Their content is part of the identity."""
    manifest: Text | None = None
    """The file with a hash of every record, or of every block of them, which `datarax build manifest CONFIG` writes. Part of
    the identity. ArrayRecord files have their own beside them."""

    def open(self) -> "DataSource":
        """A new source of these settings.

        Raises:
            InputError: if data are missing, empty or malformed.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its source is opened")

    def prepare(self, say: Callable[[str], None]) -> None:
        """Makes what is missing and can be made, before `open`; `say` is told, a line at a time.

        Raises:
            InputError: if what is there is not what would be made, or it cannot be made.
        """

    def check_prepared(self, say: Callable[[str], None]) -> None:
        """Raises what `prepare` would raise of what is there, and makes and writes nothing."""

    def resolved(self) -> Self:
        """The same with absolute paths, for a config that is kept.

        Raises:
            InputError: if a path is empty or not local.
        """
        manifest = self.manifest and local_path(self.manifest, "manifest")
        files = tuple(local_path(each, "depends_on_files") for each in self.depends_on_files)
        return replace(self, depends_on_files=files, manifest=manifest)

    def write_manifest(self) -> Content | Manifest:
        """Records what is in the data today.

        Raises:
            ConfigError: if nothing says where.
            InputError: if it cannot be read or written, or something else is recorded there.
        """
        if self.manifest is None:
            raise ConfigError(
                'nothing says where the manifest of this source is to lie: set source.manifest = "PATH"'
            )
        with replace(self, manifest=None).open() as source:
            return write_content(local_path(self.manifest, "manifest"), source.records)

    def list_files(self) -> Sequence[SourceFile]:
        """The files as they are listed today, reading no record.

        Raises:
            InputError: if nothing lists them, and they cannot be opened.
        """
        with self.open() as source:
            return source.files()


class DataSource(CheckpointableIteratorModule[Any]):
    """`len(source)` records, each a function of its index in [0, len(source)).

    Where they come from is a `Records` adapter's business, which is neither state nor compared by value in NNX. A
    subclass may define `_length`, `_read`, `_close`, `_reopened` and `identity` instead, around a `_runtime` of its
    own. Every source meets Grain's `RandomAccessDataSource` protocol, and every one pickles whose adapter does: like a
    clone, an unpickled source is at the same place and opens files of its own.

    Args:
        config: the source's settings.
        records: where the records are; None for a subclass that opens them itself.
        rngs: kept and passed on to copies; no source draws from it.
        name: the source's name; `config.name` without it.

    Attributes:
        position: records handed over by iteration, 0 at first.
        epoch: 1 once all records are handed over, 0 before.
        idx: index of the record handed over last, None at first.
        current: always None; a state never holds data.

    Raises:
        InputError: if there are no records.
    """

    state_scope: ClassVar[str] = "global"
    """See `CheckpointableIteratorModule.state_scope`."""
    columnar: bool
    """True: `read` gives a PyTree of arrays [n, ...]. False: it gives a list of n records."""
    name: str
    """The name of the config, by which orders and seeds know it."""
    _runtime: Any = None

    def __init__(
        self,
        config: SourceConfig,
        records: Records | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(config, rngs=rngs, name=config.name if name is None else name)
        if not self.name:
            raise ConfigError("a source's name must not be empty")
        self._applied_count = IterationCount(np.zeros((), np.int64))
        self._skipped_count = IterationCount(np.zeros((), np.int64))
        DataSource.reset(self)
        self._is_closed = False
        if records is not None:
            self._open(records)

    def _open(self, records: Records) -> None:
        if len(records) == 0:
            raise InputError(f"source {self.name!r} is empty: {records.empty}")
        self._runtime = records
        self.columnar = records.columnar
        content = self._content
        if content is not None and (content.kind, content.num_records) != (records.kind, len(records)):
            raise InputError(
                f"source {self.name!r} has {len(records)} records of kind {records.kind!r}, its manifest "
                f"{cast(SourceConfig, self.config).manifest} says {content.num_records} of kind {content.kind!r}"
            )

    @property
    def _content(self) -> Content | None:
        """What `manifest` of the config records; read once for each adapter."""
        path = cast(SourceConfig, self.config).manifest
        if self.records.content is None and path is not None:
            self.records.content = load_content(local_path(path, "manifest"))
        return self.records.content

    def _files_depended_on(self) -> dict[str, Any]:
        """SHA-256 of each, in their order: where they lie is no matter."""
        files = cast(SourceConfig, self.config).depends_on_files
        try:
            return (
                {"depends_on_files": [file_sha256(local_path(each, "file")) for each in files]}
                if files
                else {}
            )
        except OSError as error:
            raise InputError(f"source {self.name!r} depends on {error.filename}: {error.strerror}") from error

    @property
    def records(self) -> Records:
        """The adapter; of a subclass that has another runtime one that knows nothing."""
        return self._runtime if isinstance(self._runtime, Records) else Records()

    # What a subclass without an adapter defines

    def _length(self) -> int:
        """Number of records, without reading one."""
        return len(self.records)

    def _read(self, indices: np.ndarray) -> Any:
        """The records at int64[n] indices that lie in [0, len(self)); n may be 0, and indices may repeat."""
        return self.records.read(indices)

    def _close(self) -> None:
        """Frees what is open."""
        self.records.close()

    def _reopened(self) -> object:
        """A runtime object of its own for a clone, in place of `_runtime`."""
        return copy.copy(self._runtime)

    def identity(self) -> dict[str, Any]:
        """The quick fingerprint: a JSON-able tree that changes with the kind, the name, and what is in the records.

        It depends on no path, time or setting that leaves the records as they are, and costs a bounded number of
        reads. Not every changed byte can show in it: see `content_fingerprint`.

        Raises:
            InputError: if a record that it samples cannot be read or hashed.
        """
        return self.identity_by(None)

    def outline(self) -> dict[str, Any]:
        """The part of `identity` for which no record is read: all of it but the field `sample`.

        A subclass that defines only its identity does not say which part that is; there it is the whole.
        """
        return self.identity_by(None, sample=False)

    def identity_by(self, recorded: Mapping[str, Any] | None, *, sample: bool = True) -> dict[str, Any]:
        """The identity by the rules of one that a run recorded: its sample is made in the version that it says.

        Args:
            recorded: the recorded identity of the source; None: by today's rules, as one whose rules are not known is.
            sample: whether to read the sampled records; without, `sample` is left out.

        Raises:
            InputError: see `identity`.
        """
        if type(self).identity is not DataSource.identity:
            return self.identity()
        records = self.records
        tree = {"kind": records.kind, "name": self.name, "num_records": len(records), **records.outline()}
        tree |= self._files_depended_on()
        if self._content is not None:
            tree["content"] = self._content.fingerprint()["sha256"]
        if not records.num_sampled:
            return tree
        version = (recorded or {}).get("sample_version")
        tree["sample_version"] = version if version in (1, 2) else SAMPLE_VERSION
        if not sample:
            return tree
        try:
            return {**tree, "sample": records.sample(tree["sample_version"])}
        except ReadError as error:
            raise InputError(str(error)) from error

    # What is known of files and contents

    def files(self) -> Sequence[SourceFile]:
        """The files that the records lie in, in the order of the records; () where a record is in no one file."""
        return self.records.files()

    @property
    def content_recorded(self) -> bool:
        """Whether something was recorded that `check_content` can hold the data against."""
        return self.records.content_recorded or self._content is not None

    def check_content(self) -> list[str]:
        """Reads everything and compares it with what was recorded; each problem names the file, and the record if known.

        Without a record to hold it against (`content_recorded` is False) nothing is read and nothing is found.
        """
        content = self._content
        return self.records.check_content() if content is None else content.problems(self.records, self.name)

    def check_files(self, names: Sequence[str]) -> list[str]:
        """What `check_content` finds in some of the files of `content_stamp`; a kind may check more than it is asked for."""
        if type(self).check_content is not DataSource.check_content or self._content is not None:
            return self.check_content()
        return self.records.check_content(names)

    def changed_among(self, indices: np.ndarray) -> dict[int, str]:
        """Reads some records and compares them with what was recorded: index -> where it lies and what is wrong with it.

        Without a record to hold them against nothing is read and nothing is found.

        Args:
            indices: int64[n], each in [0, len(self)).
        """
        content = self._content
        if content is None:
            return self.records.changed_among(indices)
        wanted = np.unique(indices)
        spans = content.changed(self.records, np.unique(wanted // content.records_per_hash).tolist())
        return {int(index): what for span, what in spans for index in wanted if index in span}

    def content_fingerprint(self) -> dict[str, Any] | None:
        """The full fingerprint, which changes with every byte; None if none can be had without a manifest.

        Raises:
            InputError: if a record holds something that has no plain bytes.
            ReadError: if something cannot be read.
        """
        content = self._content
        return self.records.content_fingerprint() if content is None else content.fingerprint()

    def content_stamp(self) -> dict[str, Any]:
        """What a file system says of the files: {name: [bytes, mtime in ns]}. Never identity.

        A stamp that moved since the last look is a reason to call `check_files`; one that did not is no proof.

        Raises:
            InputError: naming a file that is gone.
        """
        return self.records.content_stamp()

    def watch(self, look: Look) -> None:
        """Has the stamps of files shown to `look` before their records are read: all of them now, or each as it is opened.

        Clones and pickles are not watched.

        Raises:
            InputError: naming a file that is gone.
            Exception: what `look` raises.
        """
        if type(self).content_stamp is not DataSource.content_stamp:
            look(self.content_stamp())
        else:
            self.records.watch(look)

    # Reading

    def __len__(self) -> int:
        return self._length()

    def read(self, indices: Any) -> Any:
        """The records at `indices`, in their order; thread-safe.

        Args:
            indices: integers, shape [n], each in [0, len(self)); repeats are allowed.

        Returns:
            A PyTree of new arrays [n, ...] if the source is columnar, else a list of n records.

        Raises:
            IndexError: if an index is out of range, naming it; negative ones are not counted from the end.
            TypeError: if the indices are not integers in one dimension.
            ReadError: if the data cannot be read.
            RuntimeError: from what would pass for the end of the data: a StopIteration, or an IndexError of the data's own.
            ValueError: if the source is closed.
        """
        if self._is_closed:
            raise ValueError(f"source {self.name!r} is closed")
        array = np.asarray(indices)
        if array.size == 0 and array.ndim == 1 and not isinstance(indices, np.ndarray):
            array = array.astype(np.int64)  # NumPy takes an empty list for floats
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(
                f"indices into source {self.name!r} must be integers in one dimension, got "
                f"{array.dtype}{list(array.shape)}"
            )
        outside = (array < 0) | (array >= self._length())
        if outside.any():
            raise IndexError(
                f"index {array[outside][0]} is out of range for source {self.name!r} of {self._length()} records"
            )
        try:
            return self._read(array.astype(np.int64, copy=False))
        except (
            *SILENT_ENDS,
            IndexError,
        ) as error:  # the indices are in range: it is not the end that sequences know
            raise silent_end(error, f"while source {self.name!r} was read") from error

    def __getitem__(self, index: int) -> Any:
        """Record `index`, as `read([index])` gives it."""
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A list of the records at `indices`: the protocol of Grain and PyTorch."""
        read = self.read(indices)
        if not self.columnar:
            return read
        leaves, structure = jax.tree.flatten(read)
        return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(len(indices))]

    def unlisted_files(self) -> Sequence[str]:
        """Files that lie beside the data, look like data, and are not read, because what records the data does not list them.

        Raises:
            InputError: if a directory cannot be read.
        """
        return ()

    # Iterating

    def __next__(self) -> Any:
        position = cast(int, self.position.get_value())
        if position >= self._length():
            raise StopIteration
        record = self[position]
        # Only now, with the record in hand, has the place moved.
        self.position.set_value(position + 1)
        self.idx.set_value(position)
        self.epoch.set_value((position + 1) // self._length())
        self._increment_applied_count()
        return record

    def reset(self) -> None:
        """Starts over: the next record is record 0."""
        super().reset()
        self.position.set_value(0)
        self.epoch.set_value(0)

    def _validate_state(self, state: dict[str, Any]) -> None:
        length, position = self._length(), state["position"]
        if position is None or position > length:
            raise ValueError(
                f"position of source {self.name!r} is {position}, but it has {length} records; the state belongs to "
                f"other data"
            )
        expected = {"idx": position - 1 if position else None, "epoch": position // length}
        for key, value in expected.items():
            if state[key] != value:
                raise ValueError(
                    f"{key} of source {self.name!r} is {state[key]!r}, but at position {position} of {length} "
                    f"records it is {value!r}; the state is damaged or belongs to other data"
                )
        if max(state["_applied_count"], state["_skipped_count"]) >= 1 << 62:
            raise ValueError(
                f"a count of source {self.name!r} is beyond 2^62, and could soon count no further"
            )
        if state["current"] is not None:
            raise ValueError(
                f"current of source {self.name!r} is not None; the state of a source holds no data"
            )

    # Copies, and the end

    def copy(self, *, config: Any = None, rngs: nnx.Rngs | None = None, name: str | None = None) -> Self:
        """A new source over the same data, at its beginning: see `DataraxModule.copy`."""
        return type(self)(
            config=cast(SourceConfig, self.config if config is None else config),
            rngs=self.rngs if rngs is None else rngs,
            name=self.name if name is None else name,
            **self._given(),
        )

    def _given(self) -> dict[str, Any]:
        """What the constructor takes beside config, rngs and name."""
        return {"records": self._reopened()} if type(self) is DataSource else {}

    def _cloned(self) -> None:
        """A clone is a source at the same place, with files of its own."""
        self._runtime = self._reopened()
        self._is_closed = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_is_closed": False})

    def close(self) -> None:
        """Frees what is open. Reading is refused afterwards; closing twice does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, num_records={self._length()})"
