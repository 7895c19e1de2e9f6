"""What a random transform draws from: functions of a row's 64-bit seed and of nothing else.

So a row comes out the same in whatever batch, order, process or thread it is made. The seeds themselves come
from `datarax.order.seeds.row_seeds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

from datarax.order.seeds import GOLDEN, mix64
from datarax.transforms.transform import Level, Randomness

_STEP = np.uint64(GOLDEN)


class _PhiloxKey(np.random.bit_generator.ISeedSequence):
    """Hands a seed to Philox as its key.

    The same stream as `Philox(key=seed)`, which first asks the operating system for entropy that it then
    throws away (16 µs a record instead of 6).
    """

    def __init__(self, seed: int) -> None:
        self._words = np.array([seed, 0], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The two words of a Philox key."""
        if (n_words, np.dtype(dtype)) != (2, np.uint64):
            raise TypeError("only a Philox bit generator is seeded by a key of two uint64")
        return self._words


def generator_from_seed(seed: int) -> np.random.Generator:
    """A new NumPy generator with the stream of `Philox(key=seed)`: all 64 bits count, nothing is hashed."""
    key: Any = _PhiloxKey(seed)  # Any: NumPy documents ISeedSequence here, its stub knows only SeedSequence
    return np.random.Generator(np.random.Philox(key))


def keys_from_seeds(seeds: np.ndarray) -> jax.Array:
    """Typed JAX PRNG keys `[n]` from `uint64[n]`, on the first local CPU device.

    `jax.random.key` keeps 32 bits of its argument unless x64 is on; here both words of each seed, high then
    low, are the two words of a threefry2x32 key. The kind is fixed so that no JAX setting changes what is
    drawn, and the device so that making rows does not wait for, or fill, an accelerator.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    return jax.random.wrap_key_data(jax.device_put(key_words(seeds), cpu), impl="threefry2x32")


def pinned(randomness: Randomness) -> AbstractContextManager[Any]:
    """In which a function is called: what it draws from JAX keys depends on no flag of the user's."""
    return jax.threefry_partitionable(True) if randomness is Randomness.KEY else nullcontext()


def key_words(seeds: np.ndarray) -> np.ndarray:
    """The key data of `keys_from_seeds`: uint64[n] -> uint32[n, 2]."""
    return np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], axis=-1).astype(np.uint32)


def random_bits(seeds: np.ndarray, shape: tuple[int, ...] = (), *, stream: int = 0) -> np.ndarray:
    """Uniform `uint64[n, *shape]`, row i drawn from `seeds[i]` alone.

    Args:
        seeds: `uint64[n]`.
        shape: Of one row's draws.
        stream: Draws with different numbers are independent; give each use within a transform its own.
    """
    count = int(np.prod(shape, dtype=np.int64))
    start = mix64(np.asarray(seeds, np.uint64) ^ mix64(np.array([stream], np.uint64) + _STEP))
    steps = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return mix64(start[:, None] + steps).reshape(len(start), *shape)


def random_uniform(seeds: np.ndarray, shape: tuple[int, ...] = (), *, stream: int = 0) -> np.ndarray:
    """Uniform `float64[n, *shape]` in [0, 1), with 53 random bits each. Arguments as for `random_bits`."""
    return (random_bits(seeds, shape, stream=stream) >> np.uint64(11)) * 2.0**-53


def random_integers(
    seeds: np.ndarray, low: int, high: int, shape: tuple[int, ...] = (), *, stream: int = 0
) -> np.ndarray:
    """Uniform `int64[n, *shape]` in [low, high). Arguments as for `random_bits`.

    A span that does not divide 2**64 is uneven by at most span / 2**64.

    Raises:
        ValueError: if the range is empty or leaves int64.
    """
    if not -(2**63) <= low < high <= 2**63 - 1:
        raise ValueError(f"random integers in [{low}, {high}): the range is empty or leaves int64")
    span = np.uint64(high - low)
    return (random_bits(seeds, shape, stream=stream) % span + np.uint64(low % 2**64)).view(np.int64)


def row_randomness(randomness: Randomness, level: Level, seeds: np.ndarray) -> Any:
    """What a transform is given besides its rows.

    One value for a batch transform, an iterable of one value per row for a record transform.

    Args:
        randomness: Not `NONE`.
        level: Of the transform.
        seeds: `uint64[n]`.
    """
    if level is Level.BATCH:
        return keys_from_seeds(seeds) if randomness is Randomness.KEY else seeds
    rows: Iterable[Any]
    if randomness is Randomness.KEY:
        rows = keys_from_seeds(seeds)
    elif randomness is Randomness.GENERATOR:
        rows = map(generator_from_seed, seeds.tolist())
    else:
        rows = seeds.tolist()
    return rows
