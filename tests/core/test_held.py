"""What a module keeps on the host is shown in its state, and is nothing to NNX."""

import jax.numpy as jnp
import pytest
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.module import DataraxModule
from datarax.core.variables import Held


class Keeper:
    def __init__(self, place):
        self.place = place


class Wrapper(DataraxModule):
    free_state = frozenset({"place"})

    def __init__(self, keeper):
        super().__init__(DataraxModuleConfig())
        self.keeper = keeper
        self.place = Held(lambda: keeper.place, lambda value: setattr(keeper, "place", value))


def test_a_state_holds_a_copy_of_what_is_kept_and_gives_it_back():
    keeper = Keeper({"next": [1 << 40, ("a", b"b")]})
    module = Wrapper(keeper)
    state = module.get_state()
    assert state["place"] == {"next": [1 << 40, ("a", b"b")]}
    keeper.place["next"].clear()
    module.set_state(state)
    assert keeper.place == {"next": [1 << 40, ("a", b"b")]}
    state["place"]["next"].clear()
    assert keeper.place["next"]


def test_what_is_kept_passes_through_a_transform_untouched():
    keeper = Keeper({"next": 1 << 40, "name": "text"})
    module = Wrapper(keeper)
    nnx.jit(lambda m, x: x)(module, jnp.ones(()))
    assert module.place[...] == {"next": 1 << 40, "name": "text"}
    assert type(module.place.get_value()["next"]) is int


def test_a_part_can_be_looked_at_and_not_set():
    module = Wrapper(Keeper({"next": 3}))
    assert module.place["next"] == 3
    with pytest.raises(TypeError, match="a part of what a module holds cannot be set"):
        module.place["next"] = 4
