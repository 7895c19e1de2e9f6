"""What was proved of a run and when: `proofs/<sha256>.json`, a file to each verification that was asked to keep it.

They say only what to verify first. `diff` and every restore ignore them, and what cannot be read proves nothing.
`checkpoints/README.md` describes the fields.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datarax.audit.report import VerifyReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.layout import RECORD_NAME, sha256_hex
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from datarax.core.tree import canonical_json
from datarax.store.files import make_directory, parse_json, read_file, write_whole

PROOF_FORMAT = 1
"""Raise this when the meaning of a field changes. Proofs of another format count as none."""

_MOST_BYTES = 1 << 28


def write_proof(directory: Path, report: VerifyReport) -> Path:
    """Keeps what a verification found to be as recorded; what was not is no proof.

    Raises:
        OSError: if it cannot be written.
    """
    proved = [
        {
            "step": each.step,
            "record": _record_of(directory, each.step),
            "steps": each.replayed_steps,
            "contents": each.bytes_compared,
            "model": each.model_leaves is not None,
        }
        for each in report.snapshots
        if each.ok and each.replayed_steps is not None
    ]
    data = canonical_json(
        {
            "format": PROOF_FORMAT,
            "unix_seconds": time.time(),
            "keys_only": report.fast,
            "data": report.data_checked and not report.data_problems,
            "snapshots": proved,
        }
    )
    path = directory / "proofs" / f"{sha256_hex(data)}.json"
    make_directory(path.parent)
    write_whole(path, data)
    return path


class Proofs:
    """When what was proved last.

    Args:
        directory: the run.
        keys_only: whether proofs of keys alone count too.
    """

    def __init__(self, directory: Path, *, keys_only: bool) -> None:
        self._directory = directory
        self.of_data = 0.0
        """When all data files were read and good; 0 if never."""
        self._of_records: dict[Any, float] = {}
        for path in directory.glob("proofs/[!.]*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                data = read_file(path, _MOST_BYTES, root=directory)
                if sha256_hex(data) == path.stem:
                    self._take(parse_json(data), keys_only=keys_only)

    def _take(self, proof: Mapping[str, Any], *, keys_only: bool) -> None:
        if proof["format"] != PROOF_FORMAT or (proof["keys_only"] and not keys_only):
            return
        when = float(proof["unix_seconds"])
        if proof["data"]:
            self.of_data = max(self.of_data, when)
        for each in proof["snapshots"]:
            self._of_records[each["record"]] = max(self._of_records.get(each["record"], 0.0), when)

    def of(self, step: int) -> float:
        """When the steps before a snapshot were proved, in seconds since 1970; 0 if never, or if it has another record now."""
        return self._of_records.get(_record_of(self._directory, step), 0.0)


def _record_of(directory: Path, step: int) -> str | None:
    """SHA-256 of the record of a step: it holds the sums of all that was delivered up to there. None if it is damaged."""
    with contextlib.suppress(SnapshotDamagedError, SnapshotNotFoundError):
        return sha256_hex(Snapshot.find(directory, step).data_file(RECORD_NAME))
    return None


__all__ = ["PROOF_FORMAT", "Proofs", "write_proof"]
