"""`datarax doctor`: would a launch with this config go well, here and now?"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from datarax.cli.arguments import add_config, add_json, answer
from datarax.cli.import_path import append_working_directory

if TYPE_CHECKING:
    from datarax.audit.rehearsal import Rehearsal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    parser.add_argument(
        "run_directory", nargs="?", metavar="RUN", help="run directory (default: run.directory of the config)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=1000,
        metavar="K",
        help="look at the files of the next K steps (default: 1000)",
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="devices of the launch, if it will not be on this machine alone",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints every check; exits 1 if one failed."""
    append_working_directory()
    from datarax.audit.rehearse import rehearse

    # What the user's own code prints must not stand among the checks.
    with contextlib.redirect_stdout(sys.stderr):
        report = rehearse(
            arguments.config,
            arguments.overrides,
            run_directory=arguments.run_directory,
            steps=arguments.steps,
            num_devices=arguments.devices,
        )
    return answer(arguments, report.to_tree(), _lines(report), ok=report.ok)


def _lines(report: Rehearsal) -> Iterator[str]:
    from datarax.audit.rehearsal import Verdict

    width = max(map(len, report.checks))
    indent = " " * (9 + width + 2)
    for name, check in report.checks.items():
        yield f"{check.verdict.value:<9}{name:<{width}}  {check.found}"
        yield from (f"{indent}{line}" for line in check.details)
        if check.verdict in (Verdict.WARNING, Verdict.FAIL):
            yield f"{indent}do: {check.do}"
    counts = [f"{report.count(verdict)} {verdict.value}" for verdict in Verdict if report.count(verdict)]
    yield f"{', '.join(counts)}: {'a launch may begin' if report.ok else 'do not launch yet'}"
