"""Code that draws other random numbers than before is named where a transform asks for them, and nowhere else."""

import numpy as np
import pytest

from datarax.core.tree import differences
from datarax.order import seeds as seeds_module
from datarax.transforms import Randomness, known_draws, map_batch, random_map_records, transform_identity
from datarax.transforms import randomness as randomness_module


def plain(rows):
    return rows


def drawing(record, rng):
    return record


STAGES = {
    str(kind): random_map_records(drawing, randomness=kind)
    for kind in (Randomness.SEED, Randomness.GENERATOR, Randomness.KEY)
} | {"none": map_batch(plain)}


def identities():
    return {name: transform_identity(stage) for name, stage in STAGES.items()}


def test_this_code_draws_what_it_drew():
    assert {name: each["randomness"] for name, each in identities().items()} == {n: n for n in STAGES}
    for kind, answers in known_draws.KNOWN.items():
        assert answers[known_draws.DRAWS_VERSION] == known_draws.draws_answer(kind)


@pytest.mark.parametrize(
    ("module", "name", "value", "changed"),
    [
        (seeds_module, "_MIX_2", np.uint64(0x94D049BB133111ED), {"seed", "generator", "key"}),
        (randomness_module, "_STEP", np.uint64(3), {"seed"}),
        (
            randomness_module,
            "generator_from_seed",
            lambda seed: np.random.Generator(np.random.PCG64(seed)),
            {"generator"},
        ),
        (randomness_module, "key_words", lambda seeds: np.stack([seeds, seeds], -1), {"key"}),
    ],
    ids=["row seeds", "step", "generator", "key words"],
)
def test_a_change_of_what_is_drawn_is_named(module, name, value, changed, monkeypatch):
    before = identities()
    monkeypatch.setattr(module, name, value)
    if name in vars(known_draws):
        monkeypatch.setattr(known_draws, name, value)
    found = differences(before, identities())
    assert {each.path for each in found} == {f"{kind}.randomness" for kind in changed}
    for each in found:
        assert "(this code draws other numbers than version 1: " in str(each.now)
