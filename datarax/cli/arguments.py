"""What several commands share: arguments, one way to answer, and one way to fail."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterable
from typing import Any


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config file and its overrides."""
    parser.add_argument("config", help="TOML file that describes the run")
    add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
    """Overrides of config keys."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override any config key, for instance --set run.steps=100 (may be repeated)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Machine-readable output."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def answer(arguments: argparse.Namespace, tree: Any, lines: Iterable[str], *, ok: bool = True) -> int:
    """Prints what a command has found, and returns its exit code: 0 for yes, 1 for no.

    Args:
        arguments: of the command; `json` decides which of the two is printed.
        tree: for programs.
        lines: for people.
        ok: whether the answer is yes.
    """
    if arguments.json:
        print_json(tree)
    else:
        for line in lines:
            print(line)
    return 0 if ok else 1


def print_json(tree: Any) -> None:
    """One JSON document on stdout."""
    json.dump(tree, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


def say(text: str) -> None:
    """One line beside the answer, on stderr."""
    print(text, file=sys.stderr, flush=True)


def report(error: Exception, *, debug: bool) -> int:
    """One clear message on stderr, and the exit code that belongs to the error."""
    from datarax.core.errors import DataraxError

    if debug:
        traceback.print_exception(error)
    kind = "" if isinstance(error, DataraxError) else f"{type(error).__name__}: "
    say(f"datarax: {kind}{error}")
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}")
    if isinstance(error, DataraxError):
        return error.exit_code
    if isinstance(error, OSError):
        return 74
    if not debug:
        say("  (run again with --debug for the traceback)")
    return 70
