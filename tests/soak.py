"""Hundreds of signals at random moments, to one process and to runs of many; prints what came of them. `make soak`

python -m tests.soak --starts 300 --kills 300 --seed 0
"""

import argparse
import multiprocessing
import signal
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.kills import survive_starts
from tests.support.many import assert_same_run, survive, table, write_config
from tests.support.processes import run_command

_KILLS_PER_RUN = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--starts", type=int, default=300, help="signals to one process, at any moment from its start on"
    )
    parser.add_argument("--kills", type=int, default=300, help="signals to runs of many processes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # As in the foreground of a shell: what is ignored here would be ignored in every process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as place:
        ends = Counter(
            (name, code) for name, _, code in survive_starts(Path(place), arguments.starts, arguments.seed)
        )
    for (name, code), times in sorted(ends.items()):
        print(f"{name:8} {code:4} {times:5}")
    print(f"{arguments.starts} signals to one process: each run ended as the undisturbed one", flush=True)
    done = []
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place, "undisturbed")
        undisturbed.mkdir()
        code, output = run_command("run", write_config(undisturbed), directory=undisturbed)
        assert code == 0, output
        runs = -(-arguments.kills // _KILLS_PER_RUN)
        for run in range(runs):
            directory = Path(place, str(run))
            directory.mkdir()
            kills = min(_KILLS_PER_RUN, arguments.kills - len(done))
            done += survive(["run", write_config(directory)], directory, kills, f"{arguments.seed}-{run}")
            assert_same_run(directory, undisturbed)
            code, output = run_command("verify", directory / "run", directory=directory)
            assert code == 0, output
            print(f"run {run + 1} of {runs}: {len(done)} signals, the run is the same", flush=True)
    print(table(done))
    print(
        f"{len(done)} signals, {runs} runs: each ended with the batches, digests and counters of one process"
    )


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    main()
