"""Which kills will be tried: a pure function of a seed. It knows no run, so it says where in fractions of one.

Where exactly a kill lands is the machine's business: how far a process has come when the signal reaches it differs from time to
time. What must come out does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from datarax.core.errors import ConfigError

Point = Literal["moment", "step", "save"]

_KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "twice")
_POINTS: Sequence[Point] = ("moment", "step", "save")
_STOPPING = ("SIGTERM", "SIGINT")
_LONGEST_GAP_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class PlannedKill:
    """One kill before anything runs."""

    signals: Sequence[str]
    """Names of the signals that are sent, one or two."""
    point: Point
    """`moment`: some time after the process was started. `step`: after a step was reported. `save`: in a save."""
    fraction: float
    """How far on, of the time or the steps that are left; from 0 to 1."""
    late: float
    """How long after the step or after the beginning of the save, of the longest such delay; from 0 to 1."""
    gap_seconds: float
    """Time between two signals."""
    victim: int | None
    """Index of the process that is hit; None: the only one, or the launcher of many."""

    @property
    def kind(self) -> str:
        """What is sent, as text."""
        return ", ".join(self.signals)


def plan_kills(seed: int, kills: int, *, processes: int = 1) -> list[PlannedKill]:
    """The kills that a seed means; a longer plan begins with the shorter one.

    Each twelve of them hold every kind (SIGKILL, SIGTERM, SIGINT, two signals) at every kind of point once, in random order.

    Args:
        seed: everything random comes from it.
        kills: how many.
        processes: those of the run. With more than one, SIGKILL and SIGTERM go to any of them or to their launcher; SIGINT
            and two signals go to the launcher, as from a keyboard.

    Raises:
        ConfigError: if there is nothing to kill, or nobody.
    """
    for name, value in (("--kills", kills), ("--processes", processes)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    rng = random.Random(seed)
    plan: list[PlannedKill] = []
    while len(plan) < kills:
        pairs = list(itertools.product(_KINDS, _POINTS))
        rng.shuffle(pairs)
        plan += [_planned(rng, kind, point, processes) for kind, point in pairs]
    return plan[:kills]


def _planned(rng: random.Random, kind: str, point: Point, processes: int) -> PlannedKill:
    signals = tuple(rng.choices(_STOPPING, k=2)) if kind == "twice" else (kind,)
    anyone = processes > 1 and kind in ("SIGKILL", "SIGTERM")
    return PlannedKill(
        signals=signals,
        point=point,
        fraction=round(rng.random(), 4),
        late=round(rng.random(), 4),
        gap_seconds=round(rng.uniform(0, _LONGEST_GAP_SECONDS), 4),
        victim=rng.choice((None, *range(processes))) if anyone else None,
    )
