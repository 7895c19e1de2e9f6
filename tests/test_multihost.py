"""How a process finds the others, or says clearly that it cannot; and which slots are its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datarax import multihost
from datarax.core.errors import ConfigError, DisagreementError
from datarax.multihost import MultihostConfig, check_slots, start
from tests.support.joined import Failed, joined
from tests.support.processes import free_port

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coordinator": "host:1"}, "process_count is missing"),
        ({"process_count": 2, "process_index": 0}, "coordinator is missing"),
        ({"coordinator": "host:1", "process_count": 2, "process_index": 2}, "process 2 of 2 does not exist"),
        (
            {"coordinator": "host:1", "process_count": 2, "process_index": -1},
            "process -1 of 2 does not exist",
        ),
        ({"coordinator": "host", "process_count": 2, "process_index": 0}, "must be host:port"),
    ],
)
def test_a_place_that_is_not_completely_known_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        start(**given)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "but not JAX_COORDINATOR_ADDRESS"),
        (
            {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "h:1"},
            "must be a number",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "7", "JAX_COORDINATOR_ADDRESS": "h:1"},
            "process 7 of 2",
        ),
    ],
)
def test_an_environment_that_says_half_is_refused(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        start()
    assert start(MultihostConfig(start="off")).count == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"JAX_COORDINATOR_ADDRESS": "host:1"},
        {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
    ],
)
def test_one_process_is_left_alone(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes = start()
    assert (processes.index, processes.count, processes.first) == (0, 1, True)
    assert multihost.current().count == 1
    multihost.finish()


@pytest.mark.parametrize("name", ["start_timeout_seconds", "exchange_timeout_seconds", "heartbeat_seconds"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(
        ConfigError, match=rf"MultihostConfig\.{name} must be an integer of at least 1, got {value}"
    ):
        MultihostConfig(**{name: value})
    with pytest.raises(
        ConfigError, match=r"MultihostConfig\.start must be one of 'auto', 'cluster', 'off', got 'slurm'"
    ):
        MultihostConfig(start="slurm")


# Real processes.

STARTS = """
import sys
from datarax.multihost import MultihostConfig, check_slots, start
print("waiting", flush=True)
start(MultihostConfig(start_timeout_seconds={seconds}))
"""


def starting(index, seconds, port):
    return subprocess.Popen(
        [sys.executable, "-c", STARTS.format(seconds=seconds)],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "3",
            "JAX_PROCESS_ID": str(index),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.full
def test_a_process_that_waits_for_the_others_says_who_and_for_how_long(index):
    port = free_port()
    process = starting(index, 2, port)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 74, said
    assert (
        f"process {index} of 3, coordinator localhost:{port}: not all processes were there within 2 seconds"
        in said
    )
    assert "multihost.start_timeout_seconds" in said
    assert "stack trace" not in said


@pytest.mark.few(1)
# Of a script of one's own: SIGTERM has its default action, Ctrl-C Python's handler, which JAX's wait in C++ keeps from running.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 75)])
def test_a_signal_while_waiting_for_the_others_ends_that_at_once(number, code):
    process = starting(1, 300, free_port())
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)  # into JAX's own wait; any moment will do
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert ("SIGINT received" in said) == (number == signal.SIGINT)


def who(processes):
    import jax

    again = start()
    return (
        processes.index,
        processes.count,
        jax.process_index(),
        again is processes,
        multihost.current() is processes,
    )


def test_all_processes_know_their_place():
    assert joined(who, count=3) == [(index, 3, index, True, True) for index in range(3)]


def replaced(processes):
    before = multihost.notice_replaced()
    if processes.index == 1:
        signal.signal(signal.SIGTERM, lambda *_: None)
    return before, multihost.notice_replaced()


def test_a_handler_that_takes_the_notice_of_preemption_away_is_noticed():
    assert joined(replaced, count=2) == [(False, False), (False, True)]


CLUSTER = """
from datarax.multihost import MultihostConfig, current, finish, start
processes = start(MultihostConfig(start="cluster", start_timeout_seconds=60))
print(processes.index, processes.count, processes.exchange("sum", lambda: processes.index, sum))
finish()
"""


def on_cluster(environments):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    return [(*process.communicate(timeout=120), process.returncode) for process in processes]


def test_slurm_tells_processes_their_place():
    # What Slurm gives to each task; JAX makes the coordinator's port of the job's number.
    job = str(4096 * 3 + free_port() % 4096)
    shared = {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    ends = on_cluster([{**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)])
    assert [code for _, _, code in ends] == [0, 0], ends
    assert [out.splitlines()[-1] for out, _, _ in ends] == ["0 2 1", "1 2 1"]


@pytest.mark.full
def test_open_mpi_tells_processes_their_place():
    shared = {
        "OMPI_MCA_orte_hnp_uri": f"{1000 + free_port() % 3000}.0;tcp://127.0.0.1:4321",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    ends = on_cluster(
        [{**shared, "OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)} for i in range(2)]
    )
    assert [code for _, _, code in ends] == [0, 0], ends
    assert [out.splitlines()[-1] for out, _, _ in ends] == ["0 2 1", "1 2 1"]


ALONE = """
import os, signal, sys
from datarax.multihost import MultihostConfig, check_slots, start
signal.signal(signal.SIGTERM, lambda *_: os._exit(33))
processes = start(MultihostConfig(start="cluster", start_timeout_seconds=60))
assert processes.count == 1
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_cluster_of_one_process_keeps_its_own_signals():
    job = {"SLURM_JOB_ID": str(free_port() % 4096), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1"}
    alone = {**os.environ, **job, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, env=alone, timeout=120, check=False)
    assert done.returncode == 33


def test_no_cluster_is_a_clear_error():
    ((_, said, code),) = on_cluster([{}])
    assert code == 1
    assert "ConfigError" in said
    assert "JAX finds no cluster here" in said


# Slots.

SLOTS = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from datarax.core.errors import ConfigError, DisagreementError
from datarax.multihost import slots_of

devices = np.array(jax.devices())
def slots(mesh, spec, batch, per_process=1):
    sharding = NamedSharding(mesh, spec)
    count = len(devices) // per_process
    found = [slots_of(sharding, batch, process_index=i, process_of=lambda d: d.id // per_process) for i in range(count)]
    return [(each.rows.tolist(), each.owned.tolist()) for each in found]

flat = Mesh(devices, ("data",))
two = Mesh(devices.reshape(4, 2), ("data", "model"))
turned = Mesh(devices.reshape(2, 4).T, ("data", "model"))
odd = Mesh(devices[[0, 2, 4, 6, 1, 3, 5, 7]], ("data",))
try:
    slots(flat, P("data"), 12)
except ConfigError as error:
    refused = str(error)
print(json.dumps({
    "flat": slots(flat, P("data"), 8),
    "pairs": slots(flat, P("data"), 16, per_process=2),
    "model": slots(two, P("data"), 8),
    "turned": slots(turned, P("data"), 8),
    "both": slots(two, P(("data", "model")), 8),
    "axes beyond the first": slots(two, P("data", "model"), 8),
    "repeated": slots(flat, P(), 2),
    "apart": slots(odd, P("data"), 8, per_process=2),
    "refused": refused,
}))
"""


def test_slots_follow_from_any_sharding_and_each_has_the_lowest_process_as_its_owner():
    import json

    done = subprocess.run(
        [sys.executable, "-c", SLOTS],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["flat"] == [[[i], [i]] for i in range(8)]
    assert found["pairs"] == [[[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]] * 2 for i in range(4)]
    shared = [
        [[2 * (i // 2), 2 * (i // 2) + 1], [] if i % 2 else [2 * (i // 2), 2 * (i // 2) + 1]]
        for i in range(8)
    ]
    assert found["model"] == found["axes beyond the first"] == shared
    assert found["turned"] == [
        [[2 * (i % 4), 2 * (i % 4) + 1], [] if i > 3 else [2 * i, 2 * i + 1]] for i in range(8)
    ]
    assert found["both"] == found["flat"]
    assert found["repeated"] == [[[0, 1], [] if i else [0, 1]] for i in range(8)]
    assert found["apart"] == [[[i, i + 4]] * 2 for i in range(4)], "rows of one process need not be a range"
    assert "a batch of 12 rows cannot be split into 8 row shards (mesh axes data)" in found["refused"]
    assert "that fit are 1, 2, 3, 4, 6, 12" in found["refused"]


def broken(processes):
    if processes.index == 1:
        raise ZeroDivisionError("mine")
    return processes.count


def test_the_tests_own_processes_report_what_they_raise():
    results = joined(broken, count=2)
    assert results[0] == 2
    assert isinstance(results[1], Failed)
    assert results[1].kind == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("owned", "said"),
    [
        ([[[0, 4]], [[4, 7]]], "1 of 8 slots .* slot 7, counted by no process"),
        ([[[0, 5]], [[4, 8]]], "slot 4, counted by processes 0, 1"),
        ([[[0, 2], [4, 8]], [], []], "2 of 8 slots .* slot 2, counted by no process"),
    ],
)
def test_slots_without_one_owner_are_refused(owned, said):
    with pytest.raises(DisagreementError, match=said):
        check_slots(owned, 8)
    check_slots([[[0, 2], [6, 8]], [[2, 6]], []], 8)
