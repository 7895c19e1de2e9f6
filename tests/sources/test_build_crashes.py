"""A build that dies at any change it makes on the disk, or loses its power there, leaves no dataset or a whole one."""

import contextlib
import itertools
import shutil

import pytest

from datarax.sources import BuildConfig, build_dataset, load_manifest
from datarax.sources.build import is_dataset
from tests.support.crashing import CrashingSystem
from tests.support.runs import tree


def config(place, seed):
    text = place / "text.txt"
    text.write_text("".join(f"{seed} {i:5d} {'x' * 20}\n" for i in range(300)))
    return BuildConfig(inputs=str(text), output=str(place / "out" / "data"), record_bytes=64, num_shards=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What is to be built, by name."""
    place = tmp_path_factory.mktemp("whole")
    build_dataset(config(place, 1))
    return tree(place / "out" / "data")


def shards(files):
    return {name: data for name, data in files.items() if name.endswith(".array_record")}


@pytest.mark.parametrize("replaces", [False, True])
def test_a_crash_at_any_change_leaves_no_dataset_or_a_whole_one(replaces, whole, tmp_path, monkeypatch):
    for changes in itertools.count():
        place = tmp_path / f"{changes}"
        (place / "out").mkdir(parents=True)
        if replaces:
            build_dataset(config(place, 2))
        wanted = config(place, 1)
        with monkeypatch.context() as patch, contextlib.suppress(Exception):
            system = CrashingSystem(patch, place / "out", changes)
            build_dataset(wanted, again=replaces)
        system.disk.after_power_cut(place / "cut")
        system.disk.close()
        if system.stopped_at is None:
            break
        shutil.move(place / "out", place / "killed")
        for image in ("cut", "killed"):
            shutil.rmtree(place / "out", ignore_errors=True)
            shutil.copytree(place / image, place / "out")
            note = f"{image} after {changes} changes, died in: {system.stopped_at}"
            if is_dataset(wanted.output):
                found = shards(tree(wanted.output))
                assert found == shards(whole) or replaces, note
                assert load_manifest(wanted.output) is not None, note
            build_dataset(wanted, again=replaces)
            assert shards(tree(wanted.output)) == shards(whole), note
            assert not list((place / "out").glob(".*.building-*")), note
        shutil.rmtree(place)
    assert changes >= 10
    assert shards(tree(wanted.output)) == shards(whole)
