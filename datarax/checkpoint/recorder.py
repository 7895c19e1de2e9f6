"""What a writer says about its snapshots: identity, config and history, each stored once before a record names it."""

from __future__ import annotations

import contextlib
import os
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from datarax.checkpoint.compose import FixedData, Modules, fix_data, identities, merge_data, position_of
from datarax.checkpoint.global_arrays import make_global
from datarax.checkpoint.layout import RunLayout, sha256_hex
from datarax.checkpoint.model_item import LeafSpec, flatten_model, held_alone
from datarax.checkpoint.record import HistoryEntry, Record
from datarax.checkpoint.restore import Restored
from datarax.core.errors import ConfigError, InputError, SaveError
from datarax.core.tree import canonical_json, leaves
from datarax.multihost import check_agreement
from datarax.store.files import make_directory, read_file, write_new

INLINE_ENTRIES = 4
"""How many entries of the history a record holds itself, at about 230 bytes each; the others lie in a file that it names."""

_READERS = 16
"""Files of other processes that are read at once: a network file system needs a millisecond for each."""


@dataclass(frozen=True)
class Fixed:
    """What one process brings to a snapshot; later changes of model and modules do not reach it."""

    data: FixedData
    """Of the data modules."""
    leaves: Sequence[LeafSpec] | None
    """All leaves of the model, or None without a model."""
    arrays: Mapping[str, jax.Array | np.ndarray]
    """The stored leaves by path."""
    file: Path | None = None
    """Where process 0 finds `data`, on the others."""
    part: Mapping[str, Any] = field(default_factory=dict)
    """What process 0 is told, values with JSON: about a kilobyte, however many steps and however large the states."""

    def remove_file(self) -> None:
        """Nobody reads it any more; whoever cannot delete it leaves that to the next start."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()


class Recorder:
    """Makes the records of one run.

    Args:
        layout: the run.
        identity: identity tree of each module, or None to ask the modules.
        config_text: the resolved run config, or None.
        notes: sentences that a person should see are added to it.

    Raises:
        ConfigError: if the identity has no canonical JSON.
    """

    def __init__(
        self,
        layout: RunLayout,
        identity: Mapping[str, Any] | None,
        config_text: str | None,
        notes: list[str],
    ) -> None:
        self.identity = None if identity is None else dict(identity)
        self._layout = layout
        self._config_bytes = None if config_text is None else config_text.encode()
        self._config = None if self._config_bytes is None else sha256_hex(self._config_bytes)
        self._identity_bytes = None if identity is None else _checked_json(identity)
        self._identified: tuple[Modules, bytes] | None = None
        self._stored: set[Path] = set()
        self._notes = notes
        self._history: list[HistoryEntry] = []
        self._change: dict[str, Any] | None = None
        """Place and reason of a change of the identity that no record holds yet."""

    def store_texts(self) -> None:
        """Store what is known before the first snapshot.

        Raises:
            OSError: if it cannot be written.
        """
        self._store_config()
        if self._identity_bytes is not None:
            self._store_identity({})

    def continue_from(self, restored: Restored, modules: Modules) -> None:
        """Later records continue the history of a snapshot; an allowed change of identity enters it, and other rules do."""
        self._history, self._change = list(restored.history), None
        if restored.reason is not None:
            positions = {name: position_of(module.get_state()) for name, module in modules.items()}
            self._change = {"from_step": restored.step, "positions": positions, "reason": restored.reason}

    def begin_anew(self) -> None:
        """Later records belong to no earlier one."""
        self._history, self._change = [], None

    def facts(self) -> dict[str, Any]:
        """What all processes of a run must say alike before it begins, field by field."""
        try:
            config = tomllib.loads((self._config_bytes or b"").decode())
        except tomllib.TOMLDecodeError:
            config = {}  # the digest of the text below tells
        return {
            **_fields("identity", self.identity or {}),
            **_fields("config", config),
            "the text of the config": self._config,
        }

    def fix(self, step: int, model: Any, modules: Modules, *, process: int | None) -> Fixed:
        """Read everything of this process that the snapshot of `step` will hold.

        What only process 0 needs to know of another process lies in a file, not in the exchange: with thousands of processes it
        is too much for the one that all of them talk to.

        Args:
            step: the step.
            model: the model, or None.
            modules: the data modules by name.
            process: the index of this process; None if it is the only one.

        Raises:
            InputError: if a model leaf cannot be stored exactly.
            EncodingError: if a state cannot be encoded.
            SaveError: if the file cannot be written.
        """
        held = None
        if model is not None and process is not None:
            held, model = held_alone(model), make_global(model)
        leaves, arrays = (None, {}) if model is None else flatten_model(model)
        data = fix_data(modules, alone=process is None)
        fixed = Fixed(data, leaves, arrays)
        if process is not None:
            facts = {**self._facts_of(step, modules, leaves, held), **data.facts()}
            fixed = replace(fixed, part={"facts": facts})
        return self._with_file(fixed, process) if process else fixed

    def _with_file(self, fixed: Fixed, process: int) -> Fixed:
        content = fixed.data.to_bytes()
        # A name that no save has used before: of such a one a network file system may still know what it was.
        file = self._layout.parts / f"{process}-{uuid.uuid4().hex}.bin"
        try:
            make_directory(file.parent)
            write_new(file, content)
        except OSError as error:
            raise SaveError(
                f"what process 0 needs of this process cannot be written to {file.parent}: {error.strerror}"
            ) from error
        said = {"name": file.name, "size": len(content), "sha256": sha256_hex(content)}
        return replace(fixed, file=file, part={**fixed.part, "file": said})

    def _facts_of(
        self, step: int, modules: Modules, leaves: Sequence[LeafSpec] | None, held: str | None
    ) -> dict[str, Any]:
        described = None if leaves is None else canonical_json([leaf.to_tree() for leaf in leaves])
        return {
            "the step": step,
            "the identity": sha256_hex(self._identity_of(modules)),
            "what each process holds of the model for itself": held,
            "the leaves of the model": None if described is None else sha256_hex(described),
        }

    def files(
        self,
        modules: Modules,
        own: Fixed,
        parts: Sequence[Mapping[str, Any]],
        *,
        step: int,
        previous: int | None,
        start: int,
    ) -> dict[str, bytes]:
        """The data item of all processes; stores what the record names.

        Args:
            modules: those of this process, which is process 0.
            own: what `fix` gave here.
            parts: `Fixed.part` of all processes.
            step: the step.
            previous: the newest committed step.
            start: number of this start.

        Raises:
            DisagreementError: if the parts do not belong together.
            SaveError: if the file of another process is not as it was written, or the record is too large.
            OSError: if the identity or the history cannot be stored.
        """
        others: list[bytes] = []
        if len(parts) > 1:
            check_agreement([part["facts"] for part in parts], f"the save of step {step}")
            with ThreadPoolExecutor(_READERS) as pool:
                others += pool.map(self._read_part, range(1, len(parts)), parts[1:])
        data = merge_data(modules, own.data, others)
        identity = self._store_identity(modules)
        self._store_config()
        entries, change = list(self._history), self._change
        if not entries:
            # What matters of the positions is only which modules have one.
            begin = {name: None if position is None else 0 for name, position in own.data.positions.items()}
            change = {"from_step": 0, "positions": begin, "reason": None}
        if change is not None:
            entries.append(HistoryEntry(identity=identity, config=self._config, **change))
        record = Record(
            step=step,
            previous=previous,
            identity=identity,
            config=self._config,
            start=start,
            history=entries[-INLINE_ENTRIES:],
            earlier_history=self._store_earlier(entries[:-INLINE_ENTRIES]),
            loaders=data.loaders,
            metrics=None,
            edits=None,
            bad_records=None,
        )
        return {**record.to_files(), **data.files}

    def _read_part(self, process: int, part: Mapping[str, Any]) -> bytes:
        said = part["file"]
        path = self._layout.parts / said["name"]
        try:
            content = read_file(path, said["size"], root=self._layout.directory)
        except OSError as error:
            raise SaveError(
                f"{path}, written by process {process}, cannot be read: {error.strerror}"
            ) from error
        if len(content) != said["size"] or sha256_hex(content) != said["sha256"]:
            raise SaveError(
                f"{path} does not hold the {said['size']} bytes that process {process} wrote: it has {len(content)} bytes, "
                f"SHA-256 {sha256_hex(content)}"
            )
        return content

    def _store_earlier(self, entries: list[Any]) -> str | None:
        if not entries:
            return None
        data = canonical_json([vars(entry) for entry in entries])
        sha256 = sha256_hex(data)
        self._store(self._layout.history(sha256), data)
        return sha256

    def _store_identity(self, modules: Modules) -> str:
        data = self._identity_of(modules)
        sha256 = sha256_hex(data)
        self._store(self._layout.identity(sha256), data)
        return sha256

    def _store_config(self) -> None:
        if self._config_bytes is not None and self._config is not None:
            self._store(self._layout.config(self._config), self._config_bytes)

    def _store(self, path: Path, data: bytes) -> None:
        """Sees to it that a file named by its content is there; one that is gone since, or damaged, is written again."""
        if path in self._stored and self._layout.has(path):
            return
        was_there = os.path.lexists(path)
        if self._layout.write_addressed(path, data) and (was_there or path in self._stored):
            fault = "damaged" if was_there else "gone"
            self._notes.append(
                f"{path} was {fault} and has been written again: what a snapshot names must be there"
            )
        self._stored.add(path)

    def _identity_of(self, modules: Modules) -> bytes:
        if self.identity is not None and self._identity_bytes is not None:
            unknown = sorted(set(modules) - set(self.identity))
            if unknown:
                raise InputError(
                    f"no identity was given for the data module {unknown[0]!r}; there is one for "
                    f"{', '.join(sorted(self.identity)) or 'none'}"
                )
            return self._identity_bytes
        # Asked once for each set of modules: the identity of a module does not change while it lives.
        if self._identified is None or not _same_modules(self._identified[0], modules):
            self._identified = (modules, _checked_json(identities(modules)))
        return self._identified[1]


def _fields(path: str, tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their dotted paths; what has no JSON as text."""
    return {
        at: leaf if leaf is None or isinstance(leaf, (bool, int, float, str)) else str(leaf)
        for at, leaf in leaves(tree, path)
    }


def _same_modules(before: Modules, now: Modules) -> bool:
    return before.keys() == now.keys() and all(before[name] is now[name] for name in now)


def _checked_json(identity: Mapping[str, Any]) -> bytes:
    try:
        return canonical_json(identity)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the identity cannot be recorded: {error}") from error
