"""`datarax order`: which records are in these steps, and at which steps is this record."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_config, add_json

if TYPE_CHECKING:
    from datarax.lineage import Lineage
    from datarax.order import Schedule


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
    from datarax.core.errors import InputError
    from datarax.lineage import trace
    from datarax.run_config import build_loader, load_config
    from datarax.sources.open import open_source

    config = load_config(arguments.config, arguments.overrides)
    with (
        open_source(config.source) as source,
        build_loader(config, source) as loader,
        contextlib.ExitStack() as opened,
    ):
        lineage = trace(config, loader, opened)
        if lineage.refused:
            print(
                f"note: the run in {config.run.directory} was made with other settings; this is the order of the config alone",
                file=sys.stderr,
            )
        if arguments.find:
            name, _, index = arguments.find.rpartition(":")
            if not name or not index.isdigit():
                raise InputError(
                    f"--find needs SOURCE:INDEX, for instance {source.name}:17; got {arguments.find!r}"
                )
            rows = _find(lineage, name, int(index), config.run.steps)
        else:
            rows = _steps(lineage, *_interval(arguments.steps, lineage.last.loader.schedule.num_steps))
        found = 0
        for row in rows:
            _print(row, as_json=arguments.json)
            found += 1
        if arguments.find and not found:
            print(f"no step of this run delivers {arguments.find}", file=sys.stderr)
    return 0


def _interval(text: str, num_steps: int | None) -> tuple[int, int]:
    from datarax.core.errors import InputError

    first, colon, last = text.partition(":")
    try:
        start = int(first or 0)
        stop = int(last) if last else (num_steps if colon else start + 1)
    except ValueError:
        raise InputError(f"--steps needs A:B with whole numbers, got {text!r}") from None
    if stop is None:
        raise InputError(f"--steps {text} has no end, and neither has this run; give A:B")
    if start < 0 or stop < start:
        raise InputError(f"--steps {text}: steps count from 0, and B must not be below A")
    if num_steps is not None and stop > num_steps:
        raise InputError(f"--steps {text}: this run has only {num_steps} steps")
    return start, stop


def _steps(lineage: Lineage, start: int, stop: int) -> Iterator[dict[str, Any]]:
    for step in range(start, stop):
        loader = next(stretch.loader for stretch in lineage.stretches if step in stretch)
        names = loader.order.source_names
        for slot, (source, index, epoch) in enumerate(loader.record_keys(step).rows()):
            name = names[source] if source >= 0 else None
            yield {"step": step, "row": slot, "source": name, "index": index, "epoch": epoch}


def _find(lineage: Lineage, source: str, index: int, steps: int | None) -> Iterator[dict[str, Any]]:
    from datarax.training import total_steps

    total = total_steps(lineage.last.loader, steps)
    for stretch in lineage.stretches:
        order, schedule = stretch.loader.order, stretch.loader.schedule
        end = total if stretch.end is None else min(stretch.end, total)
        first = _first_position(schedule, stretch.first_step)
        last = _first_position(schedule, end) - 1
        for epoch in range(first // order.num_records, last // order.num_records + 1):
            for position in order.positions(source, index, epoch):
                if first <= position <= last:
                    step, slot = schedule.step_of(position)
                    yield {"step": step, "row": slot, "source": source, "index": index, "epoch": epoch}


def _first_position(schedule: Schedule, step: int) -> int:
    position = schedule.base_position + (step - schedule.base_step) * schedule.batch_size
    return position if schedule.num_rows is None else min(position, schedule.num_rows)


def _print(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        json.dump(row, sys.stdout)
        sys.stdout.write("\n")
    else:
        record = f"{row['source']}:{row['index']}" if row["source"] is not None else "(padding)"
        print(f"step {row['step']}  row {row['row']}  {record}  epoch {row['epoch']}")
