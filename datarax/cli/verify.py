"""`datarax verify`: replay a run in this fresh process and compare with its snapshots."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_json, add_set, print_json
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
        "--require-finite",
        action="store_true",
        help="a model that came to hold inf or NaN from one snapshot to the next is a failure, not a note",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exits 0 if everything is as recorded, else 1."""
    if arguments.config or arguments.loader or not arguments.fast:
        append_working_directory()
    from datarax.audit.verify import verify_run
    from datarax.run_config import load_any_config
    from datarax.trust import load_attribute

    config = load_any_config(arguments.config, arguments.overrides) if arguments.config else None
    report = verify_run(
        arguments.run_directory,
        config=config,
        overrides=arguments.overrides,
        make_stream=load_attribute(arguments.loader, "--loader") if arguments.loader else None,
        step=arguments.step,
        last_steps=arguments.steps,
        whole_history=arguments.all,
        require_finite=arguments.require_finite,
        fast=arguments.fast,
        trust=arguments.trust,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if arguments.json:
        print_json(_tree(report))
    else:
        _show(report)
    return 0 if report.ok else 1


def _tree(report: VerifyReport) -> dict[str, Any]:
    return {
        "directory": report.directory,
        "ok": report.ok,
        "newest_step": report.newest_step,
        "covered_steps": report.covered(),
        "uncovered_steps": report.uncovered(),
        "first_diverging_step": report.first_diverging_step,
        "notes": report.notes,
        "run_problems": report.run_problems,
        "data_problems": report.data_problems,
        "data_checked": report.data_checked,
        "snapshots": [
            {
                "step": each.step,
                "in_ledger": each.in_ledger,
                "ok": each.ok,
                "problems": each.problems,
                "differences": [
                    {"field": d.path, "was": _plain(d.was), "is": _plain(d.now)} for d in each.differences
                ],
                "advice": each.advice,
                "superseded": [d.path for d in each.superseded],
                "replayed_steps": each.replayed,
                "keys_only": each.keys_only,
                "bytes_compared": each.bytes_compared,
                "first_diverging_step": each.first_diverging_step,
                "records": each.records,
                "model_leaves": each.model_leaves,
                "not_finite": each.not_finite,
            }
            for each in report.snapshots
        ],
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else repr(value)


def _show(report: VerifyReport) -> None:
    from datarax.core.errors import difference_lines

    for each in report.snapshots:
        print(_headline(each))
        for line in difference_lines(each.differences, each.advice):
            print(line)
        for problem in each.problems:
            print(f"  {problem}")
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
    if report.ok:
        print("verified: everything is as recorded")
        return
    first = report.first_diverging_step
    print(
        "NOT verified"
        if first is None
        else f"NOT verified: the first step that is not as recorded is {first}"
    )


def _headline(each: SnapshotReport) -> str:
    text = (
        f"{'ledger entry' if each.in_ledger else 'snapshot'} {each.step}: {'good' if each.ok else 'FAILED'}"
    )
    if each.replayed is not None:
        compared = "keys and bytes" if each.bytes_compared else "keys"
        how = "computed" if each.keys_only else "replayed"
        text += f", steps {each.replayed[0]} to {each.replayed[1]} {how}, {compared} compared"
    if each.model_leaves:
        text += f", {each.model_leaves} model leaves read"
    return text


def _coverage(report: VerifyReport) -> str:
    """Which steps were replayed, and which were not: `4 to 12` are the steps 4, 5, … 11."""
    covered = ", ".join(f"{begin} to {end}" for begin, end in report.covered()) or "none"
    text = f"covers steps: {covered} of {report.newest_step}"
    left = report.uncovered()
    if left:
        shown = ", ".join(f"{begin} to {end}" for begin, end in left)
        hint = "" if report.whole_history else " (--all also replays what only the ledger tells of)"
        text += f"; not covered: {shown}{hint}"
    return text
