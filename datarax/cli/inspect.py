"""`datarax inspect`: what is in a snapshot."""

from __future__ import annotations

import argparse
from typing import Any

from datarax.cli.arguments import add_json, print_json

_NAMED = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    parser.add_argument("run_directory", metavar="RUN", help="run directory")
    parser.add_argument("--step", type=int, metavar="N", help="snapshot to look at (default: the newest)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the snapshot; exits 1 if it fails its checks."""
    from datarax.audit.facts import inspect_run

    facts = inspect_run(arguments.run_directory, arguments.step)
    if arguments.json:
        print_json(facts)
    else:
        _show(facts)
    return 1 if facts["problems"] else 0


def _show(facts: dict[str, Any]) -> None:
    print(f"snapshot        {facts['directory']}")
    print(f"committed       {_shortened(facts['committed_steps'])}")
    if facts["ledger_steps"]:
        print(f"in the ledger   {_shortened(facts['ledger_steps'])}")
    if facts["problems"]:
        print("DAMAGED:")
        for problem in facts["problems"]:
            print(f"  {problem}")
        return
    print(f"written by      start {facts['start']}")
    print(f"identity        {facts['identity_digest']}")
    for line in _lines(facts["identity"], "  "):
        print(line)
    for name, loader in facts["loaders"].items():
        print(f"loader {name}")
        for line in _lines({"state": loader["state"], "digest": loader["digest"]}, "  "):
            print(line)
    print(f"model           {len(facts['model'])} leaves")
    for path, leaf in facts["model"].items():
        print(f"  {path}: {leaf}")
    for entry in facts["history"][1:]:
        print(f"changed         from step {entry['from_step']}: identity {entry['identity'][:16]}…")


def _shortened(steps: list[int]) -> str:
    """A long list by its ends: `--json` has all of it."""
    shown = [str(step) for step in steps]
    if len(steps) > 4 * _NAMED:
        shown = [*shown[:_NAMED], f"… {len(steps) - 2 * _NAMED:,} more …", *shown[-_NAMED:]]
    return ", ".join(shown)


def _lines(tree: Any, indent: str) -> list[str]:
    if not isinstance(tree, dict):
        return [f"{indent}{tree}"]
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key} = {value}")
    return lines
