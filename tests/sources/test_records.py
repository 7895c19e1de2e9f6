"""Samples are spread and bounded; the hash tells apart whatever differs."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.tree import hash_tree
from datarax.sources.records import records_digest, sample_positions


def digest(tree: Any) -> str:
    hasher = hashlib.sha256()
    hash_tree(hasher, tree, "record")
    return hasher.hexdigest()


@given(st.integers(1, 2**62), st.integers(2, 50))
def test_samples_are_different_in_range_and_hold_both_ends(length: int, count: int):
    found = sample_positions(length, count)
    assert len(found) == len(set(found)) == min(length, count)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, length - 1)


DIFFERENT = [
    None,
    False,
    True,
    0,
    1,
    -1,
    2**70,
    0.0,
    -0.0,
    1.0,
    float("inf"),
    "",
    "a",
    b"",
    b"a",
    b"a\0",
    [],
    (),
    {},
    [0],
    (0,),
    [[0]],
    [0, 0],
    ["a", "b"],
    ["ab"],
    ["asb", "c"],  # without lengths these two would run together
    ["a", "bsc"],
    ["a", ["b"]],
    {"a": 0},
    {"b": 0},
    {"a": {"b": 0}},
    {0: "a"},
    {"0": "a"},
    np.zeros(0),
    np.zeros((0, 2)),
    np.zeros(2),
    np.zeros((1, 2)),
    np.zeros((2, 1)),
    np.zeros(2, np.float32),
    np.zeros(2, np.float16),
    np.zeros(2, ml_dtypes.bfloat16),
    np.zeros(2, ml_dtypes.float8_e4m3fn),
    np.zeros(2, ml_dtypes.float8_e5m2),
    np.zeros(2, np.int16),
    np.zeros(2, bool),
    np.zeros(2, "S1"),
    np.zeros(2, "U1"),
    np.zeros(2, "M8[s]"),
    np.zeros(2, "M8[ns]"),
    np.zeros(2, [("a", "i4")]),
    np.zeros(2, [("b", "i4")]),
    np.float64(0),
    np.int64(0),
]


def test_whatever_differs_has_another_hash():
    for (i, a), (j, b) in itertools.combinations(enumerate(map(digest, DIFFERENT)), 2):
        assert a != b, (DIFFERENT[i], DIFFERENT[j])


def test_the_same_values_have_one_hash_in_every_layout():
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    assert digest(array) == digest(np.asfortranarray(array)) == digest(array.astype(">i4"))
    assert digest(array[:, ::2]) == digest(array[:, ::2].copy())
    assert digest({"a": 1, 2: "b"}) == digest({2: "b", "a": 1})


def test_records_do_not_run_into_each_other():
    assert records_digest([b"a", b"b"]) != records_digest([b"ab"])
    assert records_digest([]) != records_digest([b""])


@pytest.mark.parametrize(
    ("record", "where"),
    [
        ({"x": [1, object()]}, r"record 0 of the sample\['x'\]\[1\] is a object"),
        ({object(): 1}, "a key of record 0 of the sample is a object"),
        (np.array([None]), "record 0 of the sample is an array of Python objects"),
        ({1, 2}, "record 0 of the sample is a set"),
    ],
)
def test_what_has_no_plain_bytes_is_refused_by_its_place(record: Any, where: str):
    with pytest.raises(TypeError, match=where):
        records_digest([record])
