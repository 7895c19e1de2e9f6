"""What golden snapshots are made of: data, stages, task and modules. Never edited: a new shape has a new name.

The identities in the golden files hold the source of the stages, and their configs name what stands here.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from datarax import Checkpointer, SaveConfig
from datarax.core.config import DataraxModuleConfig
from datarax.core.module import CheckpointableIteratorModule
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import map_batch, random_map_batch


def records():
    """42 rows of a memory source, some of them in a dtype that NumPy does not have."""
    count = np.arange(42)
    return {
        "x": (count[:, None] * [1, 7, 49]).astype(np.int32),
        "half": (count % 5).astype(ml_dtypes.bfloat16),
    }


def noise(batch, seeds, scale=1):
    return {**batch, "noise": (seeds >> np.uint64(48)).astype(np.int32) * np.int32(scale)}


def to_rows(texts):
    return {"text": np.frombuffer(b"".join(texts), np.uint8).reshape(len(texts), -1)}


def named(numbers):
    return {"number": numbers}


add_noise = random_map_batch(noise, name="noise")
decode = map_batch(to_rows, name="decode")
name_them = map_batch(named, name="name", version=1)


def means(batch):
    return {"mean": float(batch["number"].mean())}


def model(step):
    """One leaf of every kind that a model may hold, as it is after `step` steps."""
    return {
        "float32": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 4 + step,
        "bfloat16": jnp.full((3,), step, jnp.bfloat16),
        "int": (jnp.asarray(step, jnp.int32), np.arange(4) * step),
        "key": jax.random.key(step, impl="threefry2x32"),
        "weak": jnp.asarray(1.5) * step,
        "empty": np.zeros((0, 3), np.float32),
        "a.b": {"count": step, "rate": step / 8, "even": step % 2 == 0, "nothing": None},
    }


class GoldenTask:
    """Its state says how many steps were done, in every kind of leaf."""

    def init(self, config, mesh):
        return model(0)

    def step(self, state, batch):
        return model(state["a.b"]["count"] + 1), {}


task = GoldenTask()


class Own(CheckpointableIteratorModule):
    """A module whose state belongs to its process."""

    def __init__(self):
        super().__init__(DataraxModuleConfig())
        self.position.set_value(0)
        self.buffer = nnx.Variable(jnp.arange(4, dtype=jnp.bfloat16))
        self.table = nnx.Variable(np.arange(6, dtype=np.int16).reshape(2, 3))
        self.key = nnx.Variable(jax.random.key(5, impl="threefry2x32"))
        self.scale = nnx.Variable(0.75)
        self.label = nnx.Variable("start")

    def __next__(self):
        self.position.set_value(self.position.get_value() + 1)
        self.buffer.set_value(self.buffer.get_value() + jnp.bfloat16(1))
        self.table.set_value(self.table.get_value() * np.int16(3))
        self.scale.set_value(self.scale.get_value() / 2)
        self.label.set_value("after " + str(self.position.get_value()))
        return self.position.get_value(), self.label.get_value(), self.scale.get_value()


def shared_loader(index=0, count=1, *, read_ahead=1):
    """A loader of four rows a batch, of which this process reads its share."""
    config = DataLoaderConfig(batch_size=4, seed=20, byte_digest=True, read_ahead=read_ahead)
    rows = np.arange(4).reshape(count, -1)[index]
    return DataLoader(config, RangeSource(RangeConfig(name="numbers", stop=50)), rows=rows)


def save_as_one_of_several(processes, directory):
    """What each process of the golden run of several processes does: three steps, one more of its own for each before it."""
    own = Own()
    config = SaveConfig(every_seconds=None, keep_latest=None)
    with (
        shared_loader(processes.index, processes.count) as loader,
        Checkpointer(directory, config=config, processes=processes) as checkpointer,
    ):
        for _ in range(3):
            next(loader)
            next(own)
        for _ in range(processes.index):
            next(own)
        checkpointer.save(3, data={"train": loader, "own": own})
        checkpointer.wait()
