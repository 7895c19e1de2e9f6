"""Plain counters that the hot path increments and others read from the side.

No locks, no sinks, no formatting: one writer (the thread that takes batches), any number of readers that accept
a value which is one batch old.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LoaderMetrics:
    """What a loader did since it was opened. Counted per batch, never per record."""

    batches: int = 0
    """Batches handed over."""
    rows: int = 0
    """Rows handed over by this process; padding is not counted."""
    wait_seconds: float = 0.0
    """Time the training loop spent waiting for batches, in seconds."""
