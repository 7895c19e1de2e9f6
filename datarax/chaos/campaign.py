"""One undisturbed run, then trials: runs that are killed and started again until they are complete, and must be the same."""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datarax.chaos.compare import compare_runs
from datarax.chaos.plan import PlannedKill, plan_kills
from datarax.chaos.report import ChaosReport, Kill, Trial
from datarax.chaos.start import Start, newest
from datarax.core.errors import ConfigError, DataraxError
from datarax.run_config import BaseRunConfig

_KILLS_PER_TRIAL = 4
_SAVES_PER_RUN = 8
_LONGEST_DELAY_IN_SAVE_SECONDS = 0.05
_LINES_SHOWN = 12

# A run that makes steps for so long after a signal, and comes to its end, has not heard it. Steps may be much faster
# than a look, and many processes have to agree on one.
_UNHEARD_STEPS, _UNHEARD_SECONDS, _UNHEARD_BY_MANY_SECONDS = 3, 2.0, 15.0
_UNDISTURBED = "undisturbed"

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
    """Somebody has asked `run_chaos` to stop; all processes are dead."""


class _TimeIsUp(Exception):
    """The time for everything is over."""


def run_chaos(
    config: BaseRunConfig,
    *,
    command: Sequence[str],
    place: Path,
    environment: Mapping[str, str],
    kills: int = 12,
    seed: int = 0,
    processes: int = 1,
    max_seconds: float = 600.0,
    keep: bool = False,
    say: Callable[[str], None] = lambda text: None,
    stopping: Callable[[], bool] = lambda: False,
) -> ChaosReport:
    """Runs a config undisturbed, then in trials with kills, and compares.

    Args:
        config: what `command` runs; only read here.
        command: program and arguments that run it, in one process or under a launcher; more `--set` are added.
        place: an empty directory for all runs.
        environment: that of the processes.
        kills: how many are tried, over all trials.
        seed: see `plan_kills`.
        processes: how many `command` starts.
        max_seconds: after this time everything is killed, and the report says so.
        keep: keep the runs of trials that went well.
        say: told what goes on, a line at a time.
        stopping: asked all the time; once it says so, all processes are killed. (A signal handler that raises might do so
            just when a process has been started and nobody knows of it yet.)

    Raises:
        Stopped: if `stopping` said so.
        ConfigError: if `kills` or `processes` is below 1, or there is no time.
        UndisturbedRunError: if the run fails, or takes too long, without any kill.
    """
    if not max_seconds > 0:
        raise ConfigError(f"--max-seconds must be more than 0, got {max_seconds}")
    queue = deque(plan_kills(seed, kills, processes=processes))
    report = ChaosReport(directory=str(place), seed=seed, kills_planned=kills, processes=processes)
    campaign = _Campaign(config, command, place, environment, max_seconds, stopping, report)
    campaign.run_undisturbed()
    say(f"undisturbed: {report.steps} steps in {report.seconds:.1f} s")
    while queue and not report.time_is_up:
        trial = campaign.run_trial(queue, say)
        say(f"trial {trial.number}: {trial.verdict}")
        if trial.same and not keep:
            shutil.rmtree(trial.directory)
    return report


@dataclass(frozen=True)
class _Aim:
    """A planned point in one particular start."""

    where: str
    reached: Callable[[], bool]
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class _Sent:
    """Signals that were sent."""

    hit_victim: bool
    """Whether to one of many processes; else to the only one, or the launcher."""
    step: int
    """How far the run was."""
    seconds: float
    """How long it had been running."""


class _Campaign:
    """What all starts of all runs share."""

    def __init__(
        self,
        config: BaseRunConfig,
        command: Sequence[str],
        place: Path,
        environment: Mapping[str, str],
        max_seconds: float,
        stopping: Callable[[], bool],
        report: ChaosReport,
    ) -> None:
        self._config, self._command, self._place, self._environment = config, command, place, environment
        self._max_seconds, self._until = max_seconds, time.monotonic() + max_seconds
        self._stopping, self._report = stopping, report
        # Reports of every step show from outside how far a run is, and where it went on.
        self._settings = ["log.every_seconds=0"]
        self._limit_seconds = math.inf
        self._start_up_seconds = self._step_seconds = 0.0

    # The undisturbed run.

    def run_undisturbed(self) -> None:
        """Runs to the end; what the trials need to know of it is then known."""
        run = self._place / _UNDISTURBED / "run"
        with self._start(_UNDISTURBED, "output.log") as start:
            try:
                code = start.wait(math.inf)
            except _TimeIsUp:
                reached = f"after {start.reached} steps" if start.reached else "before its first step"
                raise UndisturbedRunError(
                    f"the undisturbed run was not complete within {self._max_seconds:g} seconds (it was {reached}), so "
                    f"nothing was killed; give it fewer steps with --steps, or more time with --max-seconds",
                    1,
                ) from None
            if code != 0:
                raise _failed(code, start.last_lines(_LINES_SHOWN))
            steps, seconds = newest(run), start.seconds
            first = seconds if start.seconds_to_first_step is None else start.seconds_to_first_step
        self._report.steps, self._report.seconds = steps, round(seconds, 3)
        self._start_up_seconds, self._step_seconds = first, (seconds - first) / steps
        self._limit_seconds = _LIMIT_MORE_SECONDS + _LIMIT_FACTOR * seconds
        if self._report.processes > 1:  # some may wait so long for one that was killed
            waits = self._config.multihost
            self._limit_seconds += waits.start_timeout_seconds + waits.heartbeat_seconds
        if self._config.save.every_steps is None:
            every = max(1, steps // _SAVES_PER_RUN)
            self._settings.append(f"save.every_steps={every}")
            self._report.notes.append(f"save.every_steps was set to {every}: the config saves by time only")

    # Trials.

    def run_trial(self, queue: deque[PlannedKill], say: Callable[[str], None]) -> Trial:
        """One run with the next kills of the queue; a trial that the end of all time breaks off is not finished."""
        number = len(self._report.trials) + 1
        trial = Trial(number=number, directory=str(self._place / f"trial-{number}"))
        self._report.trials.append(trial)
        try:
            for share in self._shares(trial, queue):
                kill = self._kill(trial, queue.popleft(), share)
                say(f"trial {number}: {kill.planned.kind} ({kill.where}): {kill.code}")
            if trial.code is None and not trial.problems:
                self._complete(trial)
            self._go_on()
            if not trial.problems:
                self._compare(trial)
            trial.finished = True
        except _TimeIsUp:
            self._report.time_is_up = True
        trial.newest = newest(_run_of(trial))
        return trial

    def _shares(self, trial: Trial, queue: deque[PlannedKill]) -> Iterator[int]:
        """For each kill of a trial, while there is anything to kill: how many kills share what is left of the run."""
        for share in range(min(_KILLS_PER_TRIAL, len(queue)), 0, -1):
            if trial.code is not None or trial.problems or newest(_run_of(trial)) == self._report.steps:
                return
            yield share

    def _kill(self, trial: Trial, planned: PlannedKill, share: int) -> Kill:
        """Starts the run, waits for the planned point, sends the signals, and says what became of it."""
        with self._start(f"trial-{trial.number}", f"output-{len(trial.kills) + 1}.log") as start:
            aim = self._aim(planned, start, share)
            sent = self._send(planned, start, aim)
            # One that did not come to the point and still lives has hung already.
            code = start.wait(self._limit_seconds if sent else 0)
            ignored = self._steps_as_if_nothing_had_come(start, sent) if sent is not None and code == 0 else 0
            target = f"process {planned.victim}" if sent and sent.hit_victim else "launcher"
            kill = Kill(
                planned=planned,
                target=target if self._report.processes > 1 else "",
                where=aim.where,
                landed=sent is not None and code != 0,
                heard=not ignored,
                code=code,
                newest=start.newest,
            )
            trial.kills.append(kill)
            if code == 0:
                trial.code = 0
            if sent is None:
                self._check(trial, start, code, {0}, f"before {planned.kind} ({aim.where})")
            elif not _interrupted_before_datarax(planned, start, code):
                after = f"after {planned.kind} ({aim.where})"
                self._check(trial, start, code, {0} | self._promised(planned, sent), after)
                if ignored:
                    trial.problems.append(
                        f"the run went on for {ignored} steps {after}, to its end, as if nothing had come"
                    )
        return kill

    def _send(self, planned: PlannedKill, start: Start, aim: _Aim) -> _Sent | None:
        """Sends the signals at the planned point; None if the process had ended by then."""
        if not start.wait_for(aim.reached, self._limit_seconds):
            return None
        start.wait_while_alive(aim.delay_seconds)
        if not start.alive:
            return None
        step, seconds = start.reached, start.seconds
        hit_victim = start.signal(planned.signals[0], planned.victim)
        for name in planned.signals[1:]:
            start.wait_while_alive(planned.gap_seconds)
            start.signal(name)
        return _Sent(hit_victim, step, seconds)

    def _complete(self, trial: Trial) -> None:
        """The last start of a trial, which nobody disturbs."""
        with self._start(f"trial-{trial.number}", "output-last.log") as start:
            trial.code = start.wait(self._limit_seconds)
            self._check(trial, start, trial.code, {0}, "when it was run again to its end")

    def _compare(self, trial: Trial) -> None:
        try:
            found = compare_runs(self._place / _UNDISTURBED / "run", _run_of(trial))
        except DataraxError as error:
            trial.problems.append(str(error))
            return
        trial.steps_compared = found.steps_compared
        trial.problems += found.data
        if found.model and not found.data:
            trial.problems.append(f"only the model differs, the data are the same; {self._usual_reason()}")
        trial.problems += found.model
        note = "bytes were not compared, only record keys: --set loader.byte_digest=true compares them too"
        if not found.bytes_compared and note not in self._report.notes:
            self._report.notes.append(note)

    def _usual_reason(self) -> str:
        if self._config.run.cpu_threads is None:
            return "run.cpu_threads is not set, so sums may be split in another way at each start"
        return (
            "usual reasons: the task keeps something outside its state, or uses a clock or random numbers of its own; "
            "operations of the device that are not deterministic (GPUs)"
        )

    # One start.

    def _start(self, directory: str, log: str) -> Start:
        place = self._place / directory
        place.mkdir(exist_ok=True)
        settings = [f"run.directory={place / 'run'}", *self._settings]
        return Start(
            [*self._command, *(word for setting in settings for word in ("--set", setting))],
            run=place / "run",
            log=place / log,
            environment=self._environment,
            check=self._go_on,
        )

    def _go_on(self) -> None:
        if self._stopping():
            raise Stopped
        if time.monotonic() > self._until:
            raise _TimeIsUp

    def _aim(self, planned: PlannedKill, start: Start, share: int) -> _Aim:
        """What the plan means in this start, which has so many steps before it.

        The kills of a trial lie as if all of them were drawn over the whole run: each is the first of those that are left.
        """
        fraction = 1 - (1 - planned.fraction) ** (1 / share)
        before, left = start.newest_before, self._report.steps - start.newest_before
        if planned.point == "moment":
            seconds = fraction * (self._start_up_seconds + left * self._step_seconds)
            return _Aim(f"after {seconds:.2f} s", lambda: start.seconds >= seconds)
        if planned.point == "step":
            step = before + max(1, math.ceil(fraction * (left - 1)))
            delay = planned.late * self._step_seconds
            return _Aim(f"after step {step}", lambda: start.reached >= step, delay)
        step, committed = before + math.floor(fraction * left), 0

        def in_save() -> bool:
            nonlocal committed
            if start.reached < step:
                committed = start.newest
                return False
            # A save may have come and gone between two looks.
            return start.saving or start.newest > max(committed, before)

        delay = planned.late * _LONGEST_DELAY_IN_SAVE_SECONDS
        return _Aim(f"save after step {step}", in_save, delay)

    def _promised(self, planned: PlannedKill, sent: _Sent) -> set[int]:
        """The exit codes that a process may have after these signals, besides 0."""
        own = _PROMISED.get(tuple(planned.signals), _PROMISED_OF_TWO)
        if self._report.processes == 1:
            return own
        return _PROMISED_OF_A_LAUNCHER if sent.hit_victim else own | _PROMISED_OF_A_LAUNCHER

    def _steps_as_if_nothing_had_come(self, start: Start, sent: _Sent) -> int:
        """How many steps a complete run has made since the signals, if it cannot have heard them; else 0."""
        longest = _UNHEARD_SECONDS if self._report.processes == 1 else _UNHEARD_BY_MANY_SECONDS
        steps, seconds = start.reached - sent.step, start.seconds_to_last_step - sent.seconds
        return steps if steps > _UNHEARD_STEPS and seconds > longest else 0

    def _check(self, trial: Trial, start: Start, code: int | None, allowed: set[int], when: str) -> None:
        """Whether a start ended as it may, went on where it must, and lost nothing that was committed."""
        if start.seconds_to_first_step is not None:
            self._start_up_seconds = min(self._start_up_seconds, start.seconds_to_first_step)
        problems, before, after = [], start.newest_before, start.newest
        if code is None:
            problems.append(
                f"the run hung {when}: it was killed after {start.seconds:.0f} s, the undisturbed one took "
                f"{self._report.seconds:.0f} s"
            )
        elif code not in allowed:
            problems.append(f"the run ended with code {code} {when}; {_listed(allowed)} would be right")
        if start.first_step not in (None, before + 1):
            problems.append(
                f"the run went on with step {start.first_step} {when}, but the newest snapshot was {before}"
            )
        if after < before:
            problems.append(f"snapshot {before} was there, and is gone {when}")
        if code == 75 and self._report.processes == 1 and start.last_step not in (None, after):
            problems.append(
                f"the run ended with 75 {when}, but of the {start.last_step} steps done only {after} are in a snapshot"
            )
        if problems:
            trial.problems += problems
            trial.output = start.last_lines(_LINES_SHOWN)


def _run_of(trial: Trial) -> Path:
    return Path(trial.directory) / "run"


def _interrupted_before_datarax(planned: PlannedKill, start: Start, code: int | None) -> bool:
    """Whether Python itself ended with 1 by a SIGINT while it starts."""
    if code != 1 or "SIGINT" not in planned.signals or start.first_step is not None:
        return False
    return not any(line.startswith("datarax:") for line in start.last_lines(1000))


def _failed(code: int | None, lines: Sequence[str]) -> UndisturbedRunError:
    assert code is not None
    shown = "\n".join(f"  {line}" for line in lines)
    how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    return UndisturbedRunError(
        f"the undisturbed run {how}, so nothing was killed; its last lines:\n{shown}",
        code if code > 0 else 128 - code,
    )


def _listed(codes: set[int]) -> str:
    return " or ".join(map(str, sorted(codes, key=abs)))
