"""A wrapped pipeline goes on exactly from every element, whatever it is made of and wherever its state has been."""

import grain
import jax
import numpy as np
import pytest

from datarax import Checkpointer
from datarax.order import id64, key_hashes
from datarax.testing import assert_resumes_everywhere
from tests.support.grain_pipelines import (
    ALL,
    concat_then_split,
    data_loader,
    data_loader_with_flat_map,
    filter_in_stream,
    interleave,
    mix_dict,
    stream,
    thread_prefetch,
    thread_workers,
    wrap,
)


def same(left, right):
    """Whether two lists of elements are equal to the last type."""
    (a, structure), (b, other) = jax.tree.flatten(left), jax.tree.flatten(right)
    return structure == other and all(
        type(x) is type(y) and np.array_equal(x, y) for x, y in zip(a, b, strict=True)
    )


def run(module):
    """All elements, and the state before each and at the end."""
    states, elements = [module.get_state()], []
    for element in module:
        elements.append(element)
        states.append(module.get_state())
    return elements, states


# The first tier restores few kinds of pipelines, and this one is unlike the others.
def test_a_state_that_describes_no_sampler_goes_on_exactly():
    elements, states = run(wrap(data_loader_with_flat_map()))
    module = wrap(data_loader_with_flat_map())
    module.set_state(states[1])
    assert same(list(module), elements[1:])


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_the_elements_are_those_of_the_bare_pipeline(build):
    elements, states = run(wrap(build()))
    assert same(elements, list(build()))
    assert [state["idx"] for state in states] == list(range(len(elements) + 1))


ON_DISK = [
    concat_then_split,
    data_loader,
    data_loader_with_flat_map,
    filter_in_stream,
    interleave,
    mix_dict,
    thread_prefetch,
    thread_workers,
]


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
@pytest.mark.few(3)
def test_it_resumes_everywhere(build):
    assert_resumes_everywhere(lambda: wrap(build()), steps=20, snapshots=build in ON_DISK)


def test_a_snapshot_taken_while_the_loop_goes_on_is_of_the_moment_it_was_asked_for(tmp_path):
    with wrap(interleave()) as module, Checkpointer(tmp_path) as checkpointer:
        next(module)
        checkpointer.save(1, data=module)
        rest = list(module)
    with wrap(interleave()) as fresh, Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(data=fresh)
        assert list(fresh) == rest


# Digests


def test_each_step_has_a_digest_that_depends_on_nothing_but_the_element():
    whole = wrap(filter_in_stream())
    list(whole)
    _, keys, values, has_bytes = whole.take_step_digests()
    assert has_bytes
    assert len(keys) == 7
    read_ahead = wrap(
        grain.experimental.ThreadPrefetchIterDataset(filter_in_stream(), prefetch_buffer_size=3)
    )
    next(read_ahead)
    restored = wrap(filter_in_stream())
    restored.set_state(read_ahead.get_state())
    list(restored)
    first, later_keys, later_values, _ = restored.take_step_digests()
    assert first == 1
    assert later_keys.tolist() == keys[1:].tolist()
    assert later_values.tolist() == values[1:].tolist()
    assert restored.digest == whole.digest


def test_the_key_digest_of_an_element_names_its_place_and_its_pipeline():
    module = wrap(stream(3), name="text")
    list(module)
    steps = np.arange(3)
    expected = key_hashes(steps, np.uint64(id64("text")), steps, np.zeros(3, np.int64))
    assert module.take_step_digests()[1].tolist() == expected.tolist()
    assert module.digest.rows == 3
    assert module.digest.keys == sum(map(int, expected)) % 2**64


def test_shards_have_other_key_digests():
    parts = [wrap(grain.MapDataset.range(8)[i::2]) for i in range(2)]
    for part in parts:
        list(part)
    assert parts[0].digest.keys != parts[1].digest.keys


def of(element):
    return grain.MapDataset.source([element] * 2)


def digest_of(element):
    module = wrap(of(element))
    next(module)
    return module.digest.bytes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4), np.array([0, 1, 2, 4])),
        (np.arange(4), np.arange(4, dtype=np.int32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": np.int64(1)}),
        ("text", b"text"),
        ("text", "texT"),
        (b"ab", b"a\x00"),
        ((1, None), (None, 1)),
        (2**70, 2**70 + 1),
        (["ab", "c"], ["a", "bc"]),
        (np.array(["ab", "c"]), np.array(["ab", "d"])),
    ],
)
def test_a_change_of_one_value_shows_in_the_digest(one, other):
    assert digest_of(one) == digest_of(one)
    assert digest_of(one) != digest_of(other)


def test_an_element_without_bytes_is_refused_by_path_and_is_not_counted():
    module = wrap(stream(3).map(lambda x: {"x": x, "bad": object()}))
    before = module.get_state()
    with pytest.raises(ValueError, match=r"builtins\.object at \['bad'\].*end the pipeline with a map"):
        next(module)
    assert module.get_state() == before
    assert len(module.take_step_digests()[1]) == 0


def test_an_array_of_objects_is_refused_by_path():
    module = wrap(stream(3).map(lambda x: {"x": np.array([object()])}))
    with pytest.raises(ValueError, match=r"an array of object at \['x'\]"):
        next(module)


def test_steps_before_a_committed_snapshot_are_forgotten():
    module = wrap(stream(5))
    list(module)
    module.committed(3)
    first, keys, _, _ = module.take_step_digests()
    assert (first, len(keys)) == (3, 2)
