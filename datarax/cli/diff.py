"""`datarax diff`: are two runs, or two snapshots, the same bit by bit?"""

from __future__ import annotations

import argparse

from datarax.cli.arguments import add_json, answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("left", help="run directory (its newest good snapshot), or RUN/STEP")
    parser.add_argument("right", help="the other one")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exits 0 if nothing differs, else 1."""
    from datarax.audit.diff import diff_runs

    report = diff_runs(arguments.left, arguments.right)
    tree = {"left": report.left, "right": report.right, "differences": report.lines}
    lines = [f"{report.left} and {report.right} differ:", *(f"  {line}" for line in report.lines)]
    if not report.lines:
        lines = [
            f"{report.left} and {report.right} are the same: identity, state, digests, and every bit of the model"
        ]
    return answer(arguments, tree, lines, ok=not report.lines)
