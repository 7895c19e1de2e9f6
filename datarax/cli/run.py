"""`datarax run`: build the data if need be, then train; run again = continue."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import UserCodeError, add_config, add_json, print_json, report
from datarax.cli.import_path import append_working_directory
from datarax.cli.launch import follow_launcher, launch
from datarax.cli.output import sure_stream

if TYPE_CHECKING:
    from datarax.multihost import Processes
    from datarax.run_config import AnyRunConfig

# A dead process is noticed by its heartbeat long before.
_A_BUILD_SECONDS = 7 * 24 * 3600
_AN_OPENING_SECONDS = 3600

_STOPPED = 75
_MOST_PROCESSES = 1024  # of one machine; each is a whole interpreter with JAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the command takes."""
    add_config(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="go back to snapshot N; newer ones are set aside, not deleted"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="run N processes on this machine, as if each were a host"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs to the last step or to a signal."""
    follow_launcher()
    return _run(arguments) if arguments.processes is None else _launch(arguments)


def _launch(arguments: argparse.Namespace) -> int:
    from datarax.core.errors import ConfigError
    from datarax.run_config import load_any_config

    if not 1 <= arguments.processes <= _MOST_PROCESSES:
        raise ConfigError(f"--processes must be from 1 to {_MOST_PROCESSES}, got {arguments.processes}")
    config = load_any_config(arguments.config, arguments.overrides)
    words = ["run", arguments.config]
    for override in arguments.overrides:
        words += ["--set", override]
    if arguments.step is not None:
        words += ["--step", str(arguments.step)]
    words += [word for word, given in (("--json", arguments.json), ("--debug", arguments.debug)) if given]
    return launch(
        words,
        processes=arguments.processes,
        run_directory=config.run.directory,
        heartbeat_seconds=config.multihost.heartbeat_seconds,
        signals=config.save.signals,
    )


def _run(arguments: argparse.Namespace) -> int:
    append_working_directory()
    from datarax import multihost
    from datarax.run_config import apply_environment, load_any_config

    config = load_any_config(arguments.config, arguments.overrides)
    apply_environment(config)
    processes = multihost.start(config.multihost)
    if processes.count == 1:
        return _train(arguments, config, processes)
    _keep_stdout()
    try:
        code = _train(arguments, config, processes)
    except Exception as error:
        if processes.broken:
            # The others cannot be waited for, and no exit hook may try.
            multihost.leave_at_once(report(error, debug=arguments.debug))
        multihost.finish()
        raise
    multihost.finish()
    return code


def _train(arguments: argparse.Namespace, config: AnyRunConfig, processes: Processes) -> int:
    from datarax.core.errors import exits_are_errors
    from datarax.run_config import build_mesh, build_session

    started = time.monotonic()
    if processes.count > 1:
        _build_once(config, processes)
    say = _say if processes.first else _say_nothing
    with contextlib.ExitStack() as opened:

        @exits_are_errors()
        def prepare() -> Any:
            mesh = build_mesh(config, processes)
            stream = opened.enter_context(_stream(config, mesh, processes, say))
            return build_session(config, stream, mesh=mesh, processes=processes)

        session = _all_or_none(processes, prepare)
        try:
            outcome = session.run(from_step=arguments.step)
        except Exception as error:
            if session.task_failed:
                raise UserCodeError(error) from error
            raise
    if outcome.complete and outcome.ran == 0:
        say(f"already complete: {outcome.step} steps in {config.run.directory}")
    elif outcome.complete:
        say(f"complete: {outcome.step} steps in {config.run.directory}")
    if arguments.json and processes.first:
        print_json(
            {
                "directory": config.run.directory,
                "step": outcome.step,
                "complete": outcome.complete,
                "steps_run": outcome.ran,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    return 0 if outcome.complete else _STOPPED


def _stream(
    config: AnyRunConfig, mesh: Any, processes: Processes, say: Callable[[str], None]
) -> contextlib.AbstractContextManager[Any]:
    """Where the batches of this process come from, not open yet."""
    from datarax.run_config import GrainRunConfig, batch_sharding, build_grain_pipeline, open_loader

    if isinstance(config, GrainRunConfig):
        pipeline = build_grain_pipeline(config, process_index=processes.index, process_count=processes.count)
        for warning in pipeline.warnings():
            say(f"warning: {warning}")
        return pipeline
    return open_loader(config, build=processes.count == 1, say=say, sharding=batch_sharding(config, mesh))


def _all_or_none(processes: Processes, prepare: Callable[[], Any]) -> Any:
    """What every process prepares for itself: if one cannot, none goes on to wait for it."""
    made: list[Any] = []
    processes.exchange(
        "prepare",
        lambda: made.append(prepare()),
        lambda parts: None,
        about="opening the data and the task",
        timeout_seconds=_AN_OPENING_SECONDS,
    )
    return made[0]


def _keep_stdout() -> None:
    """Our standard output stays what it is; what libraries print there from C++ (Gloo does) goes to standard error."""
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sure_stream(own)


def _build_once(config: AnyRunConfig, processes: Processes) -> None:
    """Process 0 builds the data if they are missing; the others wait, and then open what lies there."""
    from datarax.run_config import GrainRunConfig
    from datarax.sources.open import open_source

    if isinstance(config, GrainRunConfig):
        return

    def build() -> None:
        if processes.first:
            with open_source(config.source, build=True, say=_say):
                pass

    processes.exchange(
        "build", build, lambda parts: None, about="building the data", timeout_seconds=_A_BUILD_SECONDS
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    """For processes whose lines another one prints."""
