"""A training job small enough to be killed dozens of times: a jitted model with momentum and a random stream."""

import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from datarax.transforms import map_batch, random_map_batch


def decode(records):
    return {"x": np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)}


def jitter(batch, seeds, scale=1.0):
    return {"x": batch["x"], "noise": scale * (seeds >> np.uint64(40)).astype(np.float32) / 2**24}


def other_jitter(batch, seeds):
    return {"x": batch["x"], "noise": (seeds >> np.uint64(41)).astype(np.float32) / 2**23}


def failing_jitter(batch, seeds):
    raise ZeroDivisionError("no noise today")


to_rows = map_batch(decode, name="decode")
add_noise = random_map_batch(jitter, name="jitter")
add_failing_noise = random_map_batch(failing_jitter, name="jitter")
add_other_noise = random_map_batch(other_jitter, name="jitter")


class TinyTask:
    def init(self, config, mesh):
        self.pause = config.get("pause", 0.0)
        width = config.get("width", 16)
        return {
            "w": jnp.zeros(width, jnp.float32),
            "momentum": jnp.zeros(width, jnp.float32),
            "key": jax.random.key(config.get("seed", 0)),
        }

    def step(self, state, batch):
        time.sleep(self.pause)
        state, loss = _train(state, batch["x"], batch["noise"])
        return state, {"loss": loss}


def _train_step(state, x, noise):
    key, draw = jax.random.split(state["key"])
    features = x.astype(jnp.float32)[:, : state["w"].shape[0]] / 255

    def loss_of(w):
        target = noise + 0.01 * jax.random.normal(draw, noise.shape)
        return jnp.mean((features @ w - target) ** 2)

    loss, gradient = jax.value_and_grad(loss_of)(state["w"])
    momentum = 0.9 * state["momentum"] + gradient
    return {"w": state["w"] - 0.05 * momentum, "momentum": momentum, "key": key}, loss


_train = jax.jit(_train_step, donate_argnums=0)

task = TinyTask()


class RecordingTask:
    """Keeps every global batch as it lies on the devices, and trains a model that may be split over an axis `model`."""

    def init(self, config, mesh):
        self.pause = config.get("pause", 0.0)
        self.directory = Path(config["batches"])
        self.directory.mkdir(exist_ok=True)
        split = NamedSharding(mesh, PartitionSpec("model" if "model" in mesh.axis_names else None))
        make = jax.jit(
            lambda: (jnp.zeros(16, jnp.float32), jnp.zeros(16, jnp.float32)), out_shardings=(split, split)
        )
        w, momentum = make()
        return {"train": {"w": w, "momentum": momentum, "key": jax.random.key(7)}, "step": 0}

    def step(self, state, batch):
        time.sleep(self.pause)
        for name, leaf in batch.items():
            for shard in leaf.addressable_shards:
                rows = np.asarray(shard.data)
                first = shard.index[0].start or 0
                path = self.directory / f"{state['step']}-{name}-{first}-{len(rows)}.npy"
                temporary = path.with_suffix(f".{os.getpid()}.{shard.device.id}.tmp")
                with open(temporary, "wb") as file:
                    np.save(file, rows)
                os.replace(temporary, path)
        train, loss = _train(state["train"], batch["x"], batch["noise"])
        return {"train": train, "step": state["step"] + 1}, {"loss": loss}


recording_task = RecordingTask()


class FailingTask(TinyTask):
    """Fails at the third step of a start."""

    error = ValueError("the batch is odd")

    def init(self, config, mesh):
        self.left = 2
        return super().init(config, mesh)

    def step(self, state, batch):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().step(state, batch)


class FailingToRead(FailingTask):
    error = FileNotFoundError("no vocabulary")


class FailingToBegin(TinyTask):
    def init(self, config, mesh):
        raise RuntimeError("no weights")
