"""The module contract: statistics, counters, cache, copies, streams, iteration, life under transforms."""

import copy
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError

import datarax.core
from datarax.core.config import DataraxModuleConfig
from datarax.core.module import CheckpointableIteratorModule, DataraxModule, HostInt, IterationCount

PRECOMPUTED = {"mean": 10.0}


def module_with(**fields):
    return DataraxModule(DataraxModuleConfig(**fields))


class Counting(CheckpointableIteratorModule[int]):
    """Gives 0 .. n-1, as a user would write it."""

    def __init__(self, config=None, *, rngs=None, name=None, n=4):
        super().__init__(config or DataraxModuleConfig(), rngs=rngs, name=name)
        self.n = n
        self.position.set_value(0)
        self.seen = [[]]

    def __next__(self):
        position = self.position.get_value()
        if position >= self.n:
            raise StopIteration
        self.position.set_value(position + 1)
        self.current.set_value(position)
        self.seen[0].append(position)
        self._increment_applied_count()
        return position

    def __len__(self):
        return self.n

    def reset(self):
        super().reset()
        self.position.set_value(0)


# Construction


def test_a_new_module_has_the_attributes_of_the_contract():
    config, rngs = DataraxModuleConfig(cacheable=True), nnx.Rngs(0)
    module = DataraxModule(config, rngs=rngs, name="n")
    assert module.config is config
    assert module.rngs is rngs
    assert module.name == "n"
    assert isinstance(module, nnx.Module)
    assert module._cache == {}
    assert type(module._cache) is dict
    assert module_with()._cache is None
    for count in (module._applied_count, module._skipped_count):
        assert isinstance(count, IterationCount)
        assert count.get_value().dtype == jnp.int32
        assert count.get_value().shape == ()
    assert module._computed_stats.get_value() is None
    assert list(module.get_state()) == [
        "_applied_count", "_computed_stats", "_is_stats_reset", "_skipped_count", "rngs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": None}, "config must be a DataraxModuleConfig, got NoneType"),
        ({"config": {"cacheable": True}}, "config must be a DataraxModuleConfig, got dict"),
        ({"config": DataraxModuleConfig}, "config must be a DataraxModuleConfig, got type"),
        ({"config": DataraxModuleConfig(), "rngs": 3}, "rngs must be a Rngs, got int"),
        ({"config": DataraxModuleConfig(), "name": 3}, "name must be a str, got int"),
        ({}, "config"),
    ],
)
@pytest.mark.parametrize("make", [DataraxModule, CheckpointableIteratorModule])
def test_a_wrong_argument_is_a_type_error_that_names_what_is_expected(make, arguments, message):
    with pytest.raises(TypeError, match=message):
        make(**arguments)


def test_rngs_and_name_are_keywords_only():
    with pytest.raises(TypeError):
        DataraxModule(DataraxModuleConfig(), nnx.Rngs(0))


def test_repr_says_class_name_and_cacheable():
    assert repr(module_with()) == "DataraxModule()"
    assert repr(DataraxModule(DataraxModuleConfig(), name="")) == "DataraxModule()"
    assert repr(DataraxModule(DataraxModuleConfig(), name="n")) == "DataraxModule(name='n')"
    assert (
        repr(Counting(DataraxModuleConfig(cacheable=True), name="n")) == "Counting(name='n', cacheable=True)"
    )


def test_streams_can_be_given_later():
    module = module_with()
    module.rngs = nnx.Rngs(0)
    assert "rngs" in module.get_state()


# Operation statistics


def test_operation_stats_are_python_ints_and_reset_keeps_the_variables():
    module = module_with()
    module._increment_applied_count()
    module._increment_applied_count()
    module._increment_skipped_count()
    stats = module.get_operation_stats()
    assert stats == {"applied_count": 2, "skipped_count": 1}
    assert {type(value) for value in stats.values()} == {int}
    variable = module._applied_count
    assert module.reset_operation_stats() is None
    assert module._applied_count is variable
    assert variable.get_value().dtype == jnp.int32
    assert module.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}


def test_reset_keeps_a_64_bit_count_of_the_host_one():
    module = module_with()
    module._applied_count.set_raw_value(np.asarray(2**40, np.int64))
    assert module.get_operation_stats()["applied_count"] == 2**40
    module.reset_operation_stats()
    assert module._applied_count.get_value().dtype == np.int64


def test_a_count_refuses_to_pass_the_largest_int32():
    module = module_with()
    module._applied_count.set_value(jnp.asarray(2**31 - 1, jnp.int32))
    with pytest.raises(OverflowError, match="reset_operation_stats"):
        module._increment_applied_count()
    assert module.get_operation_stats()["applied_count"] == 2**31 - 1


# Statistics


def mean_of(data):
    return {"mean": float(np.mean(data))}


class MeanModule(nnx.Module):
    def __call__(self, data):
        return mean_of(data)


@pytest.mark.parametrize("stats_fn", [mean_of, MeanModule()])
def test_computed_statistics_are_returned_and_kept(stats_fn):
    module = module_with(batch_stats_fn=stats_fn)
    assert module.get_statistics() is None
    assert module.compute_statistics([1, 3]) == {"mean": 2.0}
    assert module.get_statistics() == {"mean": 2.0}


def test_without_a_function_nothing_is_computed_and_nothing_changes():
    module = module_with(precomputed_stats=PRECOMPUTED)
    assert module.compute_statistics([1]) is None
    assert module.get_statistics() is PRECOMPUTED


def test_a_function_that_fails_leaves_the_statistics_as_they_were():
    module = module_with(batch_stats_fn=lambda data: {"first": data[0]})
    module.compute_statistics([5])
    with pytest.raises(IndexError):
        module.compute_statistics([])
    assert module.get_statistics() == {"first": 5}


def test_what_was_set_last_wins_over_precomputed_statistics():
    module = module_with(precomputed_stats=PRECOMPUTED)
    assert module.set_statistics({"mean": 1.0}) is None
    assert module.get_statistics() == {"mean": 1.0}
    module.set_statistics(None)
    assert module.get_statistics() is PRECOMPUTED


def test_reset_hides_precomputed_statistics_until_some_are_set():
    module = module_with(precomputed_stats=PRECOMPUTED)
    module.reset_statistics()
    assert module.get_statistics() is None
    module.set_statistics({"mean": 1.0})
    assert module.get_statistics() == {"mean": 1.0}
    assert module.get_state()["_is_stats_reset"] is False
    module.reset_statistics()
    module.set_statistics(None)
    assert module.get_statistics() is PRECOMPUTED


def test_reset_hides_computed_statistics_until_some_are_computed():
    module = module_with(batch_stats_fn=mean_of)
    module.compute_statistics([1])
    module.reset_statistics()
    assert module.get_statistics() is None
    module.compute_statistics([3])
    assert module.get_statistics() == {"mean": 3.0}


def test_the_reset_travels_in_the_state_and_in_a_clone_but_not_in_a_copy():
    module = module_with(precomputed_stats=PRECOMPUTED)
    module.reset_statistics()
    state = module.get_state()
    assert state["_is_stats_reset"] is True
    fresh = module_with(precomputed_stats=PRECOMPUTED)
    fresh.set_state(state)
    assert fresh.get_statistics() is None
    assert module.clone().get_statistics() is None
    assert module.copy().get_statistics() is PRECOMPUTED


# Cache


def test_the_cache_belongs_to_one_object_and_is_no_state():
    module = module_with(cacheable=True)
    key = module._compute_cache_key("x")
    module._cache[key] = jnp.arange(3)
    assert module._cache[key].tolist() == [0, 1, 2]
    for other in (module.clone(), module.copy(), copy.deepcopy(module), nnx.merge(*nnx.split(module))):
        assert other._cache == {}
        other._cache[1] = 2
    assert list(module._cache) == [key]
    assert not any("cache" in name for name in module.get_state())
    module.reset_cache()
    assert module._cache == {}
    module_with().reset_cache()


def test_a_filled_cache_does_not_matter_to_jit():
    traces = []

    @nnx.jit
    def step(module):
        traces.append(1)
        module._increment_applied_count()

    for content in (jnp.arange(3), np.arange(4)):
        module = module_with(cacheable=True)
        module._cache[1] = content
        step(module)
        assert module._cache[1] is content
    assert len(traces) == 1


# Copies


def test_copy_carries_no_state_and_shares_config_and_streams():
    module = Counting(DataraxModuleConfig(cacheable=True), rngs=nnx.Rngs(0), name="n")
    next(module)
    module.set_statistics({"mean": 1})
    made = module.copy()
    assert type(made) is Counting
    assert made.config is module.config
    assert made.rngs is module.rngs
    assert made.name == "n"
    assert made.get_operation_stats()["applied_count"] == 0
    assert made.get_statistics() is None
    assert made.position.get_value() == 0


def test_copy_takes_other_arguments_by_keyword():
    module = DataraxModule(DataraxModuleConfig(), rngs=nnx.Rngs(0), name="n")
    config, rngs = DataraxModuleConfig(cacheable=True), nnx.Rngs(1)
    made = module.copy(config=config, rngs=rngs, name="")
    assert (made.config is config, made.rngs is rngs, made.name) == (True, True, "")
    with pytest.raises(TypeError):
        module.copy(config)


def test_a_class_with_another_constructor_must_bring_its_own_copy():
    class Other(DataraxModule):
        def __init__(self, size):
            super().__init__(DataraxModuleConfig())

    with pytest.raises(TypeError):
        Other(3).copy()


def test_a_clone_has_the_same_state_and_shares_nothing_that_can_change():
    module = Counting(DataraxModuleConfig(precomputed_stats=PRECOMPUTED), rngs=nnx.Rngs(0))
    module.table = nnx.Variable({"a": [1]})
    module.buffer = nnx.Variable(np.zeros(2))
    module.names = nnx.Variable({"x"})
    module.child = Counting()
    next(module), next(module.child)
    module.set_statistics({"list": [1]})
    clone = module.clone()
    assert type(clone) is Counting
    assert clone.config is module.config
    before = repr(module.get_state())
    assert repr(clone.get_state()) == before

    next(clone), next(clone.child), clone.rngs()
    clone.table.get_raw_value()["a"].append(2)
    clone.buffer.get_raw_value()[0] = 5
    clone.names.get_raw_value().add("y")
    clone._computed_stats.get_raw_value()["list"].append(2)
    clone.epoch.set_value(3)
    clone.reset_operation_stats()
    assert repr(module.get_state()) == before
    assert (module.seen, module.child.seen, clone.seen) == ([[0]], [[0]], [[0, 1]])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), Counting.clone]
)
def test_a_duplicate_goes_on_from_the_same_place_by_itself(duplicate):
    module = Counting(DataraxModuleConfig(cacheable=True), rngs=nnx.Rngs(0))
    next(module)
    module.epoch.set_value(2**63 + 5)
    made = duplicate(module)
    assert list(made) == [1, 2, 3]
    assert made.epoch.get_value() == 2**63 + 5
    assert module.position.get_value() == 1


# Streams


def test_missing_streams_are_named_with_the_available_ones():
    class Needing(DataraxModule):
        def requires_rng_streams(self):
            return ["a", "b"]

    module = Needing(DataraxModuleConfig())
    assert module_with().requires_rng_streams() is None
    assert module_with().ensure_rng_streams([]) is None
    assert module.ensure_rng_streams(["a", "b", "c"]) is None
    with pytest.raises(ValueError, match="RNG stream 'b' is required but not available") as caught:
        module.ensure_rng_streams(["a"])
    assert str(caught.value).endswith("Available streams: ['a']")
    with pytest.raises(TypeError, match="list of names"):
        module.ensure_rng_streams("ab")


# Iteration


def test_the_base_class_iterates_over_itself_and_asks_for_the_rest():
    module = CheckpointableIteratorModule(DataraxModuleConfig())
    assert iter(module) is module
    with pytest.raises(NotImplementedError, match=r"^Subclasses must implement __next__$"):
        next(module)
    with pytest.raises(NotImplementedError, match=r"^Subclasses must implement __len__$"):
        len(module)
    assert list(module.get_state()) == [
        "_applied_count", "_computed_stats", "_is_stats_reset", "_skipped_count",
        "current", "epoch", "idx", "position",
    ]  # fmt: skip
    for name in ("epoch", "position", "idx", "current"):
        assert isinstance(getattr(module, name), nnx.Variable)
        assert getattr(module, name).get_value() is None
    assert CheckpointableIteratorModule.state_scope == "process"


def test_reset_touches_only_the_four():
    module = CheckpointableIteratorModule(DataraxModuleConfig(), rngs=nnx.Rngs(0))
    for variable in (module.epoch, module.position, module.idx, module.current):
        variable.set_value(5)
    module._increment_applied_count()
    module.set_statistics({"a": 1})
    module.rngs()
    before = module.get_state()
    assert module.reset() is None
    after = module.get_state()
    assert [name for name in after if repr(after[name]) != repr(before[name])] == [
        "current", "epoch", "idx", "position",
    ]  # fmt: skip
    assert {after[name] for name in ("current", "epoch", "idx", "position")} == {None}


@pytest.mark.parametrize("stop", range(5))
def test_iteration_goes_on_where_the_state_was_taken(stop):
    module = Counting()
    taken = [next(module) for _ in range(stop)]
    resumed = Counting()
    resumed.set_state(module.get_state())
    assert taken + list(resumed) == [0, 1, 2, 3]
    resumed.reset()
    assert resumed.current.get_value() is None
    assert list(resumed) == [0, 1, 2, 3]


def test_a_plain_variable_put_in_the_place_of_a_position_becomes_exact():
    module = CheckpointableIteratorModule(DataraxModuleConfig())
    module.position = nnx.Variable(2**31 - 5)
    assert type(module.position) is HostInt
    nnx.jit(lambda module: module._increment_applied_count())(module)
    module.position.set_value(module.position.get_value() + 10)
    assert module.get_state()["position"] == 2**31 + 5


# Hooks and declared exceptions


class Checked(CheckpointableIteratorModule[int]):
    unsaved_state = frozenset({"current"})
    free_state = frozenset({"scratch"})

    def __init__(self, log):
        super().__init__(DataraxModuleConfig())
        self.scratch = nnx.Variable(0)
        self.log = log

    def _validate_state(self, state):
        self.log.append(("check", self.idx.get_value(), state["idx"]))
        if state["idx"] == 13:
            raise ValueError("idx: 13 is not allowed")

    def _state_restored(self):
        self.log.append(("restored", self.idx.get_value()))


class Parent(DataraxModule):
    def __init__(self, child):
        super().__init__(DataraxModuleConfig())
        self.children = nnx.List([child])
        self.other = nnx.Variable(1)


def at_depth(depth, child):
    """The child itself or a parent of it, and where its state stands in the state of that module."""
    return (Parent(child), lambda state: state["children"][0]) if depth else (child, lambda state: state)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_modules_own_check_runs_before_anything_changes_also_inside_another_module(depth):
    log = []
    child = Checked(log)
    module, place = at_depth(depth, child)
    state = module.get_state()
    place(state)["idx"] = 5
    module.set_state(state)
    assert log == [("check", None, 5), ("restored", 5)]
    place(state)["idx"] = 13
    if depth:
        state["other"] = 2
    with pytest.raises(ValueError, match=r"^idx: 13 is not allowed$"):
        module.set_state(state)
    assert child.idx.get_value() == 5
    assert depth == 0 or module.other.get_value() == 1
    assert log[-1] == ("check", 5, 13)


@pytest.mark.parametrize("depth", [0, 1])
def test_an_unsaved_variable_is_none_in_each_state_also_inside_another_module(depth):
    child = Checked([])
    module, place = at_depth(depth, child)
    child.current.set_value(np.arange(5))
    state = module.get_state()
    assert place(state)["current"] is None
    module.set_state(state)
    assert child.current.get_value() is None
    place(state)["current"] = 3
    with pytest.raises(ValueError, match="structurally incompatible") as caught:
        module.set_state(state)
    assert "current: expected None, because it is never saved, got int 3" in str(caught.value.__cause__)


def test_a_free_variable_takes_anything():
    module = Checked([])
    module.set_state({**module.get_state(), "scratch": {"now": "a dict"}})
    assert module.scratch.get_value() == {"now": "a dict"}


# Under NNX transforms


def traced(function):
    traces = []

    @nnx.jit
    def jitted(module):
        traces.append(1)
        return function(module)

    return jitted, traces


def test_no_value_of_the_state_makes_jit_trace_again():
    step, traces = traced(lambda module: (module._increment_applied_count(), module.rngs())[1])
    module = Counting(DataraxModuleConfig(cacheable=True), rngs=nnx.Rngs(0))
    module.current.set_value(0)
    step(module)
    state = module.get_state()
    step(module)
    module.position.set_value(2**40 + 3)
    step(module)
    module.reset_operation_stats()
    step(module)
    module.set_state(state)
    step(module)
    clone = module.clone()
    step(clone)
    assert len(traces) == 1
    assert clone.get_operation_stats()["applied_count"] == 3
    assert module.get_operation_stats()["applied_count"] == 2
    assert nnx.graphdef(module) == nnx.graphdef(clone)


def test_counts_can_be_split_off_by_type():
    module = Counting()
    graphdef, counts, rest = nnx.split(module, IterationCount, ...)
    assert sorted(counts) == ["_applied_count", "_skipped_count"]
    assert nnx.merge(graphdef, counts, rest).get_state().keys() == module.get_state().keys()


def test_two_modules_with_array_statistics_can_go_through_one_jitted_function():
    step, traces = traced(lambda module: jnp.asarray(module.get_statistics()["mean"]).sum())
    modules = [
        module_with(precomputed_stats={"mean": make([1.0, 2.0 * i])})
        for make in (np.asarray, jnp.asarray)
        for i in (1, 2, 2)
    ]
    assert [float(step(module)) for module in modules] == [3, 5, 5, 3, 5, 5]
    assert len(traces) == 4  # equal statistics share a trace
    assert [float(step(module)) for module in modules] == [3, 5, 5, 3, 5, 5]
    assert len(traces) == 4
    clone = modules[0].clone()
    assert nnx.graphdef(modules[0]) == nnx.graphdef(clone)
    assert hash(nnx.graphdef(modules[0])) == hash(nnx.graphdef(clone))


def test_statistics_and_their_reset_work_inside_jit():
    reset, _ = traced(DataraxModule.reset_statistics)
    read, _ = traced(lambda module: module.get_statistics())
    module = module_with(precomputed_stats={"mean": np.ones(2)})
    assert read(module)["mean"].tolist() == [1, 1]
    reset(module)
    assert read(module) is None
    assert module.get_statistics() is None
    assert module.get_state()["_is_stats_reset"] is True
    module.set_statistics({"mean": jnp.zeros(2)})
    assert read(module)["mean"].tolist() == [0, 0]


def test_counters_can_be_reset_but_not_read_as_ints_inside_jit():
    reset, _ = traced(DataraxModule.reset_operation_stats)
    read, _ = traced(DataraxModule.get_operation_stats)
    module = module_with()
    module._increment_applied_count()
    with pytest.raises(jax.errors.ConcretizationTypeError):
        read(module)
    reset(module)
    assert module.get_operation_stats()["applied_count"] == 0


def test_positions_can_neither_change_nor_wrap_inside_jit():
    module = Counting()
    module.position.set_value(2**31 - 5)
    for change in (lambda m: m.position.set_value(m.position.get_value() + 10), lambda m: m.reset()):
        with pytest.raises(TraceContextError):
            nnx.jit(change)(module)
    assert module.position.get_value() == 2**31 - 5
    nnx.jit(lambda m: m._increment_applied_count())(module)
    module.position.set_value(module.position.get_value() + 10)
    assert module.position.get_value() == 2**31 + 5


def test_gradients_of_parameters_pass_by_the_state():
    class Model(Counting):
        def __init__(self):
            super().__init__(rngs=nnx.Rngs(0))
            self.weight = nnx.Param(jnp.asarray(3.0))

    model = Model()
    model.position.set_value(2**40 + 3)

    def loss(model):
        model._increment_applied_count()
        return model.weight[...] ** 2

    grads = nnx.grad(loss)(model)
    assert float(grads["weight"].get_value()) == 6
    assert model.position.get_value() == 2**40 + 3
    assert model.get_operation_stats()["applied_count"] == 1


def test_set_state_from_inside_a_transform_of_a_module_outside_changes_nothing():
    module = Counting()
    state = module.get_state() | {"position": 3}
    with pytest.raises(TraceContextError):
        jax.jit(lambda x: (module.set_state(state), x)[1])(1)
    assert module.position.get_value() == 0


# The package


def test_the_package_lists_what_it_exports():
    assert sorted(datarax.core.__all__) == datarax.core.__all__
    for name in datarax.core.__all__:
        assert getattr(datarax.core, name) is not None


def test_core_needs_neither_orbax_nor_grain():
    code = (
        "import sys; sys.modules['orbax'] = sys.modules['grain'] = None; "
        "import datarax.core.module, datarax.core.config, datarax.core.state"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
