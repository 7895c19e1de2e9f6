"""The part of an identity for which nothing is read, in a loader and in a source of the user's own."""

import numpy as np

from datarax import DataLoader, DataLoaderConfig, GrainConfig, GrainSource
from datarax.core.tree import differences
from datarax.sources import DataSource
from datarax.sources.source import SourceConfig


class Counted:
    """A random-access object that counts what is read of it."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.reads += 1
        return {"x": np.int64(index)}


class Squares(DataSource):
    """A kind of source that defines what it must and nothing else."""

    columnar = True
    _runtime = None

    def _length(self):
        return 10

    def _read(self, indices):
        return indices**2

    def identity(self):
        return {"kind": "squares", "name": self.name, "num_records": 10}

    def _close(self):
        pass

    def _reopened(self):
        return None


def test_a_loader_tells_its_identity_without_reading_a_record():
    data = Counted()
    source = GrainSource(GrainConfig(name="mine"), data)
    with DataLoader(DataLoaderConfig(batch_size=4, read_ahead=0), source) as loader:
        bare = loader.identity(sample=False)
        assert data.reads == 0
        (difference,) = differences(loader.identity(), bare)
    assert difference.path == "sources.mine.sample"
    assert data.reads > 0


def test_a_source_of_ones_own_needs_no_outline():
    with DataLoader(DataLoaderConfig(batch_size=4), Squares(SourceConfig(name="squares"))) as loader:
        assert loader.identity(sample=False) == loader.identity()


def test_where_a_class_lies_is_no_identity():
    elsewhere = type("Counted", (Counted,), {"__module__": "another.place"})
    one, other = (GrainSource(GrainConfig(), data).identity() for data in (Counted(), elsewhere()))
    assert one == other
