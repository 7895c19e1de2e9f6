"""`datarax verify`: replay a run in this fresh process and compare with its snapshots."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_json, add_set
from datarax.cli.import_path import append_working_directory

if TYPE_CHECKING:
    from datarax.audit.report import SnapshotReport, VerifyReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("run_directory", metavar="RUN", help="run directory")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--config", metavar="CONFIG", help="compare with this config, not with the one stored in the run"
    )
    what.add_argument(
        "--loader",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that makes the loader of a run made from Python",
    )
    add_set(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="only this snapshot (default: all that are there)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="K", help="replay only the newest K steps, through the ledger if need be"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="the whole history: also the steps that only the ledger still tells of",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compare keys only; read no record, file of data or model, import no code: by default the newest 1,000 steps",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import what the stored config names, whoever may have written it (see docs/trust.md)",
    )
    parser.add_argument(
        "--subset",
        type=_subset,
        default=(1, 1),
        metavar="N/T",
        help="only the N-th of T parts of the snapshots; all parts together, on as many machines, are the whole",
    )
    parser.add_argument(
        "--max-duration",
        type=float,
        metavar="SECONDS",
        help="begin nothing after this time, and with what was proved longest ago or never (see --record)",
    )
    parser.add_argument(
        "--max-errors", type=int, metavar="N", help="stop after N snapshots that are not as recorded"
    )
    parser.add_argument(
        "--record", action="store_true", help="keep what was proved in RUN/proofs, for --max-duration"
    )
    parser.add_argument(
        "--require-contents",
        action="store_true",
        help="steps of which only the keys could be compared are a failure, not a line",
    )
    parser.add_argument(
        "--require-finite",
        action="store_true",
        help="a model that came to hold inf or NaN from one snapshot to the next is a failure, not a note",
    )
    add_json(parser)


def _subset(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def run(arguments: argparse.Namespace) -> int:
    """Exits 0 if everything is as recorded, else 1; 130 if it was stopped by SIGINT before anything else was found."""
    if arguments.config or arguments.loader or not arguments.fast:
        append_working_directory()
    from datarax.audit.report import INTERRUPTED
    from datarax.audit.verify import verify_run
    from datarax.run_config import load_any_config
    from datarax.trust import load_attribute

    config = load_any_config(arguments.config, arguments.overrides) if arguments.config else None
    make_stream = load_attribute(arguments.loader, "--loader") if arguments.loader else None
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)
    report = verify_run(
        arguments.run_directory,
        config=config,
        overrides=arguments.overrides,
        make_stream=make_stream,
        step=arguments.step,
        last_steps=arguments.steps,
        whole_history=arguments.all,
        subset=arguments.subset,
        max_duration_seconds=arguments.max_duration,
        max_errors=arguments.max_errors,
        require_finite=arguments.require_finite,
        require_contents=arguments.require_contents,
        fast=arguments.fast,
        trust=arguments.trust,
        record=arguments.record,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        tell=_print_line if arguments.json else _show_snapshot,
    )
    report.options = _options(arguments)
    if arguments.json:
        _print_json(report.summary())
    else:
        _show(report)
    if not report.ok:
        return 1
    return 130 if report.stopped == INTERRUPTED else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first one ends the verification with what is known by then; the second one ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _options(arguments: argparse.Namespace) -> list[str]:
    """The words that name the recipe, and whose code may run."""
    words = [word for override in arguments.overrides for word in ("--set", override)]
    for name in ("config", "loader"):
        words += [f"--{name}", getattr(arguments, name)] if getattr(arguments, name) else []
    return words + ["--trust"] * arguments.trust


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, sort_keys=True, default=str), flush=True)


def _print_line(report: SnapshotReport) -> None:
    _print_json(report.tree())


def _show_snapshot(report: SnapshotReport) -> None:
    from datarax.core.errors import difference_lines

    print(_headline(report))
    for line in difference_lines(report.differences, report.advice):
        print(line)
    for problem in report.problems:
        print(f"  {problem}")


def _show(report: VerifyReport) -> None:
    if report.run_problems:
        print("files beside the snapshots: FAILED")
    for problem in report.run_problems:
        print(f"  {problem}")
    if report.data_checked or report.data_problems:
        print(f"data files: {'FAILED' if report.data_problems else 'good'}")
    for problem in report.data_problems:
        print(f"  {problem}")
    for note in report.notes:
        print(f"note: {note}")
    print(_coverage(report))
    keys_only = report.without_contents()
    if keys_only:
        print(f"keys as recorded; contents not compared: steps {_intervals(keys_only)}")
    first = report.first_diverging_step
    if report.ok:
        partly = keys_only or report.stopped
        print(f"verified: {'what was compared' if partly else 'everything'} is as recorded")
    elif first is not None:
        print(f"NOT verified: the first step that is not as recorded is {first}")
    elif report.require_contents and keys_only:
        print("NOT verified: contents were not compared (--require-contents)")
    else:
        print("NOT verified")
    if report.next_command is not None:
        print(f"next: {report.next_command}")


def _headline(each: SnapshotReport) -> str:
    text = (
        f"{'ledger entry' if each.in_ledger else 'snapshot'} {each.step}: {'good' if each.ok else 'FAILED'}"
    )
    if each.replayed_steps is not None:
        compared = "keys and bytes" if each.bytes_compared else "keys"
        how = "computed" if each.keys_only else "replayed"
        text += f", steps {_intervals([each.replayed_steps])} {how}, {compared} compared"
    if each.model_leaves:
        text += f", {each.model_leaves} model leaves read"
    return text


def _coverage(report: VerifyReport) -> str:
    """Which steps were replayed, and which were not."""
    text = f"covers steps: {_intervals(report.covered()) or 'none'} of {report.newest_step}"
    left = report.uncovered()
    if left:
        hint = "" if report.whole_history else " (--all also replays what only the ledger tells of)"
        text += f"; not covered: {_intervals(left)}{hint}"
    return text


def _intervals(intervals: Sequence[tuple[int, int]]) -> str:
    """`4 to 12` are the steps 4, 5, … 11."""
    return ", ".join(f"{begin} to {end}" for begin, end in intervals)
