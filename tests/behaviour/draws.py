"""What random transforms draw with NumPy generators and JAX keys: one file for each line of jax."""

import jax
import numpy as np

from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import (
    Randomness,
    generator_from_seed,
    keys_from_seeds,
    random_bits,
    random_integers,
    random_map_batch,
    random_map_records,
    random_uniform,
)

SEEDS = np.array([0, 1, 2**32 - 1, 2**32, 2**40 + 3, 2**63, 2**64 - 1], np.uint64)


def normals(record, rng):
    return {"normal": rng.normal(size=2), "below": rng.integers(1000), "order": rng.permutation(5)}


def record_key(record, key):
    return {"uniform": np.asarray(jax.random.uniform(key)), "bits": np.asarray(jax.random.bits(key))}


def batch_keys(batch, keys):
    return {
        "uniform": np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)),
        "below": np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)),
        "data": np.asarray(jax.random.key_data(keys)),
    }


def batch_seeds(batch, seeds):
    return {"seeds": seeds, "uniform": random_uniform(seeds, (2,)), "below": random_integers(seeds, 0, 1000)}


STAGES = {
    "generator": random_map_records(normals, randomness=Randomness.GENERATOR),
    "record keys": random_map_records(record_key, randomness=Randomness.KEY),
    "record seeds": random_map_records(
        lambda record, seed: {"seed": np.uint64(seed)}, name="seeds", randomness=Randomness.SEED
    ),
    "batch keys": random_map_batch(batch_keys, randomness=Randomness.KEY),
    "batch seeds": random_map_batch(batch_seeds),
}


def spelled(array):
    """Exactly, as text: floats in hex."""
    array = np.asarray(array)
    if array.dtype.kind == "f":
        return [float(value).hex() for value in array.ravel()]
    return [int(value) for value in array.ravel()]


def line():
    """Of which line the file is: major and minor number of jax."""
    return "jax-" + ".".join(jax.__version__.split(".")[:2])


def facts():
    """Case -> draws."""
    found = {
        "bits": spelled(random_bits(SEEDS, (2,))),
        "bits of stream 3": spelled(random_bits(SEEDS, stream=3)),
        "uniform": spelled(random_uniform(SEEDS, (2, 1))),
        "integers": spelled(random_integers(SEEDS, -(2**63), 2**63 - 1)),
        "integers of a die": spelled(random_integers(SEEDS, 1, 7, (3,), stream=1)),
        "key data": spelled(jax.random.key_data(keys_from_seeds(SEEDS))),
        "normal of keys": spelled(jax.vmap(jax.random.normal)(keys_from_seeds(SEEDS))),
    }
    for seed in SEEDS.tolist():
        rng = generator_from_seed(seed)
        found[f"generator {seed}"] = {
            "raw": spelled(rng.bit_generator.random_raw(2)),
            "normal": spelled(rng.normal(size=2)),
            "integers": spelled(rng.integers(0, 1000, 3)),
            "permutation": spelled(rng.permutation(7)),
        }
    for name, stage in STAGES.items():
        config = DataLoaderConfig(batch_size=3, seed=20, read_ahead=0)
        with DataLoader(config, RangeSource(RangeConfig(stop=50)), transforms=[stage]) as loader:
            for step in (0, 1, 10**6):
                batch = loader.batch_at(step)
                found[f"{name} at {step}"] = {leaf: spelled(batch[leaf]) for leaf in batch}
    return found
