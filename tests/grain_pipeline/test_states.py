"""Grain's states as values: copied whole, compared to the last type, and given to Grain so that it cannot share them."""

import copy
import pickle

import numpy as np
import pytest

from datarax.core.errors import InputError
from datarax.grain_pipeline.iterators import difference, for_grain, frozen

START = {
    "iterators_in_use_indices": [0, 1],
    "iterators_in_use_states": [{"next_index": 0}, {"next_index": 0}],
}


def interleaved(indices, places):
    return {
        "iterators_in_use_indices": list(indices),
        "iterators_in_use_states": [{"next_index": place} for place in places],
    }


def test_a_frozen_state_is_equal_to_the_last_type_and_shares_nothing():
    state = {"a": [1, (2, None)], 3: {"b": np.arange(2)}, "c": np.int64(1 << 40), "d": b"x", "e": 0.5}
    found = frozen(state)
    assert difference(state, found) is None
    state["a"].append(1)
    state[3]["b"][0] = 9
    assert found["a"] == [1, (2, None)]
    assert found[3]["b"].tolist() == [0, 1]


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([None])])
def test_what_a_snapshot_cannot_hold_is_refused_by_its_place(value):
    with pytest.raises(InputError, match=r"at a\[1\]\.b, which a snapshot cannot hold"):
        frozen({"a": [0, {"b": value}]})


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 2}),
        ({"a": (1,)}, {"a": [1]}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ({"a": np.arange(2)}, {"a": np.arange(1, 3)}),
    ],
)
def test_two_states_differ_where_a_value_a_type_or_a_length_does(was, now):
    assert difference(was, was) is None
    assert "grain_state.a" in difference(was, now)


def test_a_flat_map_at_its_end_may_forget_its_place_in_the_buffer():
    assert difference({"next_index_in_buffer": 2}, {"next_index_in_buffer": 0}) is None
    assert difference({"next_index_in_buffer": 2}, {"next_index_in_buffer": 1}) is not None


def test_the_states_of_open_datasets_may_have_any_form_and_their_number_may_not():
    other = {**interleaved([0, 1], [3, 4]), "iterators_in_use_states": [None, {"other": 1}]}
    assert difference(START, other, form_only=True) is None
    found = difference(START, interleaved([0, 1, 2], [0, 0, 0]), form_only=True)
    assert found == "grain_state.iterators_in_use_indices has 3 entries, this pipeline has 2"


def test_what_grain_is_given_does_not_share_the_list_of_open_datasets():
    given = for_grain({"parent": interleaved([0, 1], [3, 4])}, None)["parent"]
    for state in (given, copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        state["iterators_in_use_indices"][0] = 9
        assert state["iterators_in_use_indices"] == [0, 1]
        assert frozen(state) == interleaved([0, 1], [3, 4])


def test_nothing_is_said_of_processes_that_are_where_they_started():
    def states(given, start):
        return for_grain(given, start)["iterators_in_use_states"]

    assert states(interleaved([0, 1], [3, 0]), START) == [{"next_index": 3}, {}]
    assert states(interleaved([0, 1], [3, 0]), None) == [{"next_index": 3}, {"next_index": 0}]
    # Another dataset than at the start, which happens to be at its own start.
    assert states(interleaved([2, 1], [0, 0]), START) == [{"next_index": 0}, {}]
