"""`datarax verify`: replay a run in this fresh process and compare with its snapshots."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from datarax.cli.arguments import add_json, add_set, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("run_directory", metavar="RUN", help="run directory")
    parser.add_argument(
        "--config", metavar="CONFIG", help="compare with this config, not with the one stored in the run"
    )
    add_set(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="only this snapshot (default: all that are there)"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exits 0 if everything is as recorded, else 1."""
    from datarax.run_config import load_config
    from datarax.verify import verify_run

    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
    report = verify_run(
        arguments.run_directory,
        config=config,
        overrides=arguments.overrides,
        step=arguments.step,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if arguments.json:
        print_json(_tree(report))
    else:
        _show(report)
    return 0 if report.ok else 1


def _tree(report: Any) -> dict[str, Any]:
    return {
        "directory": report.directory,
        "ok": report.ok,
        "notes": report.notes,
        "run_problems": report.run_problems,
        "data_problems": report.data_problems,
        "snapshots": [
            {
                "step": each.step,
                "problems": each.problems,
                "differences": [
                    {"field": d.path, "was": _plain(d.was), "is": _plain(d.now)} for d in each.differences
                ],
                "replayed_steps": each.replayed,
                "bytes_compared": each.bytes_compared,
            }
            for each in report.snapshots
        ],
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else repr(value)


def _show(report: Any) -> None:
    for each in report.snapshots:
        bad = each.problems or each.differences
        what = "FAILED" if bad else "good"
        if each.replayed is not None:
            compared = "keys and bytes" if each.bytes_compared else "keys"
            what += f", steps {each.replayed[0]} to {each.replayed[1]} replayed, {compared} compared"
        print(f"snapshot {each.step}: {what}")
        for difference in each.differences:
            print(f"  {difference}")
        for problem in each.problems:
            print(f"  {problem}")
    if report.run_problems:
        print("files beside the snapshots: FAILED")
    for problem in report.run_problems:
        print(f"  {problem}")
    print(f"data files: {'FAILED' if report.data_problems else 'good'}")
    for problem in report.data_problems:
        print(f"  {problem}")
    for note in report.notes:
        print(f"note: {note}")
    print("verified: everything is as recorded" if report.ok else "NOT verified")
