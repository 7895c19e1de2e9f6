"""The digest adds up over any sharding, and no small change of what was delivered leaves it as it was."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datarax.core.errors import InputError
from datarax.order import Digest, derive_seed, id64, key_hashes, key_hashes_of_pass, row_hashes
from datarax.order.digest import _UPPER, _WHOLE, SEGMENT_WORDS
from datarax.order.seeds import GOLDEN

RNG = np.random.default_rng(7)
BOOKS = id64("books")


def rows_of(array, path="x", position=None):
    return row_hashes(np.arange(len(array)) if position is None else position, [(path, array)])


def _python_mix64(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def _python_word(i):
    """Word i of the stream of constants, from 1."""
    return _python_mix64((derive_seed("digest", 1, "coefficients") + i * GOLDEN) % 2**64)


@pytest.mark.parametrize(("position", "part"), [(5, (0, 0, -1)), (2**62, (3, 2**40, 17))])
def test_a_key_hash_is_the_one_of_its_docstring(position, part):
    """The definition once more, in Python ints."""
    p, e, i, m = (_python_word(k) | 1 for k in (1, 2, 3, 4))
    rest = 0
    for field in part:
        rest = _python_mix64(rest ^ field % 2**64)
    x = (p * position + e * 7 + BOOKS) % 2**64
    x ^= x >> 32
    expected = _python_mix64((m * x + i * 9 + rest) % 2**64)
    fields = dict(zip(("part", "start", "length"), part, strict=True))
    assert keys_of(position, BOOKS, 9, 7, **fields).tolist() == [expected]


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 2048, SEGMENT_WORDS * 8, SEGMENT_WORDS * 24 + 11])
def test_a_row_hash_is_the_one_of_its_docstring(num_bytes):
    """The definition once more, in Python ints."""
    row, position = RNG.integers(0, 256, num_bytes, np.uint8).tobytes(), 2**40 + 3
    seed = derive_seed("digest", 1, "leaf", "x", "uint8", 1, num_bytes)
    salted = _python_mix64(position ^ derive_seed("digest", 1, "position"))
    words = [int.from_bytes(row[at : at + 8], "little") for at in range(0, num_bytes, 8)]
    expected = 0
    for s in range(max(1, -(-len(words) // 1024))):
        total = sum(
            _python_word(5 + j) * word + _python_word(5 + 1024 + j) * (word >> 32)
            for j, word in enumerate(words[s * 1024 : (s + 1) * 1024])
        )
        expected += _python_mix64((total + seed + s * GOLDEN) % 2**64 ^ salted)
    batch = np.frombuffer(row, np.uint8).reshape(1, num_bytes)
    assert rows_of(batch, position=np.array([position])).tolist() == [expected % 2**64]


# Keys


def keys_of(position=5, source=BOOKS, index=6, epoch=1, **part):
    return key_hashes(
        np.array([position]), np.array([source], np.uint64), np.array([index]), np.array([epoch]), **part
    )


def test_a_key_hash_depends_on_every_field():
    hashes = [
        keys_of(),
        keys_of(position=6),
        keys_of(position=5 + 2**40),
        keys_of(source=id64("web")),
        keys_of(index=7),
        keys_of(index=6 + 2**53),
        keys_of(epoch=2),
        keys_of(position=6, index=5),
        keys_of(part=1),
        keys_of(start=1),
        keys_of(length=1),
        keys_of(part=1, start=2, length=3),
        keys_of(part=2, start=1, length=3),
    ]
    assert len({int(h[0]) for h in hashes}) == len(hashes)


@given(
    rows=hnp.arrays(np.int64, (2, 40), elements=st.integers(0, 2**63 - 1)),
    source=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**63 - 1),
)
def test_the_hashes_of_one_pass_are_those_of_its_rows(rows, source, epoch):
    position, index = rows
    expected = key_hashes(position, np.full(40, source, np.uint64), index, np.full(40, epoch))
    assert key_hashes_of_pass(position, source, index, epoch).tolist() == expected.tolist()
    scalars = key_hashes(position, np.uint64(source), index, np.int64(epoch))
    assert scalars.tolist() == expected.tolist()
    given = key_hashes(
        position, np.uint64(source), index, epoch, part=np.int64(0), start=np.zeros(40, np.int64)
    )
    assert given.tolist() == expected.tolist()


def test_key_hashes_of_neighbours_are_all_different():
    position, index = np.meshgrid(np.arange(300), np.arange(300))
    hashes = key_hashes(position.ravel(), BOOKS, index.ravel(), 0)
    assert len(np.unique(hashes)) == 300 * 300


def test_scalars_and_arrays_give_the_same_key_hashes():
    n = 20_000  # more than one pass over the work vectors
    position, index = np.arange(n), RNG.integers(0, 2**62, n)
    full = key_hashes(
        position,
        np.full(n, BOOKS, np.uint64),
        index,
        np.full(n, 3),
        part=np.zeros(n, np.int64),
        start=np.zeros(n, np.int64),
        length=np.full(n, -1),
    )
    assert np.array_equal(full, key_hashes(position, BOOKS, index, 3))
    assert np.array_equal(full[7000:9000], key_hashes(position[7000:9000], BOOKS, index[7000:9000], 3))


def test_pads_add_nothing():
    position = np.array([4, -1, 5])
    hashes = key_hashes(position, BOOKS, np.array([1, -1, 2]), np.array([0, -1, 0]))
    assert hashes[1] == 0
    assert 0 not in hashes[[0, 2]]
    hashes = rows_of(np.ones((3, 4)), position=position)
    assert hashes[1] == 0
    assert 0 not in hashes[[0, 2]]


def test_fields_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"index must be int\[2\]"):
        key_hashes(np.arange(2), BOOKS, np.arange(3), 0)


# Rows

SHAPES = [(), (1,), (7,), (8,), (5, 3), (2, 3, 2), (SEGMENT_WORDS,), (3 * SEGMENT_WORDS + 5,)]
DTYPES = ["u1", "i8", "f4", "f8", "f2", ml_dtypes.bfloat16, "?", "c8", "S3", "U2", "M8[s]"]


def batch_of(dtype, shape, n=6):
    num_bytes = n * int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    if np.dtype(dtype) == bool:
        return RNG.integers(0, 2, (n, *shape)).astype(bool)
    if np.dtype(dtype).kind == "U":
        return RNG.integers(0, 99, (n, *shape)).astype(dtype)
    return RNG.integers(0, 256, num_bytes, np.uint8).view(dtype).reshape(n, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_byte_of_a_row_counts_for_that_row_alone(dtype, shape):
    batch = batch_of(dtype, shape)
    before = rows_of(batch)
    num_bytes = batch[0].nbytes
    for byte in {0, num_bytes // 2, num_bytes - 1}:
        changed = batch.copy()
        flat = changed.reshape(6, -1).view(np.uint8)
        flat[2, byte] ^= 1
        after = rows_of(changed)
        assert (after != before).tolist() == [i == 2 for i in range(6)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_layout_and_byte_order_do_not_count(dtype, shape):
    batch = batch_of(dtype, shape)
    expected = rows_of(batch).tolist()
    spread = np.repeat(batch, 2, axis=0)[::2]
    assert rows_of(spread).tolist() == expected
    assert rows_of(np.asfortranarray(batch)).tolist() == expected
    odd_address = np.empty(batch.nbytes + 1, np.uint8)[1:].view(batch.dtype).reshape(batch.shape)
    odd_address[...] = batch
    assert rows_of(odd_address).tolist() == expected
    if batch.dtype.kind != "V":  # ml_dtypes know no byte order
        assert rows_of(batch.astype(batch.dtype.newbyteorder(">"))).tolist() == expected


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(0, 70))), st.data())
def test_a_row_hash_does_not_depend_on_the_rows_beside_it(batch, data):
    position = np.array(data.draw(st.lists(st.integers(0, 2**62), min_size=len(batch), max_size=len(batch))))
    together = rows_of(batch, position=position)
    alone = [rows_of(batch[i : i + 1], position=position[i : i + 1])[0] for i in range(len(batch))]
    assert together.tolist() == alone


def test_rows_in_more_than_one_chunk_are_each_alone():
    batch = batch_of("u1", (40_000,), n=20)
    assert rows_of(batch)[11] == rows_of(batch[11:12], position=np.array([11]))[0]


@pytest.mark.parametrize("num_values", [2, 3, 64, 2 * SEGMENT_WORDS, 2500])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8"])
def test_negating_values_of_a_row_is_seen(dtype, num_values):
    """Flips of top bits cancel in pairs in a plain multilinear hash modulo 2^64."""
    batch = RNG.integers(1, 100, (50, num_values)).astype(dtype)
    before = rows_of(batch)
    assert not (rows_of(-batch) == before).any()
    pair = batch.copy()
    pair[:, [0, num_values - 1]] *= -1
    assert not (rows_of(pair) == before).any()


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_one_bit_flipped_in_any_two_words_is_seen(bit):
    words = np.zeros((1, 40), np.uint64)
    seen = {int(rows_of(words)[0])}
    for a in range(40):
        for b in range(a):
            flipped = words.copy()
            flipped[0, [a, b]] ^= np.uint64(1 << bit)
            seen.add(int(rows_of(flipped)[0]))
    assert len(seen) == 1 + 40 * 39 // 2


def test_no_two_sign_flips_anywhere_in_a_segment_cancel():
    """Flipping bit 31 of two 32-bit halves changes the sum by 2^31 (± a ± b), which is 0 only if a = ± b mod 2^33."""
    modulus = 1 << 33
    of_halves = [int(c) for c in _WHOLE] + [
        ((int(c) << 32) + int(d)) for c, d in zip(_WHOLE, _UPPER, strict=True)
    ]
    smallest = [min(c % modulus, -c % modulus) for c in of_halves]
    assert len(set(smallest)) == 2 * SEGMENT_WORDS
    assert 0 not in smallest


@pytest.mark.parametrize("words", [2, 10, SEGMENT_WORDS + 3, 3 * SEGMENT_WORDS])
def test_words_that_change_places_are_seen(words):
    batch = RNG.integers(0, 2**63, (4, words))
    before = rows_of(batch)
    for a, b in ((0, 1), (0, words - 1), (words - 2, words - 1)):
        swapped = batch.copy()
        swapped[:, [a, b]] = swapped[:, [b, a]]
        assert a == b or not (rows_of(swapped) == before).any()
    assert not (rows_of(np.roll(batch, 1, axis=1)) == before).any()


def test_segments_that_change_places_are_seen():
    batch = RNG.integers(0, 2**63, (1, 3, SEGMENT_WORDS))
    flat = batch.reshape(1, -1)
    assert rows_of(flat) != rows_of(batch[:, [1, 0, 2]].reshape(1, -1))


def test_rows_that_change_places_change_the_sum():
    batch = RNG.integers(0, 256, (8, 32), np.uint8)
    swapped = batch[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert rows_of(batch).sum() != rows_of(swapped).sum()
    counting = np.arange(8)  # a row that is its own position, as a range source delivers it
    assert rows_of(counting).sum() != rows_of(counting[[1, 0, 2, 3, 4, 5, 6, 7]]).sum()


def test_the_same_row_at_another_position_hashes_differently():
    batch = np.ones((1000, 3))
    assert len(np.unique(rows_of(batch))) == 1000


def test_zero_rows_of_any_shape_and_dtype_are_told_apart():
    shapes = [(), (0,), (0, 0), (1,), (1, 1), (2,), (8,), (2, 4), (4, 2), (16,), (SEGMENT_WORDS * 8,)]
    hashes = [
        int(rows_of(np.zeros((1, *s), d))[0]) for s in shapes for d in ("u1", "i1", "?", "f4", "i4", "f2")
    ]
    hashes += [
        int(rows_of(np.zeros((1, 2), d))[0])
        for d in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "S4", "U1")
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_same_bytes_as_another_dtype_or_shape_hash_differently():
    batch = RNG.integers(0, 256, (1, 16), np.uint8)
    views = [
        batch,
        batch.view("i1"),
        batch.view("f8"),
        batch.view("i8"),
        batch.view("f2"),
        batch.reshape(1, 4, 4),
    ]
    views.append(batch.view(ml_dtypes.bfloat16))
    assert len({int(rows_of(view)[0]) for view in views}) == len(views)


def test_leaves_count_by_path_and_not_by_their_order():
    a, b, position = RNG.integers(0, 9, (4, 3)), RNG.integers(0, 9, (4, 3)), np.arange(4)
    hashes = row_hashes(position, [("a", a), ("b", b)])
    assert np.array_equal(hashes, row_hashes(position, [("b", b), ("a", a)]))
    assert np.array_equal(hashes, rows_of(a, "a") + rows_of(b, "b"))
    assert not (hashes == row_hashes(position, [("a", b), ("b", a)])).any()
    assert not (hashes == row_hashes(position, [("a", a), ("c", b)])).any()


def test_no_rows_have_no_hashes():
    assert rows_of(np.zeros((0, 5))).tolist() == []
    assert rows_of(np.zeros((0, 9000))).tolist() == []
    assert key_hashes(np.zeros(0, np.int64), BOOKS, np.zeros(0, np.int64), 0).tolist() == []


@pytest.mark.parametrize(
    "leaf",
    [
        np.array([b"a", "b"], object),
        np.zeros(2, [("a", "i4"), ("b", "i4")]),
        np.zeros(2, np.longdouble),
        np.array(["a", "b"], np.dtypes.StringDType()),
    ],
    ids=["object", "fields", "long double", "variable strings"],
)
def test_a_dtype_without_fixed_bytes_is_refused_by_path(leaf):
    with pytest.raises(InputError, match="'text/body' has the dtype"):
        rows_of(leaf, "text/body")


def test_leaves_with_another_number_of_rows_or_the_same_path_are_refused():
    with pytest.raises(InputError, match=r"'x' has the shape \(3, 2\); 2 rows"):
        row_hashes(np.arange(2), [("x", np.zeros((3, 2)))])
    with pytest.raises(InputError, match="'x' has the shape"):
        row_hashes(np.arange(2), [("x", np.float64(3))])
    with pytest.raises(InputError, match="two leaves"):
        row_hashes(np.arange(2), [("x", np.zeros(2)), ("x", np.zeros(2))])


# Digest


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=8))
def test_digests_add_up_over_any_grouping(sums):
    whole = Digest.zero(with_bytes=True)
    for keys, hashed in sums:
        whole = whole.add(np.uint64(keys), np.uint64(hashed), 1)
    halves = [Digest.zero(with_bytes=True), Digest.zero(with_bytes=True)]
    for i, (keys, hashed) in enumerate(sums):
        halves[i % 2] = halves[i % 2].add(keys, hashed, 1)
    joined = halves[0].add(halves[1].keys, halves[1].bytes, halves[1].rows)
    assert joined == whole


def test_a_state_is_hex_of_sixteen_digits():
    digest = Digest.zero(with_bytes=False).add(255, None, 2)
    assert digest.to_state() == {"version": 1, "rows": 2, "keys": "00000000000000ff", "bytes": None}


def test_digests_with_and_without_bytes_do_not_add_up():
    with pytest.raises(ValueError, match="do not add up"):
        Digest.zero(with_bytes=True).add(1, None, 1)
    with pytest.raises(ValueError, match="do not add up"):
        Digest.zero(with_bytes=False).add(1, 1, 1)
