"""When to save, what to keep, what to check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from datarax.core.config import Natural, Positive, at_least, check_fields


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """The settings of a `Checkpointer`.

    Raises:
        ConfigError: if a number is out of range.
    """

    every_steps: Positive | None = None
    """Save at each multiple of this step; None: not by steps."""

    every_seconds: Annotated[float, at_least(0)] | None = 300.0
    """Save when this many seconds have passed since the last save began; None or inf: not by time. Nobody who set no interval
    should lose more than minutes."""

    keep_latest: Positive | None = 3
    """How many of the newest committed steps stay; None: all."""

    keep_every: Positive | None = None
    """Multiples of this step stay for ever, besides the newest."""

    model_digest_limit_bytes: Natural = 64 << 30
    """Up to this size of the model item its files are recorded by SHA-256; above, by size only, which `poll` notes."""

    max_failures: Positive = 3
    """After how many failed saves in a row the session gives up."""

    timeout_seconds: Positive = 1200
    """After how long a save in the background counts as failed. Many processes wait for each other in a commit at most ten
    times as long as the slowest one so far took, and at least a minute."""

    preemption_seconds: Positive = 600
    """With many processes: how long the save at the step they have agreed on may take after a SIGTERM. Then the process leaves
    all the same: the newest committed snapshot continues exactly."""

    def __post_init__(self) -> None:
        check_fields(self)
