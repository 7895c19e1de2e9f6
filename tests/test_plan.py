"""What `plan` says of processes that are not there is what they would see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from datarax.audit.facts import rows_per_process
from datarax.core.errors import ConfigError
from datarax.run_config import MeshSection

ROOT = Path(__file__).parents[1]

# Axes, batch axes, rows of a batch, processes: all over twelve devices.
TOPOLOGIES = [
    ({"data": -1}, ["data"], 24, 1),
    ({"data": -1}, ["data"], 24, 12),
    ({"data": -1}, ["data"], 24, 3),
    ({"data": -1, "model": 2}, ["data"], 24, 12),
    ({"data": -1, "model": 2}, ["data"], 24, 4),
    ({"data": -1, "model": 4}, ["data"], 24, 6),
    ({"model": 2, "data": -1}, ["data"], 24, 4),
    ({"model": 3, "data": 4}, ["data"], 8, 4),
    ({"data": 4, "model": 3}, ["data"], 8, 6),
    ({"data": 3, "fsdp": 2, "model": 2}, ["data", "fsdp"], 24, 6),
    ({"data": 3, "fsdp": 2, "model": 2}, ["data", "fsdp"], 24, 2),
    ({"data": 3, "fsdp": 2, "model": 2}, ["fsdp", "data"], 24, 6),
    ({"model": -1}, [], 5, 12),
]

REAL = """
import json, sys
from types import SimpleNamespace
import jax
from datarax.multihost import slots_of
from datarax.run_config import MeshSection, batch_sharding, build_mesh

def most(axes, batch_axes, batch_size, processes):
    config = SimpleNamespace(mesh=MeshSection(axes=axes, batch_axes=batch_axes))
    sharding = batch_sharding(config, build_mesh(config))
    each = jax.device_count() // processes
    slots = [
        slots_of(sharding, batch_size, process_index=index, process_of=lambda device: device.id // each)
        for index in range(processes)
    ]
    return max(len(one.rows) for one in slots)

print(json.dumps([most(*topology) for topology in json.loads(sys.argv[1])]))
"""


@pytest.mark.full
def test_rows_per_process_are_those_of_real_devices_under_any_mesh():
    done = subprocess.run(
        [sys.executable, "-c", REAL, json.dumps(TOPOLOGIES)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=12"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    planned = [
        rows_per_process(MeshSection(axes=axes, batch_axes=batch_axes), batch_size, processes, 12)
        for axes, batch_axes, batch_size, processes in TOPOLOGIES
    ]
    assert planned == json.loads(done.stdout)
    assert len(set(planned)) > 5


def test_devices_that_nobody_named_are_those_of_the_mesh_or_one_for_each_process():
    assert rows_per_process(None, 16, 1) == 16
    assert rows_per_process(None, 16, 4) == 4
    assert rows_per_process(MeshSection(axes={"data": 4, "model": 2}), 16, 1) == 16
    assert rows_per_process(MeshSection(axes={"data": 4, "model": 2}), 16, 2) == 8
    assert rows_per_process(MeshSection(axes={"data": -1, "model": 2}), 16, 4) == 8
    assert rows_per_process(None, 2 * 4096, 4096) == 2
    assert rows_per_process(MeshSection(axes={}, batch_axes=[]), 16, 1, 1) == 16


@pytest.mark.parametrize(
    ("axes", "processes", "devices", "said"),
    [
        ({"data": -1}, 0, None, "at least 1 process"),
        ({"data": -1}, 4, 6, "6 devices are not 4 processes"),
        ({"data": -1}, 1, 0, "0 devices are not 1 process"),
        ({"data": -1, "model": 2}, 3, None, "does not fit 3 devices"),
        ({"data": -1}, 3, None, "a batch of 16 rows cannot be split into 3 row shards .* --devices 3`"),
    ],
)
def test_processes_that_do_not_fit_are_refused(axes, processes, devices, said):
    with pytest.raises(ConfigError, match=said):
        rows_per_process(MeshSection(axes=axes), 16, processes, devices)
