"""A function in several real processes that are one run: joined by `jax.distributed`, each with a CPU device of its own."""

import os
import pickle
import tempfile
import traceback
from pathlib import Path

from tests.support.processes import LIMIT_SECONDS, fork_server, free_port


class Failed:
    """What a function raised in one of the processes."""

    def __init__(self, error):
        self.kind, self.text = type(error).__name__, str(error)
        self.trace = "".join(traceback.format_exception(error))

    def __repr__(self):
        return f"{self.kind}: {self.text}"


def joined(function, *arguments, count, timeout=LIMIT_SECONDS, settings=None):
    """Calls `function(processes, *arguments)` in `count` processes; a list of what they return, or `Failed`.

    The function must be importable: one of a module, not a closure. A process that was killed returns its exit code.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as place:
        processes = [
            fork_server().Process(
                target=_main, args=(function, arguments, index, count, port, place, settings or {})
            )
            for index in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        hanging = [index for index, process in enumerate(processes) if process.exitcode is None]
        for process in processes:
            if process.exitcode is None:
                process.kill()
                process.join()
        logs = "\n".join(Path(place, f"{index}.log").read_text() for index in range(count))
        assert not hanging, f"processes {hanging} still run after {timeout} s\n{logs}"
        results = []
        for index, process in enumerate(processes):
            path = Path(place, f"{index}.pickle")
            results.append(pickle.loads(path.read_bytes()) if path.exists() else process.exitcode)
        print(logs)
        return results


def _main(function, arguments, index, count, port, place, settings):
    log = os.open(Path(place, f"{index}.log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from datarax import multihost

    config = multihost.MultihostConfig(
        **{"start_timeout_seconds": 60, "exchange_timeout_seconds": 20, **settings}
    )
    processes = multihost.start(
        config, coordinator=f"localhost:{port}", process_count=count, process_index=index
    )
    try:
        result = function(processes, *arguments)
    except Exception as error:
        result = Failed(error)
        traceback.print_exception(error)
    Path(place, f"{index}.tmp").write_bytes(pickle.dumps(result))
    os.replace(Path(place, f"{index}.tmp"), Path(place, f"{index}.pickle"))
    multihost.finish()
    os._exit(0)  # whatever a test broke must not be cleaned up
