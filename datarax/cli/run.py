"""`datarax run`: build the data if need be, then train; run again = continue."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from datarax.cli.arguments import UserCodeError, add_config, add_json, print_json
from datarax.signals import StopRequested, StopSignals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="go back to snapshot N; newer ones are set aside, not deleted"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs to the last step or to a signal."""
    # From the first moment: a signal during imports or the building of data must leave nothing half done.
    signals = StopSignals(raising=True)
    try:
        with signals:
            return _run(arguments, signals)
    except BaseException as error:
        if not signals.explains(error):
            raise
        _say(f"datarax: {signals.name} received; nothing was running yet, run again to continue")
        return StopRequested.exit_code


def _run(arguments: argparse.Namespace, signals: StopSignals) -> int:
    from datarax.run_config import apply_environment, build_session, load_config, open_loader

    config = load_config(arguments.config, arguments.overrides)
    apply_environment(config)
    started = time.monotonic()
    with open_loader(config, build=True, say=_say) as loader:
        session = build_session(config, loader)
        try:
            outcome = session.run(from_step=arguments.step, signals=signals)
        except Exception as error:
            if session.task_failed:
                raise UserCodeError(error) from error
            raise
    if outcome.complete and outcome.ran == 0:
        _say(f"already complete: {outcome.step} steps in {config.run.directory}")
    elif outcome.complete:
        _say(f"complete: {outcome.step} steps in {config.run.directory}")
    if arguments.json:
        print_json(
            {
                "directory": config.run.directory,
                "step": outcome.step,
                "complete": outcome.complete,
                "steps_run": outcome.ran,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    return 0 if outcome.complete else StopRequested.exit_code


def _say(text: str) -> None:
    # Nobody may be reading any more (`| head`): the run does not end with its reader.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
