"""The command line in real processes that start fast: forks of a server that has the packages imported.

The server starts no JAX backend, so each fork has one of its own and can be killed like any process.
"""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

_PRELOAD = ["tests.support.preload"]


def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _main(arguments, directory, log):
    os.chdir(directory)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    from datarax.cli.main import main

    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


class Command:
    """One `datarax` command in a process of its own; its output goes to a log file."""

    def __init__(self, arguments, *, directory, log):
        self.log = Path(log)
        self.process = _server().Process(
            target=_main, args=([str(a) for a in arguments], str(directory), str(log))
        )
        self.process.start()

    def wait(self, timeout=120):
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout} s:\n{self.output()}")
        return self.process.exitcode

    def wait_until(self, condition, timeout=120):
        """Waits for a condition that must come true while the command is running."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"nothing came:\n{self.output()}"
            assert self.process.is_alive(), f"ended with {self.process.exitcode}:\n{self.output()}"
            time.sleep(0.005)

    def kill_after(self, seconds, number):
        """Sends a signal after a while; returns the exit code (negative: ended by that signal)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.is_alive():
            time.sleep(0.002)
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        return self.wait()

    def output(self):
        return self.log.read_text() if self.log.exists() else ""


def run_command(*arguments, directory, log=None):
    """Runs one command to its end; returns (exit code, output)."""
    log = log or Path(directory) / f"output-{time.monotonic_ns()}.log"
    command = Command(arguments, directory=directory, log=log)
    code = command.wait()
    return code, command.output()


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
