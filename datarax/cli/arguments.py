"""What several commands share: arguments, output, and one way to fail."""

from __future__ import annotations

import argparse
import json
import sys
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
