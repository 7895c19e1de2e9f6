"""Thousands of interrupts and signals at random moments, to hand-overs, to runs of one process and of many. `make soak`

python -m tests.soak --interrupts 20000 --forks 2000 --starts 300 --kills 300 --seed 0

Forks of a server that has the packages imported start within a second, so that most signals meet a run at work; starts are
whole interpreters. Both train a transformer on ArrayRecord files that the run itself builds. Prints what came of them; the
first thing that is not as it must be ends it with an error.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.loader.test_ctrl_c import STREAMS, interrupt_everywhere, signal_hand_overs
from tests.support.kills import survive_signals
from tests.support.many import assert_same_run, survive, table, write_config
from tests.support.processes import Command, FreshCommand, run_command

_KILLS_PER_RUN = 20
_SIGNALS_PER_PROCESS = 250
_SIGNALS = (
    *(signal.SIGKILL, signal.SIGTERM, signal.SIGINT),
    *(signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU),
)


def interrupt_hand_overs(count):
    """Interrupts hand-overs at every bytecode, in streams of each kind, until there were so many; and by real signals."""
    done = 0
    for make, first in itertools.cycle(itertools.product(STREAMS.values(), (True, False))):
        done += interrupt_everywhere(make, first)
        if done >= count:
            break
    print(f"{done} interrupts at bytecodes of a hand-over: each moved nothing or one batch", flush=True)
    signals = max(1, count // 20 // _SIGNALS_PER_PROCESS)
    for seed in range(signals):
        signal_hand_overs(seed, _SIGNALS_PER_PROCESS)
    print(f"{signals * _SIGNALS_PER_PROCESS} SIGINT to a loop over a loader: the same", flush=True)


def signal_one(place, count, seed, start, what):
    """Signals runs of one process, two at a time."""

    def lane(number):
        directory = Path(place, f"{what}-{number}")
        directory.mkdir()
        share = count // 2 + (count % 2 and number)
        return survive_signals(
            *(directory, share, f"{seed}-{number}", start),
            real_model=True,
            signals=_SIGNALS,
            say=lambda done: done % 50 or print(f"{directory.name}: {done} of {share}", flush=True),
        )

    with ThreadPoolExecutor(2) as pool:
        outcomes = itertools.chain(*pool.map(lane, range(2)))
        ends = Counter((name, code) for name, _, code in outcomes)
    for (name, code), times in sorted(ends.items()):
        print(f"{name:8} {code:4} {times:5}")
    print(f"{count} signals to {what} of one process: each run ended as the undisturbed one", flush=True)


def kill_many(place, count, seed):
    """Signals runs of one to four processes."""
    done = []
    undisturbed = Path(place, "undisturbed")
    undisturbed.mkdir()
    code, output = run_command("run", write_config(undisturbed), directory=undisturbed)
    assert code == 0, output
    runs = -(-count // _KILLS_PER_RUN)
    for run in range(runs):
        directory = Path(place, str(run))
        directory.mkdir()
        kills = min(_KILLS_PER_RUN, count - len(done))
        done += survive(["run", write_config(directory)], directory, kills, f"{seed}-{run}")
        assert_same_run(directory, undisturbed)
        code, output = run_command("verify", directory / "run", directory=directory)
        assert code == 0, output
        print(f"run {run + 1} of {runs}: {len(done)} signals, the run is the same", flush=True)
    print(table(done))
    print(
        f"{len(done)} signals, {runs} runs: each ended with the batches, digests and counters of one process"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default, text in (
        ("interrupts", 20_000, "at bytecodes of a hand-over, and a twentieth as many real SIGINT"),
        ("forks", 2_000, "signals to forked starts of one process"),
        ("starts", 300, "signals to one process, at any moment from its start on"),
        ("kills", 300, "signals to runs of many processes"),
        ("seed", 0, "of what is random"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    arguments = parser.parse_args()
    # As in the foreground of a shell: what is ignored here would be ignored in every process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as place:
        # A compilation is half of a short run, and nothing of ours.
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": f"{place}/compiled",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if arguments.interrupts:
            interrupt_hand_overs(arguments.interrupts)
        for count, start, what in (
            (arguments.forks, Command, "forks"),
            (arguments.starts, FreshCommand, "starts"),
        ):
            if count:
                signal_one(place, count, arguments.seed, start, what)
        if arguments.kills:
            kill_many(place, arguments.kills, arguments.seed)


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    main()
