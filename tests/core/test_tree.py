"""One spelling, one digest, and the readable difference of two trees."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import MISSING, Difference
from datarax.core.tree import canonical_json, differences, digest, leaves, walk, with_spelled_arrays

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_the_spelling_has_sorted_keys_no_white_space_and_utf8():
    assert canonical_json({"b": [1, 2.5, None], "a": "ü", "c": {"z": True}}) == (
        '{"a":"ü","b":[1,2.5,null],"c":{"z":true}}'.encode()
    )


@given(trees)
def test_the_spelling_reads_back_as_the_tree_and_is_a_fixed_point(tree):
    spelled = canonical_json(tree)
    assert differences(tree, json.loads(spelled)) == []
    assert canonical_json(json.loads(spelled)) == spelled
    assert digest(tree) == hashlib.sha256(spelled).hexdigest()


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), scalars, max_size=5))
def test_the_order_of_keys_does_not_matter(tree):
    assert digest(tree) == digest(dict(reversed(tree.items())))


@given(trees, trees)
def test_trees_have_one_digest_exactly_if_nothing_differs(a, b):
    assert (digest(a) == digest(b)) == (differences(a, b) == [])


def test_integers_of_any_size_are_exact():
    assert canonical_json([2**63 + 5, 2**100, -(2**64)]) == b"[9223372036854775813,%d,%d]" % (
        2**100,
        -(2**64),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_floats_that_json_cannot_write_are_refused_by_path(value):
    with pytest.raises(ValueError, match=r"a\.b\[1\]"):
        canonical_json({"a": {"b": [0.0, value]}})


@pytest.mark.parametrize("value", [np.int64(1), np.float64(1), b"x", {1, 2}, object(), np.arange(2)])
def test_other_kinds_are_refused_by_path(value):
    with pytest.raises(TypeError, match=r"a\[0\] is a"):
        canonical_json({"a": [value]})


def test_keys_that_are_not_text_are_refused():
    with pytest.raises(TypeError, match="a has the key 1"):
        canonical_json({"a": {1: 2}})


def test_tuples_are_spelled_like_lists():
    assert digest((1, (2,))) == digest([1, [2]])


def test_differences_come_in_path_order_with_both_sides():
    was = {"seed": 1, "files": [{"size": 3}, {"size": 4}], "gone": None}
    now = {"seed": 2, "files": [{"size": 3}], "new": "x"}
    assert differences(was, now) == [
        Difference("files[1]", {"size": 4}, MISSING),
        Difference("gone", None, MISSING),
        Difference("new", MISSING, "x"),
        Difference("seed", 1, 2),
    ]
    assert [str(d) for d in differences(was, now)][1:] == [
        "gone: was None, is (absent)",
        "new: was (absent), is 'x'",
        "seed: was 1, is 2",
    ]


@pytest.mark.parametrize(
    ("was", "now"), [(1, 1.0), (1, True), (0, False), ("1", 1), ([], {}), ({}, None), (0.0, -0.0)]
)
def test_values_of_different_kinds_differ_even_if_python_calls_them_equal(was, now):
    assert differences({"a": was}, {"a": now}) == [Difference("a", was, now)]


@given(trees)
def test_a_tree_does_not_differ_from_itself(tree):
    assert differences(tree, tree) == []


def test_a_walk_gives_every_node_before_what_lies_in_it():
    tree = {"a": [1, {"b": ()}], 2: "x"}
    assert list(walk(tree)) == [
        ("", tree),
        ("a", [1, {"b": ()}]),
        ("a[0]", 1),
        ("a[1]", {"b": ()}),
        ("a[1].b", ()),
        ("2", "x"),
    ]
    assert list(leaves(tree, "top")) == [("top.a[0]", 1), ("top.2", "x")]


def test_the_digest_of_trees_with_arrays_is_this_one():
    tree = {"mean": np.float32(1), "var": [np.arange(3.0), (1, "x")], 2: {"n": None}}
    assert (
        digest(with_spelled_arrays(tree))
        == "f41023440be3a329f033da97b10db731fd6981725f64b302a5576160c4a5a48e"
    )
