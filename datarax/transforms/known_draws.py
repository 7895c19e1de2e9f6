"""Does this code still draw what it drew? The counterpart of `datarax.order.versions` for a row's random numbers.

Only what datarax itself makes of a seed is held to it: what NumPy's generators and JAX make of their keys is theirs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datarax.order import ORDER_VERSION
from datarax.order.versions import deviation, shortened
from datarax.transforms.randomness import (
    generator_from_seed,
    key_words,
    random_bits,
    random_integers,
    random_uniform,
)
from datarax.transforms.transform import Randomness

DRAWS_VERSION = 1
"""Raise this, and add an answer to each of `KNOWN`, when a random transform is to be given other numbers."""

KNOWN: dict[Randomness, dict[int, str]] = {
    Randomness.SEED: {1: "943959207138e941"},
    Randomness.GENERATOR: {1: "d35b99ed265be344"},
    Randomness.KEY: {1: "b420d192a7a90a17"},
}
"""Digests of what each kind of randomness drew when its version was new."""

_SEEDS = np.array([0, 1, 2**32 + 5, 2**64 - 3], np.uint64)


def named_randomness(randomness: Randomness) -> str:
    """The kind of randomness as an identity names it; with more text where this code draws other numbers than it should."""
    if randomness is Randomness.NONE:
        return str(randomness)
    found = [deviation("row seeds", ORDER_VERSION), draws_deviation(randomness)]
    changed = " ".join(each for each in found if each is not None)
    if not changed:
        return str(randomness)
    return f"{randomness} (this code draws other numbers than version {DRAWS_VERSION}: {changed})"


def draws_deviation(randomness: Randomness) -> str | None:
    """The first digits of what this code draws if that is not the known; None if it is."""
    found = draws_answer(randomness)
    return None if found == KNOWN[randomness][DRAWS_VERSION] else found


def draws_answer(randomness: Randomness) -> str:
    """What this code draws, as 16 hex digits."""
    return shortened(_ASKED[randomness])


def _from_seeds() -> list[str]:
    drawn = [
        random_bits(_SEEDS, (3,), stream=2),
        random_uniform(_SEEDS, (2,)),
        random_integers(_SEEDS, -5, 1000, (2,), stream=1),
    ]
    return [array.astype(array.dtype.newbyteorder("<")).tobytes().hex() for array in drawn]


def _from_generators() -> list[list[int]]:
    # The words of the bit generator, which the seed decides; what a Generator's methods make of them is NumPy's.
    return [generator_from_seed(seed).bit_generator.random_raw(3).tolist() for seed in _SEEDS.tolist()]


def _from_keys() -> list[list[int]]:
    return key_words(_SEEDS).tolist()


_ASKED: dict[Randomness, Callable[[], object]] = {
    Randomness.SEED: _from_seeds,
    Randomness.GENERATOR: _from_generators,
    Randomness.KEY: _from_keys,
}
