"""A run of the user's own, killed at random moments in real processes, compared with one that nobody disturbed.

`plan_kills` is a pure function of a seed, `Campaign` does one kill after the other, and `ChaosReport` is what it answers.
Nothing here prints, and the user's code runs in those processes only; `start.py` knows processes and signals. Needs no pytest.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datarax.audit.diff import diff_runs
from datarax.checkpoint import Snapshot
from datarax.checkpoint.snapshot import item_steps
from datarax.core.errors import ConfigError, DataraxError
from datarax.run_config import BaseRunConfig
from datarax.testing.start import Start, newest

Point = Literal["moment", "step", "save"]
"""Where a kill is planned: see `PlannedKill.point`."""

_KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "twice")
_POINTS: Sequence[Point] = ("moment", "step", "save")
_STOPPING = ("SIGTERM", "SIGINT")
_LONGEST_GAP_SECONDS = 0.3
_LONGEST_DELAY_IN_SAVE_SECONDS = 0.05
_KILLS_PER_TRIAL = 4
_SAVES_PER_RUN = 8
_LINES_SHOWN = 12

# A run that makes steps for so long after a signal, and comes to its end, has not heard it. Steps may be much faster
# than a look, and many processes have to agree on one.
_UNHEARD_STEPS, _UNHEARD_SECONDS, _UNHEARD_BY_MANY_SECONDS = 3, 2.0, 15.0

# How much longer than the undisturbed run one process may take before it counts as hanging.
_LIMIT_FACTOR, _LIMIT_MORE_SECONDS = 4.0, 30.0

# What the documentation promises of a process that got these signals; -N where one came before the session, or has no handler.
_PROMISED: dict[tuple[str, ...], set[int]] = {
    ("SIGKILL",): {-9},
    ("SIGTERM",): {75, -15},
    ("SIGINT",): {75, -2},
}
_PROMISED_OF_TWO = {75, 130, 143, -15, -2}
# A launcher that lost one of its processes: there is a snapshot; or there is none, or the others missed it at the start.
_PROMISED_OF_A_LAUNCHER = {75, 74}


class UndisturbedRunError(DataraxError, RuntimeError):
    """The run fails without any kill, so there is nothing to compare with; its exit code is passed on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(Exception):
    """Somebody has asked a campaign to stop; all processes are dead."""


class _TimeIsUp(Exception):
    """The time for everything is over."""


# The plan: it knows no run, so it says where in fractions of one. Where exactly a kill lands is the machine's business: how far
# a process has come when the signal reaches it differs from time to time. What must come out does not.


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
        for kind, point in pairs:
            anyone = processes > 1 and kind in ("SIGKILL", "SIGTERM")
            plan.append(
                PlannedKill(
                    signals=tuple(rng.choices(_STOPPING, k=2)) if kind == "twice" else (kind,),
                    point=point,
                    fraction=round(rng.random(), 4),
                    late=round(rng.random(), 4),
                    gap_seconds=round(rng.uniform(0, _LONGEST_GAP_SECONDS), 4),
                    victim=rng.choice((None, *range(processes))) if anyone else None,
                )
            )
    return plan[:kills]


# The answer, as plain values.


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


@dataclass(kw_only=True)
class ChaosReport:
    """What a campaign is to do, and what came of it."""

    directory: str
    """Where all runs are."""
    seed: int = 0
    """What everything random comes from: see `plan_kills`."""
    kills_planned: int = 12
    """How many kills are tried, over all trials."""
    processes: int = 1
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


@dataclass(kw_only=True)
class Campaign:
    """One undisturbed run, then trials: runs that are killed, started again until they are complete, and must be the same."""

    report: ChaosReport
    """What is to be done, and afterwards what came of it; its directory is empty."""
    config: BaseRunConfig
    """What `command` runs; only read here."""
    command: Sequence[str]
    """Program and arguments that run it, in one process or under a launcher; more `--set` are added."""
    environment: Mapping[str, str]
    """That of the processes."""
    max_seconds: float = 600.0
    """After this time everything is killed, and the report says so."""
    keep: bool = False
    """Keep the runs of trials that went well."""
    say: Callable[[str], None] = lambda text: None
    """Told what goes on, a line at a time."""
    stopping: Callable[[], bool] = lambda: False
    """Asked all the time; once it says so, all processes are killed. (A signal handler that raises might do so just when a
    process has been started and nobody knows of it yet.)"""

    def run(self) -> None:
        """Runs the config undisturbed, then in trials with kills, and compares.

        Raises:
            Stopped: if `stopping` said so.
            ConfigError: if there is nothing to kill, nobody, or no time.
            UndisturbedRunError: if the run fails, or takes too long, without any kill.
        """
        if not self.max_seconds > 0:
            raise ConfigError(f"--max-seconds must be more than 0, got {self.max_seconds}")
        report = self.report
        queue = deque(plan_kills(report.seed, report.kills_planned, processes=report.processes))
        self._until = time.monotonic() + self.max_seconds
        self._run_undisturbed()
        self.say(f"undisturbed: {report.steps} steps in {report.seconds:.1f} s")
        while queue and not report.time_is_up:
            number = len(report.trials) + 1
            trial = Trial(number=number, directory=str(Path(self.report.directory) / f"trial-{number}"))
            report.trials.append(trial)
            try:
                self._try(trial, queue)
            except _TimeIsUp:
                report.time_is_up = True
            trial.newest = newest(_run_of(trial.directory))
            verdict = "the same" if trial.finished else "not finished, the time is up"
            self.say(f"trial {number}: {trial.problems[0] if trial.problems else verdict}")
            if trial.same and not self.keep:
                shutil.rmtree(trial.directory)

    def _run_undisturbed(self) -> None:
        """Runs to the end; what the trials need to know of it is then known."""
        # Reports of every step show from outside how far a run is, and where it went on.
        self._settings = ["log.every_seconds=0"]
        self._undisturbed = Path(self.report.directory) / "undisturbed"
        with self._start(self._undisturbed, "output.log") as start:
            try:
                code = start.wait(math.inf)
            except _TimeIsUp:
                reached = f"after {start.reached} steps" if start.reached else "before its first step"
                raise UndisturbedRunError(
                    f"the undisturbed run was not complete within {self.max_seconds:g} seconds (it was {reached}), so "
                    f"nothing was killed; give it fewer steps with --steps, or more time with --max-seconds",
                    1,
                ) from None
            if code:
                lines = "\n".join(f"  {line}" for line in start.last_lines(_LINES_SHOWN))
                how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
                raise UndisturbedRunError(
                    f"the undisturbed run {how}, so nothing was killed; its last lines:\n{lines}",
                    code if code > 0 else 128 - code,
                )
            steps, seconds = start.newest, start.seconds
            first = seconds if start.seconds_to_first_step is None else start.seconds_to_first_step
        self.report.steps, self.report.seconds = steps, round(seconds, 3)
        self._start_up_seconds, self._step_seconds = first, (seconds - first) / steps
        self._limit_seconds = _LIMIT_MORE_SECONDS + _LIMIT_FACTOR * seconds
        if self.report.processes > 1:  # some may wait so long for one that was killed
            waits = self.config.multihost
            self._limit_seconds += waits.start_timeout_seconds + waits.heartbeat_seconds
        if self.config.save.every_steps is None:
            every = max(1, steps // _SAVES_PER_RUN)
            self._settings.append(f"save.every_steps={every}")
            self.report.notes.append(f"save.every_steps was set to {every}: the config saves by time only")

    def _try(self, trial: Trial, queue: deque[PlannedKill]) -> None:
        """One run with the next kills of the queue; a trial that the end of all time breaks off is not finished."""
        # How many kills share what is left of the run.
        for share in range(min(_KILLS_PER_TRIAL, len(queue)), 0, -1):
            at_end = newest(_run_of(trial.directory)) == self.report.steps
            if trial.code is not None or trial.problems or at_end:
                break
            self._kill(trial, queue.popleft(), share)
        if trial.code is None and not trial.problems:
            with self._start(Path(trial.directory), "output-last.log") as start:
                trial.code = start.wait(self._limit_seconds)
                self._check(trial, start, trial.code, {0}, "when it was run again to its end")
        self._go_on()
        if not trial.problems:
            try:
                self._compare(trial)
            except DataraxError as error:
                trial.problems.append(str(error))
        trial.finished = True

    def _kill(self, trial: Trial, planned: PlannedKill, share: int) -> None:
        """Starts the run, waits for the planned point, sends the signals, and says what became of it."""
        with self._start(Path(trial.directory), f"output-{len(trial.kills) + 1}.log") as start:
            where, reached, delay = self._aim(planned, start, share)
            came = start.wait_for(reached, self._limit_seconds) and start.wait_while_alive(delay)
            step, seconds, hit_victim = start.reached, start.seconds, False
            if came:
                hit_victim = start.signal(planned.signals[0], planned.victim)
                for name in planned.signals[1:]:
                    start.wait_while_alive(planned.gap_seconds)
                    start.signal(name)
            # One that did not come to the point and still lives has hung already.
            code = start.wait(self._limit_seconds if came else 0)
            done, later = start.reached - step, start.seconds_to_last_step - seconds
            longest = _UNHEARD_SECONDS if self.report.processes == 1 else _UNHEARD_BY_MANY_SECONDS
            ignored = came and code == 0 and done > _UNHEARD_STEPS and later > longest
            target = f"process {planned.victim}" if hit_victim else "launcher"
            trial.kills.append(
                Kill(
                    planned=planned,
                    target=target if self.report.processes > 1 else "",
                    where=where,
                    landed=came and code != 0,
                    heard=not ignored,
                    code=code,
                    newest=start.newest,
                )
            )
            trial.code = 0 if code == 0 else None
            allowed = {0} | _promised(planned, self.report.processes, hit_victim) if came else {0}
            when = f"{'after' if came else 'before'} {planned.kind} ({where})"
            if not (came and _interrupted_before_datarax(planned, start, code)):
                self._check(trial, start, code, allowed, when)
            if ignored:
                trial.problems.append(
                    f"the run went on for {done} steps {when}, to its end, as if nothing had come"
                )
        self.say(f"trial {trial.number}: {planned.kind} ({where}): {code}")

    def _aim(self, planned: PlannedKill, start: Start, share: int) -> tuple[str, Callable[[], bool], float]:
        """What the plan means in this start, which has so many steps before it: in words, whether it is there, seconds more.

        The kills of a trial lie as if all of them were drawn over the whole run: each is the first of those that are left.
        """
        fraction = 1 - (1 - planned.fraction) ** (1 / share)
        before, left = start.newest_before, self.report.steps - start.newest_before
        if planned.point == "moment":
            seconds = fraction * (self._start_up_seconds + left * self._step_seconds)
            return f"after {seconds:.2f} s", lambda: start.seconds >= seconds, 0.0
        if planned.point == "step":
            step = before + max(1, math.ceil(fraction * (left - 1)))
            return f"after step {step}", lambda: start.reached >= step, planned.late * self._step_seconds
        step, committed = before + math.floor(fraction * left), 0

        def in_save() -> bool:
            nonlocal committed
            if start.reached < step:
                committed = start.newest
                return False
            # A save may have come and gone between two looks.
            return start.saving or start.newest > max(committed, before)

        return f"save after step {step}", in_save, planned.late * _LONGEST_DELAY_IN_SAVE_SECONDS

    def _check(self, trial: Trial, start: Start, code: int | None, allowed: set[int], when: str) -> None:
        """Whether a start ended as it may, went on where it must, and lost nothing that was committed."""
        if start.seconds_to_first_step is not None:
            self._start_up_seconds = min(self._start_up_seconds, start.seconds_to_first_step)
        before, after, first, last = start.newest_before, start.newest, start.first_step, start.last_step
        right = " or ".join(map(str, sorted(allowed, key=abs)))
        rules = [
            (
                code is None,
                f"the run hung {when}: it was killed after {start.seconds:.0f} s, the undisturbed one took "
                f"{self.report.seconds:.0f} s",
            ),
            (
                code is not None and code not in allowed,
                f"the run ended with code {code} {when}; {right} would be right",
            ),
            (
                first not in (None, before + 1),
                f"the run went on with step {first} {when}, but the newest snapshot was {before}",
            ),
            (after < before, f"snapshot {before} was there, and is gone {when}"),
            (
                code == 75 and self.report.processes == 1 and last not in (None, after),
                f"the run ended with 75 {when}, but of the {last} steps done only {after} are in a snapshot",
            ),
        ]
        problems = [told for broken, told in rules if broken]
        if problems:
            trial.problems += problems
            trial.output = start.last_lines(_LINES_SHOWN)

    def _compare(self, trial: Trial) -> None:
        """What both runs delivered at each step, and their newest good snapshots.

        Raises:
            InputError: if one of them has no good snapshot.
            SnapshotDamagedError: if a digest that should be there cannot be read.
        """
        undisturbed, disturbed = _run_of(self._undisturbed), _run_of(trial.directory)
        ours, theirs = _step_digests(undisturbed), _step_digests(disturbed)
        both = sorted(ours.keys() & theirs.keys())
        trial.steps_compared = len({step for step, _ in both})
        wrong = [each for each in both if ours[each] != theirs[each]]
        if wrong:
            same_keys = ours[wrong[0]][0] == theirs[wrong[0]][0]
            more = f", and at {len(wrong) - 1} more steps" if wrong[1:] else ""
            what = "the bytes of the rows" if same_keys else "the record keys"
            trial.problems.append(f"step {wrong[0][0]}: {what} differ{more}")
        lines = diff_runs(undisturbed, disturbed).lines
        model = [line for line in lines if line.startswith("model.")]
        trial.problems += [line for line in lines if line not in model]
        if model and not trial.problems:
            reason = (
                "run.cpu_threads is not set, so sums may be split in another way at each start"
                if self.config.run.cpu_threads is None
                else "usual reasons: the task keeps something outside its state, or uses a clock or random numbers of its "
                "own; operations of the device that are not deterministic (GPUs)"
            )
            trial.problems.append(f"only the model differs, the data are the same; {reason}")
        trial.problems += model
        note = "bytes were not compared, only record keys: --set loader.byte_digest=true compares them too"
        has_bytes = bool(both) and all(ours[each][1] is not None for each in both)
        if not has_bytes and note not in self.report.notes:
            self.report.notes.append(note)

    def _start(self, directory: Path, log: str) -> Start:
        directory.mkdir(exist_ok=True)
        settings = [f"run.directory={_run_of(directory)}", *self._settings]
        return Start(
            [*self.command, *(word for setting in settings for word in ("--set", setting))],
            run=_run_of(directory),
            log=directory / log,
            environment=self.environment,
            check=self._go_on,
        )

    def _go_on(self) -> None:
        if self.stopping():
            raise Stopped
        if time.monotonic() > self._until:
            raise _TimeIsUp


def _run_of(directory: str | Path) -> Path:
    return Path(directory) / "run"


def _promised(planned: PlannedKill, processes: int, hit_victim: bool) -> set[int]:
    """The exit codes that a process may have after these signals, besides 0."""
    own = _PROMISED.get(tuple(planned.signals), _PROMISED_OF_TWO)
    if processes == 1:
        return own
    return _PROMISED_OF_A_LAUNCHER if hit_victim else own | _PROMISED_OF_A_LAUNCHER


def _interrupted_before_datarax(planned: PlannedKill, start: Start, code: int | None) -> bool:
    """Whether Python itself ended with 1 by a SIGINT while it starts."""
    if code != 1 or "SIGINT" not in planned.signals or start.first_step is not None:
        return False
    return not any(line.startswith("datarax:") for line in start.last_lines(1000))


def _step_digests(run: Path) -> dict[tuple[int, str], tuple[int, int | None]]:
    """(step, loader) -> digest of its record keys, and of its bytes if that was kept; of steps in the ledger too."""
    found: dict[tuple[int, str], tuple[int, int | None]] = {}
    for item in item_steps(run):
        for name, (first, keys, values) in Snapshot.find(run, item).steps.items():
            kept = itertools.repeat(None) if values is None else values.tolist()
            for step, digests in enumerate(zip(keys.tolist(), kept, strict=False), first):
                found[step, name] = digests
    return found
