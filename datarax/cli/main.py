"""The `datarax` command: parse, call, print. Each command is one file; what it does lives in the library.

A command module has `add_arguments(parser)` and `run(arguments) -> exit code`. Modules are imported when their
command is asked for: `--help` must not wait for JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from datarax import __version__
from datarax.cli.arguments import report
from datarax.cli.output import use_sure_streams

_COMMANDS = {
    "run": "train (or just iterate) as a config says; run again = continue",
    "plan": "what a config will do: lengths, steps, identity, fit with an existing run",
    "doctor": "a rehearsal before a launch: everything that it would stumble over",
    "order": "which records are in which steps, and at which steps a record is",
    "inspect": "what is in a snapshot",
    "diff": "compare two runs or snapshots, bit by bit",
    "verify": "replay a run in this fresh process and compare with its snapshots",
    "chaos": "kill a run of this config at random moments and compare with an undisturbed one",
    "build": "raw text or JSONL to ArrayRecord shards with a manifest",
}

_EXIT_CODES = """\
exit codes:
  0 yes, done           1 the answer is no: mismatch, damage, divergence
  2 wrong usage/input   70 internal error, or an exception of your own code
  74 read/write failed  75 stopped; run the same command again to continue exactly
  130, 143 ended by a signal with nothing to save yet, or left at once on a second one
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    use_sure_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(argv)
    arguments = parser.parse_args(argv)
    from datarax.core.errors import InputError, exits_are_errors

    try:
        try:
            os.getcwd()
        except FileNotFoundError:
            raise InputError("the working directory was deleted; change to another one") from None
        with exits_are_errors():
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except Exception as error:
        return report(error, debug=arguments.debug)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="datarax",
        description="Data loading for JAX that resumes exactly, and proves it.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"datarax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="show a traceback with an error")
        if name == asked:
            module = importlib.import_module(f"datarax.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(importlib.import_module("datarax.__main__").main())  # which sets SIGINT first
