"""`datarax chaos`: kill a run of this config again and again in real processes, and compare with one that nobody disturbed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_config, add_json, print_json
from datarax.cli.launch import LAUNCHER_VARIABLE, OWN_COMMAND

if TYPE_CHECKING:
    from datarax.testing.kills import ChaosReport, Trial

_HEAD = ("trial", "kill", "where", "code", "snapshot", "result")
_SHOWN_PER_TRIAL = 5
_COLUMNS = 80
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    parser.add_argument("--kills", type=int, default=12, metavar="N", help="how many kills in all (12)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which kills at which points (0)")
    parser.add_argument("--steps", type=int, metavar="K", help="the same as --set run.steps=K")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="run N processes on this machine, and kill any of them",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="where to make the directory of all runs (that for temporary files)",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=600.0,
        metavar="T",
        help="kill everything and report after T (600)",
    )
    parser.add_argument("--keep", action="store_true", help="keep all runs, also if all went well")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exits 0 if every run that was killed ended as the undisturbed one, else 1."""
    environment = {**os.environ, LAUNCHER_VARIABLE: str(os.getpid())}
    # Snapshots are read here while the runs have the accelerators.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from datarax.run_config import load_any_config
    from datarax.testing.kills import Campaign, ChaosReport, Stopped, UndisturbedRunError

    overrides = [*arguments.overrides]
    if arguments.steps is not None:
        overrides.append(f"run.steps={arguments.steps}")
    config = load_any_config(arguments.config, overrides)
    command = [*OWN_COMMAND, "run", arguments.config]
    command += [word for override in overrides for word in ("--set", override)]
    if arguments.processes != 1:
        command += ["--processes", str(arguments.processes)]
    kept = False
    with _stop_signals() as received:
        report = ChaosReport(
            directory=str(_new_directory(arguments.directory)),
            seed=arguments.seed,
            kills_planned=arguments.kills,
            processes=arguments.processes,
        )
        campaign = Campaign(
            report=report,
            config=config,
            command=command,
            environment=environment,
            max_seconds=arguments.max_seconds,
            keep=arguments.keep,
            say=_say,
            stopping=lambda: bool(received),
        )
        try:
            campaign.run()
            kept = arguments.keep or not report.ok
        except Stopped:
            kept = arguments.keep
            _say("datarax: interrupted; all processes were ended")
            return 128 + received[0]
        except UndisturbedRunError as error:
            # A run that did not begin has written nothing to look at.
            kept = arguments.keep or error.exit_code != 2
            if kept:
                error.add_note(f"what it wrote is kept in {report.directory}")
            raise
        finally:
            if not kept:
                shutil.rmtree(report.directory, ignore_errors=True)
    if arguments.json:
        print_json(_tree(report, kept=kept))
    else:
        _show(report, kept=kept)
    return 0 if report.ok else 1


def _new_directory(parent: str | None) -> Path:
    from datarax.core.errors import InputError
    from datarax.store.files import check_path

    if parent is not None:
        check_path(parent, "--directory")
        try:
            os.makedirs(parent, exist_ok=True)
        except OSError as error:
            raise InputError(f"--directory {parent} cannot be made: {error.strerror}") from error
    return Path(tempfile.mkdtemp(prefix="datarax-chaos-", dir=parent)).resolve()


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The numbers of the signals that came. At the first SIGINT or SIGTERM all processes are killed; a second one ends this.

    Handlers also let the processes begin with the system's own: where this runs in the background of a shell SIGINT is
    ignored, and they would inherit that.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in _STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tree(report: ChaosReport, *, kept: bool) -> dict[str, Any]:
    tree = dataclasses.asdict(report)
    for trial, shown in zip(report.trials, tree["trials"], strict=True):
        shown["same"] = trial.same
    tree |= {"ok": report.ok, "kills_tried": len(report.kills), "kills_landed": report.landed}
    return tree | {"directory": report.directory if kept else None}


def _show(report: ChaosReport, *, kept: bool) -> None:
    rows = [_HEAD, *(row for trial in report.trials for row in _rows(trial))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for row in rows:
        cells = [
            text.rjust(width) if name in ("trial", "code", "snapshot") else text.ljust(width)
            for name, text, width in zip(_HEAD, row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())
    for trial in report.trials:
        _show_problems(trial)
    for note in report.notes:
        _wrap(f"note: {note}")
    if kept:
        print(f"kept: {report.directory}")
    _wrap(_summary(report))


def _wrap(text: str, indent: str = "") -> None:
    for line in text.splitlines():
        print(textwrap.fill(line, _COLUMNS, initial_indent=indent, subsequent_indent=f"{indent}  "))


def _rows(trial: Trial) -> list[tuple[str, ...]]:
    number = str(trial.number)
    rows: list[tuple[str, ...]] = []
    for kill in trial.kills:
        who = f"{kill.planned.kind} ({kill.target})" if kill.target else kill.planned.kind
        code = "hung" if kill.code is None else str(kill.code)
        result = "landed" if kill.landed else "too late" if kill.heard else "not heard"
        rows.append((number, who, kill.where, code, str(kill.newest), result))
    verdict = "the same" if trial.same else "NOT the same" if trial.finished else "not finished"
    code = "" if trial.code is None else str(trial.code)
    rows.append((number, "", "to the end", code, str(trial.newest), verdict))
    return rows


def _show_problems(trial: Trial) -> None:
    if trial.problems:
        print(f"trial {trial.number}:")
    for problem in trial.problems[:_SHOWN_PER_TRIAL]:
        _wrap(problem, "  ")
    if len(trial.problems) > _SHOWN_PER_TRIAL:
        print(f"  and {len(trial.problems) - _SHOWN_PER_TRIAL} more (--json lists all)")
    if trial.output:
        print("  the last lines of that process:")
    for line in trial.output:
        print(f"    {line}")


def _summary(report: ChaosReport) -> str:
    same = sum(trial.same for trial in report.trials)
    done = (
        f"{report.landed} of {report.kills_planned} kills landed, {same} of {len(report.trials)} runs of {report.steps} steps "
        f"ended the same (seed {report.seed})"
    )
    if any(trial.problems for trial in report.trials):
        return f"NOT the same: {done}"
    if report.time_is_up:
        return f"NOT finished, the time is up (--max-seconds): {done}"
    if not report.landed:
        return f"NOTHING was killed, every kill came too late: {done}; give the run more --steps"
    return f"the same: {done}"
