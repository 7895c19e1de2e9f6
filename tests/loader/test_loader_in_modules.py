"""A loader as a part of something: of a module, of a transformed function, of a loop that is broken off."""

import copy
import pickle
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import ConfigError
from datarax.core.module import DataraxModule
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource, RangeConfig, RangeSource


def numbers(start=0, count=40):
    return RangeSource(RangeConfig(start=start, stop=start + count))


def make(source=None, *, rngs=None, rows=None, **config):
    settings = {"batch_size": 8, "seed": 3, "num_epochs": 2, **config}
    source = numbers() if source is None else source
    return DataLoader(DataLoaderConfig(**settings), source, rngs=rngs, rows=rows)


def mean_and_span(batch):
    return {"mean": batch.mean() / 3, "span": np.array([batch.min(), batch.max()]) / 7}


# Inside modules


class Trainer(DataraxModule):
    def __init__(self, config, **settings):
        super().__init__(config)
        self.loader = make(rngs=nnx.Rngs(0), **settings)
        self.others = nnx.List([make(order="none"), numbers()])


def test_a_clone_of_a_module_has_open_loaders_and_sources_of_its_own():
    module = Trainer(DataraxModuleConfig(), batch_stats_fn=mean_and_span)
    parts = (module.loader, *module.others)
    for part in parts:
        next(part)
    clone = module.clone()
    states = [part.get_state() for part in parts]
    batches = [next(part) for part in (clone.loader, *clone.others)]
    assert repr([part.get_state() for part in parts]) == repr(states)
    assert all(np.array_equal(next(part), batch) for part, batch in zip(parts, batches, strict=True))
    assert repr(clone.get_state()) == repr(module.get_state())
    clone.others[1].close()
    next(module.others[1])


def test_a_clone_is_a_copy_of_what_a_subclass_adds_too():
    class Noted(DataLoader):
        def __init__(self, *args, note="", **kwargs):
            super().__init__(*args, **kwargs)
            self.note = note

    loader = Noted(DataLoaderConfig(batch_size=8), numbers(), note="mine")
    next(loader)
    assert loader.clone().note == "mine"


# Inside transforms


def test_a_transform_sees_no_batch_and_gives_none_back():
    loader = make(numbers(start=2**40))
    traces = []
    step = nnx.jit(lambda module: traces.append(module.name))
    for _ in range(3):
        batch = next(loader)
        step(loader)
        assert loader.current.get_value() is batch
        assert batch[0] >= 2**40
    assert len(traces) == 1


def test_a_batch_that_is_no_jax_array_does_not_keep_a_loader_out_of_transforms():
    loader = make(MemorySource(MemoryConfig(), {"word": np.array(["a", "b"] * 20)}))
    next(loader)
    assert nnx.jit(lambda module: 3)(loader) == 3
    assert loader.current["word"].shape == (8,)


COUNTS = ("idx", "position", "epoch", "_applied_count", "digest_rows", "digest_keys", "digest_bytes")


def counts(state):
    return {name: state[name].get_value() for name in COUNTS}


def test_nnx_sees_what_was_delivered_after_every_batch_and_whatever_happened_in_between():
    loader = make(byte_digest=True)
    between = (
        lambda: None,
        lambda: nnx.jit(lambda module: None)(loader),
        lambda: nnx.update(loader, nnx.state(loader)),
        lambda: loader.digest_keys.set_value(3),
        lambda: loader.set_state(loader.get_state()),
        loader.clone,
    )
    for taken, event in enumerate(between, start=1):
        event()
        next(loader)
        loader.get_state()
        digest = loader.digest
        expected = (taken, 8 * taken, 8 * taken // 40, 8 * taken, 8 * taken, digest.keys, digest.bytes)
        assert counts(nnx.state(loader)) == dict(zip(COUNTS, expected, strict=True))


def merged_copy(loader):
    """With variables of its own: those that `nnx.split` gives are the loader's."""
    graph, state = nnx.split(loader)
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))


def test_what_was_taken_out_of_a_loader_is_of_that_moment():
    loader = make(byte_digest=True)
    next(loader)
    before, state = loader.get_state(), nnx.state(loader)
    expected = counts(state)
    merged, pure = merged_copy(loader), nnx.to_pure_dict(state)
    taken = [copy.deepcopy(loader.idx), loader.idx.copy(), nnx.clone(loader, graph=True).idx]
    words = [pickle.loads(pickle.dumps(state[name].get_raw_value())) for name in COUNTS]
    next(loader)
    assert counts(vars(merged)) == expected
    assert {name: pure[name] for name in COUNTS} == expected
    assert [each.get_value() for each in taken] == [1, 1, 1]
    assert [int(each.exact()) for each in words] == [int(value) for value in expected.values()]
    assert counts(state) == counts(vars(loader)) != expected  # a state refers to the variables themselves
    loader.set_state(before)
    assert counts(vars(loader)) == expected


def test_a_loader_and_its_merged_copy_never_take_turns_unnoticed():
    for copy_first in (False, True):
        loader = make()
        next(loader)
        merged = merged_copy(loader)
        first, second = (merged, loader) if copy_first else (loader, merged)
        next(first)
        with pytest.raises(RuntimeError, match="a merged copy shares this stream"):
            next(second)
        next(first)


def test_a_batch_is_not_taken_inside_a_transform():
    loader = make()
    with pytest.raises(TraceContextError, match="cannot be taken inside a jax transform"):
        jax.jit(lambda x: x + next(loader)[0])(1)
    assert loader.get_state()["idx"] == 0
    next(loader)


def test_a_jitted_function_is_not_traced_anew_for_a_loader_that_went_on():
    loader, traces = make(byte_digest=True), []
    step = nnx.jit(lambda module: traces.append(1))
    for event in (
        lambda: None,
        lambda: next(loader),
        lambda: loader.set_state(loader.get_state()),
        loader.reset,
    ):
        event()
        step(loader)
    assert len(traces) == 1


def test_counters_that_were_reset_count_from_there():
    loader = make()
    next(loader), next(loader)
    loader.reset_operation_stats()
    assert loader.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    next(loader)
    assert loader.get_operation_stats() == {"applied_count": 8, "skipped_count": 0}
    assert loader.get_state()["_applied_count"] == 8
    assert loader.digest.rows == 24
    parts = [make(rows=rows) for rows in ([0, 1, 2], [3, 4, 5, 6, 7])]
    for part in parts:
        part.set_state(loader.get_state())
        next(part), part.reset_operation_stats(), next(part)
    state, _ = parts[0].combined([part.contribution() for part in parts])
    assert (state["_applied_count"], state["digest_rows"]) == (8, 40)


def test_means_stay_float64_through_transforms():
    loader, plain = (make(batch_stats_fn=mean_and_span) for _ in range(2))
    holder = DataraxModule(DataraxModuleConfig())
    holder.loader = loader
    next(loader), next(plain)
    nnx.jit(lambda module: None)(holder)
    assert repr(holder.get_state()["loader"]) == repr(plain.get_state())


# Statistics that are changed in mid-run


@pytest.mark.parametrize(
    "change",
    [
        lambda loader: loader.reset_statistics(),
        lambda loader: loader.set_statistics({"other": 1.0}),
        lambda loader: loader.set_statistics(None),
        lambda loader: loader.compute_statistics(np.arange(5)),
    ],
    ids=["reset", "set", "set None", "compute"],
)
def test_a_run_whose_statistics_were_changed_resumes_exactly(change):
    loader, resumed = (make(batch_stats_fn=mean_and_span) for _ in range(2))
    next(loader), next(loader)
    change(loader)
    resumed.set_state(loader.get_state())
    assert repr(resumed.get_statistics()) == repr(loader.get_statistics())
    for _ in range(3):
        next(loader), next(resumed)
        assert repr(resumed.get_state()) == repr(loader.get_state())
    assert loader.get_state()["stats_rows"] == 24  # the means are those of the rows since the change


def test_statistics_of_another_shape_are_refused_with_the_step():
    shapes = iter([(2,), (1,)])
    loader = make(batch_stats_fn=lambda batch: {"x": np.zeros(next(shapes))})
    next(loader)
    with pytest.raises(ConfigError, match=r"'x' has the shape \(1,\), but \(2,\) before") as caught:
        next(loader)
    assert caught.value.__notes__ == ["in batch_stats_fn, on the batch of step 1"]


@pytest.mark.parametrize("stats", [None, {"mean": "high"}])
def test_a_state_whose_means_are_damaged_is_refused(stats):
    loader = make(batch_stats_fn=mean_and_span)
    next(loader)
    state = loader.get_state()
    fresh = make(batch_stats_fn=mean_and_span)
    with pytest.raises(ValueError):  # noqa: PT011  the law is refusal
        fresh.set_state({**state, "_computed_stats": stats})
    assert fresh.get_state()["idx"] == 0


# Broken off


def interrupted_at(place, loader):
    """Takes a batch, with a Ctrl-C at the `place`-th of the places where Python looks for one; False if there are fewer.

    It looks when a function begins and when a call to C has returned, never between a `with` and what it guards.
    """
    seen = 0

    def profile(frame, event, arg):
        nonlocal seen
        if event in ("call", "c_return") and "datarax" in frame.f_code.co_filename:
            seen += 1
            if seen == place:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        next(loader)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_a_batch_that_ctrl_c_broke_off_is_not_half_counted():
    settings = {"batch_stats_fn": mean_and_span, "num_epochs": 1, "read_ahead": 0}
    whole = make(**settings)
    states = [whole.get_state(), *(whole.get_state() for _ in whole)]
    place = 0
    loader = make(**settings)
    while True:
        place += 1
        loader.set_state(states[2])
        if not interrupted_at(place, loader):
            break
        taken = loader.get_state()["idx"]
        assert taken in (2, 3)  # a batch may be lost on its way out of next(); the state then says so
        assert repr(loader.get_state()) == repr(states[taken]), place
        assert loader.take_step_digests()[1].size == taken - 2
        list(loader)
        assert repr(loader.get_state()) == repr(states[-1]), place
    assert place > 30
