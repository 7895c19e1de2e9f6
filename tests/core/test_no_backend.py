"""Making things starts no backend of JAX: after that no process may join others, and a worker would take a device."""

import subprocess
import sys

import pytest

from tests.support.processes import free_port

MAKE = """
import numpy as np
from jax._src import xla_bridge  # no public function tells whether a backend has started

import datarax
from datarax.checkpoint import Checkpointer  # all of Orbax
from datarax.core.config import DataraxModuleConfig, OperatorConfig
from datarax.core.variables import IterationCount


class Counting(datarax.CheckpointableIteratorModule):
    def __init__(self, config):
        super().__init__(config)
        self.lost = IterationCount(np.zeros((), np.int32))


def add(record, generator):
    return {"x": record["x"] + generator.integers(2)}


config = DataraxModuleConfig(precomputed_stats={"mean": np.zeros(3)})
hash(config), config == DataraxModuleConfig(precomputed_stats={"mean": np.zeros(3)})
modules = [
    datarax.DataraxModule(config),
    Counting(OperatorConfig()),
    datarax.MemorySource(datarax.MemoryConfig(), {"x": np.arange(8)}),
    datarax.RangeSource(datarax.RangeConfig(stop=8)),
]
source = datarax.MemorySource(datarax.MemoryConfig(), {"x": np.arange(8)})
transforms = [datarax.random_map_records(add, name="add"), datarax.map_batch(lambda batch: batch, name="same")]
loader = datarax.DataLoader(datarax.DataLoaderConfig(batch_size=4, num_epochs=1), source, transforms=transforms)
assert repr(loader) and loader.get_state() and loader.clone()
assert not xla_bridge.backends_are_initialized()
"""

JOIN = """
import jax, sys

jax.distributed.initialize("localhost:" + sys.argv[1], num_processes=1, process_id=0)
assert jax.process_count() == 1
modules[0]._increment_applied_count()
assert modules[0].get_operation_stats() == {"applied_count": 1, "skipped_count": 0}
assert modules[1].get_state()["lost"].dtype == np.int32
assert len(list(loader)) == 2
"""


def run(tmp_path, script, *arguments):
    file = tmp_path / "script.py"  # a function that is typed in has no identity
    file.write_text(script)
    done = subprocess.run([sys.executable, file, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_and_making_configs_modules_sources_and_loaders_starts_no_backend(tmp_path):
    run(tmp_path, MAKE)


@pytest.mark.full
def test_a_process_can_join_others_after_its_modules_were_made(tmp_path):
    run(tmp_path, MAKE + JOIN, str(free_port()))
