"""The schedule covers every position of the budget once, and says what becomes of the remainder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import ConfigError
from datarax.order import MAX_POSITION, Remainder, Schedule


def schedule_of(batch_size=4, num_rows=None, remainder=Remainder.PAD, **base):
    return Schedule(batch_size=batch_size, num_rows=num_rows, remainder=remainder, **base)


def delivered(schedule):
    slots = np.arange(schedule.batch_size)
    return [
        schedule.positions(step, slots).tolist() for step in range(schedule.base_step, schedule.num_steps)
    ]


def flat(batches):
    return [position for batch in batches for position in batch]


@given(
    batch_size=st.integers(1, 20),
    num_rows=st.integers(1, 200),
    base_step=st.integers(0, 9),
    base_position=st.integers(0, 200),
)
def test_padding_delivers_every_position_once_in_order(batch_size, num_rows, base_step, base_position):
    base_position = min(base_position, num_rows)
    base = {"base_step": base_step, "base_position": base_position}
    if base_position == num_rows and not base_step:
        with pytest.raises(ConfigError):
            schedule_of(batch_size, num_rows, **base)
        return
    rows = flat(delivered(schedule_of(batch_size, num_rows, **base)))
    assert [position for position in rows if position >= 0] == list(range(base_position, num_rows))
    assert rows.count(-1) == -(num_rows - base_position) % batch_size
    assert -1 not in rows[: num_rows - base_position]


@given(batch_size=st.integers(1, 20), num_rows=st.integers(1, 200))
def test_dropping_delivers_whole_batches_only(batch_size, num_rows):
    if num_rows < batch_size:
        with pytest.raises(ConfigError, match="larger than the budget"):
            schedule_of(batch_size, num_rows, Remainder.DROP)
        return
    rows = flat(delivered(schedule_of(batch_size, num_rows, Remainder.DROP)))
    assert rows == list(range(num_rows // batch_size * batch_size))


@pytest.mark.parametrize("num_rows", [None, 27, 30])
def test_rows_in_a_step_are_its_slots_that_are_no_padding(num_rows):
    schedule = schedule_of(5, num_rows, base_step=2, base_position=3)
    for step in range(2, schedule.num_steps or 9):
        positions = schedule.positions(step, np.arange(5))
        assert schedule.rows_in(step) == np.count_nonzero(positions >= 0)


@given(batch_size=st.integers(1, 9), num_rows=st.integers(9, 99), position=st.integers(0, 98))
def test_step_of_finds_where_a_position_is_delivered(batch_size, num_rows, position):
    schedule = schedule_of(batch_size, num_rows, base_step=5, base_position=3)
    if not 3 <= position < num_rows:
        with pytest.raises(IndexError, match=str(position)):
            schedule.step_of(position)
        return
    step, slot = schedule.step_of(position)
    assert schedule.positions(step, np.array([slot])).tolist() == [position]


def test_any_subset_of_slots_is_answered_in_its_own_order():
    schedule = schedule_of(batch_size=6, num_rows=10)
    assert schedule.positions(1, np.array([5, 0, 3])).tolist() == [-1, 6, 9]
    assert schedule.positions(1, np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("batch_size", [1, 1000, 2**20])
def test_huge_steps_are_exact(batch_size):
    schedule = schedule_of(batch_size)
    step = 2**62 // batch_size
    assert schedule.positions(np.int64(step), np.array([batch_size - 1])).tolist() == [
        (step + 1) * batch_size - 1
    ]
    assert schedule.step_of((step + 1) * batch_size - 1) == (step, batch_size - 1)


def test_numpy_steps_do_not_wrap():
    assert schedule_of(2**20).positions(np.int32(2**30), np.array([1])).tolist() == [2**50 + 1]


def test_the_last_batch_before_the_end_of_all_positions_is_padded_right():
    schedule = schedule_of(batch_size=5, num_rows=MAX_POSITION)  # 2^63 - 1 = 5 q + 2
    assert schedule.positions(schedule.num_steps - 1, np.arange(5)).tolist() == [
        MAX_POSITION - 2,
        MAX_POSITION - 1,
        -1,
        -1,
        -1,
    ]


def test_an_endless_schedule_ends_with_the_positions():
    schedule = schedule_of(batch_size=2)
    assert schedule.num_steps is None
    last = 2**62 - 1
    assert schedule.positions(last, np.array([1])).tolist() == [MAX_POSITION]
    with pytest.raises(IndexError, match="last position"):
        schedule.positions(last + 1, np.array([0]))


def test_a_changed_batch_size_goes_on_where_the_old_one_stopped():
    # Three steps of 4 rows, then batches of 5 until row 20.
    schedule = schedule_of(5, 20, base_step=3, base_position=12)
    assert schedule.num_steps == 5
    assert delivered(schedule) == [[12, 13, 14, 15, 16], [17, 18, 19, -1, -1]]
    with pytest.raises(IndexError, match="step 2 lies before"):
        schedule.positions(2, np.arange(5))
    with pytest.raises(IndexError, match="position 11 lies before"):
        schedule.step_of(11)


@given(batch_size=st.integers(1, 20), num_rows=st.integers(1, 200), base_step=st.integers(0, 9))
def test_many_steps_at_once_are_each_step(batch_size, num_rows, base_step):
    schedule = schedule_of(batch_size, num_rows, base_step=base_step)
    steps = np.arange(base_step, schedule.num_steps)
    assert schedule.positions_of(steps).tolist() == delivered(schedule)
    assert schedule.positions_of(steps[::-2]).tolist() == delivered(schedule)[::-2]
    first = [schedule.first_position(step) for step in range(base_step, schedule.num_steps + 1)]
    assert first == [min(i * batch_size, num_rows) for i in range(len(first))]
    for step in (base_step - 1, schedule.num_steps):
        with pytest.raises(IndexError):
            schedule.positions_of(np.array([step]))


def test_the_last_batch_before_2_to_the_63_is_padded_and_not_wrapped():
    schedule = schedule_of(10, MAX_POSITION)
    last = schedule.num_steps - 1
    expected = schedule.positions(last, np.arange(10)).tolist()
    assert expected.count(-1) == 3
    assert schedule.positions_of(np.array([last])).tolist() == [expected]


@pytest.mark.parametrize("step", [3, 4, 10**9])
def test_a_step_beyond_the_budget_is_refused(step):
    with pytest.raises(IndexError, match="ends after 3 steps"):
        schedule_of(4, 12).positions(step, np.arange(4))


def test_a_dropped_position_is_delivered_nowhere():
    schedule = schedule_of(4, 10, Remainder.DROP)
    assert schedule.step_of(7) == (1, 3)
    with pytest.raises(IndexError, match="ends after 2 steps"):
        schedule.step_of(8)


@pytest.mark.parametrize("slots", [[4], [-1], [0, 9]])
def test_a_slot_outside_the_batch_is_refused(slots):
    with pytest.raises(IndexError, match="slots go from 0 to 3"):
        schedule_of(4, 12).positions(0, np.array(slots))


def test_error_refuses_a_remainder_and_says_the_numbers():
    assert schedule_of(4, 12, Remainder.ERROR).num_steps == 3
    with pytest.raises(ConfigError, match=r"14 rows .* batches of 4: 2 are left over"):
        schedule_of(4, 14, Remainder.ERROR)


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"batch_size": 2.0},
        {"num_rows": 0},
        {"num_rows": 2**63},
        {"remainder": "keep"},
        {"base_step": -1},
        {"base_position": -1},
        {"num_rows": 4, "base_position": 5},
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(reversed(fields))):
        schedule_of(**fields)


def test_a_remainder_may_be_given_by_its_name():
    assert schedule_of(remainder="drop").remainder is Remainder.DROP
