"""Counts and host integers are exact, on the host, inside transforms and after them."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.variables import HostFlag, HostInt, IterationCount, looked_up
from tests.support.tiers import examples

INT32_MAX = 2**31 - 1
BIG = [0, 1, 2**31 - 1, 2**31, 2**32 + 5, 2**40 + 3, 2**53 + 1, 2**63 + 5, 2**64 - 1, 2**64, 2**100 + 7]


class Holder(nnx.Module):
    def __init__(self, value=None):
        self.place = HostInt(value)
        self.count = IterationCount(jnp.zeros((), jnp.int32))
        self.flag = HostFlag(False)


def bump(holder, x=None):
    holder.count[...] += 1
    return x


SHARED = nnx.StateAxes({IterationCount: None, ...: None})
CARRIED = nnx.StateAxes({IterationCount: nnx.Carry, ...: None})
ROWS = jnp.zeros(4)


def scanned(holder):
    nnx.scan(bump, in_axes=(CARRIED, 0), out_axes=0)(holder, ROWS)


def scanned_as_carry(holder):
    def body(holder, x):
        bump(holder)
        return holder, x

    nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(holder, ROWS)


TRANSFORMS = {
    "jit": nnx.jit(bump),
    "jit in jit": nnx.jit(lambda holder: nnx.jit(bump)(holder)),
    "vmap": lambda holder: nnx.vmap(bump, in_axes=(SHARED, 0))(holder, ROWS),
    "vmap with None": lambda holder: nnx.vmap(bump, in_axes=(None, 0))(holder, ROWS),
    "vmap in jit": nnx.jit(lambda holder: nnx.vmap(bump, in_axes=(SHARED, 0))(holder, ROWS)),
    "scan": scanned,
    "scan in jit": nnx.jit(scanned),
    "carry": scanned_as_carry,
    "cond": lambda holder: nnx.cond(True, bump, bump, holder),
    "remat": lambda holder: nnx.remat(bump)(holder),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("value", [None, 7, 2**31 + 5, 2**40 + 3, 2**63 + 5, 2**100 + 7])
def test_a_host_int_passes_through_a_transform_as_it_is(name, value):
    holder = Holder(value)
    TRANSFORMS[name](holder)
    found = holder.place.get_value()
    assert found == value
    assert type(found) is type(value)
    holder.place.set_value(2**41)
    assert holder.place.get_value() == 2**41


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_count_changes_inside_a_transform(name):
    holder = Holder(3)
    TRANSFORMS[name](holder)
    assert holder.count.get_value() == (4 if "scan" in name or name == "carry" else 1)
    assert holder.count.get_value().dtype == jnp.int32


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_count_that_nothing_has_looked_at_is_the_same_count(name):
    holder, looked_at = Holder(3), Holder(3)
    holder.count = IterationCount(np.zeros((), np.int32))
    for each in (holder, looked_at):
        TRANSFORMS[name](each)
    assert holder.count.get_value() == looked_at.count.get_value() > 0
    assert str(jax.typeof(holder.count.get_value())) == "int32[]"


def test_a_count_that_nothing_has_looked_at_reads_as_a_jax_scalar_everywhere():
    count = IterationCount(np.zeros((), np.int32))
    inside = []
    jax.jit(lambda: inside.append(int(count.get_value())))()
    assert inside == [0]
    for value in (count.get_value(), count[...], jnp.asarray(count), pickle.loads(pickle.dumps(count))[...]):
        assert isinstance(value, jax.Array)
        assert (value.dtype, value.shape, value.weak_type) == (jnp.int32, (), False)
    with pytest.raises(TraceContextError):
        jax.jit(lambda: count.set_value(jnp.ones((), jnp.int32)))()
    count[...] += 1
    assert isinstance(count.get_raw_value(), jax.Array)
    assert count.get_value() == 1


def test_modules_can_be_made_inside_transforms():
    counted = nnx.vmap(lambda _: IterationCount(np.zeros((), np.int32)))(ROWS)
    assert counted.get_value().shape == (4,)
    assert nnx.eval_shape(lambda: IterationCount(np.zeros((), np.int32))).get_value().dtype == jnp.int32


def test_counts_can_be_kept_for_each_lane():
    holder = Holder(3)
    holder.count = IterationCount(jnp.arange(4, dtype=jnp.int32))
    nnx.vmap(bump, in_axes=(nnx.StateAxes({IterationCount: 0, ...: None}), 0))(holder, ROWS)
    assert holder.count.get_value().tolist() == [1, 2, 3, 4]
    assert holder.place.get_value() == 3


@given(st.integers(0, 2**130))
@examples(200)
def test_a_host_int_is_exact_at_any_size_through_split_merge_copy_and_flattening(value):
    holder = Holder(value)
    graphdef, state = nnx.split(holder)
    again = nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))
    copies = [again, nnx.clone(holder), copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))]
    assert [c.place.get_value() for c in copies] == [value] * 4
    assert nnx.to_pure_dict(nnx.state(holder))["place"] == value


def test_functional_jax_transforms_keep_a_host_int_in_the_state():
    graphdef, state = nnx.split(Holder(2**63 + 5))
    state = jax.jit(lambda state: state)(state)
    assert nnx.merge(graphdef, state).place.get_value() == 2**63 + 5


def test_jit_traces_once_for_all_values_below_two_to_the_64():
    traces = []

    @nnx.jit
    def step(holder):
        traces.append(1)
        bump(holder)

    holder = Holder(0)
    for value in (v for v in BIG if v < 2**64):
        holder.place.set_value(value)
        step(holder)
        assert holder.place.get_value() == value
    assert len(traces) == 1


def test_a_host_int_can_be_neither_read_nor_set_inside_a_transform():
    holder = Holder(5)

    @nnx.jit
    def read(holder):
        holder.place.get_value()

    @nnx.jit
    def write(holder):
        holder.place.set_value(6)

    @nnx.jit
    def write_element(holder):
        holder.place[...] = 6

    with pytest.raises(TraceContextError, match="pass what is needed as an argument"):
        read(holder)
    for function in (write, write_element):
        with pytest.raises(TraceContextError, match="inside a jax transform"):
            function(holder)
    assert holder.place.get_value() == 5
    assert "HostInt" in repr(holder)


def test_a_host_int_can_be_printed_inside_a_transform():
    printed = []
    nnx.jit(lambda holder: printed.append(repr(holder)))(Holder(5))
    assert "HostInt" in printed[0]


@pytest.mark.parametrize("value", ["seven", 7.5, True, np.True_, jnp.asarray(3), np.array(3), [1]])
def test_a_host_int_refuses_what_is_not_an_int(value):
    place = HostInt(5)
    for put in (place.set_value, place.set_raw_value, HostInt):
        with pytest.raises(TypeError, match="expected None or an int"):
            put(value)
    assert place.get_value() == 5


def test_a_host_int_refuses_a_negative_number():
    for value in (-1, np.int64(-1)):
        with pytest.raises(ValueError, match=">= 0, got -1"):
            HostInt(5).set_value(value)


def test_a_numpy_integer_becomes_a_python_int():
    place = HostInt(None)
    place.set_value(np.uint64(2**63 + 5))
    assert place.get_value() == 2**63 + 5
    assert type(place.get_value()) is int


def test_a_host_int_has_the_usual_ways_of_a_variable():
    place = HostInt(5)
    place[...] = 6
    assert place[...] == 6
    assert place + 1 == 7
    assert place == 6
    with pytest.raises(TypeError, match="has no element 0"):
        place[0]


def test_states_of_a_host_int_can_be_put_back_with_nnx_update():
    source, target = Holder(2**40 + 3), Holder(None)
    nnx.update(target, nnx.state(source))
    assert target.place.get_value() == 2**40 + 3
    nnx.update(target, {"place": 2**41})
    assert target.place.get_value() == 2**41


def test_words_that_something_has_changed_are_noticed():
    holder = Holder(5)
    nnx.update(holder, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(holder, HostInt)))
    with pytest.raises(ValueError, match="instead of uint32 words"):
        holder.place.get_value()


# Counts


def test_a_count_refuses_to_pass_the_largest_int32_on_the_host():
    count = IterationCount(jnp.asarray(INT32_MAX - 1, jnp.int32))
    count[...] += 1
    with pytest.raises(OverflowError, match="wraps past its largest value"):
        count[...] += 1
    assert count.get_value() == INT32_MAX


def test_a_count_stays_at_the_largest_int32_inside_a_transform():
    holder = Holder()
    holder.count.set_value(jnp.asarray(INT32_MAX - 1, jnp.int32))
    step = nnx.jit(bump)
    for _ in range(3):
        step(holder)
    assert holder.count.get_value() == INT32_MAX


@pytest.mark.parametrize(
    "start", [0, jnp.zeros((), jnp.int32), np.zeros((), np.int64), np.zeros(3, np.int64)]
)
def test_a_negative_count_is_refused_and_nothing_changes(start):
    count = IterationCount(start)
    with pytest.raises(OverflowError, match="at least 0"):
        count.set_value(np.full(np.shape(start), -1, np.int64) if isinstance(start, np.ndarray) else -1)
    assert np.array_equal(count.get_value(), start)


def test_setting_an_element_past_the_limit_leaves_a_numpy_count_as_it_was():
    count = IterationCount(np.zeros(3, np.int32))
    with pytest.raises(OverflowError):
        count[1] = -4
    assert count.get_value().tolist() == [0, 0, 0]


def test_a_value_is_required():
    with pytest.raises(TypeError):
        IterationCount()


def test_a_count_has_the_usual_ways_of_a_variable():
    count = IterationCount(jnp.array(3))
    count[...] = 5
    count[...] += 1
    assert count[...] == 6
    assert count + 1 == 7
    count.set_value(jnp.array(2))
    assert count.get_value() == 2
    python = IterationCount(3)
    python.set_value(4)
    assert type(python.get_value()) is int


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_64_bit_count_of_the_host_passes_through_a_transform_as_it_is(name):
    holder = Holder()
    holder.host_count = IterationCount(np.asarray(2**40 + 3, np.int64))
    TRANSFORMS[name](holder)
    found = holder.host_count.get_value()
    assert (found, found.dtype, type(found), found.shape) == (2**40 + 3, np.int64, np.ndarray, ())
    holder.host_count[...] += 1
    assert holder.host_count.get_value() == 2**40 + 4
    holder.host_count.set_raw_value(np.asarray(2**41, np.int64))
    assert int(holder.host_count.get_value()) == 2**41


def test_a_64_bit_count_of_the_host_cannot_change_inside_a_transform():
    holder = Holder()
    holder.count = IterationCount(np.asarray(5, np.int64))
    with pytest.raises(TraceContextError):
        nnx.jit(bump)(holder)
    with pytest.raises(TraceContextError):
        nnx.jit(lambda holder: holder.count.set_value(3))(holder)
    assert holder.count.get_value() == 5


# Flags


def test_a_flag_is_a_python_bool_inside_transforms_and_may_change_there():
    traces = []

    @nnx.jit
    def turn(holder):
        traces.append(1)
        if holder.flag:
            bump(holder)
        holder.flag.set_value(not holder.flag.get_value())

    holder = Holder()
    for _ in range(4):
        turn(holder)
    assert holder.count.get_value() == 2
    assert holder.flag.get_value() is False
    assert len(traces) == 2


@pytest.mark.parametrize("value", [0, 1, None, "no", np.True_, jnp.asarray(True)])
def test_a_flag_refuses_what_is_not_a_bool(value):
    with pytest.raises(TypeError, match="expected a bool"):
        HostFlag(True).set_value(value)


# Looked up


class Looker(nnx.Module):
    def __init__(self, read):
        self.place, self.count = HostInt(0), IterationCount(np.asarray(0, np.int64))
        for variable in (self.place, self.count):
            variable.set_raw_value(looked_up(read))


@pytest.mark.parametrize("value", BIG)
def test_content_that_is_looked_up_is_what_it_says_at_each_look(value):
    numbers = iter(range(value % 2**40, 2**62))
    looker = Looker(lambda: next(numbers))
    first = looker.place.get_value()
    assert (looker.count.get_value(), looker.place.get_value()) == (first + 1, first + 2)


@pytest.mark.parametrize("value", BIG)
def test_content_that_is_looked_up_goes_through_transforms_and_copies_as_a_number_of_that_moment(value):
    holder = [value]
    looker = Looker(lambda: holder[0])
    traces = []
    step = nnx.jit(lambda looker: traces.append(1))
    copies = [nnx.clone(looker), copy.deepcopy(looker), pickle.loads(pickle.dumps(looker.place))]
    step(copies[1])
    holder[0] = 7
    step(looker)
    assert len(traces) == (1 if value < 2**64 else 2)
    assert [copies[0].place.get_value(), copies[1].place.get_value(), copies[2].get_value()] == [value] * 3
    assert looker.place.get_value() == 7
    looker.place.set_value(8)
    assert (looker.place.get_value(), holder) == (8, [7])
