"""What came of it all, as plain values: kills, trials, and the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from datarax.chaos.plan import PlannedKill


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What was done to one start of a run, and what became of it."""

    planned: PlannedKill
    """What was planned."""
    target: str
    """Who was hit, where there are many: `launcher` or `process N`; else empty."""
    where: str
    """The point that the plan meant in this start, in words."""
    landed: bool
    """Whether it ended the process; else that was complete before."""
    heard: bool
    """Whether it did anything about it, as far as can be told."""
    code: int | None
    """Exit code of the process, negative: ended by that signal; None: it hung."""
    newest: int
    """The newest committed snapshot afterwards; 0 if there is none."""


@dataclass(kw_only=True)
class Trial:
    """A run that was killed and started again until it was complete."""

    number: int
    """From 1 on."""
    directory: str
    """Where the run is; it may be removed if the trial went well."""
    kills: list[Kill] = field(default_factory=list)
    """In the order in which they came."""
    code: int | None = None
    """Exit code of the start that was to end it; None if it did not come to that, or hung."""
    newest: int = 0
    """The newest committed snapshot at the end."""
    problems: list[str] = field(default_factory=list)
    """What is not as it must be, the first difference first; [] if the run is the same."""
    output: list[str] = field(default_factory=list)
    """Last lines of the process that did what it must not."""
    steps_compared: int = 0
    """How many steps were compared with the undisturbed run by their digests."""
    finished: bool = False
    """Whether the trial came to its end before the time was up."""

    @property
    def same(self) -> bool:
        """Whether it ended as the undisturbed run did."""
        return self.finished and not self.problems

    @property
    def verdict(self) -> str:
        """The same, or the first thing that is not as it must be."""
        if self.problems:
            return self.problems[0]
        return "the same" if self.finished else "not finished, the time is up"


@dataclass(kw_only=True)
class ChaosReport:
    """The answer of `run_chaos`."""

    directory: str
    """Where all runs are."""
    seed: int
    """What everything random came from."""
    kills_planned: int
    """How many kills were to be tried."""
    processes: int
    """Number of processes of each run."""
    steps: int = 0
    """Steps of the whole run."""
    seconds: float = 0.0
    """How long the undisturbed run took."""
    trials: list[Trial] = field(default_factory=list)
    """One after the other."""
    notes: list[str] = field(default_factory=list)
    """What was set in these runs besides the config, and what was not compared."""
    time_is_up: bool = False
    """Whether the time was over before everything was done."""

    @property
    def kills(self) -> list[Kill]:
        """All kills of all trials."""
        return [kill for trial in self.trials for kill in trial.kills]

    @property
    def landed(self) -> int:
        """How many of them ended a process."""
        return sum(kill.landed for kill in self.kills)

    @property
    def ok(self) -> bool:
        """Whether all was done, kills landed, and every trial is the same."""
        return not self.time_is_up and self.landed > 0 and all(trial.same for trial in self.trials)
