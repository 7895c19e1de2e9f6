"""The timeline covers every position of the budget once, past and future, and says what becomes of the remainder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import ConfigError, MismatchError
from datarax.order import MAX_POSITION, Order, OrderConfig, Remainder, Segment, Timeline

ORDER = Order(OrderConfig(), {"books": 7})


def timeline_of(batch_size=4, num_rows=None, remainder=Remainder.PAD, **first):
    segment = Segment(order=ORDER, batch_size=batch_size, **first)
    return Timeline(segments=(segment,), num_rows=num_rows, remainder=remainder)


def positions(timeline, step, slots):
    return timeline.positions(np.array([step]), np.array(slots, np.int64)).tolist()[0]


def delivered(timeline):
    first = timeline.segments[0].first_step
    return [
        positions(timeline, step, range(segment.batch_size))
        for segment, part in timeline.parts(range(first, timeline.num_steps))
        for step in part
    ]


def flat(batches):
    return [position for batch in batches for position in batch]


@given(
    batch_size=st.integers(1, 20),
    num_rows=st.integers(1, 200),
    first_step=st.integers(0, 9),
    first_position=st.integers(0, 200),
)
def test_padding_delivers_every_position_once_in_order(batch_size, num_rows, first_step, first_position):
    first_position = min(first_position, num_rows)
    base = {"first_step": first_step, "first_position": first_position}
    if first_position == num_rows and not first_step:
        with pytest.raises(ConfigError):
            timeline_of(batch_size, num_rows, **base)
        return
    rows = flat(delivered(timeline_of(batch_size, num_rows, **base)))
    assert [position for position in rows if position >= 0] == list(range(first_position, num_rows))
    assert rows.count(-1) == -(num_rows - first_position) % batch_size
    assert -1 not in rows[: num_rows - first_position]


@given(batch_size=st.integers(1, 20), num_rows=st.integers(1, 200))
def test_dropping_delivers_whole_batches_only(batch_size, num_rows):
    if num_rows < batch_size:
        with pytest.raises(ConfigError, match="larger than the budget"):
            timeline_of(batch_size, num_rows, Remainder.DROP)
        return
    rows = flat(delivered(timeline_of(batch_size, num_rows, Remainder.DROP)))
    assert rows == list(range(num_rows // batch_size * batch_size))


@pytest.mark.parametrize("num_rows", [None, 27, 30])
def test_rows_in_a_step_are_its_slots_that_are_no_padding(num_rows):
    timeline = timeline_of(5, num_rows, first_step=2, first_position=3)
    for step in range(2, timeline.num_steps or 9):
        found = timeline.positions(np.array([step]), np.arange(5))
        assert timeline.num_real(range(step, step + 1), np.arange(5)) == np.count_nonzero(found >= 0)


def test_any_subset_of_slots_is_answered_in_its_own_order():
    timeline = timeline_of(batch_size=6, num_rows=10)
    assert positions(timeline, 1, [5, 0, 3]) == [-1, 6, 9]
    assert positions(timeline, 1, []) == []


@pytest.mark.parametrize("batch_size", [1, 1000, 2**20])
def test_huge_steps_are_exact(batch_size):
    timeline = timeline_of(batch_size)
    step = 2**62 // batch_size
    assert positions(timeline, np.int64(step), [batch_size - 1]) == [(step + 1) * batch_size - 1]


def test_numpy_steps_do_not_wrap():
    assert positions(timeline_of(2**20), np.int32(2**30), [1]) == [2**50 + 1]


def test_the_last_batch_before_the_end_of_all_positions_is_padded_right():
    timeline = timeline_of(batch_size=5, num_rows=MAX_POSITION)  # 2^63 - 1 = 5 q + 2
    assert positions(timeline, timeline.num_steps - 1, range(5)) == [
        MAX_POSITION - 2,
        MAX_POSITION - 1,
        -1,
        -1,
        -1,
    ]


def test_an_endless_timeline_ends_with_the_positions():
    timeline = timeline_of(batch_size=2)
    assert timeline.num_steps is None
    last = 2**62 - 1
    assert positions(timeline, last, [1]) == [MAX_POSITION]
    with pytest.raises(IndexError, match="last position"):
        positions(timeline, last + 1, [0])


def test_a_changed_batch_size_goes_on_where_the_old_one_stopped():
    # Three steps of 4 rows, then batches of 5 until row 20.
    timeline = timeline_of(5, 20, first_step=3, first_position=12)
    assert timeline.num_steps == 5
    assert delivered(timeline) == [[12, 13, 14, 15, 16], [17, 18, 19, -1, -1]]
    with pytest.raises(IndexError, match="step 2 lies before"):
        positions(timeline, 2, range(5))


@given(batch_size=st.integers(1, 20), num_rows=st.integers(1, 200), first_step=st.integers(0, 9))
def test_many_steps_at_once_are_each_step(batch_size, num_rows, first_step):
    timeline = timeline_of(batch_size, num_rows, first_step=first_step)
    steps = np.arange(first_step, timeline.num_steps)
    assert timeline.positions(steps, np.arange(batch_size)).tolist() == delivered(timeline)
    assert timeline.positions(steps[::2], np.arange(batch_size)).tolist() == delivered(timeline)[::2]
    first = [timeline.position_of(step) for step in range(first_step, timeline.num_steps + 1)]
    assert first == [min(i * batch_size, num_rows) for i in range(len(first))]
    for step in (first_step - 1, timeline.num_steps):
        with pytest.raises(IndexError):
            timeline.positions(np.array([step]), np.arange(batch_size))


def test_the_last_batch_before_2_to_the_63_is_padded_and_not_wrapped():
    timeline = timeline_of(10, MAX_POSITION)
    last = timeline.num_steps - 1
    expected = positions(timeline, last, range(10))
    assert expected.count(-1) == 3
    assert timeline.positions(np.array([last]), np.arange(10)).tolist() == [expected]


@pytest.mark.parametrize("step", [3, 4, 10**9])
def test_a_step_beyond_the_budget_is_refused(step):
    with pytest.raises(IndexError, match="ends after 3 steps"):
        positions(timeline_of(4, 12), step, range(4))


@pytest.mark.parametrize("slots", [[4], [-1], [0, 9]])
def test_a_slot_outside_the_batch_is_refused(slots):
    with pytest.raises(IndexError, match="slots go from 0 to 3"):
        positions(timeline_of(4, 12), 0, slots)


def test_error_refuses_a_remainder_and_says_the_numbers():
    assert timeline_of(4, 12, Remainder.ERROR).num_steps == 3
    with pytest.raises(ConfigError, match=r"14 rows .* batches of 4: 2 are left over"):
        timeline_of(4, 14, Remainder.ERROR)


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"batch_size": 2.0},
        {"num_rows": 0},
        {"num_rows": 2**63},
        {"remainder": "keep"},
        {"first_step": -1},
        {"first_position": -1},
        {"num_rows": 4, "first_position": 5},
    ],
)
def test_a_field_out_of_range_is_refused_by_name(fields):
    with pytest.raises(ConfigError, match=next(reversed(fields))):
        timeline_of(**fields)


def test_a_remainder_may_be_given_by_its_name():
    assert timeline_of(remainder="drop").remainder is Remainder.DROP


OTHER = Order(OrderConfig(seed=1), {"books": 7})


def changed(*, num_rows=None, remainder=Remainder.DROP):
    """Three steps of 4 rows, two of 6 by another order, then 2 rows at a time by the first order again."""
    timeline = timeline_of(4, num_rows, remainder)
    timeline = timeline.changed_at(3, 12, order=OTHER, batch_size=6)
    return timeline.changed_at(5, 24, order=ORDER, batch_size=2)


def test_each_step_keeps_the_recipe_that_made_it():
    timeline = changed(num_rows=29, remainder=Remainder.PAD)
    assert delivered(timeline) == [
        *([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(3)),
        [12, 13, 14, 15, 16, 17],
        [18, 19, 20, 21, 22, 23],
        [24, 25],
        [26, 27],
        [28, -1],
    ]
    orders = [segment.order for segment, _ in timeline.parts(range(8))]
    assert orders == [ORDER, OTHER, ORDER]
    assert [timeline.position_of(step) for step in range(9)] == [0, 4, 8, 12, 18, 24, 26, 28, 29]


def test_a_change_that_changes_nothing_adds_no_segment():
    timeline = timeline_of(4)
    assert timeline.changed_at(3, 12, order=Order(OrderConfig(), {"books": 7}), batch_size=4) == timeline
    assert len(timeline.changed_at(3, 11, order=ORDER, batch_size=4).segments) == 2


def test_a_change_takes_the_place_of_what_would_have_come_after_it():
    again = changed().changed_at(4, 18, order=ORDER, batch_size=3)
    assert [(each.first_step, each.batch_size) for each in again.segments] == [(0, 4), (3, 6), (4, 3)]


def test_a_gap_between_segments_is_a_skip():
    timeline = timeline_of(4).changed_at(2, 20, order=ORDER, batch_size=4)
    assert positions(timeline, 1, range(4)) == [4, 5, 6, 7]
    assert positions(timeline, 2, range(4)) == [20, 21, 22, 23]


def test_a_skip_that_ends_where_batches_of_the_new_size_would_have_is_a_skip():
    timeline = timeline_of(4).changed_at(3, 18, order=ORDER, batch_size=6)
    assert positions(timeline, 2, range(4)) == [8, 9, 10, 11]
    assert positions(timeline, 3, range(6)) == [18, 19, 20, 21, 22, 23]


def test_a_padded_batch_in_mid_run_stays_padded():
    timeline = timeline_of(4).changed_at(2, 7, order=ORDER, batch_size=4)
    assert positions(timeline, 1, range(4)) == [4, 5, 6, -1]
    assert positions(timeline, 2, range(4)) == [7, 8, 9, 10]


def test_segments_that_do_not_follow_each_other_are_refused():
    later = Segment(order=ORDER, batch_size=4, first_step=2, first_position=8)
    with pytest.raises(ConfigError, match="cannot follow"):
        Timeline(segments=(later, Segment(order=ORDER, batch_size=4, first_step=1, first_position=9)))


def test_steps_of_two_recipes_are_not_asked_for_at_once():
    with pytest.raises(IndexError, match="later segment"):
        changed().positions(np.array([2, 3]), np.arange(4))


@given(step=st.integers(0, 11), most=st.integers(1, 5), slots=st.sets(st.integers(0, 1), min_size=1))
def test_a_block_is_its_steps_one_by_one(step, most, slots):
    timeline, slots = changed(), np.array(sorted(slots))
    steps = timeline.block_of(step, most)
    assert step in steps
    assert len(steps) <= most
    block, whole = timeline.rows_at(np.array(steps), slots), timeline.rows_at(np.array(steps))
    chosen = np.isin(whole.slot, slots)
    for column in ("step", "slot", "position"):
        assert getattr(block, column).tolist() == getattr(whole, column)[chosen].tolist()
    assert list(block.keys.rows()) == list(whole.keys[chosen].rows())
    assert block.hashes().tolist() == whole.hashes()[chosen].tolist()
    assert len(whole.step_digests()) == len(steps)


@given(wanted=st.sets(st.integers(0, 6)), first=st.integers(0, 5), length=st.integers(0, 30))
def test_a_search_finds_what_reading_every_row_finds(wanted, first, length):
    timeline, steps = changed(), range(first, first + length)
    ranges = [range(index, index + 1) for index in sorted(wanted)]
    found = [
        row
        for _, part in timeline.parts(steps)
        for rows in timeline.find(ranges, part)
        for row in zip(rows.step.tolist(), rows.slot.tolist(), rows.keys.index.tolist(), strict=True)
    ]
    expected = [
        row
        for rows in timeline.rows(steps)
        for row in zip(rows.step.tolist(), rows.slot.tolist(), rows.keys.index.tolist(), strict=True)
        if row[2] in wanted
    ]
    assert found == expected


def identity(order, batch_size):
    return {"order": order.identity(), "batch_size": batch_size}


def whole(history, now):
    def read(steps):
        raise AssertionError(f"{steps} read, though whole batches lead to {now}")

    return Timeline.recorded(history, now, read, read)


def padded(history, now, places):
    def position_at(step):
        reads.append(step)
        return places[step]

    reads = []
    recorded = Timeline.recorded(
        history, now, lambda steps: [step for step in sorted(places) if step in steps], position_at
    )
    return recorded, reads


def test_a_run_is_told_from_what_it_recorded():
    history = [(0, 0, identity(ORDER, 4)), (3, 12, identity(OTHER, 6)), (5, 24, identity(ORDER, 2))]
    assert whole(history, (9, 32)) == changed()


def test_a_run_that_was_changed_twice_before_a_step_was_made_has_the_last_recipe():
    history = [(0, 0, identity(ORDER, 4)), (0, 0, identity(OTHER, 6))]
    assert [each.order for each in whole(history, (2, 12)).segments] == [OTHER]


def test_each_recorded_recipe_has_a_segment_though_its_order_just_goes_on():
    history = [(0, 0, identity(ORDER, 4)), (3, 12, identity(ORDER, 4))]
    recorded = whole(history, (5, 20))
    assert [(each.first_step, each.first_position) for each in recorded.segments] == [(0, 0), (3, 12)]
    assert delivered(timeline_of(num_rows=20)) == [positions(recorded, step, range(4)) for step in range(5)]


def test_a_run_that_was_prolonged_after_a_padded_batch_goes_on_behind_its_rows():
    recorded, _ = padded([(0, 0, identity(ORDER, 4))], (6, 23), {2: 7, 4: 15})
    assert [(each.first_step, each.first_position) for each in recorded.segments] == [(0, 0), (2, 7)]
    assert positions(recorded, 1, range(4)) == [4, 5, 6, -1]
    assert recorded.position_of(6) == 23


@given(pads=st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_run_that_was_prolonged_again_and_again_is_told_as_it_was(pads):
    """Batches of 4, of which each may have ended the run with as many pad slots."""
    begins = np.cumsum([0] + [4 - each for each in pads]).tolist()
    recorded, _ = padded([(0, 0, identity(ORDER, 4))], (len(pads), begins[-1]), dict(enumerate(begins[:-1])))
    for step, count in enumerate(pads):
        rows = list(range(begins[step], begins[step + 1]))
        assert positions(recorded, step, range(4)) == rows + [-1] * count


def test_of_thousands_of_records_few_are_read():
    places = {step: 4 * step - 1 - (step > 7000) for step in range(500, 10_000)}
    recorded, reads = padded([(0, 0, identity(ORDER, 4))], (10_000, 39_998), places)
    assert [each.first_step for each in recorded.segments] == [0, 500, 7001]
    assert len(reads) < 80


@pytest.mark.parametrize("now", [(2, 9), (2, 3), (0, 1)])
def test_records_that_contradict_each_other_are_refused(now):
    with pytest.raises(MismatchError, match=r"not [02] batches of 4"):
        padded([(0, 0, identity(ORDER, 4))], now, {})
