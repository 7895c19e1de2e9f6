"""Every state goes round exactly, and every state that does not fit is refused before anything changes."""

import collections
import copy
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.config import DataraxModuleConfig
from datarax.core.errors import MismatchError
from datarax.core.module import CheckpointableIteratorModule, DataraxModule
from datarax.core.tree import detached
from tests.support.tiers import examples

Point = collections.namedtuple("Point", "x y")


@struct.dataclass
class Moments:
    count: jax.Array
    mean: jax.Array


class Part(DataraxModule):
    def __init__(self, start=0):
        super().__init__(DataraxModuleConfig())
        self.number = nnx.Variable(start)


class Whole(CheckpointableIteratorModule[int]):
    """A module with one of everything that a user may keep."""

    def __init__(self, seed=0):
        super().__init__(DataraxModuleConfig(), rngs=nnx.Rngs(seed, augment=seed + 1))
        self.number = nnx.Variable(seed)
        self.rate = nnx.Variable(0.5)
        self.on = nnx.Variable(True)
        self.text = nnx.Variable("text")
        self.raw = nnx.Variable(b"raw")
        self.none = nnx.Variable(None)
        self.table = nnx.Variable({"a": 1, "b": {"c": 2.5}})
        self.items = nnx.Variable([1, "x", None])
        self.pair = nnx.Variable((1, jnp.ones(2)))
        self.point = nnx.Variable(Point(1, 2.0))
        self.moments = nnx.Variable(Moments(jnp.zeros((), jnp.int32), jnp.zeros(3)))
        self.weights = nnx.Param(jnp.arange(6, dtype=jnp.float32).reshape(2, 3))
        self.strong = nnx.Variable(jnp.zeros((), jnp.int32))
        self.half = nnx.Param(jnp.ones(2, jnp.bfloat16))
        self.host = nnx.Variable(np.arange(3))
        self.scalar = nnx.Variable(np.int64(3))
        self.key = nnx.Variable(jax.random.key(seed))
        self.parts = nnx.List([Part(1), Part(2)])
        self.linear = nnx.Linear(2, 3, rngs=self.rngs)
        self.data = np.arange(1000)


def leaves(tree, path=()):
    """Every leaf as (path, kind, what it holds), to compare two states exactly."""
    if isinstance(tree, dict):
        # NNX sorts the keys of dicts in Variables
        return [leaf for key in sorted(tree, key=repr) for leaf in leaves(tree[key], (*path, key))]
    if isinstance(tree, (list, tuple)):
        return [(path, type(tree))] + [
            leaf for i, item in enumerate(tree) for leaf in leaves(item, (*path, i))
        ]
    if isinstance(tree, Moments):
        return leaves(tree.count, (*path, "count")) + leaves(tree.mean, (*path, "mean"))
    if isinstance(tree, (jax.Array, np.ndarray, np.generic)):
        data = jax.random.key_data(tree) if jnp.issubdtype(tree.dtype, jax.dtypes.prng_key) else tree
        kind = jax.Array if isinstance(tree, jax.Array) else type(tree)
        return [(path, kind, str(tree.dtype), tree.shape, np.asarray(data).tobytes())]
    return [(path, type(tree), tree)]


def changed():
    """A whole in which everything has another value than in a fresh one."""
    module = Whole(seed=7)
    for _ in range(3):
        module.rngs.augment()
    module._increment_applied_count()
    module.parts[1]._increment_skipped_count()
    module.parts[0].number.set_value(2**70)
    module.parts[1].reset_statistics()
    module.set_statistics({"mean": jnp.ones(2), "n": 3})
    module.epoch.set_value(2**40 + 3)
    module.position.set_value(2**63 + 5)
    module.current.set_value({"row": np.arange(3)})
    module.none.set_value([1, {"a": "b"}])
    module.rate.set_value(-0.0)
    module.on.set_value(False)
    module.text.set_value("another, longer text")
    module.table.set_value({"a": 10, "b": {"c": 0.1}})
    module.items.set_value([5, "y", None])
    module.pair.set_value((9, jnp.zeros(2)))
    module.point.set_value(Point(3, 4.0))
    module.moments.set_value(Moments(jnp.ones((), jnp.int32), jnp.ones(3)))
    module.weights[...] = -module.weights[...]
    module.host.set_value(np.array([7, 8, 2**60]))
    module.scalar.set_value(np.int64(2**60))
    return module


def test_a_state_goes_round_into_a_fresh_module_exactly():
    state = changed().get_state()
    fresh = Whole()
    assert leaves(fresh.get_state()) != leaves(state)
    fresh.set_state(state)
    assert leaves(fresh.get_state()) == leaves(state)
    assert type(fresh.point.get_value()) is Point
    assert type(fresh.moments.get_value()) is Moments


def test_a_module_goes_back_to_an_earlier_state_of_itself():
    module = Whole()
    module.none.set_value(5)
    before = module.get_state()
    module.set_state(changed().get_state() | {"none": 5})
    module.set_state(before)
    assert leaves(module.get_state()) == leaves(before)


def test_restored_streams_draw_what_the_saved_ones_would_have_drawn():
    source, target = Whole(1), Whole(2)
    source.rngs.augment()
    target.set_state(source.get_state())
    for stream in ("default", "augment"):
        expected, found = source.rngs[stream](), target.rngs[stream]()
        assert jnp.array_equal(jax.random.key_data(expected), jax.random.key_data(found))


def test_a_state_has_variables_only_under_their_names_and_int_keys_for_lists():
    state = Whole().get_state()
    assert list(state) == sorted(state)
    assert not {"config", "name", "_cache", "data"} & state.keys()
    assert list(state["parts"]) == [0, 1]
    assert list(state["parts"][0]) == [
        "_applied_count", "_computed_stats", "_is_stats_reset", "_skipped_count", "number",
    ]  # fmt: skip
    assert list(state["rngs"]) == ["augment", "default"]
    assert list(state["rngs"]["augment"]) == ["count", "key"]


def test_a_state_shares_nothing_mutable_with_the_module_in_either_direction():
    module = Whole()
    table, host = {"a": 1, "b": {"c": 2.5}}, np.arange(3)
    module.table.set_raw_value(table)
    module.host.set_raw_value(host)
    state = module.get_state()
    table["b"]["c"], host[0] = 9.9, 99
    assert (state["table"]["b"]["c"], state["host"][0]) == (2.5, 0)
    module.set_state(state)
    state["table"]["b"]["c"], state["host"][0] = 7.7, 77
    assert (module.table.get_value()["b"]["c"], module.host.get_value()[0]) == (2.5, 0)


def test_a_value_that_cannot_be_saved_is_named():
    module = Part()
    module.lock = nnx.Variable(threading.Lock())
    with pytest.raises(TypeError, match="the Variable at lock holds a value that cannot be saved"):
        module.get_state()


# Refusals


def put(state, path, value):
    *parents, last = path
    for key in parents:
        state = state[key]
    if value is DELETE:
        del state[last]
    else:
        state[last] = value


class DELETE:
    """In place of a value: the key is taken away. A class, because its name is the same in every process of pytest-xdist."""


I32, F32 = jnp.int32, jnp.float32
KIND, SHAPE, DTYPE, RANGE = "kind mismatch", "shape mismatch", "dtype mismatch", "out of range"
KEYS, NODE, LENGTH = "keys mismatch", "node type mismatch", "length mismatch"

PLACES = [
    ((name,), value, KIND)
    for name in ("epoch", "position", "idx")
    for value in ("seven", 7.5, True, np.int64(3), np.asarray(3), jnp.asarray(3), {"a": 1}, [1], b"7")
]
WRONG = [
    *PLACES,
    (("position",), -1, RANGE),
    (("epoch",), -(2**70), RANGE),
    (("number",), "seven", KIND),
    (("number",), 7.5, KIND),
    (("number",), True, KIND),
    (("number",), np.int64(7), KIND),
    (("number",), np.asarray(7, np.int64), KIND),
    (("number",), jnp.zeros((), I32), KIND),
    (("strong",), 7, KIND),
    (("strong",), np.int64(7), DTYPE),
    (("number",), {"a": 1}, KIND),
    (("rate",), 1, KIND),
    (("rate",), "0.5", KIND),
    (("on",), 1, KIND),
    (("text",), b"text", KIND),
    (("text",), 1, KIND),
    (("raw",), "raw", KIND),
    (("table",), [1], NODE),
    (("table", "a"), DELETE, KEYS),
    (("table", "z"), 1, KEYS),
    (("table", "b", "c"), "2.5", KIND),
    (("table", "b"), 3, NODE),
    (("items",), (1, "x", None), KIND),
    (("items",), [1, "x"], LENGTH),
    (("items",), [1.0, "x", None], KIND),
    (("pair",), (1, jnp.ones(3)), SHAPE),
    (("point",), (1, 2.0), KIND),
    (("point",), Point("1", 2.0), KIND),
    (("moments",), Moments(jnp.zeros((), I32), jnp.zeros(4)), SHAPE),
    (("moments",), Moments(jnp.zeros((), I32), None), NODE),
    (("weights",), jnp.zeros((3, 2)), SHAPE),
    (("weights",), jnp.zeros((2, 3), I32), DTYPE),
    (("weights",), np.zeros((2, 3), np.float64), DTYPE),
    (("weights",), None, KIND),
    (("weights",), "a", KIND),
    (("weights",), [[0.0] * 3] * 2, KIND),
    (("half",), jnp.ones(2, jnp.float16), DTYPE),
    (("host",), np.arange(4), SHAPE),
    (("host",), np.arange(3.0), DTYPE),
    (("host",), None, KIND),
    (("scalar",), 3, KIND),
    (("scalar",), np.int32(3), DTYPE),
    (("key",), jnp.zeros(2, jnp.uint32), SHAPE),
    (("key",), jnp.zeros((), jnp.uint32), DTYPE),
    (("key",), jax.random.key(0, impl="rbg"), DTYPE),
    (("_applied_count",), 5, KIND),
    (("_applied_count",), None, KIND),
    (("_applied_count",), jnp.zeros(2, I32), SHAPE),
    (("_applied_count",), jnp.zeros((), F32), DTYPE),
    (("_applied_count",), np.asarray(3, np.int64), DTYPE),
    (("_applied_count",), jnp.asarray(-1, I32), RANGE),
    (("_is_stats_reset",), 0, KIND),
    (("_is_stats_reset",), None, KIND),
    (("_is_stats_reset",), "no", KIND),
    (("rngs",), DELETE, KEYS),
    (("rngs",), 3, NODE),
    (("rngs", "other"), {"count": 0}, KEYS),
    (("rngs", "augment"), DELETE, KEYS),
    (("rngs", "augment"), jnp.zeros(()), NODE),
    (("rngs", "augment", "key"), DELETE, KEYS),
    (("rngs", "augment", "extra"), 1, KEYS),
    (("rngs", "augment", "count"), jnp.zeros(3), SHAPE),
    (("rngs", "augment", "count"), jnp.zeros((), I32), DTYPE),
    (("rngs", "augment", "count"), 3, KIND),
    (("rngs", "augment", "key"), None, KIND),
    (("parts", 0), DELETE, KEYS),
    (("parts", 2), {}, KEYS),
    (("parts", "0"), {}, KEYS),
    (("parts", 0), [], NODE),
    (("parts", 0, "number"), DELETE, KEYS),
    (("parts", 0, "__version__"), 1, KEYS),
    (("parts", 0, "number"), "x", KIND),
    (("linear", "kernel"), DELETE, KEYS),
    (("zzz",), 1, KEYS),
    ((0,), 1, KEYS),
]


@pytest.mark.parametrize(("path", "value", "what"), WRONG, ids=lambda p: repr(p)[:40])
def test_a_state_that_does_not_fit_is_refused_by_path_and_nothing_changes(path, value, what):
    state, target = changed().get_state(), Whole()
    before = leaves(target.get_state())
    put(state, path, value)
    with pytest.raises(ValueError, match="structurally incompatible with module state") as caught:
        target.set_state(state)
    assert isinstance(caught.value, MismatchError)
    cause = str(caught.value.__cause__)
    assert what in cause
    named = path[:-1] if what == KEYS else path
    assert f" at {'.'.join(map(str, named)) or '<root>'}" in cause
    assert leaves(target.get_state()) == before


def test_the_cause_of_a_key_mismatch_lists_what_is_missing_and_what_is_extra():
    state = Whole().get_state()
    state["extra"], state[3] = state.pop("number"), 1
    del state["rate"]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text of the cause is what counts
        Whole().set_state(state)
    assert str(caught.value) == (
        "Checkpoint state is structurally incompatible with module state. "
        "Regenerate checkpoints after architecture/config changes."
    )
    assert str(caught.value.__cause__) == (
        "State keys mismatch at <root>: missing=['number', 'rate'], extra=['extra', 3]"
    )


@pytest.mark.parametrize("state", [None, [], "state", 3, (), nnx.state(Part())])
def test_a_state_that_is_not_a_dict_is_a_type_error(state):
    with pytest.raises(TypeError, match="State must be a dict, got"):
        Part().set_state(state)


def test_an_empty_state_is_refused_and_an_ordered_dict_is_a_dict():
    with pytest.raises(ValueError, match="structurally incompatible"):
        Part().set_state({})
    part = Part()
    part.set_state(collections.OrderedDict(Part(5).get_state()))
    assert part.number.get_value() == 5


@given(st.data())
@examples(150)
def test_any_leaf_of_another_kind_and_any_lost_key_is_refused(data):
    module = changed()
    state = module.get_state()
    node, path = state, []
    while isinstance(node, dict) and node:
        path.append(data.draw(st.sampled_from(list(node))))
        node = node[path[-1]]
    if path[0] == "current" or node is None or data.draw(st.booleans()):  # these two take any content
        depth = 1 if path[0] in ("current", "none") else data.draw(st.integers(1, len(path)))
        put(state, path[:depth], DELETE)
    else:
        put(state, path, data.draw(st.sampled_from([w for w in WORDS if type(w) is not type(node)])))
    before = leaves(module.get_state())
    with pytest.raises(ValueError, match="structurally incompatible"):
        module.set_state(state)
    assert leaves(module.get_state()) == before


WORDS = ["seven", b"7", 7.5, 1 + 2j, frozenset({3}), Ellipsis]


# What is open


@pytest.mark.parametrize("name", ["epoch", "position", "idx", "number", "text", "rate", "table", "items"])
def test_a_python_value_takes_none_and_none_takes_a_value(name):
    module = Whole()
    state = module.get_state()
    filled = {**state, name: 5 if state[name] is None else state[name]}
    module.set_state({**state, name: None})
    assert module.get_state()[name] is None
    module.set_state(filled)
    assert leaves(module.get_state()) == leaves(filled)


@pytest.mark.parametrize(
    "value", [None, 5, "x", {"a": [np.arange(2)]}, jnp.ones(3), (1, 2), jax.random.key(0)]
)
@pytest.mark.parametrize("held", [None, 3, np.zeros(2), {"b": 1}])
def test_current_takes_any_value_whatever_it_holds(held, value):
    module = Whole()
    module.current.set_value(held)
    module.set_state({**module.get_state(), "current": value})
    assert leaves(module.get_state()["current"]) == leaves(value)


@pytest.mark.parametrize(
    ("held", "value"), [({}, {"a": 1}), ([], [1, 2]), (collections.OrderedDict(), {"a": 1})]
)
def test_an_empty_container_takes_any_content_and_keeps_its_type(held, value):
    part = Part()
    part.box = nnx.Variable(held)
    part.set_state({**part.get_state(), "box": value})
    assert part.box.get_value() == value
    assert type(part.box.get_value()) is type(held)
    with pytest.raises(ValueError, match="structurally incompatible"):
        part.set_state({**part.get_state(), "box": 3})


@pytest.mark.parametrize(
    "value", [np.int32(5), np.asarray(5, np.int32), jnp.asarray(5, I32), jnp.array(5)], ids=repr
)
def test_an_array_slot_takes_numpy_arrays_of_its_dtype_and_is_not_traced_anew(value):
    traces = []

    @nnx.jit
    def step(part):
        traces.append(1)
        part._increment_applied_count()

    part = Part()
    part.set_state({**part.get_state(), "number": 1})
    step(part)
    part.set_state({**part.get_state(), "_applied_count": value})
    step(part)
    assert part.get_operation_stats()["applied_count"] == 6
    assert len(traces) == 1


def test_a_numpy_slot_takes_jax_arrays_of_its_dtype():
    part = Part()
    part.host = nnx.Variable(np.zeros(2, np.float32))
    part.set_state({**part.get_state(), "host": jnp.ones(2)})
    assert type(part.host.get_value()) is np.ndarray
    assert part.host.get_value().tolist() == [1, 1]


def test_a_64_bit_count_of_the_host_keeps_its_dtype():
    target = Part()
    target._applied_count.set_raw_value(np.asarray(0, np.int64))
    state = target.get_state()
    assert state["_applied_count"].dtype == np.int64
    target.set_state({**state, "_applied_count": np.asarray(2**40 + 3, np.int64)})
    found = target.get_state()["_applied_count"]
    assert (int(found), found.dtype, found.shape) == (2**40 + 3, np.int64, ())
    for wrong in (np.asarray(-1, np.int64), jnp.asarray(3, I32), 3):
        with pytest.raises(ValueError, match="structurally incompatible"):
            target.set_state({**state, "_applied_count": wrong})


def test_a_python_number_that_went_through_jit_still_fits_a_fresh_module_and_back():
    step = nnx.jit(lambda part: part._increment_applied_count())
    source = Part(5)
    source.rate, source.on = nnx.Variable(0.5), nnx.Variable(True)
    python = source.get_state()
    step(source)  # number, rate and on are jax arrays now
    traced = source.get_state()
    fresh = Part()
    fresh.rate, fresh.on = nnx.Variable(0.0), nnx.Variable(False)
    fresh.set_state(jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, traced))
    assert [fresh.number.get_value(), fresh.rate.get_value(), fresh.on.get_value()] == [5, 0.5, True]
    assert type(fresh.number.get_value()) is int
    source.set_state({**python, "number": 6})
    step(source)
    assert source.number.get_value() == 6
    with pytest.raises(ValueError, match="structurally incompatible"):
        source.set_state({**python, "number": 2**40})


def test_a_mutable_array_variable_goes_round():
    part, other = Part(), Part()
    part.ref, other.ref = nnx.Variable(jnp.arange(3), ref=True), nnx.Variable(jnp.zeros(3, I32), ref=True)
    other.set_state(part.get_state())
    assert other.ref[...].tolist() == [0, 1, 2]
    assert isinstance(part.get_state()["ref"], jax.Array)


def test_a_shared_variable_stands_in_the_state_once():
    module = Part()
    module.same = module.number
    module.set_state({**module.get_state(), "number": 9})
    assert "same" not in module.get_state()
    assert module.same.get_value() == 9


# Random trees

names = st.text("abcxyz", min_size=1, max_size=3)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.builds(lambda shape: np.zeros(shape, np.float64), st.sampled_from([(), (2,), (2, 3)]))
    | st.builds(lambda seed: jax.random.key(seed), st.integers(0, 5))
    | st.builds(lambda n: jnp.arange(n, dtype=jnp.int32), st.integers(0, 3)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3) | st.tuples(inner, inner)
    ),
    max_leaves=5,
)
blueprints = st.recursive(
    st.dictionaries(names, values.map(lambda value: ("variable", value)), max_size=3),
    lambda inner: (
        st.dictionaries(names, inner.map(lambda value: ("module", value)), max_size=2)
        | st.lists(inner, max_size=2).map(lambda children: {"list": ("list", children)})
    ),
    max_leaves=4,
)


class Built(CheckpointableIteratorModule[int]):
    def __init__(self, blueprint):
        super().__init__(DataraxModuleConfig(), rngs=nnx.Rngs(len(blueprint)))
        for name, (kind, content) in blueprint.items():
            if kind == "variable":
                setattr(self, f"v_{name}", nnx.Variable(copy.deepcopy(content)))
            elif kind == "module":
                setattr(self, f"m_{name}", Built(content))
            else:
                setattr(self, f"l_{name}", nnx.List([Built(child) for child in content]))


@given(blueprints, st.integers(0, 2**80))
@examples(60)
def test_random_modules_go_round_clone_and_come_back(blueprint, position):
    source, target = Built(blueprint), Built(blueprint)
    source.position.set_value(position)
    source.rngs()
    target.set_state(source.get_state())
    assert leaves(target.get_state()) == leaves(source.get_state())
    assert leaves(source.clone().get_state()) == leaves(source.get_state())


@given(values)
def test_detached_values_are_equal_and_share_no_container(value):
    found = detached(value)
    assert leaves(found) == leaves(value)
    if isinstance(value, (list, dict, np.ndarray)):
        assert found is not value
