"""States that nobody should have made: each is refused and nothing has happened, or taken and the module goes on by it."""

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainPipeline,
    GrainPipelineConfig,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
)
from datarax.core.config import DataraxModuleConfig
from datarax.core.module import DataraxModule
from datarax.core.tree import leaves
from datarax.sources import GrainConfig, GrainSource
from tests.support.tiers import examples, is_whole


def numbers():
    return MemorySource(MemoryConfig(), {"x": np.arange(24.0)})


def loader(**config):
    config = {"batch_size": 4, "read_ahead": 0, "byte_digest": True} | config
    return DataLoader(DataLoaderConfig(**config), numbers())


def mean(batch):
    return {"mean": batch["x"].mean()}


class Around(DataraxModule):
    def __init__(self, config):
        super().__init__(config)
        self.loader = loader()

    def __next__(self):
        return next(self.loader)


MAKERS = {
    "loader": loader,
    "loader of three epochs": lambda: loader(num_epochs=3, remainder="pad", batch_size=5),
    "loader with means": lambda: loader(batch_stats_fn=mean),
    "loader that reads ahead": lambda: loader(read_ahead=2),
    "memory": numbers,
    "list": lambda: MemorySource(MemoryConfig(), list(range(24))),
    "range": lambda: RangeSource(RangeConfig(stop=2**62)),
    "grain": lambda: GrainSource(GrainConfig(), list(range(24))),
    "pipeline": lambda: GrainPipeline(GrainPipelineConfig(name="p"), grain.MapDataset.range(24).batch(2)),
    "stream of Grain": lambda: GrainPipeline(
        GrainPipelineConfig(name="p"), grain.MapDataset.range(24).to_iter_dataset().batch(2)
    ),
    "module around a loader": lambda: Around(DataraxModuleConfig()),
}


HOSTILE = [
    *(None, True, -1, 0, 1, 2, 4, 5, 24, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, -(2**70)),
    *(2.0, float("nan"), float("inf"), "2", b"2", [], (), (0, 1), {}, {"a": 1}, {"mean": np.ones(3)}, 2j),
    *(np.int64(2), np.asarray(2), np.asarray(2**63 - 1), np.asarray(-1), np.arange(2), np.ma.masked),
]


def spelled(tree):
    """A tree as text; an array of one number is that number."""
    return [
        (path, repr(leaf.item() if np.ndim(leaf) == 0 and hasattr(leaf, "item") else leaf))
        for path, leaf in leaves(tree)
    ]


def following(module):
    try:
        return spelled(next(module))
    except StopIteration:
        return "the end"


def fields(state, above=()):
    for key, value in state.items():
        yield (*above, key)
        if isinstance(value, dict) and key != "identity":  # its fields are compared alike
            yield from fields(value, (*above, key))


def replaced(state, path, value):
    key, *below = path
    return {**state, key: replaced(state[key], below, value) if below else value}


def check(make, steps, changes):
    """Sets a hostile state and sees that either nothing has happened or the module goes on by it."""
    module = make()
    for _ in range(steps):
        next(module)
    before = module.get_state()
    state = before
    for path, value in changes:
        state = replaced(state, path, value)
    beside = make()
    beside.set_state(before)
    try:
        module.set_state(state)
    except (ValueError, TypeError):
        assert spelled(module.get_state()) == spelled(before)
    else:
        assert spelled(module.get_state()) == spelled(state)
        beside.set_state(state)
    for _ in range(2):
        assert following(module) == following(beside)
        assert spelled(module.get_state()) == spelled(beside.get_state())
    again = make()
    again.set_state(module.get_state())  # what it says of itself, it takes


@pytest.mark.few(1)
@pytest.mark.filterwarnings("ignore:invalid value")  # a mean may be infinite
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_any_value_in_any_field_is_refused_or_lived_by(make):
    module = make()
    next(module)
    for i, path in enumerate(fields(module.get_state())):
        for value in HOSTILE if is_whole() else HOSTILE[i % 3 :: 3]:
            check(make, 1, [(path, value)])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.few(4)
@examples(100)
@given(data=st.data())
def test_values_that_contradict_each_other_are_refused_or_lived_by(make, data):
    steps = data.draw(st.integers(0, 3))
    module = make()
    for _ in range(steps):
        next(module)
    paths = list(fields(module.get_state()))
    number = st.integers(0, 30) | st.integers(0, 2**70) | st.sampled_from(HOSTILE)
    changes = data.draw(st.lists(st.tuples(st.sampled_from(paths), number), min_size=1, max_size=4))
    # A field of a field that another change has replaced is no field any more.
    check(make, steps, [(path, value) for path, value in changes if len(path) == 1] or changes[:1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"idx": 9, "position": 5},
        {"idx": 0},
        {"idx": 2**70},
        {"idx": 2**62, "position": 2**62, "epoch": 2**62 // 24},
        {"digest_rows": 2**70},
        {"digest_rows": 2**62},
        {"_applied_count": 2**63 - 1},
    ],
)
def test_counts_that_no_run_can_have_are_refused(wrong):
    module = loader()
    next(module), next(module)
    with pytest.raises(ValueError, match=r"bits|cannot have"):
        module.set_state({**module.get_state(), **wrong})
    assert module.idx.get_value() == 2


def test_a_run_that_changed_its_batch_size_goes_on():
    module = loader()
    module.set_state({**module.get_state(), "idx": 5, "position": 7})  # one row a batch, and once three
    assert (
        module.record_keys(5).index.tolist()
        == loader(batch_size=1).timeline.last.order.keys(np.arange(7, 11)).index.tolist()
    )
