"""When to save, what to keep, what to check."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from datarax.core.config import Checked, Natural, Positive, at_least, check_fields
from datarax.core.errors import ConfigError

# What no handler can do anything about: nobody gets these two, and after the others there is nothing left that could save.
_NEVER_HEARD = ("KILL", "STOP")
_BROKEN = ("ABRT", "BUS", "FPE", "ILL", "IOT", "SEGV", "SYS", "TRAP", "EMT")
# These end no process, so they say nothing about the end of a run; PIPE and XFSZ are ignored by Python itself.
_HARMLESS = ("CHLD", "CLD", "CONT", "INFO", "PIPE", "TSTP", "TTIN", "TTOU", "URG", "WINCH", "XFSZ")

_STOPPING = sorted(
    {name.removeprefix("SIG") for name in signal.Signals.__members__} - {*_NEVER_HEARD, *_BROKEN, *_HARMLESS}
)


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

    signals: Checked[Sequence[Checked[str]]] = ("TERM", "INT", "USR1", "HUP", "XCPU")
    """Signals (names without SIG) on which a run saves and stops, each only if its action at the start is the default one: HUP
    stays ignored under `nohup`. Before the session begins all of them end the process. With many processes TERM is always among
    them."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.signals:
            if name in _NEVER_HEARD:
                raise ConfigError(f"save.signals: no program ever hears of SIG{name}; leave it out")
            if name not in _STOPPING:
                raise ConfigError(
                    f"save.signals must name signals that end a run, {', '.join(_STOPPING)}; got {name!r}"
                )
