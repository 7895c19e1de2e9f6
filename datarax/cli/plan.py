"""`datarax plan`: what will this config do, and does it fit the run that is there?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from datarax.cli.arguments import add_config, add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints lengths, steps and identity; exits 1 if an existing run does not fit."""
    from datarax.core.fingerprint import digest
    from datarax.run_config import apply_environment, build_loader, load_config
    from datarax.sources.open import open_source
    from datarax.training import LOADER_NAME, total_steps

    config = load_config(arguments.config, arguments.overrides)
    apply_environment(config)
    with open_source(config.source) as source, build_loader(config, source) as loader:
        identity = {LOADER_NAME: loader.identity()}
        steps = total_steps(loader, config.run.steps)
        facts: dict[str, Any] = {
            "directory": config.run.directory,
            "records": len(source),
            "batch_size": config.loader.batch_size,
            "rows_per_process": config.loader.batch_size,
            "steps_per_epoch": len(source) / config.loader.batch_size,
            "steps": steps,
            "epochs": steps * config.loader.batch_size / len(source),
            "identity": digest(identity),
            "warnings": loader.order.warnings(),
        }
    run_there, problems = _fit(Path(config.run.directory), identity, config.resume.allow_changed)
    facts["existing_run"] = run_there
    facts["mismatches"] = problems
    if arguments.json:
        print_json(facts)
    else:
        _show(facts)
    return 1 if problems else 0


def _fit(
    directory: Path, identity: dict[str, Any], allow_changed: Any
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest snapshot of an existing run, and in what this config differs from it."""
    from datarax.checkpoint import Snapshot, list_steps
    from datarax.checkpoint.restore import is_allowed
    from datarax.core.fingerprint import differences

    steps = list_steps(directory)
    if not steps:
        return None, []
    found = differences(Snapshot.open(directory).identity, identity)
    refused = [str(difference) for difference in found if not is_allowed(difference.path, allow_changed)]
    return {"newest_step": steps[-1], "snapshots": steps, "changes": [str(each) for each in found]}, refused


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
    else:
        print(f"existing run      continues after step {existing['newest_step']:,}")
        for line in existing["changes"]:
            print(f"  allowed change  {line}")
