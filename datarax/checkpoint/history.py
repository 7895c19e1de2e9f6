"""From which step on which identity held: how a deliberate change stays provable.

A record holds the newest entries itself and names a file with the earlier ones, so that it stays small however often a run
is changed on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datarax.checkpoint.record import HistoryEntry
from datarax.core.tree import canonical_json

INLINE_ENTRIES = 4
"""How many entries a record holds itself, at about 230 bytes each."""


@dataclass
class Lineage:
    """The history that the next record of this writer gets."""

    entries: list[HistoryEntry] = field(default_factory=list)
    change: Mapping[str, Any] | None = None
    """`from_step`, `positions` and `reason` of a change of the identity that no record holds yet."""

    def advanced(
        self, identity: str, config: str | None, positions: Mapping[str, int | None]
    ) -> list[HistoryEntry]:
        """The entries of a record that is saved under this identity.

        Args:
            identity: digest of the identity tree.
            config: digest of the config.
            positions: present position of each module; what matters is only which of them have one.
        """
        if not self.entries:
            begin = {name: None if position is None else 0 for name, position in positions.items()}
            return [HistoryEntry(from_step=0, identity=identity, config=config, positions=begin, reason=None)]
        if self.change is None:
            return list(self.entries)
        return [*self.entries, HistoryEntry(identity=identity, config=config, **self.change)]


def entries_to_bytes(entries: Sequence[HistoryEntry]) -> bytes:
    """What `history/<sha256>.json` holds; `record.read_history` reads it."""
    return canonical_json([vars(entry) for entry in entries])
