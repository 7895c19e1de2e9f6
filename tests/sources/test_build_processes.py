"""Builders that are killed, at every step and at random, and builders that build the same at the same time."""

from __future__ import annotations

import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from datarax.sources import BuildConfig, build_dataset
from datarax.sources.manifest import INPUTS_STAMP_NAME as BUILD_STAMP_NAME
from tests.support.processes import fork_server
from tests.support.tiers import is_whole

# What stands between a build and the disk. A builder killed before any of these calls must be as good as none.
_STEPS = ("mkdir", "fsync", "rename", "replace", "unlink")


def _builder(config: BuildConfig, die_at: int) -> None:
    """Builds, and dies at the step of that number; 0: never."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    steps = 0

    def counted(step):
        def run(*arguments, **settings):
            nonlocal steps
            steps += 1
            if steps == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **settings)

        return run

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
    build_dataset(config)


def start(config: BuildConfig, die_at: int = 0) -> BaseProcess:
    process = fork_server().Process(target=_builder, args=(config, die_at))
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(60)
    return process.exitcode


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != BUILD_STAMP_NAME}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "numbers.jsonl"
    path.write_text("\n".join(f'"{number:0100}"' for number in range(5_000)))
    return path


@pytest.fixture(scope="module")
def undisturbed(numbers: Path, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    build_dataset(config_for(numbers, output))
    return contents(output)


def config_for(numbers: Path, output: Path) -> BuildConfig:
    return BuildConfig(kind="jsonl", inputs=str(numbers), output=str(output), num_shards=2)


def assert_finished_or_absent(output: Path, undisturbed: dict[str, bytes]) -> None:
    if output.exists():
        assert contents(output) == undisturbed


def test_a_builder_killed_before_any_step_changes_nothing_for_the_next(
    numbers: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    killed = 0
    for die_at in range(1, 100, 1 if is_whole() else 3):
        place = tmp_path / str(die_at)
        output = place / "out"
        if ended(start(config_for(numbers, output), die_at)) == 0:
            break
        killed += 1
        assert_finished_or_absent(output, undisturbed)
        build_dataset(config_for(numbers, output))
        assert contents(output) == undisturbed
        # Killed as its very last step, the builder leaves its lock, which nobody holds, and nothing else.
        assert set(os.listdir(place)) <= {"out", ".out.build-lock"}
    assert killed >= (10 if is_whole() else 4)


@pytest.mark.full
def test_builders_killed_at_random_moments_leave_what_the_next_one_finishes(
    numbers: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    output = tmp_path / "place" / "out"
    moments = random.Random(20)
    for number in (signal.SIGKILL, signal.SIGTERM) * 4:
        process = start(config_for(numbers, output))
        time.sleep(moments.uniform(0, 0.4))
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)
        ended(process)
        assert_finished_or_absent(output, undisturbed)
    build_dataset(config_for(numbers, output))
    assert contents(output) == undisturbed


def test_what_dead_builders_left_is_removed_by_the_next(numbers: Path, tmp_path: Path):
    output = tmp_path / "place" / "out"
    # Killed at its fourth step: within the second shard, with a temporary directory half full.
    assert ended(start(config_for(numbers, output), die_at=4)) == -signal.SIGKILL
    (leftover,) = [name for name in os.listdir(output.parent) if ".building-" in name]
    assert os.listdir(output.parent / leftover) != []
    build_dataset(config_for(numbers, output))
    assert os.listdir(output.parent) == ["out"]


def test_builders_at_the_same_time_all_end_with_one_dataset(
    numbers: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    output = tmp_path / "place" / "out"
    builders = [start(config_for(numbers, output)) for _ in range(3)]
    assert [ended(builder) for builder in builders] == [0, 0, 0]
    assert contents(output) == undisturbed
    assert os.listdir(output.parent) == ["out"]


def test_a_builder_that_waits_goes_on_when_the_first_is_killed(
    numbers: Path, undisturbed: dict[str, bytes], tmp_path: Path
):
    output = tmp_path / "place" / "out"
    first = start(config_for(numbers, output), die_at=6)
    second = start(config_for(numbers, output))
    assert ended(first) in (-signal.SIGKILL, 0)  # 0 if the second was faster and built it
    assert ended(second) == 0
    assert contents(output) == undisturbed
