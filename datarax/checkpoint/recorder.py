"""What a writer says about its snapshots: identity, config and history, each stored once before a record names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datarax.checkpoint.compose import Modules, fix_data, identities, position_of
from datarax.checkpoint.history import INLINE_ENTRIES, Lineage, entries_to_bytes
from datarax.checkpoint.layout import RunLayout, sha256_hex, write_addressed
from datarax.checkpoint.model_item import flatten_model
from datarax.checkpoint.record import Record
from datarax.checkpoint.restore import Restored
from datarax.checkpoint.saver import SaveJob
from datarax.core.errors import ConfigError, InputError
from datarax.core.fingerprint import canonical_json
from datarax.core.protocols import KeepsStepDigests


class Recorder:
    """Makes the jobs of one writer.

    Args:
        layout: the run.
        identity: identity tree of each module, or None to ask the modules.
        config_text: the resolved run config, or None.
        process_index: index of this process.
        process_count: number of processes.

    Raises:
        ConfigError: if the identity has no canonical JSON.
    """

    def __init__(
        self,
        layout: RunLayout,
        identity: Mapping[str, Any] | None,
        config_text: str | None,
        *,
        process_index: int,
        process_count: int,
    ) -> None:
        self.identity = None if identity is None else dict(identity)
        self._layout = layout
        self._process_index = process_index
        self._process_count = process_count
        self._config_bytes = None if config_text is None else config_text.encode()
        self._config = None if self._config_bytes is None else sha256_hex(self._config_bytes)
        self._identity_bytes = None if identity is None else _checked_json(identity)
        self._identified: tuple[Modules, str] | None = None
        self._lineage = Lineage()

    def store_texts(self) -> None:
        """Store what is known before the first snapshot.

        Raises:
            OSError: if it cannot be written.
        """
        if self._config_bytes is not None and self._config is not None:
            write_addressed(self._layout.config(self._config), self._config_bytes)
        if self._identity_bytes is not None:
            write_addressed(self._layout.identity(sha256_hex(self._identity_bytes)), self._identity_bytes)

    def continue_from(self, restored: Restored, modules: Modules) -> None:
        """Later records continue the history of a snapshot; an allowed change of identity enters it."""
        self._lineage = Lineage(list(restored.history))
        if restored.identity_changed:
            positions = {name: position_of(module.get_state()) for name, module in modules.items()}
            self._lineage.change = (restored.step, positions)

    def begin_anew(self) -> None:
        """Later records belong to no earlier one."""
        self._lineage = Lineage()

    def job(self, step: int, model: Any, modules: Modules, *, previous: int | None, start: int) -> SaveJob:
        """Read everything that the snapshot of `step` will hold.

        Raises:
            InputError: if a model leaf cannot be stored exactly.
            EncodingError: if a state cannot be encoded.
            SaveError: if the record is too large.
            OSError: if the identity or the history cannot be stored.
        """
        leaves, arrays = (None, {}) if model is None else flatten_model(model)
        data = fix_data(modules)
        identity = self._identity_digest(modules)
        entries = self._lineage.advanced(identity, self._config, data.positions)
        record = Record(
            step=step,
            previous=previous,
            identity=identity,
            config=self._config,
            start=start,
            history=entries[-INLINE_ENTRIES:],
            earlier_history=self._store_earlier(entries[:-INLINE_ENTRIES]),
            loaders=data.loaders,
        )
        return SaveJob(
            step=step,
            files=data.files(record, process_index=self._process_index, process_count=self._process_count),
            model=arrays or None,
            leaves=leaves,
            listeners=[module for module in modules.values() if isinstance(module, KeepsStepDigests)],
        )

    def _store_earlier(self, entries: list[Any]) -> str | None:
        if not entries:
            return None
        data = entries_to_bytes(entries)
        sha256 = sha256_hex(data)
        write_addressed(self._layout.history(sha256), data)
        return sha256

    def _identity_digest(self, modules: Modules) -> str:
        if self.identity is not None and self._identity_bytes is not None:
            unknown = sorted(set(modules) - set(self.identity))
            if unknown:
                raise InputError(
                    f"no identity was given for the data module {unknown[0]!r}; there is one for "
                    f"{', '.join(sorted(self.identity)) or 'none'}"
                )
            return sha256_hex(self._identity_bytes)
        # Asked once for each set of modules: the identity of a module does not change while it lives.
        if self._identified is None or not _same_modules(self._identified[0], modules):
            data = _checked_json(identities(modules))
            write_addressed(self._layout.identity(sha256_hex(data)), data)
            self._identified = (modules, sha256_hex(data))
        return self._identified[1]


def _same_modules(before: Modules, now: Modules) -> bool:
    return before.keys() == now.keys() and all(before[name] is now[name] for name in now)


def _checked_json(identity: Mapping[str, Any]) -> bytes:
    try:
        return canonical_json(identity)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the identity cannot be recorded: {error}") from error
