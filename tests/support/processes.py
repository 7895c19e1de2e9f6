"""The command line in real processes that start fast: forks of a server that has the packages imported.

The server starts no JAX backend, so each fork has one of its own and can be killed like any process.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LIMIT_SECONDS = 600
"""After which something is taken to hang: a guard for who waits, below that of pytest, and no measure of what is slow."""


def run_python(*words, directory=None, **environment):
    """What a fresh interpreter that has datarax on its path writes to standard output; it must end with 0."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fork_server():
    """The context whose processes are forks of the one server of this session."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preload"])
    return context


def _main(arguments, directory, log, environment, begun):
    from datarax.__main__ import main

    begun.close()
    os.environ.update(environment)
    os.chdir(directory)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


class Command:
    """One `datarax` command in a process of its own; its output goes to a log file."""

    def __init__(self, arguments, *, directory, log, environment=None):
        self.log = Path(log)
        words = [str(argument) for argument in arguments]
        has_begun, begun = multiprocessing.Pipe(duplex=False)
        self.process = fork_server().Process(
            target=_main, args=(words, str(directory), str(log), environment or {}, begun)
        )
        self.process.start()
        begun.close()
        # Before that a SIGINT would meet the handler of Python, which is not the command's.
        assert has_begun.poll(120)

    def wait(self, timeout=LIMIT_SECONDS):
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout} s:\n{self.output()}")
        return self.process.exitcode

    def wait_until(self, condition, timeout=LIMIT_SECONDS):
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


# What the console script is, and a mark at the first line of `main`.
_SCRIPT = """
import sys
from datarax.__main__ import main
open(sys.argv.pop(1), "w").close()
sys.exit(main())
"""


class FreshCommand:
    """One `datarax` command in an interpreter that has imported nothing yet, as a shell starts it."""

    def __init__(self, arguments, *, directory, log):
        self.log = Path(log)
        self._mark = Path(directory) / f"began-{time.monotonic_ns()}"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT, str(self._mark), *map(str, arguments)],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + 60
        while not self._mark.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        self._mark.unlink()

    def kill_after(self, seconds, number):
        """Sends a signal so long after the first line of `main`; returns the exit code (negative: ended by that signal)."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.send_signal(number)
            return self._process.wait(120)

    def output(self):
        return self.log.read_text()


def run_command(*arguments, directory, log=None):
    """Runs one command to its end; returns (exit code, output)."""
    log = log or Path(directory) / f"output-{time.monotonic_ns()}.log"
    command = Command(arguments, directory=directory, log=log)
    code = command.wait()
    return code, command.output()


class Fleet:
    """One `datarax` command in several processes that are one run, as on several hosts; each has a log of its own."""

    def __init__(self, arguments, *, count, directory, environment=None, each=lambda index: ()):
        port = free_port()
        place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
        self.logs = [Path(directory) / f"process-{index}.log" for index in range(count)]
        for log in self.logs:
            log.unlink(missing_ok=True)
        self.commands = [
            Command(
                [*arguments, *each(index)],
                directory=directory,
                log=self.logs[index],
                environment={**place, "JAX_PROCESS_ID": str(index), **(environment or {})},
            )
            for index in range(count)
        ]

    def wait(self, timeout=LIMIT_SECONDS):
        """The exit codes in the order of processes (negative: ended by that signal)."""
        try:
            return [command.wait(timeout) for command in self.commands]
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.output()}") from None

    def wait_until(self, condition, timeout=LIMIT_SECONDS):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not all(c.process.is_alive() for c in self.commands):
                codes = [c.process.exitcode for c in self.commands]
                self.kill()
                raise AssertionError(f"nothing came; exit codes {codes}\n{self.output()}")
            time.sleep(0.005)

    def wait_while(self, condition, timeout=LIMIT_SECONDS):
        """Waits while a condition holds and any process lives."""
        deadline = time.monotonic() + timeout
        while condition() and any(command.process.is_alive() for command in self.commands):
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"nothing came\n{self.output()}")
            time.sleep(0.002)

    def signal(self, index, number):
        if self.commands[index].process.is_alive():
            os.kill(self.commands[index].process.pid, number)

    def signal_after(self, seconds, index, number):
        """Sends a signal to one process after a while, unless all have ended by then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(c.process.is_alive() for c in self.commands):
            time.sleep(0.002)
        self.signal(index, number)

    def kill(self):
        for command in self.commands:
            if command.process.is_alive():
                command.process.kill()
                command.process.join()

    def output(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs if log.exists())


_reserved = []


def free_port():
    """A port that nobody else is given while this process lives, and on which its children may listen.

    It stays bound, with SO_REUSEPORT, as gRPC binds its own; a port that was let go could be another process's by then.
    """
    if socket.has_dualstack_ipv6():
        bound = socket.socket(socket.AF_INET6)
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    else:
        bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("", 0))
    _reserved.append(bound)
    return bound.getsockname()[1]


def run_fleet(*arguments, count, directory, **settings):
    """Runs one command in `count` processes to its end; returns (exit codes, output)."""
    fleet = Fleet(arguments, count=count, directory=directory, **settings)
    return fleet.wait(), fleet.output()


SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
