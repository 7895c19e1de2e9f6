"""What is in a snapshot, as plain facts: for people, and for tools that read JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datarax.checkpoint import Snapshot, decode, ledger_steps, list_steps


def committed_steps(directory: str | Path) -> list[int]:
    """The committed steps of a run, ascending; [] if there is no such run."""
    return list_steps(directory)


def inspect_run(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """The facts of a snapshot, by default the newest; `problems` names each file that is not as it was written.

    Of a damaged snapshot there are no facts beyond its problems.

    Raises:
        SnapshotNotFoundError: if there is no such committed step.
        SnapshotDamagedError: if not even its manifest can be read.
    """
    snapshot = Snapshot.open(directory, step)
    problems = snapshot.check()
    facts: dict[str, Any] = {
        "directory": str(snapshot.directory),
        "step": snapshot.step,
        "committed_steps": list_steps(directory),
        "ledger_steps": ledger_steps(directory),
        "problems": problems,
    }
    return facts if problems else facts | _content(snapshot)


def _content(snapshot: Snapshot) -> dict[str, Any]:
    record, parts = snapshot.record, snapshot.process_parts()
    return {
        "identity": snapshot.identity,
        "identity_digest": record.identity,
        "start": record.start,
        "previous_step": record.previous,
        "history": [entry.to_tree() for entry in snapshot.history],
        "loaders": {
            name: {
                # Of a module whose state is each process's own: that of each.
                "state": decode(loader.state)
                if loader.scope == "global"
                else {f"process {index}": decode(part[name]) for index, part in parts.items()},
                "digest": loader.digest,
            }
            for name, loader in record.loaders.items()
        },
        "model": {leaf.path: str(leaf) for leaf in snapshot.leaves or ()},
    }


__all__ = ["committed_steps", "inspect_run"]
