"""What was proved of a run and when: `proofs/<sha256>.json`, a file to each verification that was asked to keep it.

They say only what to verify first. `diff` and every restore ignore them, and what cannot be read proves nothing.
`checkpoints/README.md` describes the fields.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from datarax.audit.report import VerifyReport
from datarax.checkpoint import Snapshot
from datarax.checkpoint.layout import RECORD_NAME, sha256_hex
from datarax.core.errors import SnapshotDamagedError, SnapshotNotFoundError
from datarax.core.tree import canonical_json
from datarax.store.files import make_directory, parse_json, read_file, write_whole

PROOF_FORMAT = 1
"""Raise this when the meaning of a field changes. Proofs of another format count as none."""

DATA = "data"
"""What a proof of the data files is kept under, beside the steps."""
_MOST_BYTES = 1 << 28


def make_proof_directory(directory: Path) -> Path:
    """Makes the directory of a run's proofs, if it is not there.

    Raises:
        OSError: if it cannot be made, or something else is there.
    """
    make_directory(directory / "proofs")
    return directory / "proofs"


def write_proof(directory: Path, report: VerifyReport) -> Path:
    """Keeps what a verification found to be as recorded; what was not is no proof.

    Raises:
        OSError: if it cannot be written.
    """
    proved = [
        {
            "step": each.step,
            "record": record_of(directory, each.step),
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
    path = make_proof_directory(directory) / f"{sha256_hex(data)}.json"
    write_whole(path, data)
    return path


def proved_at(directory: Path, *, keys_only: bool) -> dict[str | None, float]:
    """When what was proved last, in seconds since 1970, by the record (see `record_of`) or, of the data files, `DATA`.

    Args:
        directory: the run.
        keys_only: whether proofs of keys alone count too.
    """
    last: dict[str | None, float] = {}
    for path in directory.glob("proofs/[!.]*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = read_file(path, _MOST_BYTES, root=directory)
            proof = parse_json(data)
            good = sha256_hex(data) == path.stem and proof["format"] == PROOF_FORMAT
            if good and proof["keys_only"] <= keys_only:
                for name in [*(each["record"] for each in proof["snapshots"]), *[DATA] * proof["data"]]:
                    last[name] = max(last.get(name, 0.0), float(proof["unix_seconds"]))
    return last


def record_of(directory: Path, step: int) -> str | None:
    """SHA-256 of the record of a step: it holds the sums of all that was delivered up to there. None if it is damaged."""
    with contextlib.suppress(SnapshotDamagedError, SnapshotNotFoundError):
        return sha256_hex(Snapshot.find(directory, step).data_file(RECORD_NAME))
    return None


__all__ = ["DATA", "PROOF_FORMAT", "make_proof_directory", "proved_at", "record_of", "write_proof"]
