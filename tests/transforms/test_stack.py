"""Laws of stacking: exact, invertible, and blind to who shares the batch."""

import dataclasses
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datarax.transforms import stack, unstack

Point = namedtuple("Point", "x y")

DTYPES = st.sampled_from(
    ["bool", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64", "complex64"]
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
LEAVES = st.tuples(DTYPES, SHAPES)
TREES = st.recursive(
    LEAVES.map(lambda leaf: ("array", leaf)),
    lambda below: st.one_of(
        st.dictionaries(st.text(max_size=3), below, min_size=1, max_size=3).map(lambda d: ("dict", d)),
        st.lists(below, min_size=1, max_size=3).map(lambda items: ("tuple", items)),
    ),
    max_leaves=5,
)


def records_of(tree, n, rng):
    kind, what = tree
    if kind == "dict":
        return [
            dict(zip(what, row, strict=True))
            for row in zip(*(records_of(t, n, rng) for t in what.values()), strict=True)
        ]
    if kind == "tuple":
        return list(zip(*(records_of(each, n, rng) for each in what), strict=True))
    dtype, shape = what
    return [
        np.frombuffer(rng.bytes(16 * 27), np.uint8)[: int(np.prod(shape))].astype(dtype).reshape(shape)
        for _ in range(n)
    ]


def same(a, b):
    leaves_a, structure_a = jax.tree.flatten(a)
    leaves_b, structure_b = jax.tree.flatten(b)
    assert structure_a == structure_b
    for x, y in zip(leaves_a, leaves_b, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@given(TREES, st.integers(1, 5), st.integers(0, 2**32))
def test_unstack_undoes_stack(tree, n, seed):
    records = records_of(tree, n, np.random.default_rng(seed))
    for record, back in zip(records, unstack(stack(records)), strict=True):
        same(jax.tree.map(np.asarray, back), record)


@given(TREES, st.integers(2, 6), st.integers(0, 2**32), st.data())
def test_a_row_does_not_depend_on_who_shares_the_batch(tree, n, seed, data):
    records = records_of(tree, n, np.random.default_rng(seed))
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
    same(
        stack([records[i] for i in chosen]), jax.tree.map(lambda leaf: leaf[np.array(chosen)], stack(records))
    )


@given(
    st.integers(0, 9).flatmap(
        lambda length: st.lists(st.binary(min_size=length, max_size=length), min_size=1)
    )
)
def test_bytes_of_one_length_become_rows_of_uint8(records):
    rows = stack(records)
    assert (rows.dtype, rows.shape) == (np.uint8, (len(records), len(records[0])))
    assert [row.tobytes() for row in rows] == records


def test_a_stacked_batch_may_be_written_to_and_shares_nothing():
    record = np.zeros(3)
    for batch in (stack([b"abc", b"def"]), stack([record, record])):
        batch[0] += 1
    assert record.sum() == 0


def test_python_scalars_have_one_dtype_whatever_their_values():
    batch = stack(
        [{"b": True, "i": 2**62, "f": 1.0, "c": 1j}, {"b": False, "i": -(2**63), "f": float("nan"), "c": 0j}]
    )
    assert {key: leaf.dtype for key, leaf in batch.items()} == {
        "b": np.bool_, "i": np.int64, "f": np.float64, "c": np.complex128,
    }  # fmt: skip
    assert batch["i"].tolist() == [2**62, -(2**63)]


def test_namedtuples_lists_jax_arrays_and_registered_nodes_keep_their_kind():
    records = [Point(x=[1, np.float32(2)], y=jnp.arange(3)), Point(x=[3, np.float32(4)], y=jnp.arange(3))]
    batch = stack(records)
    assert type(batch) is Point
    assert type(batch.x) is list
    assert batch.y.shape == (2, 3)
    assert batch.x[1].dtype == np.float32
    nodes = stack([_Node(a={"k": i}, b=np.ones(2)) for i in range(3)])
    assert nodes.a["k"].tolist() == [0, 1, 2]
    assert nodes.b.shape == (3, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Node:
    a: dict
    b: np.ndarray


REFUSED = [
    ([], "no records to stack"),
    ([b"abc", b"ab"], "record 1 has 2 bytes, but record 0 has 3; cut, pad or tokenise"),
    (
        [{"a": {"b": np.zeros(2)}}, {"a": {"b": np.zeros(3)}}],
        r"leaf 'a.b': record 1 is float64\[3\], but record 0 is float64\[2\]",
    ),
    (
        [{"a": np.zeros(2, "f4")}, {"a": np.zeros(2)}],
        r"leaf 'a': record 1 is float64\[2\], but record 0 is float32\[2\]",
    ),
    ([{"a": 1}, {"b": 1}], r"record 1 has other keys than record 0: missing \['a'\], extra \['b'\]"),
    ([{"a": 1}, {"a": 1.0}], "leaf 'a': record 1 is a float, but record 0 is a int"),
    ([1, True], "record 1 is a bool, but record 0 is a int"),
    ([{"a": [1]}, {"a": [1, 2]}], "leaf 'a': record 1 is a list of 2, but record 0 one of 1; .* np.asarray"),
    ([(1, 2**63)] * 2, "leaf '1': record 0 is 9223372036854775808, which int64 cannot hold"),
    ([{"a": "text"}] * 2, "leaf 'a': the records hold a str, which cannot become rows"),
    ([{"a": np.array("text")}] * 2, "leaf 'a': the records hold <U4"),
    ([{"a": None}] * 2, "leaf 'a': the records hold None"),
    ([np.array([None])] * 2, "the records hold object"),
    ([object()] * 2, "the records hold a object"),
    ([1, b"1"], "record 1 is a bytes, but record 0 is a int"),
]


@pytest.mark.parametrize(("records", "message"), REFUSED)
def test_what_does_not_fit_is_refused_naming_leaf_record_and_both_kinds(records, message):
    with pytest.raises(ValueError, match=message):
        stack(records)


def test_columns_of_different_lengths_are_refused_by_name():
    with pytest.raises(ValueError, match=r"b has 3 rows \(shape \(3,\)\), but a has 2"):
        unstack({"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(ValueError, match=r"a.b is a int; every leaf"):
        unstack({"a": {"b": 1}})
