"""What Grain gets wrong, each shown in bare Grain, so that we learn when it is mended, and absent or refused here."""

import collections
import json

import grain
import numpy as np
import pytest

from datarax import Checkpointer
from datarax.core.errors import ConfigError
from datarax.core.tree import decode, encode
from tests.support.grain_pipelines import concat_then_split, double, interleave, loader, stream, streams, wrap

experimental = grain.experimental


def through_json(state):
    return json.loads(json.dumps(state))


def text(elements):
    return [str(element) for element in elements]


def bare_states(pipeline):
    """All elements of a bare iterator, and its state before each and at the end."""
    iterator, states, elements = iter(pipeline), [], []
    states.append(iterator.get_state())
    for element in iterator:
        elements.append(str(element))
        states.append(iterator.get_state())
    return elements, states


def tail_of(pipeline, state):
    iterator = iter(pipeline)
    iterator.set_state(state)
    return text(iterator)


def save_and_restore(directory, build, elements):
    """What follows `elements` elements after a save to a disk and a restore, and what should."""
    with wrap(build()) as module, Checkpointer(directory) as checkpointer:
        for _ in range(elements):
            next(module)
        checkpointer.save(elements, data=module)
        checkpointer.wait()
        expected = text(module)
    with wrap(build()) as fresh, Checkpointer(directory) as checkpointer:
        checkpointer.restore(data=fresh)
        return text(fresh), expected


# Concat-then-split loses an element when JSON makes a list of its mark for "nothing left over".


def test_bare_concat_then_split_loses_an_element_through_json():
    elements, states = bare_states(concat_then_split())
    wrong = [i for i, s in enumerate(states) if tail_of(concat_then_split(), through_json(s)) != elements[i:]]
    assert wrong


@pytest.mark.parametrize("elements", range(9))
def test_concat_then_split_goes_on_exactly_from_every_step(elements, tmp_path):
    found, expected = save_and_restore(tmp_path, concat_then_split, elements)
    assert found == expected


def test_a_state_that_has_lost_its_tuples_is_refused():
    module = wrap(concat_then_split())
    next(module)
    state = module.get_state()
    state["grain_state"] = encode(through_json(decode(state["grain_state"])))
    with pytest.raises(ValueError, match=r"grain_state\.remainder_slices\.tokens is of another kind"):
        module.set_state(state)


# Repeating an interleave reads some files twice and others never.


def repeated_files():
    files = [grain.MapDataset.range(i, i + 1).to_iter_dataset() for i in range(18)]
    return experimental.RepeatIterDataset(
        experimental.InterleaveIterDataset(files, cycle_length=16), num_epochs=3
    )


def test_bare_repeat_over_interleave_drops_files():
    counts = collections.Counter(repeated_files())
    assert set(counts.values()) != {3}


@pytest.mark.parametrize(
    "pipeline",
    [
        repeated_files(),
        experimental.RepeatIterDataset(interleave().map(double), num_epochs=2),
        experimental.RepeatIterDataset(stream().mp_prefetch(grain.MultiprocessingOptions(num_workers=2))),
        experimental.RepeatIterDataset(
            experimental.multithread_prefetch(stream(), num_threads=2, buffer_size=1)
        ),
        grain.IterDataset.mix([experimental.RepeatIterDataset(interleave()), stream()]),
    ],
    ids=["interleave", "a map between", "processes", "threads", "inside a mixture"],
)
def test_repeat_over_several_iterators_is_refused_with_the_way_out(pipeline):
    with pytest.raises(ConfigError, match=r"RepeatIterDataset cannot be resumed.*MapDataset\.repeat"):
        wrap(pipeline)


def test_repeating_each_of_the_interleaved_datasets_is_taken():
    repeated = [experimental.RepeatIterDataset(each, num_epochs=2) for each in streams(2, 3)]
    module = wrap(experimental.InterleaveIterDataset(repeated, cycle_length=2))
    assert collections.Counter(module) == dict.fromkeys((0, 1, 2, 100, 101, 102), 2)


# An iterator that has reached its end remembers so after a restore in place.


def test_a_bare_iterator_restored_in_place_saves_that_it_is_exhausted():
    iterator = iter(interleave())
    next(iterator), next(iterator)
    state = through_json(iterator.get_state())
    rest = list(iterator)
    iterator.set_state(through_json(state))
    again = through_json(iterator.get_state())
    assert tail_of(interleave(), again) != text(rest)


def test_a_module_restored_in_place_after_its_end_saves_where_it_is():
    module = wrap(interleave())
    next(module), next(module)
    state = module.get_state()
    rest = list(module)
    module.set_state(state)
    assert module.get_state() == state
    fresh = wrap(interleave())
    fresh.set_state(module.get_state())
    assert list(fresh) == rest


# The caller's state is the iterator's own.


def test_a_bare_iterator_changes_the_state_it_was_given():
    iterator = iter(interleave())
    next(iterator)
    state = through_json(iterator.get_state())
    kept = json.dumps(state)
    other = iter(interleave())
    other.set_state(state)
    list(other)
    assert json.dumps(state) != kept


def test_a_module_leaves_the_given_state_alone():
    module = wrap(interleave())
    next(module)
    state = module.get_state()
    kept = repr(state)
    for _ in range(2):
        module.set_state(state)
        list(module)
        assert repr(state) == kept


# What stands above an interleave holds the list that the interleave writes into.


def shuffled_interleave():
    return experimental.WindowShuffleIterDataset(interleave(), window_size=12, seed=1)


def test_a_bare_window_shuffle_over_interleave_saves_another_place_after_a_restore():
    iterator = iter(shuffled_interleave())
    next(iterator)
    state = through_json(iterator.get_state())
    other = iter(shuffled_interleave())
    other.set_state(through_json(state))
    assert through_json(other.get_state()) != state


def test_a_window_shuffle_over_interleave_saves_the_same_place_after_a_restore():
    module = wrap(shuffled_interleave())
    next(module)
    second = wrap(shuffled_interleave())
    second.set_state(module.get_state())
    assert next(second) == next(module)
    third = wrap(shuffled_interleave())
    third.set_state(second.get_state())
    assert list(third) == list(second) == list(module)


# Positions of datasets that are not open yet have int keys.


def resharded():
    """An iterator that knows positions of datasets which it has not opened, as after a change of shards."""
    every = iter(experimental.InterleaveIterDataset(streams(), cycle_length=4))
    for _ in range(6):
        next(every)
    iterator = iter(interleave())
    iterator.set_shard_states(every.get_shard_states())
    return iterator


def test_bare_states_of_unopened_datasets_are_lost_through_json():
    iterator = resharded()
    state = through_json(iterator.get_state())
    assert tail_of(interleave(), state) != text(iterator)


def test_states_of_unopened_datasets_survive_a_snapshot(tmp_path):
    iterator = resharded()
    module = wrap(interleave())
    next(module)
    module.set_state(module.get_state() | {"grain_state": encode(iterator.get_state())})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, data=module)
        checkpointer.wait()
    fresh = wrap(interleave())
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.restore(data=fresh)
    assert text(fresh) == text(iterator)


# A process that has delivered nothing has the state of the whole pipeline.


def processes_over_interleave():
    interleaved = experimental.InterleaveIterDataset(streams(4, 3), cycle_length=4)
    return interleaved.mp_prefetch(grain.MultiprocessingOptions(num_workers=2))


@pytest.mark.full
def test_processes_that_have_delivered_nothing_are_restored_here_and_not_in_bare_grain(tmp_path):
    with wrap(processes_over_interleave()) as module:
        next(module)
        state = module.get_state()
        rest = list(module)
    iterator = iter(processes_over_interleave())
    iterator.set_state(through_json(state["grain_state"]))
    with pytest.raises(IndexError):
        list(iterator)
    iterator.close()
    with wrap(processes_over_interleave()) as fresh:
        fresh.set_state(state)
        assert list(fresh) == rest


# DataLoader


class Nameless:
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.int64(index)


def of_nameless():
    return loader(n=12, data_source=Nameless())


def test_a_bare_loader_refuses_a_source_without_a_repr():
    iterator = iter(of_nameless())
    next(iterator)
    with pytest.raises(ValueError, match="DataSource in checkpoint does not match"):
        iter(of_nameless()).set_state(iterator.get_state())


def test_a_source_without_a_repr_goes_on(tmp_path):
    found, expected = save_and_restore(tmp_path, of_nameless, 5)
    assert found == expected


def test_a_bare_loader_takes_a_state_of_any_version():
    iterator = iter(loader())
    next(iterator)
    iterator.set_state(json.dumps(json.loads(iterator.get_state()) | {"version": 99}).encode())
    assert next(iterator) is not None


def test_a_state_of_another_version_of_the_loader_is_refused():
    module = wrap(loader())
    next(module)
    state = module.get_state()
    state["grain_state"]["version"] = 99
    with pytest.raises(ValueError, match=r"grain_state\.version was 99, is 2"):
        module.set_state(state)


class Pairs:
    """An operation of the old kind that reads two records ahead."""

    def __call__(self, records):
        held = []
        for record in records:
            held.append(record)
            if len(held) > 2:
                yield held.pop(0)
        yield from held


def test_a_bare_loader_loses_what_an_old_operation_has_read():
    iterator = iter(loader([Pairs()], sampler={"shuffle": False}))
    next(iterator)
    other = iter(loader([Pairs()], sampler={"shuffle": False}))
    other.set_state(iterator.get_state())
    assert list(other) == list(iterator)[2:]


def test_an_old_operation_is_refused():
    with pytest.raises(
        ConfigError, match=r"02_Operation cannot be resumed: Pairs is an operation of the old kind"
    ):
        wrap(loader([Pairs()]))


# Refused states


def test_a_bare_iterator_stays_at_the_place_that_it_refused():
    iterator = iter(stream(5))
    with pytest.raises(IndexError):
        iterator.set_state({"next_index": 7})
    assert next(iterator) == 2  # past its end, and it never stops


def test_a_refused_place_leaves_the_module_where_it_was():
    module = wrap(stream(5))
    next(module)
    before = module.get_state()
    with pytest.raises(ValueError, match="out of range for dataset of length 5"):
        module.set_state(before | {"grain_state": {"next_index": 7}})
    assert module.get_state() == before
    assert list(module) == [1, 2, 3, 4]


def workers(count):
    return experimental.multithread_prefetch(stream(20), num_threads=count, buffer_size=1)


def test_a_bare_iterator_with_more_workers_delivers_an_element_before_it_fails():
    iterator = iter(workers(2))
    next(iterator)
    other = iter(workers(3))
    other.set_state(through_json(iterator.get_state()))
    assert next(other) is not None
    with pytest.raises(IndexError):
        list(other)


def test_a_state_of_fewer_workers_is_refused_before_an_element():
    two, three = wrap(workers(2)), wrap(workers(3))
    next(two)
    with pytest.raises(ValueError, match=r"iterators_in_use_indices has 2 entries, this pipeline has 3"):
        three.adopt(two.get_state(), identity="unchecked")
    assert list(three) == list(range(20))


# An element that failed


def failing_once(at):
    failures = [at]

    def check(x):
        if x in failures:
            failures.remove(x)
            raise OSError("the disk was away for a moment")
        return x

    return stream(6).map(check)


def test_a_bare_stream_drops_an_element_that_failed_once():
    iterator = iter(failing_once(2))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(OSError, match="away for a moment"):
        next(iterator)
    assert next(iterator) == 3


@pytest.mark.parametrize("prefetched", [False, True])
def test_an_element_that_failed_once_can_be_asked_for_again(prefetched):
    pipeline = failing_once(2)
    if prefetched:
        pipeline = experimental.ThreadPrefetchIterDataset(pipeline, prefetch_buffer_size=2)
    module = wrap(pipeline, version=1)
    assert [next(module), next(module)] == [0, 1]
    with pytest.raises(OSError, match="away for a moment") as failure:
        next(module)
    assert failure.value.__notes__[-1] == "in Grain pipeline 'grain', element 2"
    assert list(module) == [2, 3, 4, 5]


# Caches


def test_a_bare_cache_reads_everything_again_at_a_restore():
    read = []
    cached = experimental.CacheIterDataset(stream(50).map(lambda x: read.append(x) or x))
    iterator = iter(cached)
    for _ in range(40):
        next(iterator)
    other = iter(cached)
    other.set_state(through_json(iterator.get_state()))
    read.clear()
    next(other)
    assert len(read) == 41


def test_a_cache_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"02_CacheIterDataset cannot be resumed.*Cache in the source"):
        wrap(experimental.CacheIterDataset(stream()))


# Orders that are none


def test_a_bare_shuffle_of_65537_records_is_no_permutation():
    dataset = grain.MapDataset.range(65_537).shuffle(seed=1)
    assert dataset[0] == dataset[65_536]


def test_a_shuffle_that_is_no_permutation_is_told():
    assert wrap(grain.MapDataset.range(65_536).shuffle(seed=1)).warnings() == []
    (told,) = wrap(grain.MapDataset.range(65_537).shuffle(seed=1)).warnings()
    assert "01_ShuffleMapDataset: Grain's shuffle is no permutation of 65537 records" in told


def test_a_bare_window_shuffle_takes_a_short_window_for_a_whole_one():
    dataset = experimental.WindowShuffleMapDataset(grain.MapDataset.range(10), window_size=4, seed=1)
    assert sorted(dataset) != list(range(10))


def test_a_short_last_window_is_told():
    dataset = experimental.WindowShuffleMapDataset(grain.MapDataset.range(10), window_size=4, seed=1)
    (told,) = wrap(dataset).warnings()
    assert "the last window of 10 records is shorter than 4" in told
