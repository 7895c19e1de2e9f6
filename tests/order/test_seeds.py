"""Seeds come from names by hashing: the spelling is pinned, and neighbours share nothing."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.order import derive_seed, id64, mix64, row_seeds

parts = st.lists(st.one_of(st.integers(), st.text()), max_size=4)


def test_a_seed_is_the_start_of_the_sha256_of_typed_and_sized_parts():
    spelled = b"i" + (2).to_bytes(8, "big") + b"\x00\x80" + b"s" + (1).to_bytes(8, "big") + b"a"
    assert derive_seed(128, "a") == int.from_bytes(hashlib.sha256(spelled).digest()[:8], "big")


def test_an_id_is_the_start_of_the_sha256_of_the_name():
    assert id64("books") == int(hashlib.sha256(b"books").hexdigest()[:16], 16)


@given(parts, parts)
def test_different_parts_give_different_seeds(a, b):
    if a != b:
        assert derive_seed(*a) != derive_seed(*b)


@pytest.mark.parametrize(
    ("a", "b"),
    [((1,), ("1",)), (("ab", "c"), ("a", "bc")), ((0,), ()), ((-1,), (255,)), (("",), ()), ((1, 2), (2, 1))],
)
def test_parts_that_look_alike_are_told_apart(a, b):
    assert derive_seed(*a) != derive_seed(*b)


@pytest.mark.parametrize("part", [True, 1.0, None, b"a", np.int64(3)])
def test_a_part_of_another_kind_is_refused(part):
    with pytest.raises(TypeError, match="int and str"):
        derive_seed(1, part)


def test_mix64_is_the_splitmix64_finalizer():
    # The first outputs of the reference splitmix64 with state 0: https://prng.di.unimi.it/splitmix64.c
    state = np.array([0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A], np.uint64)
    assert mix64(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert state[0] == 0x9E3779B97F4A7C15  # the argument is left alone


def test_rows_of_one_source_and_epoch_never_share_a_seed():
    index = np.arange(100_000)
    seeds = row_seeds(
        1, "crop", np.full(100_000, id64("books"), np.uint64), index, np.zeros(100_000, np.int64)
    )
    assert len(np.unique(seeds)) == 100_000


def test_a_row_seed_depends_on_seed_transform_source_index_and_epoch():
    def seed_of(seed=1, transform="crop", source="books", index=7, epoch=0):
        ids = np.array([id64(source)], np.uint64)
        return row_seeds(seed, transform, ids, np.array([index]), np.array([epoch])).tolist()[0]

    changed = [
        seed_of(),
        seed_of(seed=2),
        seed_of(transform="flip"),
        seed_of(source="web"),
        seed_of(index=8),
        seed_of(index=2**40 + 7),
        seed_of(epoch=1),
        seed_of(index=0, epoch=7),
    ]
    assert len(set(changed)) == len(changed)


def test_a_row_seed_does_not_depend_on_the_rows_beside_it():
    ids, index, epoch = np.full(50, id64("a"), np.uint64), np.arange(50) + 2**53, np.arange(50) % 3
    together = row_seeds(1, "crop", ids, index, epoch)
    alone = [row_seeds(1, "crop", ids[i : i + 1], index[i : i + 1], epoch[i : i + 1])[0] for i in range(50)]
    assert together.tolist() == alone
