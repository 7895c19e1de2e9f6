"""Cache keys: equal for the same thing, never equal for different things, dead ones included."""

import gc
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.module import _numbers, cache_key

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.binary(max_size=4)
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


def spelled(tree):
    """What distinguishes two trees: `repr`, with the order of dict keys taken out."""
    if isinstance(tree, dict):
        return "{" + ",".join(f"{key!r}:{spelled(tree[key])}" for key in sorted(tree)) + "}"
    if isinstance(tree, (list, tuple)):
        return type(tree).__name__ + "(" + ",".join(map(spelled, tree)) + ")"
    return f"{type(tree).__name__} {tree!r}"


@given(trees, trees)
def test_keys_are_equal_exactly_for_the_same_values_in_the_same_structure(a, b):
    assert (cache_key(a) == cache_key(b)) == (spelled(a) == spelled(b))


DIFFERENT = [
    {"a": 1}, {"b": 1}, {"a": 1.0}, {"a": True}, [1], (1,), [[1]], [[1, 2], [3]], [1, 2, 3], [1, [2, 3]],
    1, 1.0, True, "1", b"1", None, [], {}, (), "", b"", 0, False, 0.0, -0.0, np.int32(1), np.int64(1),
    np.float64(1), 1 + 0j, 2**20_000, ["ab", "c"], ["a", "bc"], {1: "a"}, {"1": "a"}, len, {1, 2},
]  # fmt: skip


def test_values_that_python_calls_equal_or_that_flatten_alike_have_different_keys():
    keys = [cache_key(value) for value in DIFFERENT]
    assert len(set(keys)) == len(DIFFERENT)
    assert all(type(key) is int for key in keys)


@pytest.mark.parametrize("make", [lambda: jnp.arange(3), lambda: np.arange(3), object])
def test_objects_count_by_identity_inside_containers_too(make):
    one, other = make(), make()
    assert cache_key(one) == cache_key(one)
    assert cache_key({"a": [one]}) == cache_key({"a": [one]})
    assert cache_key(one) != cache_key(other)
    assert cache_key({"a": [one]}) != cache_key({"a": [other]})
    assert cache_key(one) != cache_key([one])


@pytest.mark.parametrize("make", [lambda: jnp.arange(3) + 0, lambda: np.arange(3), object, lambda: {1}])
def test_objects_that_die_never_give_their_key_to_others(make):
    assert len({cache_key(make()) for _ in range(50)}) == 50


def test_dead_objects_are_forgotten():
    gc.collect()
    before = len(_numbers)
    for _ in range(50):
        cache_key(np.arange(3))
    assert len(_numbers) <= before + 1


def test_keys_of_plain_values_are_the_same_in_every_process():
    code = "from datarax.core.module import cache_key; print(cache_key({'a': ['x', 1.5, None]}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == cache_key({"a": ["x", 1.5, None]})
