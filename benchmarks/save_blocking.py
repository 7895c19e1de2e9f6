"""How long a save of data state blocks the training loop, against Orbax with a handler that writes two bytes.

Each pair is one save of a `DataLoader` through a `Checkpointer` and one save of two bytes through a bare Orbax
`CheckpointManager` under the same options, in turn, so that whatever else the machine does hits both. With `--model` both
sides save a model too.

    python benchmarks/save_blocking.py [--pairs 200] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future as ocp_future

from datarax.checkpoint import Checkpointer, SaveConfig
from datarax.checkpoint.orbax import manager_options
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource

WARM_UP = 8


@dataclass
class TwoBytes(ocp.args.CheckpointArgs):
    """Nothing to say."""


class TwoByteHandler(ocp.AsyncCheckpointHandler):
    """The cheapest asynchronous handler: what is left is Orbax."""

    async def async_save(self, directory: Any, args: TwoBytes) -> list[ocp_future.Future]:
        """Write two bytes in the background."""

        async def write() -> None:
            Path(directory, "two").write_bytes(b"{}")

        return [ocp_future.CommitFutureAwaitingContractedSignals(write())]

    def save(self, directory: Any, args: Any) -> None:
        """Not used."""
        raise NotImplementedError

    def restore(self, directory: Any, args: Any = None) -> Any:
        """Not used."""
        raise NotImplementedError


ocp.args.register_with_handler(TwoByteHandler, for_save=True)(TwoBytes)


def measure(directory: Path, *, pairs: int, model: Any) -> dict[str, list[float]]:
    """Seconds that each save blocked, and until it was committed."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("data", TwoBytes, TwoByteHandler())
    times: dict[str, list[float]] = {"ours": [], "orbax": [], "ours_commit": [], "orbax_commit": []}
    (directory / "orbax").mkdir()
    manager = ocp.CheckpointManager(
        str(directory / "orbax"), options=manager_options(600, None), handler_registry=registry
    )
    loader = DataLoader(DataLoaderConfig(batch_size=64), RangeSource(RangeConfig(stop=1 << 20)))
    items = {"data": TwoBytes()} | ({} if model is None else {"model": ocp.args.PyTreeSave(model)})
    with (
        manager,
        loader,
        Checkpointer(directory / "ours", config=SaveConfig(keep_latest=None)) as checkpointer,
    ):
        for step in range(1, pairs + WARM_UP + 1):
            next(loader)
            begin = time.perf_counter()
            checkpointer.save(step, data=loader, model=model)
            blocked = time.perf_counter() - begin
            checkpointer.wait()
            committed = time.perf_counter() - begin
            begin = time.perf_counter()
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            orbax_blocked = time.perf_counter() - begin
            manager.wait_until_finished()
            orbax_committed = time.perf_counter() - begin
            if step > WARM_UP:
                for name, value in zip(
                    times, (blocked, orbax_blocked, committed, orbax_committed), strict=True
                ):
                    times[name].append(value)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200, help="interleaved pairs of saves (default 200)")
    parser.add_argument(
        "--model", action="store_true", help="save a model of 12 leaves and 4 MB too, on both sides"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    model = None
    if arguments.model:
        random = np.random.default_rng(0)
        model = {f"layer{i}": jnp.asarray(random.random((300, 300), np.float32)) for i in range(12)}
    with tempfile.TemporaryDirectory() as directory:
        times = measure(Path(directory), pairs=arguments.pairs, model=model)
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    result = {
        "pairs": arguments.pairs,
        "model": arguments.model,
        "median_blocked_ms": {"datarax": medians["ours"], "orbax_two_bytes": medians["orbax"]},
        "median_commit_ms": {"datarax": medians["ours_commit"], "orbax_two_bytes": medians["orbax_commit"]},
        "ratio_of_blocked": medians["ours"] / medians["orbax"],
        "allowed_ratio": 1.1,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{arguments.pairs} interleaved pairs, medians")
    print(f"  blocked:   datarax {medians['ours']:7.2f} ms   Orbax, two bytes {medians['orbax']:7.2f} ms")
    print(
        f"  committed: datarax {medians['ours_commit']:7.2f} ms   Orbax, two bytes {medians['orbax_commit']:7.2f} ms"
    )
    print(f"  ratio of blocked times {result['ratio_of_blocked']:.2f} (allowed for data alone: 1.10)")


if __name__ == "__main__":
    main()
