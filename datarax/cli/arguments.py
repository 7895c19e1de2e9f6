"""What several commands share: arguments, output, and one way to fail."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from typing import Any


class UserCodeError(Exception):
    """An exception of the user's own code, whatever its type: only for the way to `main`, which shows the cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


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


def print_json(tree: Any) -> None:
    """One JSON document on stdout."""
    json.dump(tree, sys.stdout, indent=2, sort_keys=True, default=str)
    sys.stdout.write("\n")


def report(error: Exception, *, debug: bool) -> int:
    """One clear message on stderr, and the exit code that belongs to the error."""
    from datarax.core.errors import DataraxError

    if isinstance(error, UserCodeError):
        report(error.cause, debug=debug)
        return 70
    if debug:
        traceback.print_exception(error)
    expected = isinstance(error, (DataraxError, OSError))
    kind = "" if isinstance(error, DataraxError) else f"{type(error).__name__}: "
    print(f"datarax: {kind}{error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)
    if not expected and not debug:
        print("  (run again with --debug for the traceback)", file=sys.stderr)
    if isinstance(error, DataraxError):
        return error.exit_code
    return 74 if isinstance(error, OSError) else 70
