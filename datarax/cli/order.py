"""`datarax order`: which records are in these steps, and in which steps is this record, or this file."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from datarax.cli.arguments import add_json, add_set
from datarax.cli.import_path import append_working_directory
from datarax.cli.output import end_with_reader

if TYPE_CHECKING:
    from datarax.audit.history import History
    from datarax.audit.rows import Summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument(
        "run_or_config",
        metavar="RUN_OR_CONFIG",
        help="run directory, which needs nothing else; or a config file, also of a run that has not begun",
    )
    add_set(parser)
    parser.add_argument(
        "--steps", metavar="A:B", help="steps A up to, not including, B (counted from 0); or one step"
    )
    parser.add_argument(
        "--find",
        action="append",
        default=[],
        metavar="SOURCE:INDEX|FILE",
        help="only rows that hold this record, or a record of this file (name, end of a name, or path); may be repeated. "
        "Without --steps: in all steps that a run has done, or that a config will do",
    )
    add_json(parser)
    parser.add_argument("--csv", action="store_true", help="print CSV with a header")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write the table of --json or --csv to a new file, whole or not at all",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints one line per row; reads no record."""
    from datarax.audit.rows import Style, new_file, write_table
    from datarax.core.errors import InputError

    if arguments.steps is None and not arguments.find:
        raise InputError("give --steps A:B, or --find SOURCE:INDEX or a file, or both")
    if arguments.json and arguments.csv:
        raise InputError("--json and --csv exclude each other")
    if arguments.output and not (arguments.json or arguments.csv):
        raise InputError("--output needs --json or --csv")
    style: Style = "json" if arguments.json else "csv" if arguments.csv else "lines"
    with ExitStack() as opened:
        stream = opened.enter_context(new_file(arguments.output)) if arguments.output else sys.stdout
        history = _history(arguments, opened)
        steps = _steps(arguments, history)
        end_with_reader(stream)
        try:
            summary = write_table(history, steps, arguments.find, style, stream)
            stream.flush()
        except BrokenPipeError:
            # The reader of our output left (`| head`): that is its right, and there may be no end of what it did not want.
            return 0
    _conclude(arguments, summary)
    return 0


def _history(arguments: argparse.Namespace, opened: ExitStack) -> History:
    from datarax.audit.history import history_by_config, history_of_run
    from datarax.core.errors import InputError, MismatchError
    from datarax.run_config import load_config, open_loader

    if os.path.isdir(arguments.run_or_config):
        return history_of_run(arguments.run_or_config, arguments.overrides)
    append_working_directory()
    config = load_config(arguments.run_or_config, arguments.overrides)
    try:
        loader = opened.enter_context(open_loader(config))
    except InputError as error:
        if os.path.isdir(config.run.directory):
            error.add_note(f"steps that were done need no data: datarax order {config.run.directory} …")
        raise
    version = loader.order.identity()["version"]
    if isinstance(version, str):  # of a run alone, each step is held against its digest
        raise MismatchError(
            f"the order of this code, version {version}, gives other records than were delivered under that version, or ever "
            f"will be; install an unchanged datarax"
        )
    return history_by_config(config, loader)


def _steps(arguments: argparse.Namespace, history: History) -> range:
    from datarax.audit.rows import parse_interval

    of_run = os.path.isdir(arguments.run_or_config)
    if history.refused:
        _note(
            "the run in the directory of this config was made with other settings; this is the order of the config alone"
        )
    for note in history.notes:
        _note(note)
    if arguments.steps is not None:
        steps = parse_interval(arguments.steps, history.available)
    else:
        steps = history.steps_to_search(done_only=of_run)
    if of_run and steps.stop > history.steps_done:
        first = max(steps.start, history.steps_done)
        _note(
            f"steps {first} to {steps.stop - 1} are not done, or not saved yet: this is what the run will deliver there"
        )
    return steps


def _conclude(arguments: argparse.Namespace, summary: Summary) -> None:
    if arguments.find and not summary.rows:
        _say(f"no step of this run delivers {' or '.join(arguments.find)}")
    elif arguments.find and summary.steps is not None and summary.epochs is not None:
        (first, last), (least, most) = summary.steps, summary.epochs
        _say(f"{_count(summary.rows, 'row')} in steps {first} to {last}, epochs {least} to {most}")
    if arguments.find and summary.agreed:
        _say(
            f"of these steps {summary.agreed:,} agree with the digests that were recorded when they were delivered"
        )
    if summary.unrecorded:
        _note(
            f"{_count(summary.unrecorded, 'step')} could not be held against what was recorded at delivery: the snapshots and "
            f"ledger entries with their digests are gone or damaged"
        )
    if summary.unknown_files is not None:
        _note(f"rows without a file: {summary.unknown_files}")
    if arguments.output:
        _say(f"wrote {_count(summary.rows, 'row')} to {arguments.output}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _note(text: str) -> None:
    _say(f"note: {text}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
