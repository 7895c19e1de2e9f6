"""`datarax run`: build the data if need be, then train; run again = continue."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from datarax.cli.arguments import add_config, add_json, print_json, report, say
from datarax.cli.import_path import append_working_directory
from datarax.cli.launch import follow_launcher, launch
from datarax.cli.output import sure_stream

if TYPE_CHECKING:
    from datarax.multihost import Processes
    from datarax.run_config import AnyRunConfig

# A dead process is noticed by its heartbeat long before.
_A_BUILD_SECONDS = 7 * 24 * 3600
_AN_OPENING_SECONDS = 3600

_USERS_CODE = 70
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
    if arguments.processes is not None:
        return _launch(arguments)
    append_working_directory()
    from datarax import multihost
    from datarax.run_config import apply_environment, load_any_config

    config = load_any_config(arguments.config, arguments.overrides)
    apply_environment(config)
    processes = multihost.start(config.multihost)
    if processes.count > 1:
        # Our standard output stays what it is; what libraries print there from C++ (Gloo does) goes to standard error.
        sys.stdout = sure_stream(os.dup(1))
        os.dup2(2, 1)
    try:
        code = _train(arguments, config, processes)
    except Exception as error:
        code = report(error, debug=arguments.debug)
    if processes.broken:
        # The others cannot be waited for, and no exit hook may try.
        multihost.leave_at_once(code)
    multihost.finish()
    return code


def _launch(arguments: argparse.Namespace) -> int:
    from datarax.core.errors import ConfigError
    from datarax.run_config import load_any_config

    if not 1 <= arguments.processes <= _MOST_PROCESSES:
        raise ConfigError(f"--processes must be from 1 to {_MOST_PROCESSES}, got {arguments.processes}")
    config = load_any_config(arguments.config, arguments.overrides)
    words = ["run", arguments.config, *(f"--set={override}" for override in arguments.overrides)]
    if arguments.step is not None:
        words.append(f"--step={arguments.step}")
    words += [f"--{name}" for name in ("json", "debug") if getattr(arguments, name)]
    return launch(
        words,
        processes=arguments.processes,
        run_directory=config.run.directory,
        heartbeat_seconds=config.multihost.heartbeat_seconds,
        signals=config.save.signals,
    )


def _train(arguments: argparse.Namespace, config: AnyRunConfig, processes: Processes) -> int:
    started = time.monotonic()
    if processes.count > 1:
        _build_once(config, processes)
    with contextlib.ExitStack() as opened:
        session = _prepared(config, processes, opened)
        try:
            outcome = session.run(from_step=arguments.step)
        except Exception as error:
            if not session.task_failed:
                raise
            report(error, debug=arguments.debug)
            return _USERS_CODE  # whatever the type of the error
    if not processes.first:
        return 0 if outcome.complete else _STOPPED
    if outcome.complete:
        already = "" if outcome.ran else "already "
        say(f"{already}complete: {outcome.step} steps in {config.run.directory}")
    if arguments.json:
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


def _build_once(config: AnyRunConfig, processes: Processes) -> None:
    """Process 0 builds the data if they are missing; the others wait, and then open what lies there."""
    from datarax.run_config import RunConfig
    from datarax.sources.open import open_source

    def build() -> None:
        if processes.first and isinstance(config, RunConfig):
            with open_source(config.source, build=True, say=say):
                pass

    processes.exchange(
        "build", build, lambda parts: None, about="building the data", timeout_seconds=_A_BUILD_SECONDS
    )


def _prepared(config: AnyRunConfig, processes: Processes, opened: contextlib.ExitStack) -> Any:
    """The session, with data and task; if one process cannot open its own, none goes on to wait for it."""
    from datarax.core.errors import exits_are_errors
    from datarax.run_config import (
        GrainRunConfig,
        batch_sharding,
        build_grain_pipeline,
        build_mesh,
        build_session,
        open_loader,
    )

    sessions: list[Any] = []

    def tell(text: str) -> None:
        if processes.first:
            say(text)

    @exits_are_errors()
    def prepare() -> None:
        mesh = build_mesh(config, processes)
        stream: contextlib.AbstractContextManager[Any]
        if isinstance(config, GrainRunConfig):
            stream = pipeline = build_grain_pipeline(
                config, process_index=processes.index, process_count=processes.count
            )
            for warning in pipeline.warnings():
                tell(f"warning: {warning}")
        else:
            sharding = batch_sharding(config, mesh)
            stream = open_loader(config, build=processes.count == 1, say=tell, sharding=sharding)
        loader = opened.enter_context(stream)
        sessions.append(build_session(config, loader, mesh=mesh, processes=processes))

    about = "opening the data and the task"
    processes.exchange(
        "prepare", prepare, lambda parts: None, about=about, timeout_seconds=_AN_OPENING_SECONDS
    )
    return sessions[0]
