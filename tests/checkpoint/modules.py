"""Real modules and small helpers that the checkpoint tests share."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.module import CheckpointableIteratorModule
from tests.support.processes import fork_server


class Counter(CheckpointableIteratorModule):
    """Hands over rows in batches of eight, like a loader: its state is the same on every process."""

    state_scope = "global"

    def __init__(self, *, seed=0, rngs=None):
        super().__init__(DataraxModuleConfig(), rngs=rngs)
        self.seed = seed
        self.position.set_value(0)
        self.idx.set_value(0)
        self.told = []

    def __next__(self):
        self.position.set_value(self.position.get_value() + 8)
        self.idx.set_value(self.idx.get_value() + 1)
        return self.idx.get_value()

    def at(self, step):
        self.position.set_value(8 * step)
        self.idx.set_value(step)
        return self

    def identity(self):
        return {"seed": self.seed, "source": {"files": [{"size": 3}], "name": "a"}}


class Digest:
    def __init__(self, rows):
        self.rows = rows

    def to_state(self):
        return {"version": 1, "rows": self.rows, "keys": f"{self.rows * 7:016x}", "bytes": None}


class Digesting(Counter):
    """A counter that keeps a digest per step until it is told of a commit."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kept_from = 0

    def take_step_digests(self):
        steps = np.arange(self.kept_from, self.idx.get_value(), dtype=np.uint64)
        return self.kept_from, steps * np.uint64(3), steps + np.uint64(1 << 63), True

    def committed(self, step):
        self.kept_from = step
        self.told.append(step)

    @property
    def digest(self):
        return Digest(self.position.get_value())


class Inner(nnx.Module):
    def __init__(self, rngs):
        self.noise = nnx.Dropout(0.5, rngs=rngs)
        self.table = nnx.Variable(np.arange(6, dtype=np.int16).reshape(2, 3))


class Foreign(CheckpointableIteratorModule):
    """A user's own: arrays, random streams, nested modules. Its state belongs to one process."""

    def __init__(self, seed=0):
        super().__init__(DataraxModuleConfig(), rngs=nnx.Rngs(seed, data=seed + 1))
        self.inner = Inner(nnx.Rngs(dropout=seed))
        self.buffer = nnx.Variable(jnp.arange(4, dtype=jnp.bfloat16))
        self.scale = nnx.Variable(0.1)
        self.label = nnx.Variable("start")

    def __next__(self):
        self.position.set_value((self.position.get_value() or 0) + 1)
        noise = jax.random.normal(self.rngs.data(), (4,), jnp.bfloat16)
        self.buffer.set_value(self.buffer.get_value() + noise)
        self.inner.table.set_value(self.inner.table.get_value() * np.int16(3))
        self.scale.set_value(self.scale.get_value() * 1.1)
        self.label.set_value(f"after {self.position.get_value()}")
        return self.buffer.get_value()


def model(step):
    """A train state with what people keep in one; different at every step."""
    return {
        "params": {"w": jnp.full((16, 16), step, jnp.float32), "b": jnp.full((3,), step, jnp.bfloat16)},
        "opt": (jnp.asarray(step, jnp.int32), None),
        "rng": jax.random.key(step),
        "host": np.arange(5) + step,
        "count": step,
        "lr": 0.1 * step,
    }


def same(a, b):
    """Whether two trees agree in types, dtypes, shapes, weak types and bits."""
    flat_a, tree_a = jax.tree_util.tree_flatten(a, is_leaf=lambda x: x is None)
    flat_b, tree_b = jax.tree_util.tree_flatten(b, is_leaf=lambda x: x is None)
    return tree_a == tree_b and all(same_leaf(x, y) for x, y in zip(flat_a, flat_b, strict=True))


def same_leaf(x, y):
    if isinstance(x, jax.Array) != isinstance(y, jax.Array) or (
        not isinstance(x, jax.Array) and type(x) is not type(y)
    ):
        return False
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)):
        return x == y or (x != x and y != y)
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        elif x.weak_type != y.weak_type:
            return False
    return np.asarray(x).tobytes() == np.asarray(y).tobytes()


def flip_byte(path, at=None):
    """Change one bit of a file; returns its former content."""
    before = path.read_bytes()
    at = len(before) // 2 if at is None else at
    path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
    return before


def start_process(target, *args):
    """A fork of a server that has JAX, Flax and Orbax imported but no backend started."""
    process = fork_server().Process(target=target, args=args)
    process.start()
    return process


def redirect_output(path):
    """In a child: both streams into a file, also for what C code writes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
