"""How much the training loop has received, as a value, and how the variables of a loader show it.

`Delivered` is the state. `Shown` is where NNX sees it: setting a variable costs 3 µs and more, and eight of them would be
a tenth of a small batch, so nothing is written at a hand-over. The variables hold content that looks into a `Shown` when
asked. Whoever writes a variable, NNX included, takes that content out of it, and the loader notices. Knows no variables.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from datarax.core.variables import looked_up
from datarax.order import Digest, Schedule

_WRAP = (1 << 64) - 1


class Delivered(NamedTuple):
    """What the training loop has received so far. Plain Python ints: exact at any size."""

    idx: int
    """Batches handed over; the step of the next batch."""
    position: int
    """Global rows handed over; the first slot of the next batch."""
    applied: int
    """Rows handed over that count here."""
    skipped: int
    """Rows that a stage left out and that count here."""
    rows: int
    """Rows in the digest; the three that follow are those of `Digest`, flat because a batch makes one object, not two."""
    keys: int
    hashed: int | None

    @classmethod
    def of(cls, idx: int, position: int, applied: int, skipped: int, digest: Digest) -> Delivered:
        """With the digest as a whole."""
        return cls(idx, position, applied, skipped, digest.rows, digest.keys, digest.bytes)

    @property
    def digest(self) -> Digest:
        """Digest of the rows handed over that count here."""
        return Digest(self.rows, self.keys, self.hashed)

    def after(self, schedule: Schedule, rows: int, keys_digest: int, bytes_digest: int | None) -> Delivered:
        """The state once a batch with so many rows that count, and these digests of them, has been handed over."""
        position = self.position + schedule.batch_size
        if schedule.num_rows is not None:
            position = min(position, schedule.num_rows)
        # A stretch without byte digests leaves none: a sum over some of the rows would compare with nothing.
        hashed = None
        if self.hashed is not None and bytes_digest is not None:
            hashed = (self.hashed + bytes_digest) & _WRAP
        return Delivered(
            self.idx + 1,
            position,
            self.applied + rows,
            self.skipped,
            self.rows + rows,
            (self.keys + keys_digest) & _WRAP,
            hashed,
        )


class Shown:
    """A place that the contents of a loader's variables look into; left behind, it keeps what it showed last.

    Args:
        delivered: what to show.
        num_records: of the order, for the epoch.
    """

    def __init__(self, delivered: Delivered, num_records: int) -> None:
        self.delivered = delivered
        self.contents: dict[str, Any] = {
            "idx": looked_up(lambda: self.delivered.idx),
            "position": looked_up(lambda: self.delivered.position),
            "epoch": looked_up(lambda: self.delivered.position // num_records),
            "_applied_count": looked_up(lambda: self.delivered.applied),
            "_skipped_count": looked_up(lambda: self.delivered.skipped),
            "digest_rows": looked_up(lambda: self.delivered.rows),
            "digest_keys": looked_up(lambda: self.delivered.keys),
            # None is no number that could be looked up; only a restore brings another kind.
            "digest_bytes": None
            if delivered.hashed is None
            else looked_up(lambda: self.delivered.hashed or 0),
        }
        """The raw content of each variable, by the name of the attribute that holds it."""
