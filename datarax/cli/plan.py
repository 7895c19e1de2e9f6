"""`datarax plan`: what will this config do, and does it fit the run that is there?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from datarax.cli.arguments import add_config, add_json, answer, say
from datarax.cli.import_path import append_working_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes of the run (default: 1)"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="M",
        help="devices of all processes together (default: as many as the mesh says, or one for each process)",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints lengths, steps and identity; exits 1 if an existing run does not fit."""
    append_working_directory()
    from datarax.audit.facts import plan_run
    from datarax.run_config import apply_environment, load_config, open_loader

    config = load_config(arguments.config, arguments.overrides)
    apply_environment(config)
    with open_loader(config, check=True, say=say) as loader:
        plan = plan_run(config, loader, processes=arguments.processes, devices=arguments.devices)
    return answer(arguments, plan, _lines(plan), ok=not plan["mismatches"])


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    from datarax.core.errors import difference_lines

    yield f"run directory     {plan['directory']}"
    yield f"records           {plan['records']:,}"
    processes = f"{plan['processes']:,} process{'es' * (plan['processes'] > 1)}"
    rows = f"{plan['rows_per_process']:,} rows per process ({processes})"
    yield f"batch             {plan['batch_size']:,} rows; {rows}"
    epochs = f"{plan['epochs']:.3g} epochs of {plan['steps_per_epoch']:.1f} steps"
    yield f"steps             {plan['steps']:,} ({epochs})"
    yield f"identity          {plan['identity'][:16]}…"
    for warning in plan["warnings"]:
        yield f"warning           {warning}"
    existing = plan["existing_run"]
    if existing is None:
        yield "existing run      none: starts at step 0"
    elif plan["mismatches"]:
        yield f"existing run      step {existing['newest_step']:,}, which does NOT fit this config:"
        yield from difference_lines(plan["mismatches"], plan["advice"])
    elif existing["newest_step"] == plan["steps"]:
        yield f"existing run      complete: it has all {plan['steps']:,} steps"
    else:
        yield f"existing run      continues after step {existing['newest_step']:,}"
        for line in existing["changes"]:
            yield f"  {'WARNED of' if line in existing['warned'] else 'allowed'} change  {line}"
