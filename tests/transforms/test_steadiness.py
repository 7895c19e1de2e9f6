"""Transforms with a memory of their own are found by name, by whichever run shows it; clean ones never are."""

import functools
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from datarax.core.errors import InputError
from datarax.transforms import (
    Randomness,
    map_batch,
    map_records,
    random_map_batch,
    random_map_records,
    random_uniform,
)
from datarax.transforms.load import load_transforms
from datarax.transforms.steadiness import Comparison, Unsteady, unsteady_transforms

RECORDS = [f"record {i} of a few".encode() for i in range(40)]
SEEDS = np.arange(40, dtype=np.uint64) << np.uint64(33)


def seeds(transform):
    return SEEDS


def found(*transforms, records=RECORDS, rebuild=None):
    """(transform, comparison) of each finding."""
    unsteady = unsteady_transforms(transforms, records, seeds, rebuild=rebuild)
    return [(each.transform, each.comparison) for each in unsteady]


def of_here(*names):
    """Transforms of this file by name, and what makes them in a fresh process."""
    settings = [{"use": f"{__name__}:{name}"} for name in names]
    return load_transforms(settings), functools.partial(load_transforms, settings)


# With a memory.


def counted(record, seen=[]):  # noqa: B006, the fault under test
    seen.append(record)
    return np.array([len(seen)])


_CALLS = iter(range(10**6))


@functools.cache
def _of_call(number):
    return number % 3


def cached_by_call(record):
    return np.array([_of_call(next(_CALLS))])


_ENCOUNTERED = {}


def numbered_as_encountered(record):
    return np.array([_ENCOUNTERED.setdefault(record, len(_ENCOUNTERED))])


_LAST = [b""]


def with_the_one_before(record):
    before, _LAST[0] = _LAST[0], record
    return {"own": record[:8], "before": np.array([len(before)])}


def timed(record):
    return np.array([time.time()])


def words_of_a_set(record):
    return ",".join({word.decode() for word in record.split()} | set("abcdefgh")).encode()[:16]


def globally_random(record):
    return np.random.random(2)


def raised_the_second_time(record, seen=set()):  # noqa: B006, the fault under test
    if record in seen:
        raise RuntimeError("seen before")
    seen.add(record)
    return np.zeros(1)


HERE = [Comparison.AGAIN, Comparison.ORDER]


def length_of(record):
    return np.array([len(record)])


@pytest.mark.parametrize(
    "function", [counted, cached_by_call, timed, globally_random, raised_the_second_time]
)
def test_what_changes_from_call_to_call_is_found_in_this_process(function):
    clean = map_records(length_of)
    assert found(map_records(function), clean) == [(function.__name__, each) for each in HERE]


def test_a_cache_that_numbers_what_it_meets_shows_in_another_process_only():
    transforms, rebuild = of_here("numbered")
    assert found(*transforms) == []
    records = RECORDS[::-1]  # met here before, in another order
    assert found(*transforms, records=records, rebuild=rebuild) == [
        ("numbered_as_encountered", Comparison.PROCESS)
    ]


def test_what_depends_on_the_record_before_is_found_by_another_order():
    _LAST[0] = RECORDS[-1]  # so that a second run begins as the first one did
    assert found(map_records(with_the_one_before)) == [("with_the_one_before", Comparison.ORDER)]


def test_the_order_of_a_set_of_strings_is_found_in_a_fresh_process():
    transforms, rebuild = of_here("first", "sets", "last")
    assert found(*transforms) == []
    assert found(*transforms, rebuild=rebuild) == [("words_of_a_set", Comparison.PROCESS)]


def test_what_is_unsteady_hides_nothing_that_follows():
    pipeline = [map_records(counted), map_batch(mean_of_rows), map_records(timed)]
    assert found(*pipeline, rebuild=None) == [
        *(("counted", each) for each in HERE),
        *(("timed", each) for each in HERE),
    ]


def test_a_finding_says_how_many_rows_and_names_the_first():
    (again, _) = unsteady_transforms([map_records(timed)], RECORDS, keys_text=lambda i: f"text:{i} (epoch 0)")
    assert str(again) == (
        "transform 'timed', run again on the same records: 40 of 40 rows differ, the first is text:0 (epoch 0)"
    )
    assert isinstance(again, Unsteady)
    (raised, _) = unsteady_transforms([map_records(raised_the_second_time)], [b"another"])
    assert "it raised RuntimeError: seen before" in str(raised)


# Without.


def mean_of_rows(batch):
    records = [row.tobytes() for row in batch] if not isinstance(batch, list) else batch
    return {"mean": np.array([np.frombuffer(bytes(row), np.uint8).mean() for row in records])}


def as_a_set(record):
    return set(record.split())


def sorted_words(words):
    return b" ".join(sorted(words))


def in_place(record):
    changed = np.frombuffer(bytearray(record), np.uint8)
    changed += 1
    return changed


def shifted(batch, seeds):
    batch += 1
    return {"x": batch, "noise": random_uniform(seeds, (2,))}


def drawn(record, rng):
    return rng.random(3)


def folded(record, seed):
    return np.array([seed % 97])


def keyed(record, key):
    return jax.random.normal(key, (2,))


def batch_keyed(batch, keys):
    return {"z": jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)}


@jax.jit
def jitted(batch):
    return jnp.sin(batch.astype(jnp.float32))


def joined(records):
    return np.stack([np.frombuffer(record, np.uint8) for record in records])


first = map_records(lambda record: record.lower(), name="lower", version=1)
numbered = map_records(numbered_as_encountered)
sets = map_records(words_of_a_set)
last = map_batch(mean_of_rows)
to_set = map_records(as_a_set)
from_set = map_records(sorted_words)
changes_its_record = map_records(in_place)
changes_its_batch = random_map_batch(shifted)
generator = random_map_records(drawn)
seed = random_map_records(folded, randomness=Randomness.SEED)
key = random_map_records(keyed, randomness=Randomness.KEY)
batch_key = random_map_batch(batch_keyed, randomness=Randomness.KEY)
columns = map_batch(joined)
on_the_device = map_batch(jitted)

FIXED = [b"word %03d end" % i for i in range(40)]


KINDS = [
    ["first", "to_set", "from_set", "last"],
    ["first", "columns", "changes_its_batch"],
    ["changes_its_record"],
    ["generator"],
    ["seed"],
    ["key"],
    ["batch_key"],
    ["columns", "on_the_device"],
]


@pytest.mark.parametrize("names", KINDS)
def test_a_clean_pipeline_of_every_kind_has_no_false_alarm(names):
    assert found(*of_here(*names)[0], records=FIXED) == []


@pytest.mark.parametrize(
    "names", KINDS[:1] + [pytest.param(each, marks=pytest.mark.full) for each in KINDS[1:]]
)
def test_nor_has_it_in_a_fresh_process(names):
    transforms, rebuild = of_here(*names)
    assert found(*transforms, records=FIXED, rebuild=rebuild) == []


def test_records_in_columns_stay_as_they_are():
    rows = {"x": np.arange(40.0).reshape(20, 2)}
    before = rows["x"].copy()

    def doubled(batch):
        batch["x"] *= 2
        return batch

    assert found(map_batch(doubled), records=rows) == []
    np.testing.assert_array_equal(rows["x"], before)


def test_in_another_order_arrays_still_have_no_gaps():
    def halved(batch, seeds):
        return {"x": batch["x"].view(np.uint16), "noise": seeds.view(np.uint32).reshape(-1, 2)}

    rows = {"x": np.arange(80, dtype=np.uint32).reshape(40, 2)}
    assert found(random_map_batch(halved), records=rows) == []


def test_keys_and_arrays_on_a_device_may_pass_between_stages():
    def keys_of(batch, keys):
        return {"x": jnp.asarray(batch["x"]), "keys": keys}

    def used(batch):
        return {"x": batch["x"] + 1, "z": jax.vmap(jax.random.uniform)(batch["keys"])}

    rows = {"x": np.arange(40, dtype=np.float32)}
    assert found(random_map_batch(keys_of, randomness=Randomness.KEY), map_batch(used), records=rows) == []


def test_stages_between_which_there_are_no_plain_bytes_are_judged_together():
    def as_object(record):
        return threading.Event if time.time() < 0 else {time.time()}

    def unpacked(things):
        return np.array(list(things))

    pipeline = [map_records(as_object), map_records(unpacked)]
    assert found(*pipeline) == [("as_object → unpacked", each) for each in HERE]


# What cannot be compared.


def test_what_cannot_reach_a_fresh_process_is_said_and_no_finding_is_lost():
    transforms = [map_records(length_of)]
    with pytest.raises(InputError, match="cannot be sent to a fresh process"):
        unsteady_transforms(transforms, RECORDS, rebuild=lambda: transforms)
    assert found(map_records(timed), rebuild=lambda: transforms) == [("timed", each) for each in HERE]


def test_a_fresh_process_that_cannot_make_the_transforms_says_why():
    rebuild = functools.partial(load_transforms, [{"use": "nowhere_at_all:transform"}])
    with pytest.raises(InputError, match=r"ended with code 1 and said: .*No module named 'nowhere_at_all'"):
        unsteady_transforms([map_records(length_of)], RECORDS, rebuild=rebuild)


def prints_and_needs_what_was_set(record):
    print("what a transform says")
    return np.array([_SET_HERE[0]])


_SET_HERE = []
needing = map_records(prints_and_needs_what_was_set)


def test_what_only_works_in_the_process_that_prepared_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules[__name__].__dict__, "_SET_HERE", [1])
    transforms, rebuild = of_here("needing")
    (unsteady,) = unsteady_transforms(transforms, RECORDS, rebuild=rebuild)
    assert unsteady.transform == "prints_and_needs_what_was_set"
    assert unsteady.comparison is Comparison.PROCESS
    assert "it raised IndexError" in unsteady.what
