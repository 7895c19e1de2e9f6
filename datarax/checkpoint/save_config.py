"""When to save, what to keep, what to check."""

from __future__ import annotations

from dataclasses import dataclass

from datarax.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """The settings of a `Checkpointer`.

    Raises:
        ConfigError: if a number is out of range.
    """

    every_steps: int | None = None
    """Save at each multiple of this step; None: not by steps."""

    every_seconds: float | None = 300.0
    """Save when this many seconds have passed since the last save began; None or inf: not by time. Nobody who set no interval
    should lose more than minutes."""

    keep_latest: int | None = 3
    """How many of the newest committed steps stay; None: all."""

    keep_every: int | None = None
    """Multiples of this step stay for ever, besides the newest."""

    model_digest_limit_bytes: int = 64 << 30
    """Up to this size of the model item its files are recorded by SHA-256; above, by size only, which `poll` notes."""

    max_failures: int = 3
    """After how many failed saves in a row the session gives up."""

    timeout_seconds: int = 1200
    """After how long a save in the background counts as failed. Many processes wait for each other in a commit at most ten
    times as long as the slowest one so far took, and at least a minute."""

    preemption_seconds: int = 600
    """With many processes: how long the save at the step they have agreed on may take after a SIGTERM. Then the process leaves
    all the same: the newest committed snapshot continues exactly."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_latest", "keep_every"):
            _check(name, getattr(self, name), int, 1, optional=True)
        for name in ("max_failures", "timeout_seconds", "preemption_seconds"):
            _check(name, getattr(self, name), int, 1)
        _check("model_digest_limit_bytes", self.model_digest_limit_bytes, int, 0)
        _check("every_seconds", self.every_seconds, (int, float), 0, optional=True)


def _check(
    name: str, value: object, kind: type | tuple[type, ...], least: int, *, optional: bool = False
) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:  # type: ignore[operator]
        raise ConfigError(
            f"save.{name} must be at least {least}{' or absent' if optional else ''}, not {value!r}"
        )
