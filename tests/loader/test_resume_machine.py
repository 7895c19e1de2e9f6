"""Any sequence of taking, saving, crashing and restoring, with any tuning, delivers what a plain loop delivers."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from datarax.checkpoint import Checkpointer, SaveConfig, decode, encode
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import random_map_batch
from tests.support.tiers import examples

_RECORDS = 23
_SOURCE = RangeSource(RangeConfig(stop=_RECORDS))
_NOISE = random_map_batch(lambda x, seeds: {"x": x, "noise": seeds}, name="noise")
_ORDERS = (
    {"order": "none"},
    {"order": "global"},
    {"order": "block", "block_size": 4, "window_blocks": 2},
    {"order": "grain", "grain_style": "map_dataset"},
)


def make(order, *, rows=None, read_ahead=0, num_threads=1):
    config = DataLoaderConfig(
        batch_size=6,
        seed=11,
        num_epochs=3,
        remainder="pad",
        byte_digest=True,
        read_ahead=read_ahead,
        num_threads=num_threads,
        **order,
    )
    return DataLoader(config, _SOURCE, transforms=[_NOISE], rows=rows)


def through_json(state):
    return decode(json.loads(json.dumps(encode(state))))


class ResumeMachine(RuleBasedStateMachine):
    @initialize(order=st.sampled_from(_ORDERS))
    def start(self, order):
        self.order = order
        self.expected = list(make(order))
        self.loader = make(order)
        self.taken = 0
        self.saved = (0, self.loader.get_state())

    @rule()
    @precondition(lambda self: self.taken < len(self.expected))
    def take(self):
        batch = next(self.loader)
        for key, leaf in self.expected[self.taken].items():
            assert np.array_equal(batch[key], leaf)
        self.taken += 1

    @rule()
    @precondition(lambda self: self.taken == len(self.expected))
    def find_the_end(self):
        with pytest.raises(StopIteration):
            next(self.loader)

    @rule()
    def save(self):
        self.saved = (self.taken, through_json(self.loader.get_state()))

    @rule(read_ahead=st.integers(0, 4), num_threads=st.integers(1, 2))
    def crash_and_restore(self, read_ahead, num_threads):
        self.loader.close()
        self.loader = make(self.order, read_ahead=read_ahead, num_threads=num_threads)
        self.taken, state = self.saved
        self.loader.set_state(through_json(state))

    @rule()
    def restore_in_place(self):
        self.taken, state = self.saved
        self.loader.set_state(state)

    @rule(step=st.integers(0, 11))
    def look_elsewhere(self, step):
        batch = self.loader.batch_at(step)
        assert np.array_equal(batch["x"], self.expected[step]["x"])

    @rule()
    def go_on_with_a_clone(self):
        old = self.loader
        self.loader = old.clone()
        old.close()

    def teardown(self):
        if hasattr(self, "loader"):
            self.loader.close()


TestResumeMachine = ResumeMachine.TestCase
TestResumeMachine.settings = settings(
    examples(40), stateful_step_count=30, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("order", _ORDERS, ids=lambda order: order["order"])
def test_every_step_saved_with_orbax_restores_into_fresh_and_reused_loaders(order, tmp_path):
    whole = make(order)
    expected = list(whole)
    loader = make(order, read_ahead=2)
    with Checkpointer(tmp_path, config=SaveConfig(keep_latest=None)) as checkpointer:
        for step in range(1, len(expected) + 1):
            next(loader)
            checkpointer.save(step, data=loader)
    reused = make(order, read_ahead=1)
    reader = Checkpointer(tmp_path)
    for step in reader.steps():
        for target in (make(order, read_ahead=3, num_threads=2), reused):
            reader.restore(step, data=target)
            tail = list(target)
            assert len(tail) == len(expected) - step
            for batch, wanted in zip(tail, expected[step:], strict=True):
                assert all(np.array_equal(batch[key], wanted[key]) for key in wanted)
            # The second generation of states.
            assert target.get_state() == whole.get_state()
