"""Rows through pipelines: what each level is given, what is checked, what an error says, and the law of randomness."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import ConfigError
from datarax.order.seeds import id64, row_seeds
from datarax.transforms import (
    Level,
    Randomness,
    Transform,
    apply_transforms,
    check_pipeline,
    keys_from_seeds,
    map_batch,
    map_records,
    random_bits,
    random_integers,
    random_map_batch,
    random_map_records,
    random_uniform,
)
from tests.support.tiers import examples


def run(transforms, rows, index=None, seed=7):
    """Applies transforms to rows that are the records `index` of a source 'numbers' in epoch 0."""
    n = len(rows) if isinstance(rows, list) else len(jax.tree.leaves(rows)[0])
    index = np.arange(n) if index is None else np.asarray(index)

    def seeds_for(transform):
        ids = np.full(n, id64("numbers"), np.uint64)
        return row_seeds(seed, transform.name, ids, index, np.zeros(n, np.int64))

    return apply_transforms(check_pipeline(transforms), rows, seeds_for, lambda i: f"numbers[{index[i]}]")


def test_a_record_transform_gets_rows_of_columns_and_a_batch_transform_what_the_stage_before_left():
    seen = []

    def on_batch(batch, label):
        seen.append((label, type(batch).__name__))
        return batch

    double = map_records(lambda record: {"x": record["x"] * 2}, name="double")
    before = map_batch(on_batch, name="before", parameters={"label": "columns"})
    after = map_batch(on_batch, name="after", parameters={"label": "records"})
    batch = run([before, double, after], {"x": np.arange(6).reshape(3, 2)})
    assert seen == [("columns", "dict"), ("records", "list")]
    np.testing.assert_array_equal(batch["x"], np.arange(6).reshape(3, 2) * 2)


def test_records_without_transforms_are_stacked_and_columns_pass_as_they_are():
    assert run([], [b"ab", b"cd"]).tolist() == [[97, 98], [99, 100]]
    columns = {"x": np.arange(3)}
    assert run([], columns)["x"] is columns["x"]


def test_a_batch_transform_is_called_once_and_parameters_are_keywords():
    calls = []

    def scale(batch, *, by):
        calls.append(len(batch))
        return np.stack([np.frombuffer(record, np.uint8) for record in batch]) * by

    assert run([map_batch(scale, parameters={"by": 2})], [b"\x01", b"\x02"]).tolist() == [[2], [4]]
    assert calls == [2]


def test_jax_arrays_come_back_as_numpy():
    batch = run(
        [map_batch(lambda batch: {"x": jax.numpy.asarray(batch["x"])}, name="j")],
        {"x": np.ones(3, np.float32)},
    )
    assert type(batch["x"]) is np.ndarray


@pytest.mark.parametrize(
    ("fn", "message", "note"),
    [
        (lambda b: {"x": b["x"][1:]}, "transform 'bad' was given 3 rows and returned 2", None),
        (lambda b: b["x"].tolist()[:1], "transform 'bad' was given 3 rows and returned 1", None),
        (lambda b: {"x": np.arange(4)}, "transform 'bad' was given 3 rows and returned 4", None),
        (lambda b: [*b["x"].tolist(), 9], "transform 'bad' was given 3 rows and returned 4", None),
        (
            lambda b: {"x": b["x"], "y": np.zeros(2)},
            r"y has 2 rows \(shape \(2,\)\), but x has 3",
            "transform 'bad' returned",
        ),
        (lambda b: {"x": 3}, "x is a int; every leaf of a batch is an array", "transform 'bad' returned"),
        (lambda b: None, "no arrays at all", "transform 'bad' returned"),
        (lambda b: {"x": np.array([None] * 3)}, "x has dtype object", None),
        (lambda b: {"k": jax.random.split(jax.random.key(0), 3)}, "k holds JAX PRNG keys", None),
    ],
)
def test_a_batch_transform_that_does_not_keep_the_rows_is_refused(fn, message, note):
    with pytest.raises(ValueError, match=message) as caught:
        run([map_batch(fn, name="bad")], {"x": np.arange(3)})
    if note:
        assert note in "".join(caught.value.__notes__)


def test_the_original_exception_comes_out_with_transform_and_record_named():
    error = KeyError("mine")

    def fail_on_two(record):
        if record == 2:
            raise error
        return record

    with pytest.raises(KeyError) as caught:
        run(
            [map_records(lambda r: r, name="fine"), map_records(fail_on_two)],
            [0, 1, 2, 3],
            index=[10, 11, 12, 13],
        )
    assert caught.value is error
    assert error.__notes__ == ["in transform 'fail_on_two', at numbers[12]"]
    assert error.__cause__ is None


def test_a_failing_batch_transform_is_named():
    with pytest.raises(ZeroDivisionError) as caught:
        run([map_batch(lambda batch: 1 // 0, name="divide")], [1, 2])
    assert caught.value.__notes__ == ["in transform 'divide', on a batch of 2 rows"]


@pytest.mark.parametrize("make", [map_records, map_batch])
def test_stop_iteration_cannot_end_the_loop_in_silence(make):
    with pytest.raises(RuntimeError, match="StopIteration was raised in transform 'stop'") as caught:
        run([make(lambda rows: next(iter(())), name="stop")], [1, 2])
    assert isinstance(caught.value.__cause__, StopIteration)


def test_records_that_do_not_stack_name_the_transform_that_left_them():
    with pytest.raises(ValueError, match="record 1 has 2 bytes") as caught:
        run([map_records(lambda r: b"x" * r, name="grow")], [1, 2], index=[5, 6])
    assert caught.value.__notes__ == [
        "while stacking the 2 records that transform 'grow' left; record 0 is numbers[5]"
    ]


def test_seeds_of_another_kind_are_refused():
    transform = random_map_batch(lambda rows, seeds: rows, name="r")
    with pytest.raises(ValueError, match=r"'r' needs uint64\[2\] seeds, was given int64\[2\]"):
        apply_transforms((transform,), [1, 2], lambda t: np.arange(2), str)


def noisy(record, rng):
    return {"x": record["x"], "draws": rng.integers(0, 2**63, 3), "normal": rng.normal()}


def keyed(record, key):
    return {**record, "key": np.asarray(jax.random.bits(key, (2,)))}


def seeded(record, seed):
    return {**record, "seed": np.uint64(seed)}


def batched(records, seeds):
    return [{**record, "more": row} for record, row in zip(records, random_uniform(seeds, (2,)), strict=True)]


def batched_keys(records, keys):
    bits = np.asarray(jax.vmap(jax.random.bits)(keys))
    return [{**record, "vmapped": row} for record, row in zip(records, bits, strict=True)]


PIPELINE = [
    random_map_records(noisy),
    random_map_records(keyed, randomness=Randomness.KEY),
    random_map_records(seeded, randomness=Randomness.SEED),
    random_map_batch(batched),
    random_map_batch(batched_keys, randomness=Randomness.KEY),
]
COLUMNS = {"x": np.arange(40) * 10}
WHOLE = None


@examples(20)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=8))
def test_a_row_is_the_same_in_every_batch_order_and_slice(index):
    global WHOLE
    WHOLE = run(PIPELINE, COLUMNS) if WHOLE is None else WHOLE
    some = run(PIPELINE, {"x": COLUMNS["x"][index]}, index=index)
    for key, leaf in WHOLE.items():
        np.testing.assert_array_equal(some[key], leaf[index])


def test_rows_seeds_and_names_each_give_other_draws():
    whole = run(PIPELINE[:1], COLUMNS)
    assert len(np.unique(whole["draws"])) == 120
    assert not np.any(whole["draws"] == run(PIPELINE[:1], COLUMNS, seed=8)["draws"])
    renamed = random_map_records(noisy, name="renamed")
    assert not np.any(whole["draws"] == run([renamed], COLUMNS)["draws"])


def test_a_transform_put_before_does_not_change_the_draws_of_the_next():
    first = random_map_records(lambda record, rng: {"x": record["x"] + 0 * rng.integers(9)}, name="first")
    np.testing.assert_array_equal(
        run([first, *PIPELINE[:1]], COLUMNS)["draws"], run(PIPELINE[:1], COLUMNS)["draws"]
    )


def test_a_generator_has_the_stream_of_philox_with_the_seed_as_key():
    def draw(record, rng):
        return rng.random(4)

    seeds = np.array([5, 2**64 - 3], np.uint64)
    rows = apply_transforms((random_map_records(draw),), [0, 0], lambda t: seeds, str)
    expected = [np.random.Generator(np.random.Philox(key=int(seed))).random(4) for seed in seeds]
    np.testing.assert_array_equal(rows, expected)


def test_keys_hold_all_64_bits_and_are_those_of_jax_for_small_seeds():
    seeds = np.array([3, 3 + 2**32, 3 + 2**63, 2**64 - 1], np.uint64)
    data = np.asarray(jax.random.key_data(keys_from_seeds(seeds)))
    assert data.tolist() == [[0, 3], [1, 3], [2**31, 3], [2**32 - 1, 2**32 - 1]]
    assert jax.random.bits(keys_from_seeds(seeds[:1])[0]) == jax.random.bits(
        jax.random.key(3, impl="threefry2x32")
    )
    assert {device.platform for device in keys_from_seeds(seeds).devices()} == {"cpu"}


def test_vectorised_draws_are_those_that_were_recorded():
    # Changing these changes every batch of every run that draws them.
    seeds = np.array([0, 1, 2**64 - 1], np.uint64)
    assert [f"{bits:016x}" for bits in random_bits(seeds)] == GOLDEN_BITS
    assert [f"{bits:016x}" for bits in random_bits(seeds, stream=1)] == GOLDEN_STREAM
    assert random_integers(seeds, -5, 2**62).tolist() == [-5 + int(b, 16) % (2**62 + 5) for b in GOLDEN_BITS]
    assert random_uniform(seeds).tolist() == [(int(b, 16) >> 11) / 2**53 for b in GOLDEN_BITS]


GOLDEN_BITS = ["568a9b0b1a2c05ec", "85c61a300ec70fa1", "02a28b166501827c"]
GOLDEN_STREAM = ["6ec85f1f8547bc0c", "21a5715431dc4cc7", "4cf4029d585d83a0"]


def test_vectorised_draws_depend_on_their_own_seed_only_and_fill_their_range():
    seeds = row_seeds(1, "t", np.full(20_000, 3, np.uint64), np.arange(20_000), np.zeros(20_000, np.int64))
    whole = random_uniform(seeds, (2, 3))
    np.testing.assert_array_equal(whole[17:18], random_uniform(seeds[17:18], (2, 3)))
    assert whole.shape == (20_000, 2, 3)
    assert len(np.unique(whole)) == whole.size
    assert abs(whole.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(whole.reshape(-1, 6).T) - np.eye(6)).max() < 0.04
    assert abs(np.corrcoef(random_uniform(seeds), random_uniform(seeds, stream=1))[0, 1]) < 0.04
    counts = np.bincount(random_integers(seeds, 0, 10))
    assert len(counts) == 10
    assert counts.min() > 1800
    assert random_integers(seeds[:9], -(2**63), 2**63 - 1).dtype == np.int64
    with pytest.raises(ValueError, match=r"in \[3, 3\): the range is empty"):
        random_integers(seeds, 3, 3)


def plain(rows, by=1):
    return rows


def lazy(rows):
    yield rows


async def later(rows):
    return rows


CONFIG_ERRORS = [
    (lambda: map_records("text"), "'str' needs something callable, got 'text'"),
    (lambda: map_records(lambda r: r), "a lambda has no name"),
    (lambda: map_records(plain, name=""), "name of transform '' must be a string that is not empty"),
    (lambda: map_records(plain, parameters={"to": 1}), r"called as fn\(rows, to=...\), but its signature is \(rows, by=1\)"),
    (lambda: random_map_records(lambda r: r, name="r"), r"called as fn\(rows, randomness\), but its signature is \(r\)"),
    (lambda: map_records(plain, parameters=[1]), "parameters of transform 'plain' must be a mapping"),
    (lambda: map_records(plain, parameters={1: 1}), "has the parameter 1; parameters are keyword arguments"),
    (lambda: map_records(plain, version=1.5), "version of transform 'plain' must be a string or an integer, got 1.5"),
    (lambda: map_records(plain, version=True), "version of transform 'plain' must be a string or an integer"),
    (lambda: map_records(lazy), "'lazy' is a generator function"),
    (lambda: map_batch(later), "'later' is a coroutine function"),
    (lambda: random_map_batch(noisy, randomness="generator"), "one generator for a whole batch"),
    (lambda: random_map_batch(noisy, randomness="none"), "cannot have randomness 'none'"),
    (lambda: random_map_batch(noisy, randomness="nome"), "randomness of transform 'noisy' must be one of 'none', 'seed'"),
    (lambda: Transform(fn=plain, name="p", level="row"), "level of transform 'p' must be one of 'record', 'batch', got 'row'"),
    (lambda: check_pipeline([map_records(plain), map_batch(plain)]), r"transforms\[1\] is a second one with the name 'plain'"),
    (lambda: check_pipeline([plain]), r"transforms\[0\] is <function plain .* wrap the function in map_records"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), CONFIG_ERRORS)
def test_a_wrong_transform_is_refused_when_it_is_made(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_text_names_members_and_a_transform_cannot_be_changed():
    parameters = {"by": 2}
    transform = Transform(fn=plain, name="p", level="batch", parameters=parameters)
    assert transform.level is Level.BATCH
    parameters["by"] = 3
    assert transform.parameters == {"by": 2}
    with pytest.raises(TypeError):
        transform.parameters["by"] = 3
    with pytest.raises(AttributeError):
        transform.name = "q"


@jax.jit
def jitted(key):
    return jax.random.bits(key, (5,))


def keyed_twice(record, key):
    return {"eager": np.asarray(jax.random.normal(key, (7,))), "jitted": np.asarray(jitted(key))}


def keyed_batch(batch, keys):
    return {
        "eager": jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys),
        "jitted": jax.vmap(jitted)(keys),
    }


@pytest.mark.parametrize(("make", "fn"), [(random_map_records, keyed_twice), (random_map_batch, keyed_batch)])
def test_what_is_drawn_from_jax_keys_depends_on_no_flag_of_threefry(make, fn):
    stage = make(fn, randomness=Randomness.KEY)
    plain = run([stage], {"x": np.arange(4)})
    for partitionable in (False, True):
        with jax.threefry_partitionable(partitionable):
            jitted(jax.random.key(0, impl="threefry2x32"))
            flagged = run([stage], {"x": np.arange(4)})
            assert jax.config.jax_threefry_partitionable is partitionable
        for name, leaf in plain.items():
            np.testing.assert_array_equal(flagged[name], leaf)
