import math
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datarax.core.tree import EncodingError, canonical_json, decode, encode
from tests.checkpoint.modules import same
from tests.support.tiers import examples


def there_and_back(tree):
    import json

    return decode(json.loads(canonical_json(encode(tree))))


def equal(a, b):
    """Equality that sees types, the sign of zero and the payload of NaN."""
    if type(a) is not type(b):
        return isinstance(a, jax.Array) and isinstance(b, jax.Array) and same(a, b)
    if isinstance(a, dict):
        return [*map(repr, a)] == [*map(repr, b)] or (
            a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


numbers = st.integers() | st.integers(-(2**5000), 2**5000) | st.floats() | st.booleans()
texts = st.text(st.characters(exclude_categories=()))  # lone surrogates too
keys = texts | st.integers() | st.booleans() | st.none() | st.binary() | st.tuples(texts, st.integers())
arrays = hnp.arrays(
    hnp.scalar_dtypes() | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes(),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
)
leaves = st.none() | numbers | texts | st.binary() | arrays
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@examples(200)
@given(trees)
def test_every_state_tree_comes_back_with_its_types_and_bits(tree):
    assert equal(there_and_back(tree), tree)


@pytest.mark.parametrize(
    "name",
    [
        "bool",
        "int32",
        "uint8",
        "float32",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3",
        "int4",
        "uint4",
        "complex64",
    ],
)
def test_jax_and_numpy_arrays_keep_dtype_shape_and_bits(name):
    dtype = jnp.dtype(name)
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    assert equal(there_and_back(array), array)
    assert same(there_and_back(jnp.asarray(array)), jnp.asarray(array))
    assert same(there_and_back(jnp.asarray(array[0, 0])), jnp.asarray(array[0, 0]))


def test_nan_payloads_and_signs_survive_in_floats_and_arrays():
    odd = struct.unpack("d", (0xFFF8_0000_DEAD_BEEF).to_bytes(8, "little"))[0]
    assert equal(there_and_back([odd, -0.0, math.inf]), [odd, -0.0, math.inf])
    array = jnp.asarray(np.frombuffer(b"\x01\x00\x80\x7f\x23\x01\xc0\xff", np.float32))
    assert same(there_and_back(array), array)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_typed_keys_keep_their_implementation_and_stream(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4).reshape(2, 2)
    back = there_and_back(keys)
    assert same(back, keys)
    assert same(jax.random.normal(back[1, 0], (3,)), jax.random.normal(keys[1, 0], (3,)))


def test_a_weakly_typed_array_stays_weak_so_that_products_keep_their_dtype():
    assert jnp.asarray(2.0).weak_type
    back = there_and_back(jnp.asarray(2.0))
    assert back.weak_type
    assert (back * jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16


def test_restored_numpy_arrays_can_be_written_to():
    there_and_back(np.arange(3))[0] = 7


def test_a_dict_that_looks_like_a_mark_comes_back_as_it_was():
    for tree in ({"$float": "0x1p0"}, {"$dict": []}, {"a": {"$jax": 1}}, {"$": 1, "b": 2}):
        assert equal(there_and_back(tree), tree)


class Colour:
    pass


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"a": [1, {"b": Colour()}]}, r"a\[1\]\.b"),
        ({"a": {1: {2, 3}}}, r"a\[1\]"),
        ({"x": np.array([None])}, "x"),
        ({"x": np.array([(1, 2)], dtype=[("f", "i4"), ("g", "i4")])}, "x"),
        ({"x": {Colour: 1}}, "x"),
        ({"x": 1 + 2j}, "x"),
        ({"x": type("Sub", (dict,), {})()}, "x"),
    ],
)
def test_unknown_types_are_refused_by_path(tree, path):
    with pytest.raises(EncodingError, match=rf"^train\.{path} "):
        encode(tree, "train")


def test_a_donated_array_is_refused_by_path():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(EncodingError, match=r"^state\.x is a JAX array whose buffer was donated"):
        encode({"x": x}, "state")


def test_a_64_bit_jax_array_is_not_wrapped_where_x64_is_off():
    with jax.enable_x64(True):
        encoded = encode(jnp.asarray(2**40 + 5))
    with pytest.raises(ValueError, match="needs jax_enable_x64"):
        decode(encoded)
    with jax.enable_x64(True):
        assert int(decode(encoded)) == 2**40 + 5


def test_marks_of_a_later_version_are_refused():
    with pytest.raises(ValueError, match="unknown mark"):
        decode({"a": {"$quaternion": [1, 2, 3, 4]}})


def test_dtypes_named_by_ml_dtypes_are_covered():
    for name in ("bfloat16", "float8_e8m0fnu", "int2", "float4_e2m1fn"):
        array = np.zeros(2, getattr(ml_dtypes, name))
        assert equal(there_and_back(array), array)


@pytest.mark.parametrize(
    "tree",
    [
        {"$array": 0},
        {"$array": {"dtype": "<i8"}},
        {"$array": {"dtype": "no_dtype", "shape": [], "data": ""}},
        {"$array": {"dtype": "", "shape": [], "data": ""}},
        {"$int": 5},
        {"$int": "0x" + "f" * 20_000},
        {"$float": None},
        {"$nan": "00"},
        {"$str": 1},
        {"$dict": [[{}, 1]]},
        {"$tuple": 3},
        {"a": [{"$scalar": []}]},
    ],
)
def test_what_no_encode_made_is_a_value_error(tree):
    with pytest.raises(ValueError):  # noqa: PT011  the decoders' own words differ
        decode(tree)


def test_an_int_that_nobody_could_print_is_refused_by_its_path():
    with pytest.raises(EncodingError, match=r"a\.b is an int of more digits"):
        encode({"a": {"b": 10**5000}})
    assert decode(encode(10**4000)) == 10**4000
