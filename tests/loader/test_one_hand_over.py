"""A hand-over is one act: each batch goes to one thread, and an interrupt leaves either nothing or all of it done."""

import contextlib
import itertools
import sys
import threading
from collections import Counter
from functools import partial

import grain
import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainPipeline,
    GrainPipelineConfig,
    MemoryConfig,
    MemorySource,
    map_batch,
)
from datarax.loader.producer import Turns
from datarax.loader.recipe import Recipe


def loader(num_steps=60, **config):
    config = {"batch_size": 4, "seed": 3, "read_ahead": 0, "num_epochs": 1, "byte_digest": True} | config
    return DataLoader(
        DataLoaderConfig(**config), MemorySource(MemoryConfig(), {"x": np.arange(4.0 * num_steps)})
    )


def pipeline(num_steps=60):
    return GrainPipeline(GrainPipelineConfig(name="p"), grain.MapDataset.range(4 * num_steps).batch(4))


def rows(batch):
    return tuple(np.asarray(batch["x"] if isinstance(batch, dict) else batch).tolist())


def mean(batch):
    return {"mean": batch["x"].mean()}


STREAMS = {
    "in the caller": loader,
    "read ahead": lambda: loader(read_ahead=2, num_threads=2),
    "with means": lambda: loader(batch_stats_fn=mean),
    "Grain": pipeline,
}


@pytest.fixture
def restless():
    """Threads that give way at nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*functions):
    """Runs functions in threads of their own, and raises what one of them raised."""
    raised = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(each,)) for each in functions]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    assert not any(each.is_alive() for each in threads)
    for error in raised:
        raise error


def take(stream, taken):
    taken.extend(map(rows, stream))


@pytest.mark.parametrize("num_threads", [2, 4])
@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_each_batch_goes_to_one_of_the_threads_that_ask(make, num_threads, restless):
    expected = make()
    wanted = Counter(map(rows, expected))
    for _ in range(3):
        stream = make()
        taken = [[] for _ in range(num_threads)]
        together(*[partial(take, stream, own) for own in taken])
        taken = list(itertools.chain(*taken))
        assert Counter(taken) == wanted
        told, alone = stream.get_state(), expected.get_state()
        assert told.keys() == alone.keys()
        assert stream.digest == expected.digest
        assert (told["idx"], told["position"]) == (alone["idx"], alone["position"])
        stream.close()


def test_a_state_that_is_asked_for_beside_the_loop_is_of_one_moment(restless):
    stream, states, done = loader(400), [], threading.Event()
    reference = loader(400)
    moments = [reference.get_state()]
    for _ in reference:
        moments.append(reference.get_state())

    def take():
        try:
            for _ in stream:
                pass
        finally:
            done.set()

    def look():
        while not done.is_set():
            states.append(stream.get_state())
            stream.committed(stream.idx.get_value() - 1)

    together(take, look)
    told = [{key: repr(value) for key, value in each.items()} for each in moments]
    for each in states:
        assert {key: repr(value) for key, value in each.items()} == told[each["idx"]]
    assert stream.digest == reference.digest


def test_a_slow_look_at_the_digest_beside_the_loop_leaves_no_old_sum(monkeypatch):
    stream, reference = loader(40), loader(40)
    for _ in range(10):
        next(stream)
    count = Recipe.counted_in

    def overtaken(recipe, steps):
        """All that the thread of the loop does while the one that looks is about to write its sum down."""
        monkeypatch.setattr(Recipe, "counted_in", count)
        for _ in range(10):
            next(stream)
        stream.committed(20)
        return count(recipe, steps)

    monkeypatch.setattr(Recipe, "counted_in", overtaken)
    assert stream.digest.rows == 40
    for _ in stream:
        pass
    for _ in reference:
        pass
    assert stream.digest == reference.digest
    assert stream.get_state()["digest_keys"] == reference.get_state()["digest_keys"]


BESIDE = {
    "reset_operation_stats": lambda stream: stream.reset_operation_stats(),
    "keep_byte_digests": lambda stream: stream.keep_byte_digests(),
    "clone": lambda stream: stream.clone().close(),
    "statistics": lambda stream: (stream.set_statistics({"m": 1.0}), stream.reset_statistics()),
    "contribution": lambda stream: stream.combined([stream.contribution()]),
}


@pytest.mark.parametrize("act", BESIDE.values(), ids=BESIDE)
@pytest.mark.parametrize("read_ahead", [0, 2])
def test_whatever_is_asked_for_beside_the_loop_no_batch_is_lost_or_given_twice(act, read_ahead, restless):
    stream, done = loader(400, byte_digest=None, read_ahead=read_ahead), threading.Event()
    taken, wanted = [], list(map(rows, loader(400)))

    def take_all():
        try:
            take(stream, taken)
        finally:
            done.set()

    def ask():
        while not done.is_set():
            act(stream)

    together(take_all, ask)
    assert taken == wanted
    assert (stream.idx.get_value(), stream.position.get_value()) == (400, 1600)
    assert stream.get_state()["idx"] == 400
    stream.close()


def test_a_loader_that_is_put_elsewhere_or_closed_beside_the_loop_gives_whole_batches(restless):
    stream, done = loader(400, read_ahead=2), threading.Event()
    expected, taken = loader(400), []

    def take_some():
        try:
            taken.extend(next(stream) for _ in range(300))
        finally:
            done.set()

    def move():
        state = stream.get_state()
        for turn in itertools.count():
            if done.is_set():
                break
            (stream.close, stream.reset, partial(stream.seek, 7), partial(stream.set_state, state))[
                turn % 4
            ]()

    together(take_some, move)
    known = {rows(expected.batch_at(step)) for step in range(400)}
    assert all(rows(batch) in known for batch in taken)
    assert rows(next(stream)) == rows(expected.batch_at(stream.idx.get_value() - 1))


def test_a_call_from_within_a_call_is_made_at_once_and_a_batch_within_a_hand_over_refused():
    turns = Turns()
    assert turns.call(lambda: turns.call(lambda: 5)) == 5
    stream = DataLoader(
        DataLoaderConfig(batch_size=2, read_ahead=0),
        MemorySource(MemoryConfig(), {"x": np.arange(8.0)}),
        transforms=[map_batch(lambda batch: again() or batch, name="again", version=1)],
    )
    asked = iter([True])
    again = lambda: next(asked, False) and next(stream) and None  # noqa: E731
    with pytest.raises(RuntimeError, match="within this hand-over"):
        next(stream)
    assert stream.idx.get_value() == 1  # that of the inner call
    assert rows(next(stream)) == rows(stream.batch_at(1))


def test_turns_go_on_after_whatever_was_raised_in_one(restless):
    turns, counted = Turns(), []

    def count():
        at = len(counted)
        if at % 7 == 3:
            counted.append(None)
            raise KeyError(at)
        counted.append(at)
        assert len(counted) == at + 1

    def ask():
        for _ in range(300):
            with contextlib.suppress(KeyError):
                turns.call(count)

    together(*[ask] * 4)
    assert len(counted) == 1200
    for error in (ValueError, StopIteration, KeyboardInterrupt):
        with pytest.raises(RuntimeError if error is StopIteration else error):
            turns.call(
                lambda error=error: (
                    (_ for _ in ()).throw(error()) if error is not StopIteration else next(iter(()))
                )
            )
        assert turns.call(lambda: 1) == 1
