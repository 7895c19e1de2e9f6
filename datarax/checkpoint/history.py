"""From which step on which identity held: how a deliberate change stays provable.

A record holds the newest entries itself and names a file with the earlier ones, so that it stays small however often a run
is changed on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from datarax.checkpoint.record import HistoryEntry
from datarax.core.tree import canonical_json

INLINE_ENTRIES = 4
"""How many entries a record holds itself, at about 230 bytes each."""


@dataclass
class Lineage:
    """The history that the next record of this writer gets."""

    entries: list[HistoryEntry] = field(default_factory=list)
    change: tuple[int, Mapping[str, int | None]] | None = None
    """`(from_step, positions)` of an identity change that no record holds yet."""
    reason: str | None = None
    """Of that change: see `HistoryEntry.reason`."""

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
            return [HistoryEntry(from_step=0, identity=identity, config=config, positions=begin)]
        if self.change is None:
            return list(self.entries)
        from_step, at = self.change
        return [
            *self.entries,
            HistoryEntry(
                from_step=from_step, identity=identity, config=config, positions=at, reason=self.reason
            ),
        ]


def entries_to_bytes(entries: Sequence[HistoryEntry]) -> bytes:
    """What `history/<sha256>.json` holds; `record.read_history` reads it."""
    return canonical_json([entry.to_tree() for entry in entries])
