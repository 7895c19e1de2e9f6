"""Reading a run without writing to it: no lock, no manager.

A reader sees committed steps only, at any time, also while a writer is at work. Read next: `datarax.checkpoint.restore`, which
puts a snapshot back into modules and models.
"""

from __future__ import annotations

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

from datarax.checkpoint.handler import read_model
from datarax.checkpoint.identity_reader import parse_identity
from datarax.checkpoint.layout import (
    DATA_ITEM,
    MANIFEST_NAME,
    MODEL_ITEM,
    PROCESSES_NAME,
    RECORD_NAME,
    STEPS_NAME,
    RunLayout,
    local_directory,
    sha256_hex,
)
from datarax.checkpoint.manifest import Manifest, check_bytes, check_item
from datarax.checkpoint.model_item import LeafSpec
from datarax.checkpoint.record import (
    HistoryEntry,
    Record,
    process_parts,
    read_history,
    unpack_processes,
    unpack_steps,
)
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from datarax.core.tree import decode

PathLike = str | os.PathLike[str]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One committed step, read lazily; nothing is checked until it is asked for."""

    layout: RunLayout
    step: int
    manifest: Manifest

    @staticmethod
    def open(run_directory: PathLike, step: int | None = None) -> Snapshot:
        """The snapshot of a step, by default the newest.

        Raises:
            SnapshotNotFoundError: if there is no such committed step.
            SnapshotDamagedError: if its manifest cannot be read or has changed.
        """
        layout = RunLayout(local_directory(run_directory))
        committed = layout.committed()
        if step is None and committed:
            step = committed[-1]
        if step is None or step not in committed:
            raise SnapshotNotFoundError(_not_found(layout, step, committed))
        manifest, problem = _read_manifest(layout, step)
        if manifest is None:
            raise damaged(layout, step, [problem])
        return Snapshot(layout, step, manifest)

    @staticmethod
    def open_or_tell(run_directory: PathLike, step: int) -> Snapshot | str:
        """The snapshot of a step, or what is wrong with its manifest. No other step is looked at, as `open` does for its error.

        Raises:
            SnapshotNotFoundError: if there is no such committed step.
        """
        layout = RunLayout(local_directory(run_directory))
        if not os.path.lexists(layout.manifest(step)):
            raise SnapshotNotFoundError(_not_found(layout, step, layout.committed()))
        manifest, problem = _read_manifest(layout, step)
        return problem if manifest is None else Snapshot(layout, step, manifest)

    @property
    def directory(self) -> Path:
        """The directory of the step."""
        return self.layout.step(self.step)

    @property
    def leaves(self) -> Sequence[LeafSpec] | None:
        """The recorded leaves of the model; None if the step holds no model."""
        return self.manifest.leaves

    @cached_property
    def record(self) -> Record:
        """`record.json`, checked.

        Raises:
            SnapshotDamagedError: if it has changed or cannot be parsed.
        """
        try:
            return self._parsed_record()
        except SnapshotDamagedError:
            raise
        except ValueError as error:
            raise self.damaged([f"{DATA_ITEM}/{RECORD_NAME}: {error}"]) from error

    @property
    def steps(self) -> Mapping[str, tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64] | None]]:
        """For each loader that keeps them `(first_step, keys uint64[k], bytes uint64[k] or None)`.

        Raises:
            SnapshotDamagedError: if `steps.bin` has changed.
        """
        ranges = {
            name: loader.steps for name, loader in self.record.loaders.items() if loader.steps is not None
        }
        if not ranges:
            return {}
        data = self.data_file(STEPS_NAME)
        format = self.record.format
        return {
            name: (steps.first_step, *unpack_steps(data, steps, format)) for name, steps in ranges.items()
        }

    @property
    def history(self) -> list[HistoryEntry]:
        """The whole history of the run up to this step, oldest first.

        Raises:
            SnapshotDamagedError: if the file with its earlier part is missing or has changed.
        """
        return run_history(self.layout.directory, self.record)

    @property
    def identity(self) -> Any:
        """The identity tree that the record names. See `read_identity`."""
        return read_identity(self.layout.directory, self.record.identity)

    def states(self, *, process_index: int = 0, process_count: int = 1) -> dict[str, Any]:
        """The decoded state of each data module.

        Raises:
            SnapshotDamagedError: if a file has changed.
            ValueError: if states of single processes were saved by another number of processes.
        """
        loaders = self.record.loaders
        states = {name: decode(loader.state) for name, loader in loaders.items() if loader.scope == "global"}
        own = [name for name, loader in loaders.items() if loader.scope == "process"]
        if own:
            part = unpack_processes(self.data_file(PROCESSES_NAME), process_index, process_count)
            if missing := sorted(set(own) - part.keys()):
                raise self.damaged([f"{DATA_ITEM}/{PROCESSES_NAME}: holds no state of {missing[0]!r}"])
            states |= {name: decode(part[name]) for name in own}
        return states

    def process_parts(self) -> Mapping[str, Mapping[str, Any]]:
        """Process index, in digits, -> module name -> encoded state, where that is each process's own; {} if there is none.

        Raises:
            SnapshotDamagedError: if the file has changed or cannot be parsed.
        """
        if all(loader.scope != "process" for loader in self.record.loaders.values()):
            return {}
        try:
            return process_parts(self.data_file(PROCESSES_NAME))
        except SnapshotDamagedError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise self.damaged([f"{DATA_ITEM}/{PROCESSES_NAME}: {error}"]) from error

    def data_file(self, name: str) -> bytes:
        """The bytes of a file of the data item, as they were written.

        Raises:
            SnapshotDamagedError: if it is missing or has changed.
        """
        shown = f"{DATA_ITEM}/{name}"
        try:
            data = self.layout.read(self.directory / DATA_ITEM / name)
        except OSError as error:
            raise self.damaged([f"{shown}: cannot be read ({error.strerror})"]) from error
        problem = check_bytes(shown, data, self.manifest.items.get(DATA_ITEM, {}).get(name))
        if problem is not None:
            raise self.damaged([problem])
        return data

    def check(self, items: Sequence[str] | None = None, *, share: tuple[int, int] = (0, 1)) -> list[str]:
        """Compare everything on the disk with what was written.

        Args:
            items: which items; all by default.
            share: `(i, n)`: of the model's files only each n-th from the i-th on; n processes check them all together.

        Returns:
            One sentence for each file that is missing, changed or not listed; [] if the snapshot is good.
        """
        problems = (
            [] if self.manifest.step == self.step else [f"manifest.json: it is of step {self.manifest.step}"]
        )
        if DATA_ITEM not in self.manifest.items:
            problems.append("manifest.json: it lists no data item")
        for name in self.manifest.items if items is None else items:
            part = share if name == MODEL_ITEM else (0, 1)
            problems += check_item(
                self.directory / name,
                self.manifest.items.get(name, {}),
                share=part,
                root=self.layout.directory,
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
        arrays = self._read(specs, dict.fromkeys((spec.path for spec in specs), None), some=True)
        for spec in specs:
            yield spec.path, np.asarray(arrays.pop(spec.path))

    def read_model(self, shardings: Mapping[str, Any]) -> dict[str, Any]:
        """The stored leaves with these shardings (None: as NumPy). See `handler.read_model`.

        Raises:
            SnapshotDamagedError: if Orbax cannot read them.
        """
        return self._read(self.leaves or (), shardings)

    def _read(
        self, specs: Sequence[LeafSpec], shardings: Mapping[str, Any], *, some: bool = False
    ) -> dict[str, Any]:
        try:
            return read_model(self.directory / MODEL_ITEM, specs, shardings, some=some)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0].partition(" [tensorstore_spec")[0]
            raise self.damaged([f"{MODEL_ITEM}: cannot be read ({type(error).__name__}: {first})"]) from error

    def damaged(self, problems: Sequence[str]) -> SnapshotDamagedError:
        """The error that says so, with the newest good step.

        Raises:
            SnapshotNotFoundError: if the step has gone meanwhile: retention or a roll-back took it, it is not damaged.
        """
        if not self.directory.exists():
            raise SnapshotNotFoundError(
                f"the snapshot of step {self.step} in {self.layout.directory} was removed while it was being read"
            )
        return damaged(self.layout, self.step, problems)

    def _parsed_record(self) -> Record:
        record = Record.from_bytes(self.data_file(RECORD_NAME))
        if record.step != self.step:
            raise ValueError(f"it is of step {record.step}")
        return record

    def _check_references(self) -> list[str]:
        # Never through `damaged`, which asks the other steps whether they are good: they would ask this one.
        shown = f"{DATA_ITEM}/{RECORD_NAME}"
        try:
            record = self._parsed_record()
            shown = DATA_ITEM
            for loader in record.loaders.values():
                if loader.steps is not None:
                    unpack_steps(self.data_file(STEPS_NAME), loader.steps, record.format)
                if loader.scope == "global":
                    decode(loader.state)
            if any(loader.scope == "process" for loader in record.loaders.values()):
                shown = f"{DATA_ITEM}/{PROCESSES_NAME}"
                process_parts(self.data_file(PROCESSES_NAME))
        except SnapshotDamagedError as error:
            return list(error.problems)
        except (ValueError, KeyError, TypeError) as error:
            return [f"{shown}: {error}"]
        layout, problems = self.layout, []
        parts: list[tuple[Callable[[str], Path], str | None, Callable[[bytes], Any]]] = [
            (layout.identity, record.identity, parse_identity),
            (layout.config, record.config, bytes.decode),
            (layout.history, record.earlier_history, partial(read_history, format=record.format)),
        ]
        for path, sha256, parse in parts:
            try:
                if sha256 is not None:
                    read_addressed(layout, path(sha256), parse)
            except ValueError as error:
                problems.append(str(error))
        return problems


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
    ledger = RunLayout(local_directory(run_directory) / "ledger")
    return ledger.numbered() if ledger.directory.is_dir() else []


def ledger_record(run_directory: PathLike, step: int) -> tuple[Record, bytes]:
    """The record and the `steps.bin` of a step in the ledger.

    Raises:
        SnapshotNotFoundError: if it is not there.
        SnapshotDamagedError: if it cannot be parsed.
    """
    layout = RunLayout(local_directory(run_directory))
    directory = layout.ledger(step)
    if not os.path.lexists(directory):
        raise SnapshotNotFoundError(f"step {step} of {layout.directory} is not in the ledger")
    try:
        names = {RECORD_NAME, STEPS_NAME, PROCESSES_NAME, MANIFEST_NAME} & set(os.listdir(directory))
        files = {name: layout.read(directory / name) for name in names}
        problems = _check_ledger(files)
        if problems:
            raise damaged(layout, step, [f"ledger/{step}/{problem}" for problem in problems])
        return Record.from_bytes(files[RECORD_NAME]), files.get(STEPS_NAME, b"")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, SnapshotDamagedError):
            raise
        raise damaged(layout, step, [f"ledger/{step}/{RECORD_NAME}: {error}"]) from error


def _check_ledger(files: Mapping[str, bytes]) -> list[str]:
    if MANIFEST_NAME not in files:  # the disk was full when the step was dropped
        return []
    try:
        listed = Manifest.from_bytes(files[MANIFEST_NAME]).items[DATA_ITEM]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST_NAME}: {error}"]
    missing = [f"{name}: is missing" for name in listed if name not in files]
    found = [
        check_bytes(name, data, listed.get(name)) for name, data in files.items() if name != MANIFEST_NAME
    ]
    return missing + [problem for problem in found if problem is not None]


def newest_good_step(run_directory: PathLike, *, below: int | None = None) -> int | None:
    """The newest committed step whose files are all as they were written; None if there is none.

    Args:
        run_directory: the run.
        below: look only at steps smaller than this.
    """
    layout = RunLayout(local_directory(run_directory))
    candidates = [step for step in reversed(layout.committed()) if below is None or step < below]
    return next((step for step in candidates if _is_good(layout, step)), None)


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


def run_history(run_directory: PathLike, record: Record) -> list[HistoryEntry]:
    """The whole history of a run up to a record, oldest first.

    Raises:
        SnapshotDamagedError: if the file with its earlier part is missing or has changed.
    """
    sha256 = record.earlier_history
    if sha256 is None:
        return list(record.history)
    layout = RunLayout(local_directory(run_directory))
    parse = partial(read_history, format=record.format)
    return [*_read_addressed(layout, layout.history(sha256), parse), *record.history]


def damaged(layout: RunLayout, step: int, problems: Sequence[str]) -> SnapshotDamagedError:
    """The error for a committed step that fails its checks."""
    others = [other for other in reversed(layout.committed()) if other != step]
    good = next((other for other in others if _is_good(layout, other)), None)
    advice = f"step {good} is the newest good one" if good is not None else "there is no good step"
    return SnapshotDamagedError(
        f"the snapshot of step {step} in {layout.directory} is damaged and was not used; {advice}",
        step=step,
        problems=problems,
        newest_good_step=good,
    )


def _is_good(layout: RunLayout, step: int) -> bool:
    manifest, _ = _read_manifest(layout, step)
    return manifest is not None and not Snapshot(layout, step, manifest).check()


def _read_manifest(layout: RunLayout, step: int) -> tuple[Manifest | None, str]:
    try:
        return Manifest.from_bytes(layout.read(layout.manifest(step))), ""
    except OSError as error:
        return None, f"manifest.json: cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError) as error:
        return None, f"manifest.json: {error}"


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
            newest_good_step=None,
        ) from None


def _not_found(layout: RunLayout, step: int | None, committed: Sequence[int]) -> str:
    asked = "a snapshot" if step is None else f"the snapshot of step {step}"
    have = f"it has {', '.join(map(str, committed))}" if committed else "it has none"
    return f"{asked} was asked for in {layout.directory}, but {have}"
