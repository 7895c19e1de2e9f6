"""Batches as global arrays: the right rows on the right devices, and no value changed on the way."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from datarax.core.errors import ConfigError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource, RangeConfig, RangeSource


def make(data, *, rows=None, sharding=None, **config):
    settings = {"batch_size": 8, "order": "none", "num_epochs": 1, **config}
    source = data if isinstance(data, RangeSource) else MemorySource(MemoryConfig(), data)
    here = SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding
    return DataLoader(DataLoaderConfig(**settings), source, rows=rows, sharding=here)


def test_an_integer_that_the_device_would_cut_is_refused_by_name():
    loader = make(RangeSource(RangeConfig(start=2**40 + 3, stop=2**40 + 100)))
    with pytest.raises(
        OverflowError, match=rf"the batch holds {2**40 + 3}, which int32 on the device cannot"
    ):
        next(loader)
    assert loader.get_state()["idx"] == 0
    with pytest.raises(OverflowError, match=r"deep\.ids holds"):
        next(make({"deep": {"ids": np.full(20, 2**32, np.uint64)}}))


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_an_integer_that_fits_is_placed_as_it_is(value):
    assert int(next(make(np.full(20, value)))[0]) == value


def test_with_x64_all_64_bits_arrive():
    with jax.enable_x64(True):
        batch = next(make(RangeSource(RangeConfig(start=2**40 + 3, stop=2**40 + 100)), read_ahead=0))
    assert batch.tolist() == list(range(2**40 + 3, 2**40 + 11))


def test_rows_that_the_devices_do_not_hold_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"hold rows 0 to 7 of the global batch.*rows says rows 0 to 3"):
        make(np.arange(20), rows=[0, 1, 2, 3])


FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from datarax.core.errors import ConfigError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
data = {"image": np.arange(20 * 6 * 4, dtype=np.int32).reshape(20, 6, 4), "label": np.arange(20, dtype=np.int32)}
def make(*spec, **config):
    settings = {"batch_size": 8, "num_epochs": 1, "remainder": "pad", **config}
    return DataLoader(
        DataLoaderConfig(**settings), MemorySource(MemoryConfig(), data), sharding=NamedSharding(mesh, P(*spec))
    )
for spec in ((), ("data",), (("data", "model"),), ("data", "model"), ("data", None, "model"), (None, "model")):
    loader = make(*spec)
    for batch in loader:
        host = loader.current.get_value()
        assert set(batch) == {"image", "label", "row_mask"}
        for name, leaf in batch.items():
            assert np.array_equal(leaf, host[name])
            assert leaf.sharding.spec == P(*spec[: leaf.ndim])
            for shard in leaf.addressable_shards:
                assert np.array_equal(shard.data, host[name][shard.index])
try:
    make(("data", "model"), batch_size=6)
except ConfigError as error:
    assert "a batch of 6 rows cannot be split into 4 row shards" in str(error)
    assert "that fit are 1, 2, 3, 6" in str(error)
else:
    raise SystemExit("6 rows over 4 shards were accepted")
"""


def test_leaves_of_any_rank_are_sharded_over_data_and_model_axes():
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    assert (done.returncode, done.stderr) == (0, "")
