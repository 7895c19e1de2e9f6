"""A tiny task over the elements of `datarax.examples.grain_numbers`, and a Grain pipeline with an end."""

import grain
import grain.experimental
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


def repeated_files():
    """What Grain cannot resume: passes over an interleave."""
    files = [grain.MapDataset.range(i, i + 1).to_iter_dataset() for i in range(4)]
    return grain.experimental.RepeatIterDataset(
        grain.experimental.InterleaveIterDataset(files, cycle_length=2), num_epochs=3
    )


def failing(process_index=0, process_count=1):
    """Whose first element raises."""
    return grain.MapDataset.range(80).map(_no_sine).batch(8)


def _no_sine(number):
    raise ZeroDivisionError(f"no sine of {number} today")


def odd_shuffle():
    """A shuffle of 2**16 + 1 records, which is none: one comes twice, and one never."""
    return grain.MapDataset.range(65_537).shuffle(seed=1).map(_sine).batch(8)


def _sine(number):
    return {"sine": float(number)}
