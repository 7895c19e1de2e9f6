"""What a snapshot says about the data: `record.json`, `state.json`, `steps.bin` and `processes.json`, as values and as bytes.

Knows nothing of directories, Orbax and modules. `checkpoints/README.md` describes the fields. The tables at the end say
which reader reads which format; a reader of an earlier one stays for ever and gives today's form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from datarax.checkpoint.layout import RECORD_NAME, STATE_NAME
from datarax.core.config import Limit, Natural, Positive, Sha256, from_tree
from datarax.core.errors import ConfigError, SaveError
from datarax.core.tree import canonical_json, reader_of
from datarax.store.files import parse_json

SNAPSHOT_FORMAT = 2
"""Raise this when the meaning of a field of `record.json`, `state.json`, `steps.bin`, `processes.json` or `history/` changes,
or of a mark in encoded states; add a reader to each table below, and golden snapshots with `make golden`."""

RECORD_LIMIT_BYTES = 4096
"""A record never grows with the position, the dataset or the number of processes; this is where it would show."""

STATE_LIMIT_BYTES = 1 << 20
"""Of the states of all modules together: statistics fit, data and index lists do not."""


def _is_digest(tree: Mapping[str, Any]) -> bool:
    sums = [tree.get("keys"), tree.get("bytes") if tree.get("bytes") is not None else "0" * 16]
    return (
        tree.keys() == {"version", "rows", "keys", "bytes"}
        and all(type(tree[name]) is int for name in ("version", "rows"))
        and all(isinstance(each, str) and re.fullmatch("[0-9a-f]{1,16}", each) for each in sums)
    )


DigestTree = Annotated[Mapping[str, Any], Limit(_is_digest, "with version, rows, keys and bytes")]
"""What `KeepsDigest` gives: see `checkpoint/protocols.py`."""

_STEP_PAIR = np.dtype([("keys", "<u8"), ("bytes", "<u8")])


@dataclass(frozen=True, kw_only=True)
class StepRange:
    """Which part of `steps.bin` belongs to one loader."""

    first_step: Natural
    """The step of the first pair."""
    count: Natural
    """Number of pairs, one per step."""
    has_bytes: bool
    """Whether the second number of each pair is a digest, or 0 because none was kept."""
    offset: Natural
    """Index of the first pair in `steps.bin`."""


@dataclass(frozen=True, kw_only=True)
class HistoryEntry:
    """From which step on which identity held."""

    from_step: Natural
    """The first step of this entry is `from_step + 1`: the state at `from_step` was made by the entry before."""
    identity: Sha256
    """Digest of the identity tree."""
    config: Sha256 | None
    """Digest of the resolved config, or None."""
    positions: Mapping[str, Natural | None] = field(default_factory=dict)
    """Position of each loader at `from_step`, in rows; None for a module without one."""
    reason: str | None
    """Why another entry begins here, for people; None for the first."""


@dataclass(frozen=True, kw_only=True)
class LoaderRecord:
    """What is recorded of one data module."""

    scope: Literal["global", "process"]
    """`global`: the state is in `state`. `process`: it is in `processes.json`, one part per process."""
    state: Any
    """The state, or None where it is in another file."""
    plain: bool
    """Whether the state is the module's own JSON, without its `identity`, which the record's says; else it is encoded."""
    digest: DigestTree | None = None
    """Digest of everything delivered, if the module keeps one."""
    steps: StepRange | None = None
    """Digests of single steps since the last committed snapshot, if the module keeps them."""
    lanes: Any
    """Which part of `lanes.bin` belongs to it: the cursors of a stream whose stages change the number of rows."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of `record.json`."""

    step: Natural
    """Steps done when the snapshot was taken."""
    previous: Natural | None
    """The newest step that was committed when this one was saved."""
    identity: Sha256
    """Digest of the identity tree."""
    config: Sha256 | None
    """Digest of the resolved config, or None."""
    start: Natural
    """Number of the start (`starts/<number>.json`) that saved this."""
    history: Sequence[HistoryEntry]
    """The newest entries, oldest first."""
    loaders: Mapping[str, LoaderRecord]
    """What is recorded of each data module, by name."""
    earlier_history: Sha256 | None = None
    """Digest of the file with the entries before those in `history`; None if there are none."""
    metrics: Mapping[str, float | int] | None
    """Metrics of the step, by which snapshots may be ranked."""
    edits: Any
    """Changes of the recipe in mid-run: the digest of their chain, and the newest of them."""
    bad_records: Any
    """Records whose slots were masked: how many, and the digest of their list."""
    format: int = SNAPSHOT_FORMAT
    """The format of the file that this was read from, and of those that it names: `steps.bin` and the earlier history."""

    def to_files(self) -> dict[str, bytes]:
        """`record.json`, at most `RECORD_LIMIT_BYTES` of canonical JSON, and `state.json` if states are too large for it.

        Raises:
            SaveError: if one of them is larger than allowed, naming what is large.
        """
        data = self._to_bytes()
        if len(data) <= RECORD_LIMIT_BYTES:
            return {RECORD_NAME: data}
        states = {name: loader.state for name, loader in self.loaders.items() if loader.state is not None}
        without = {name: replace(loader, state=None) for name, loader in self.loaders.items()}
        files = {
            RECORD_NAME: replace(self, loaders=without)._to_bytes(),
            STATE_NAME: canonical_json({"format": SNAPSHOT_FORMAT, "states": states}),
        }
        parts = {f"the state of {name!r}": len(canonical_json(state)) for name, state in states.items()}
        parts["the history"] = len(canonical_json([vars(entry) for entry in self.history]))
        worst = max(parts, key=lambda part: parts[part])
        for (name, content), most in zip(files.items(), (RECORD_LIMIT_BYTES, STATE_LIMIT_BYTES), strict=True):
            if len(content) > most:
                raise SaveError(
                    f"{name} of step {self.step} would have {len(content)} bytes, allowed are {most}; the largest part is "
                    f"{worst} with {parts[worst]} bytes. A module whose state is large belongs in the process part: leave its "
                    'state_scope at "process", and keep data and index lists out of its state'
                )
        return files

    def _to_bytes(self) -> bytes:
        tree = {name: value for name, value in vars(self).items() if name != "format"}
        tree["history"] = [vars(entry) for entry in self.history]
        tree["loaders"] = {name: _loader_tree(loader) for name, loader in self.loaders.items()}
        return canonical_json({**tree, "format": SNAPSHOT_FORMAT})

    @staticmethod
    def from_bytes(data: bytes) -> Record:
        """Read a record of any format up to `SNAPSHOT_FORMAT`.

        Raises:
            ValueError: if this is not a record, or one of a later format.
        """
        tree = _object(data)
        return _read(tree, reader_of(tree.get("format"), _RECORD_READERS))

    @staticmethod
    def reads(version: object) -> bool:
        """Whether there is, or ever was, a format of this number."""
        return version in _RECORD_READERS

    @staticmethod
    def salvaged(data: bytes) -> Record:
        """Read a record that is not as it was written: one of a format that never was is taken for today's.

        Raises:
            ValueError: if this is not a record, or one of a later format.
        """
        tree = _object(data)
        version = tree.get("format")
        if type(version) is int and version < SNAPSHOT_FORMAT:
            return _read(tree, _RECORD_READERS.get(version, _record_v1))
        return _read(tree, reader_of(version, _RECORD_READERS))


def _object(data: bytes) -> dict[str, Any]:
    tree = parse_json(data)
    if not isinstance(tree, dict):
        raise ValueError("it holds no format number")
    return tree


def _read(tree: dict[str, Any], reader: Callable[[dict[str, Any]], Record]) -> Record:
    try:
        return replace(reader(tree), format=tree["format"])
    except (TypeError, KeyError, AttributeError, ConfigError) as error:
        raise ValueError(f"it has other fields than format {tree['format']}: {error}") from error


def _record_v2(tree: dict[str, Any]) -> Record:
    record = from_tree(Record, tree)
    later = {"edits": record.edits, "bad_records": record.bad_records}
    later.update({f"loaders.{name}.lanes": loader.lanes for name, loader in record.loaders.items()})
    for what, said in later.items():
        if said is not None:
            raise ValueError(
                f"it holds {what}, which this version cannot follow; use the version that wrote it"
            )
    return record


def _record_v1(tree: dict[str, Any]) -> Record:
    new = {
        "history": [{**entry, "reason": None} for entry in tree["history"]],
        "loaders": {
            name: {**loader, "plain": False, "lanes": None} for name, loader in tree["loaders"].items()
        },
    }
    return _record_v2({**tree, **new, "metrics": None, "edits": None, "bad_records": None})


def _history_v1(entries: Any) -> list[HistoryEntry]:
    return _history_v2([{**entry, "reason": None} for entry in entries])


def _history_v2(entries: Any) -> list[HistoryEntry]:
    return [from_tree(HistoryEntry, entry) for entry in entries]


def _loader_tree(loader: LoaderRecord) -> dict[str, Any]:
    return {**vars(loader), "steps": None if loader.steps is None else vars(loader.steps)}


def pack_steps(parts: Sequence[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]) -> bytes:
    """`steps.bin`: the pairs (keys, bytes) of all loaders, little endian, one after the other.

    Args:
        parts: for each loader `keys uint64[k]` and `bytes uint64[k]`.
    """
    blocks = []
    for keys, values in parts:
        block = np.empty(len(keys), _STEP_PAIR)
        block["keys"], block["bytes"] = keys, values
        blocks.append(block.tobytes())
    return b"".join(blocks)


def unpack_steps(
    data: bytes, steps: StepRange, format: int = SNAPSHOT_FORMAT
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None]:
    """The digests of one loader: `keys uint64[count]`, and `bytes uint64[count]` or None if none were kept.

    Args:
        data: `steps.bin`.
        steps: which part of it.
        format: that of the record which names it; the file itself has no room for a number.

    Raises:
        ValueError: if `data` is shorter than the range.
    """
    return reader_of(format, _STEPS_READERS)(data, steps)


def _steps_v1(data: bytes, steps: StepRange) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None]:
    end = (steps.offset + steps.count) * _STEP_PAIR.itemsize
    if len(data) < end:
        raise ValueError(f"steps.bin has {len(data)} bytes, the record needs {end}")
    block = np.frombuffer(data, _STEP_PAIR, steps.count, steps.offset * _STEP_PAIR.itemsize)
    return block["keys"].copy(), block["bytes"].copy() if steps.has_bytes else None


def read_history(data: bytes, format: int = SNAPSHOT_FORMAT) -> list[HistoryEntry]:
    """The entries in a file of `history/`.

    Args:
        data: the file.
        format: that of the record which names it.

    Raises:
        ValueError: if it holds something else.
    """
    try:
        return reader_of(format, _HISTORY_READERS)(parse_json(data))
    except TypeError as error:
        raise ValueError(f"it holds no history: {error}") from error


def pack_processes(parts: Mapping[int, Mapping[str, Any]], process_count: int) -> bytes:
    """`processes.json`: for each process the encoded states of the modules whose state is its own."""
    return canonical_json(
        {
            "format": SNAPSHOT_FORMAT,
            "process_count": process_count,
            "parts": {str(index): dict(part) for index, part in parts.items()},
        }
    )


def process_parts(data: bytes) -> Mapping[str, Mapping[str, Any]]:
    """What `processes.json` holds: process index, in digits, -> module name -> encoded state.

    Raises:
        ValueError: if it holds something else.
    """
    tree = _object(data)
    return reader_of(tree.pop("format", None), _PROCESSES_READERS)(tree)


@dataclass(frozen=True, kw_only=True)
class _Processes:
    """The content of `processes.json`."""

    process_count: Positive
    parts: Mapping[str, Mapping[str, Any]]


def _processes_v1(tree: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    said = from_tree(_Processes, tree)
    if (
        said.process_count != len(said.parts)
        or not {str(i) for i in range(len(said.parts))} <= said.parts.keys()
    ):
        raise ValueError(f"it has parts of {len(said.parts)} processes, and says {said.process_count}")
    return said.parts


def read_states(data: bytes) -> Mapping[str, Any]:
    """What `state.json` holds: module name -> its state, as in `LoaderRecord.state`.

    Raises:
        ValueError: if it holds something else.
    """
    tree = _object(data)
    return reader_of(tree.get("format"), _STATES_READERS)(tree)


def _states_v2(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(states := tree.get("states"), dict):
        raise ValueError("it holds no states")
    return states


_RECORD_READERS: dict[int, Callable[[dict[str, Any]], Record]] = {1: _record_v1, 2: _record_v2}
_HISTORY_READERS: dict[int, Callable[[Any], list[HistoryEntry]]] = {1: _history_v1, 2: _history_v2}
_STATES_READERS: dict[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {2: _states_v2}
_STEPS_READERS = {1: _steps_v1, 2: _steps_v1}
_PROCESSES_READERS = {1: _processes_v1, 2: _processes_v1}
