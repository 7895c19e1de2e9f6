"""A tiny task over the elements of `datarax.examples.grain_numbers`, and a Grain pipeline with an end."""

import grain
import jax
import jax.numpy as jnp


class Sines:
    def init(self, config, mesh):
        return {"w": jnp.zeros((), jnp.float32)}

    def step(self, state, batch):
        return {"w": _train(state["w"], batch["sine"])}, {}


@jax.jit
def _train(w, sine):
    return w + 0.1 * jnp.mean(sine - w)


task = Sines()


def finite():
    """Five batches; Grain does not say so beforehand, since the filter is asked for each record."""
    return (
        grain.MapDataset.range(80)
        .to_iter_dataset(grain.ReadOptions(num_threads=0))
        .filter(lambda number: number % 2 == 0)
        .map(lambda number: {"sine": float(number)})
        .batch(8)
    )
