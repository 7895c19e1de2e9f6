"""Pipelines that do what none may: most keep something outside the state, so that a run that was killed ends differently."""

import os
import signal
import time

import jax.numpy as jnp
import numpy as np

from datarax.transforms import map_batch
from tests.support.tiny import TinyTask

_SEEN = {"batches": 0, "steps": 0}


def _stirred(records):
    """Changes each row by how many batches this process has made before: a running stream, where a seed should be."""
    _SEEN["batches"] += 1
    rows = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), -1)
    return {"x": rows ^ np.uint8(_SEEN["batches"])}


class CountingTask(TinyTask):
    """Adds to the model how many steps this process has made."""

    def step(self, state, batch):
        _SEEN["steps"] += 1
        state, metrics = super().step(state, batch)
        return state | {"w": state["w"] + jnp.float32(_SEEN["steps"])}, metrics


class OnceTask(TinyTask):
    """Cannot be started a second time: it fails, or it hangs."""

    def init(self, config, mesh):
        if not os.path.exists(config["marker"]):
            open(config["marker"], "w").close()
        elif config.get("hangs"):
            time.sleep(600)
        else:
            raise RuntimeError("this place was used before")
        return super().init(config, mesh)


class DeafTask(TinyTask):
    """Does not want to hear of SIGTERM."""

    def init(self, config, mesh):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().init(config, mesh)


stirred = map_batch(_stirred, name="decode")
counting_task = CountingTask()
deaf_task = DeafTask()
once_task = OnceTask()
