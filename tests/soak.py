"""Hundreds of signals at random moments into runs of many processes; prints what came of them. `make soak`

python -m tests.soak --kills 300 --seed 0
"""

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from tests.support.many import assert_same_run, survive, table, write_config
from tests.support.processes import run_command

_KILLS_PER_RUN = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
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
