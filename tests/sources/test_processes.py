"""A source in a process of its own: opened there from a pickle, and without a backend anywhere."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarax.core.tree import canonical_json
from datarax.sources import DataSource
from tests.sources import test_conformance as kinds

LAWS = [
    kinds.TestArrayRecordLaws,
    kinds.TestArrayRecordWithManifestLaws,
    kinds.TestColumnsInMemoryLaws,
    kinds.TestListInMemoryLaws,
    kinds.TestRangeLaws,
    kinds.TestTensorStoreLaws,
    kinds.TestForeignObjectLaws,
]


def read_elsewhere(pickled: list[bytes], said: Any) -> None:
    """In the other process: the rest of each source, its identity, and whether a backend runs by then."""
    from jax._src import xla_bridge

    found = []
    for each in pickled:
        with pickle.loads(each) as source:
            found.append((source.name, list(source), source[0], canonical_json(source.identity())))
    said.put((pickle.dumps(found), xla_bridge.backends_are_initialized()))


def test_every_kind_reads_the_same_in_a_spawned_process_fresh_used_and_closed(tmp_path: Path):
    pickled, expected = [], []
    for number, laws in enumerate(LAWS):
        directory = tmp_path / str(number)
        directory.mkdir()
        fresh = laws().build(directory, laws().records())()
        used = fresh.clone()
        list(zip(range(3), used, strict=False))
        closed = used.clone()
        closed.close()
        for source, place in ((fresh, 0), (used, 3), (closed, 3)):
            pickled.append(pickle.dumps(source))
            rest = list(source.clone())
            assert len(rest) == len(source) - place
            expected.append((source.name, rest, fresh[0], canonical_json(fresh.identity())))
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    process = context.Process(target=read_elsewhere, args=(pickled, said))
    process.start()
    found, backend_started = said.get(timeout=120)
    process.join(60)
    assert not backend_started
    np.testing.assert_equal(pickle.loads(found), expected)


WORKERS = """
from absl import flags
import grain
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, RangeConfig, RangeSource

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=2)
    for source in (ArrayRecordSource(ArrayRecordConfig(files="*.array_record")), RangeSource(RangeConfig(stop=9))):
        source[1]
        data = grain.MapDataset.source(source).to_iter_dataset().mp_prefetch(options)
        print(sorted(map(bytes, data)) == sorted(map(bytes, source)))
"""


@pytest.mark.full
def test_grains_worker_processes_read_our_sources(tmp_path: Path):
    kinds.write_files(tmp_path, kinds.RECORDS)
    (tmp_path / "workers.py").write_text(WORKERS)
    assert run_alone(tmp_path / "workers.py") == ["True", "True"]


QUIET = """
import pickle, sys
import numpy as np
import datarax.sources as sources

def slow():
    return sorted({"grain", "array_record", "tensorstore"} & sys.modules.keys())

before = slow()  # what JAX, Flax and our own core bring along
opened = [
    sources.RangeSource(sources.RangeConfig(stop=5)),
    sources.MemorySource(sources.MemoryConfig(), {"x": np.arange(5)}),
    sources.MemorySource(sources.MemoryConfig(), [b"a"] * 5),
]
print(before, slow())
opened.append(sources.ArrayRecordSource(sources.ArrayRecordConfig(files="*.array_record")))
print(slow())
opened.append(sources.TensorStoreSource(sources.TensorStoreConfig(path="zarr")))
opened.append(sources.GrainSource(sources.GrainConfig(), range(5)))
for source in opened:
    source.identity(), source.read([1, 0]), next(source), source.get_state()
    pickle.loads(pickle.dumps(source)).close()
    source.clone().close(), source.copy().close(), source.reset(), source.close()

from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""


@pytest.mark.full
def test_constructing_and_using_every_kind_starts_no_backend_and_imports_no_other_kind(tmp_path: Path):
    kinds.write_files(tmp_path, kinds.RECORDS)
    kinds.write_zarr(tmp_path / "zarr", np.arange(5))
    (tmp_path / "quiet.py").write_text(QUIET)
    assert run_alone(tmp_path / "quiet.py") == ["[] []", "['array_record']", "False"]


def run_alone(script: Path) -> list[str]:
    """What a script prints in a fresh interpreter."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=script.parent,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


class Squares(DataSource):
    """The old form: a subclass around a runtime of its own that is no adapter."""

    columnar = True

    def __init__(self, config, *, rngs=None, name=None):
        super().__init__(config, rngs=rngs, name=name)
        self._runtime = [i * i for i in range(10)]

    def _length(self):
        return len(self._runtime)

    def _read(self, indices):
        return np.array([self._runtime[i] for i in indices])

    def identity(self):
        return {"kind": "squares", "name": self.name, "num_records": 10}

    def check_content(self):
        return ["checked"]

    def _close(self):
        self._runtime.clear()

    def _reopened(self):
        return list(self._runtime)


def test_a_subclass_without_an_adapter_is_a_source_like_any_other():
    from datarax.sources import SourceConfig

    source = Squares(SourceConfig(name="squares"))
    assert [int(next(source)) for _ in range(3)] == [0, 1, 4]
    assert source.outline() == source.identity()
    assert (source.files(), source.content_recorded, source.content_fingerprint()) == ((), False, None)
    assert (source.check_files(["x"]), source.content_stamp(), source.changed_among(np.arange(3))) == (
        ["checked"],
        {},
        {},
    )
    clone, copy = source.clone(), source.copy()
    pickled = pickle.dumps(source)
    source.close()
    assert int(next(clone)) == int(next(pickle.loads(pickled))) == 9
    assert int(next(copy)) == 0
    with pytest.raises(ValueError, match="source 'squares' is closed"):
        source.read([0])
