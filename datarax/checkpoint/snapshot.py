"""Reading a run without writing to it: no lock, no manager.

A reader sees committed steps only, at any time, also while a writer is at work. Read next: `datarax.checkpoint.restore`, which
puts a snapshot back into modules and models.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from datarax.checkpoint.identity_reader import Comparable, comparable, parse_identity
from datarax.checkpoint.layout import (
    DATA_ITEM,
    MANIFEST_NAME,
    MODEL_ITEM,
    PROCESSES_NAME,
    RECORD_NAME,
    STATE_NAME,
    STEPS_NAME,
    RunLayout,
    local_directory,
    sha256_hex,
)
from datarax.checkpoint.manifest import Manifest, check_bytes, check_item
from datarax.checkpoint.model_item import LeafSpec
from datarax.checkpoint.orbax import read_model
from datarax.checkpoint.record import (
    HistoryEntry,
    Record,
    process_parts,
    read_history,
    read_states,
    unpack_steps,
)
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from datarax.core.tree import decode
from datarax.store.files import parse_json

PathLike = str | os.PathLike[str]
"""A path, or its text."""
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step of a run, read lazily: a committed one, or what the ledger keeps of one that retention has deleted."""

    layout: RunLayout
    """The run."""
    step: int
    """The step."""
    manifest: Manifest
    """What must be in it, byte for byte."""
    in_ledger: bool = False
    """Whether only the data item is left, in the ledger."""
    checked: bool = True
    """Whether what is read is held against the manifest; else the manifest is empty."""

    @staticmethod
    def open(run_directory: PathLike, step: int | None = None) -> Snapshot:
        """The snapshot of a committed step, by default the newest.

        Raises:
            SnapshotNotFoundError: if there is no such committed step.
            SnapshotDamagedError: if its manifest cannot be read or has changed.
        """
        layout = RunLayout(local_directory(run_directory))
        if step is None:
            step = max(layout.committed(), default=None)
        if step is None or not layout.is_committed(step):
            raise SnapshotNotFoundError(_not_found(layout, step))
        return _opened(layout, step)

    @staticmethod
    def of_ledger(run_directory: PathLike, step: int) -> Snapshot:
        """What the ledger keeps of a step that retention has deleted.

        Raises:
            SnapshotNotFoundError: if it is not there.
            SnapshotDamagedError: if its manifest cannot be read or has changed.
        """
        layout = RunLayout(local_directory(run_directory))
        if layout.store.stat(f"ledger/{step}") is None:
            raise SnapshotNotFoundError(f"step {step} of {layout.directory} is not in the ledger")
        if layout.store.stat(f"ledger/{step}/{MANIFEST_NAME}") is None:
            return Snapshot(layout, step, _no_manifest(step), in_ledger=True)
        return _opened(layout, step, in_ledger=True)

    @staticmethod
    def find(run_directory: PathLike, step: int) -> Snapshot:
        """The snapshot of a step, or what the ledger keeps of it; raises as `of_ledger`."""
        try:
            return Snapshot.open(run_directory, step)
        except SnapshotNotFoundError:
            # It never was there, or retention has moved it since it was listed.
            return Snapshot.of_ledger(run_directory, step)

    @staticmethod
    def salvage(run_directory: PathLike, step: int) -> Snapshot | None:
        """What can be read of a step whatever its manifest says, for whoever wants to say what is wrong with it.

        Returns:
            The step, committed or in the ledger; None if no record of it can be parsed.
        """
        layout = RunLayout(local_directory(run_directory))
        for kept in (False, True):
            found = Snapshot(layout, step, _no_manifest(step), kept, checked=False)
            with contextlib.suppress(OSError, ValueError):
                found._parsed_record()
                return found
        return None

    @property
    def directory(self) -> Path:
        """The directory of the step, as it is or was when it was committed."""
        return self.layout.step(self.step)

    @property
    def leaves(self) -> Sequence[LeafSpec] | None:
        """The recorded leaves of the model; None if the step holds no model."""
        return self.manifest.leaves

    @cached_property
    def record(self) -> Record:
        """`record.json`.

        Raises:
            SnapshotDamagedError: if it has changed or cannot be parsed.
        """
        with self._reading(RECORD_NAME):
            return self._parsed_record()

    @property
    def steps(self) -> Mapping[str, tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None]]:
        """For each loader that keeps them `(first_step, keys uint64[k], bytes uint64[k] or None)`.

        Raises:
            SnapshotDamagedError: if `steps.bin` has changed.
        """
        loaders = self.record.loaders.items()
        ranges = {name: loader.steps for name, loader in loaders if loader.steps is not None}
        with self._reading(STEPS_NAME):
            data = self._bytes(STEPS_NAME) if ranges else b""
            return {
                name: (steps.first_step, *unpack_steps(data, steps, self.record.format))
                for name, steps in ranges.items()
            }

    @property
    def history(self) -> list[HistoryEntry]:
        """The whole history of the run up to this step, oldest first.

        Raises:
            SnapshotDamagedError: if the file with its earlier part is missing or has changed.
        """
        record = self.record
        if record.earlier_history is None:
            return list(record.history)
        parse = partial(read_history, format=record.format)
        return [
            *_read_addressed(self.layout, self.layout.history(record.earlier_history), parse),
            *record.history,
        ]

    @property
    def identity(self) -> Any:
        """The identity tree that the record names. See `read_identity`."""
        return _read_addressed(self.layout, self.layout.identity(self.record.identity), parse_identity)

    def comparable(self, now: Mapping[str, Any], modules: Mapping[str, Any]) -> Comparable:
        """The identity that was recorded and today's, by the same rules: see `identity_reader.comparable`.

        Raises:
            SnapshotDamagedError: as `read_identity` does.
        """
        identities = {name: each.identity for name, each in modules.items() if hasattr(each, "state_format")}
        return comparable(self.identity, now, identities, self.made_with)

    @property
    def made_with(self) -> Mapping[str, Any]:
        """Versions and devices of the start that saved this; {} if that cannot be read."""
        try:
            start = self.layout.read(self.layout.starts / f"{self.record.start}.json")
            return dict(parse_json(start)["provenance"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def states(self, *, process_index: int = 0, process_count: int = 1) -> dict[str, Any]:
        """The decoded state of each data module.

        Raises:
            SnapshotDamagedError: if a file has changed.
            ValueError: if states of single processes were saved by another number of processes.
        """
        parts = self.process_parts()
        if parts and len(parts) != process_count:
            raise ValueError(
                f"the state of {', '.join(sorted(parts['0']))} belongs to single processes: it was saved by {len(parts)} "
                f"and can be restored by {len(parts)}, not by {process_count}"
            )
        return {name: self.state(name, process_index) for name in self.record.loaders}

    def state(self, name: str, process_index: int = 0) -> dict[str, Any]:
        """The state of one data module, of one process where each has its own; `recorded_state` of the module reads it.

        Raises:
            SnapshotDamagedError: if there is none, a file has changed, or it cannot be decoded.
        """
        loader = self.record.loaders.get(name)
        of_process = loader is not None and loader.scope == "process"
        elsewhere = loader is not None and loader.state is None
        file = PROCESSES_NAME if of_process else STATE_NAME if elsewhere else RECORD_NAME
        with self._reading(file):
            if of_process:
                state = self.process_parts()[str(process_index)].get(name)
            elif elsewhere:
                state = read_states(self._bytes(STATE_NAME)).get(name)
            else:
                state = None if loader is None else loader.state
            if loader is None or not loader.plain:
                state = decode(state)
            if not isinstance(state, dict):
                raise ValueError(f"holds no state of {name!r}")
            if loader is not None and loader.plain and type(state.get("format")) is not int:
                raise ValueError(f"the state of {name!r} has no format, which says what its fields mean")
            return state

    def process_parts(self) -> Mapping[str, Mapping[str, Any]]:
        """Process index, in digits, -> module name -> encoded state, where that is each process's own; {} if there is none.

        Raises:
            SnapshotDamagedError: if the file has changed or cannot be parsed.
        """
        if all(loader.scope != "process" for loader in self.record.loaders.values()):
            return {}
        with self._reading(PROCESSES_NAME):
            return process_parts(self._bytes(PROCESSES_NAME))

    def data_file(self, name: str) -> bytes:
        """The bytes of a file of the data item, as they were written.

        Raises:
            SnapshotDamagedError: if it is missing or has changed.
        """
        with self._reading(name):
            return self._bytes(name)

    def _bytes(self, name: str) -> bytes:
        data = self.layout.read(f"{self._data_key}/{name}")
        listed = self.manifest.items.get(DATA_ITEM)
        without_sums = self.in_ledger and listed is None  # the disk was full when the step was dropped
        if not self.checked or without_sums:
            return data
        problem = check_bytes(data, (listed or {}).get(name))
        if problem is not None:
            raise ValueError(problem)
        return data

    @property
    def _data_key(self) -> str:
        return f"ledger/{self.step}" if self.in_ledger else f"{self.step}/{DATA_ITEM}"

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """What goes wrong while a file of the data item is read is damage of that file."""
        try:
            yield
        except SnapshotDamagedError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            problem = f"{self._shown(name)}: {said}"
            raise (self.damaged([problem]) if self.checked else ValueError(problem)) from error

    def _shown(self, name: str) -> str:
        return f"{self._data_key}/{name}" if self.in_ledger else f"{DATA_ITEM}/{name}"

    def check(self, items: Sequence[str] | None = None, *, share: tuple[int, int] = (0, 1)) -> list[str]:
        """Compare everything on the disk with what was written.

        Args:
            items: which items; all by default.
            share: `(i, n)`: of the model's files only each n-th from the i-th on; n processes check them all together.

        Returns:
            One sentence for each file that is missing, changed or not listed; [] if the snapshot is good.
        """
        if self.in_ledger:
            return self._check_kept()
        problems = []
        if self.manifest.step != self.step:
            problems.append(f"{MANIFEST_NAME}: it is of step {self.manifest.step}")
        if DATA_ITEM not in self.manifest.items:
            problems.append(f"{MANIFEST_NAME}: it lists no data item")
        for name in self.manifest.items if items is None else items:
            part = share if name == MODEL_ITEM else (0, 1)
            problems += check_item(
                self.layout.store, f"{self.step}/{name}", self.manifest.items.get(name, {}), share=part
            )
        return problems or self._check_references()

    def model(self) -> dict[str, np.ndarray]:
        """All array and number leaves of the model by path, PRNG keys as their key data; {} without a model.

        Raises:
            SnapshotDamagedError: if the model cannot be read.
        """
        return dict(self.model_leaves(held_bytes=None))

    def model_leaves(self, *, held_bytes: int | None = 256 << 20) -> Iterator[tuple[str, np.ndarray]]:
        """The leaves of `model` one after the other; the model need not fit into memory.

        Args:
            held_bytes: so many are read at once, but at least one leaf; None: all.

        Raises:
            SnapshotDamagedError: if one cannot be read.
        """
        group: list[LeafSpec] = []
        size = 0
        for spec in (spec for spec in self.leaves or () if spec.stored):
            group.append(spec)
            size += _num_bytes(spec)
            if held_bytes is not None and size >= held_bytes:
                yield from self._read_group(group)
                group, size = [], 0
        yield from self._read_group(group)
        for spec in self.leaves or ():
            if not spec.stored and spec.shape is not None and spec.impl is None:
                yield spec.path, np.zeros(spec.shape, jnp.dtype(spec.dtype))

    def _read_group(self, specs: Sequence[LeafSpec]) -> Iterator[tuple[str, np.ndarray]]:
        arrays = self.read_model(dict.fromkeys((spec.path for spec in specs), None), specs) if specs else {}
        for spec in specs:
            yield spec.path, np.asarray(arrays.pop(spec.path))

    def read_model(
        self, shardings: Mapping[str, Any], specs: Sequence[LeafSpec] | None = None
    ) -> dict[str, Any]:
        """The stored leaves, all or some, with these shardings (None: as NumPy). See `orbax.read_model`.

        Raises:
            SnapshotDamagedError: if Orbax cannot read them.
        """
        directory = self.directory / MODEL_ITEM
        try:
            return read_model(directory, specs or self.leaves or (), shardings, some=bool(specs))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
            raise self.damaged([f"{MODEL_ITEM}: cannot be read ({type(error).__name__}: {first})"]) from error

    def damaged(self, problems: Sequence[str]) -> SnapshotDamagedError:
        """The error that says so.

        Raises:
            SnapshotNotFoundError: if the step has gone meanwhile: retention or a roll-back took it, it is not damaged.
        """
        if self.layout.store.stat(self._data_key if self.in_ledger else str(self.step)) is None:
            raise SnapshotNotFoundError(
                f"the snapshot of step {self.step} in {self.layout.directory} was removed while it was being read"
            )
        return damaged(self.layout, self.step, problems)

    def _parsed_record(self) -> Record:
        data = self._bytes(RECORD_NAME)
        if not self.checked:
            return Record.salvaged(data)
        record = Record.from_bytes(data)
        if record.step != self.step:
            raise ValueError(f"it is of step {record.step}")
        return record

    def _check_kept(self) -> list[str]:
        try:
            for name in self.manifest.items.get(DATA_ITEM, ()):
                self.data_file(name)
            assert self.record
        except SnapshotDamagedError as error:
            return list(error.problems)
        return []

    def _check_references(self) -> list[str]:
        try:
            record, parts = self.record, self.process_parts()
            assert self.steps is not None
            for name in record.loaders:
                self.state(name, min(map(int, parts), default=0))
        except SnapshotDamagedError as error:
            return list(error.problems)
        problems = []
        for path, parse in self._named_texts(record):
            try:
                read_addressed(self.layout, path, parse)
            except ValueError as error:
                problems.append(str(error))
        return problems

    def _named_texts(self, record: Record) -> Iterator[tuple[Path, Callable[[bytes], Any]]]:
        yield self.layout.identity(record.identity), parse_identity
        if record.config is not None:
            yield self.layout.config(record.config), bytes.decode
        if record.earlier_history is not None:
            yield self.layout.history(record.earlier_history), partial(read_history, format=record.format)


def _opened(layout: RunLayout, step: int, *, in_ledger: bool = False) -> Snapshot:
    place = "ledger/" if in_ledger else ""
    try:
        manifest = Manifest.from_bytes(layout.read(f"{place}{step}/{MANIFEST_NAME}"))
        return Snapshot(layout, step, manifest, in_ledger)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError) as error:
        problem = str(error)
    shown = f"{place}{step}/{MANIFEST_NAME}" if in_ledger else MANIFEST_NAME
    raise damaged(layout, step, [f"{shown}: {problem}"])


def _no_manifest(step: int) -> Manifest:
    return Manifest(step, {}, None, 0.0)


def _num_bytes(spec: LeafSpec) -> int:
    """About how large a stored leaf is in memory."""
    if spec.shape is None or spec.dtype is None:
        return 8
    # The data of a PRNG key are a few words.
    return math.prod(spec.shape) * (16 if spec.impl is not None else jnp.dtype(spec.dtype).itemsize)


def list_steps(run_directory: PathLike) -> list[int]:
    """The committed steps of a run, ascending; [] if there is no such run."""
    return RunLayout(local_directory(run_directory)).committed()


def ledger_steps(run_directory: PathLike) -> list[int]:
    """The steps that retention deleted and of which the data item is kept, ascending."""
    return RunLayout(local_directory(run_directory)).numbered("ledger")


def item_steps(run_directory: PathLike) -> list[int]:
    """The steps whose data item is there, committed or in the ledger, ascending; [] if there is no such run."""
    return sorted({*list_steps(run_directory), *ledger_steps(run_directory)})


def ledger_record(run_directory: PathLike, step: int) -> tuple[Record, bytes]:
    """The record and the `steps.bin` of a step in the ledger.

    Raises:
        SnapshotNotFoundError: if it is not there.
        SnapshotDamagedError: if it is not as it was written.
    """
    kept = Snapshot.of_ledger(run_directory, step)
    if problems := kept.check():
        raise kept.damaged(problems)
    return kept.record, kept.data_file(STEPS_NAME) if kept.steps else b""


def newest_good_step(run_directory: PathLike, *, below: int | None = None) -> int | None:
    """The newest committed step whose files are all as they were written, which are read; None if there is none.

    Args:
        run_directory: the run.
        below: look only at steps smaller than this.
    """
    for step in reversed(list_steps(run_directory)):
        if below is None or step < below:
            with contextlib.suppress(SnapshotDamagedError, SnapshotNotFoundError):
                if not Snapshot.open(run_directory, step).check():
                    return step
    return None


def read_identity(run_directory: PathLike, sha256: str) -> Any:
    """The identity tree with this digest, in today's form whatever version recorded it.

    Raises:
        SnapshotDamagedError: if the file is missing or has changed.
    """
    layout = RunLayout(local_directory(run_directory))
    return _read_addressed(layout, layout.identity(sha256), parse_identity)


def read_config(run_directory: PathLike, sha256: str) -> str:
    """The resolved run config with this digest, in TOML.

    Raises:
        SnapshotDamagedError: if the file is missing or has changed.
    """
    layout = RunLayout(local_directory(run_directory))
    return _read_addressed(layout, layout.config(sha256), bytes.decode)


def damaged(layout: RunLayout, step: int, problems: Sequence[str]) -> SnapshotDamagedError:
    """The error for a step that fails its checks. No other step is looked at: that would read whole models."""
    earlier = max((other for other in layout.committed() if other < step), default=None)
    advice = "there is no earlier one" if earlier is None else f"the one before it is of step {earlier}"
    return SnapshotDamagedError(
        f"the snapshot of step {step} in {layout.directory} is damaged and was not used; {advice}",
        step=step,
        problems=problems,
        earlier_step=earlier,
    )


def read_addressed(layout: RunLayout, path: Path, parse: Callable[[bytes], T]) -> T:
    """What a file that is named by its content holds.

    Raises:
        ValueError: naming the file, if it is missing, has changed, or cannot be parsed.
    """
    try:
        data = layout.read(path)
        if sha256_hex(data) != path.stem:
            raise ValueError("its content has changed since it was written")
        return parse(data)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"{path.parent.name}/{path.name}: {problem}")


def _read_addressed(layout: RunLayout, path: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return read_addressed(layout, path, parse)
    except ValueError as error:
        committed = layout.committed()
        raise SnapshotDamagedError(
            f"a file that the snapshots of the run {layout.directory} name is missing or damaged",
            step=committed[-1] if committed else -1,
            problems=[str(error)],
            earlier_step=None,
        ) from None


def _not_found(layout: RunLayout, step: int | None) -> str:
    committed = layout.committed()
    asked = "a snapshot" if step is None else f"the snapshot of step {step}"
    have = f"it has {', '.join(map(str, committed))}" if committed else "it has none"
    return f"{asked} was asked for in {layout.directory}, but {have}"
