"""`datarax plan`: what will this config do, and does it fit the run that is there?"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_config, add_json, print_json

if TYPE_CHECKING:
    from datarax.lineage import Lineage
    from datarax.run_config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints lengths, steps and identity; exits 1 if an existing run does not fit."""
    from datarax.lineage import trace
    from datarax.run_config import apply_environment, build_loader, load_config
    from datarax.sources.open import open_source

    config = load_config(arguments.config, arguments.overrides)
    apply_environment(config)
    with (
        open_source(config.source) as source,
        build_loader(config, source) as loader,
        contextlib.ExitStack() as opened,
    ):
        facts = _facts(config, trace(config, loader, opened))
    if arguments.json:
        print_json(facts)
    else:
        _show(facts)
    return 1 if facts["mismatches"] else 0


def _facts(config: RunConfig, lineage: Lineage) -> dict[str, Any]:
    from datarax.checkpoint import list_steps
    from datarax.core.fingerprint import digest
    from datarax.training import LOADER_NAME, total_steps

    loader = lineage.last.loader
    schedule, records = loader.schedule, loader.order.num_records
    steps = total_steps(loader, config.run.steps)
    rows = schedule.base_position + (steps - schedule.base_step) * schedule.batch_size
    existing = None
    mismatches = [str(each) for each in lineage.refused]
    if lineage.newest_step is not None:
        if lineage.newest_step > steps:
            mismatches.append(
                f"steps: the run has {lineage.newest_step} already, the config asks for {steps}"
            )
        existing = {
            "newest_step": lineage.newest_step,
            "snapshots": list_steps(config.run.directory),
            "changes": [str(each) for each in lineage.allowed],
            "identities": len(lineage.stretches),
        }
    return {
        "directory": config.run.directory,
        "records": records,
        "batch_size": schedule.batch_size,
        "rows_per_process": schedule.batch_size,
        "steps_per_epoch": records / schedule.batch_size,
        "steps": steps,
        "epochs": min(rows, schedule.num_rows or rows) / records,
        "identity": digest({LOADER_NAME: loader.identity()}),
        "warnings": loader.order.warnings(),
        "existing_run": existing,
        "mismatches": mismatches,
    }


def _show(facts: dict[str, Any]) -> None:
    print(f"run directory     {facts['directory']}")
    print(f"records           {facts['records']:,}")
    print(f"batch             {facts['batch_size']:,} rows, {facts['rows_per_process']:,} on this process")
    print(
        f"steps             {facts['steps']:,} ({facts['epochs']:.3g} epochs of {facts['steps_per_epoch']:.1f} steps)"
    )
    print(f"identity          {facts['identity'][:16]}…")
    for warning in facts["warnings"]:
        print(f"warning           {warning}")
    existing = facts["existing_run"]
    if existing is None:
        print("existing run      none: starts at step 0")
    elif facts["mismatches"]:
        print(f"existing run      step {existing['newest_step']:,}, which does NOT fit this config:")
        for line in facts["mismatches"]:
            print(f"  {line}")
    elif existing["newest_step"] >= facts["steps"]:
        print(f"existing run      complete: it has {existing['newest_step']:,} steps")
    else:
        print(f"existing run      continues after step {existing['newest_step']:,}")
        for line in existing["changes"]:
            print(f"  allowed change  {line}")
