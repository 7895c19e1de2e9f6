"""`datarax order`: which records are in these steps, and at which steps is this record."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from datarax.cli.arguments import add_config, add_json

if TYPE_CHECKING:
    from datarax.plan import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--steps", metavar="A:B", help="steps A up to, not including, B (counted from 0); or one step"
    )
    what.add_argument(
        "--find", metavar="SOURCE:INDEX", help="every step at which a record is delivered in this run"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints one line per row; reads no record."""
    from datarax.lineage import trace
    from datarax.plan import find_record, parse_interval, parse_record, rows_of_steps
    from datarax.run_config import load_config, open_loader

    config = load_config(arguments.config, arguments.overrides)
    with open_loader(config) as loader, ExitStack() as opened:
        lineage = trace(config, loader, opened)
        if lineage.refused:
            print(
                f"note: the run in {config.run.directory} was made with other settings; this is the order of the config alone",
                file=sys.stderr,
            )
        if arguments.find:
            rows = find_record(lineage, *parse_record(arguments.find, loader), config.run.steps)
        else:
            rows = rows_of_steps(lineage, parse_interval(arguments.steps, loader.schedule.num_steps))
        found = 0
        for row in rows:
            _print(row, as_json=arguments.json)
            found += 1
    if not found:
        print(f"no step of this run delivers {arguments.find}", file=sys.stderr)
    return 0


def _print(row: Row, *, as_json: bool) -> None:
    if as_json:
        json.dump(dataclasses.asdict(row), sys.stdout)
        sys.stdout.write("\n")
    else:
        record = f"{row.source}:{row.index}" if row.source is not None else "(padding)"
        print(f"step {row.step}  row {row.row}  {record}  epoch {row.epoch}")
