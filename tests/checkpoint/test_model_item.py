import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax.checkpoint import Checkpointer, Snapshot
from datarax.checkpoint.model_item import STORED_DTYPES, compare_template, flatten_model
from datarax.core.errors import InputError, MismatchError
from tests.checkpoint.modules import model, same


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.empty = nnx.Variable(None)
        self.table = nnx.Variable({"a": jnp.ones(2), "b": None})


def saved(directory, tree):
    with Checkpointer(directory) as checkpointer:
        checkpointer.save(1, model=tree)
    return Snapshot.open(directory)


def restored(directory, template):
    return Checkpointer(directory).restore(model=template).model


def abstract(tree):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, tree
    )


def bits(name):
    """An array of this dtype with every bit pattern that its width allows to see: NaN payloads, -0.0, all signs."""
    dtype = jnp.dtype(name)
    if name == "bool":
        return np.array([True, False, True])
    if name.startswith(("int2", "int4", "uint2", "uint4", "float4")):
        return np.array([0, 1, -1 if name.startswith("i") else 1]).astype(dtype)
    raw = np.random.default_rng(0).bytes(dtype.itemsize * 64) + b"\xff" * dtype.itemsize
    return np.frombuffer(raw, dtype)


def test_every_stored_dtype_comes_back_bit_for_bit(tmp_path):
    tree = {name: bits(name) for name in sorted(STORED_DTYPES)}
    wide = {"int64", "uint64", "float64", "complex128"}  # not for JAX while x64 is off
    tree |= {f"{name} jax": jnp.asarray(x) for name, x in tree.items() if name not in wide}
    tree["zeros"] = np.full(4, -0.0, np.float32)  # Zarr leaves out chunks that equal its fill value
    saved(tmp_path, tree)
    assert same(restored(tmp_path, tree), tree)


def test_a_whole_nnx_state_comes_back_into_its_own_and_into_its_abstract_form(tmp_path):
    state = nnx.state(Net(nnx.Rngs(0)))
    saved(tmp_path, state)
    template = nnx.eval_shape(lambda: nnx.state(Net(nnx.Rngs(1))))
    for tree in (nnx.state(Net(nnx.Rngs(2))), template):
        back = restored(tmp_path, tree)
        assert isinstance(back, nnx.State)
        assert same(back, state)
    assert same(restored(tmp_path, nnx.to_pure_dict(state)), nnx.to_pure_dict(state))


def test_optimizer_states_none_numbers_and_keys_come_back_in_kind(tmp_path):
    tree = model(3) | {
        "optax": optax.adamw(1e-3).init({"w": jnp.ones(3)}),
        "scalar": np.float32(3),
        "big": -(2**63),
        "nan": float("nan"),
        "complex": 1 - 2j,
        "flag": True,
        "nothing": None,
        "no rows": jnp.zeros((0, 3), jnp.bfloat16),
        "no keys": jax.random.split(jax.random.key(0), 1)[:0],
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 4).reshape(2, 2),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(20)[::3],
    }
    saved(tmp_path, tree)
    assert same(restored(tmp_path, tree), tree)
    assert same(restored(tmp_path, abstract(tree)), tree)


def test_weak_types_and_free_placement_are_kept(tmp_path):
    tree = {"weak": jnp.asarray(2.0), "weak vector": jnp.asarray(2.0) * jnp.stack([jnp.asarray(1.0)] * 2)}
    assert tree["weak vector"].weak_type
    saved(tmp_path, tree)
    back = restored(tmp_path, tree)
    assert same(back, tree)
    assert not back["weak"].committed
    device = jax.devices()[0]
    assert restored(tmp_path, jax.device_put(tree, device))["weak"].committed


def test_keys_that_orbax_would_join_to_one_name_stay_apart(tmp_path):
    tree = {"a.b": 1, "a": {"b": 2}, "a/b": {"": 3}, "a%2Eb": 4, "ünï \n/": jnp.ones(1), "": {"": {"": 5}}}
    saved(tmp_path, tree)
    assert same(restored(tmp_path, tree), tree)


class Alike:
    """A dictionary key that prints like its siblings."""

    def __init__(self, number):
        self.number = number

    def __str__(self):
        return "key"

    def __lt__(self, other):
        return self.number < other.number


def test_leaves_that_print_alike_are_refused_before_anything_is_written(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match=r"two leaves of the model have the path 'x\.key'"):
            checkpointer.save(1, model={"x": {Alike(1): 1, Alike(2): 2}})
        with pytest.raises(InputError, match="not a PyTree that can be flattened"):
            checkpointer.save(1, model={"x": {1: 1, "1": 2}})
    assert Checkpointer(tmp_path).steps() == []


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("text", "is a builtins.str"),
        (2**63, "more than 64 bits"),
        (np.array(["a"]), "dtype"),
        (np.array([None]), "dtype object"),
        (np.arange(3, dtype=">i4"), "foreign byte order"),
        (np.arange(2).astype(jnp.uint4), "dtype uint4"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "has no values"),
        (object(), "is a builtins.object"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "MaskedArray"),
    ],
)
def test_a_leaf_that_cannot_be_stored_exactly_is_refused_by_path(tmp_path, leaf, words):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(InputError, match=words) as caught:
            checkpointer.save(1, model={"ok": 1, "deep": [{"x": leaf}]})
        assert "'deep.0.x'" in str(caught.value)
        checkpointer.save(1, model={"ok": 1})  # the refusal left no trace
    assert Checkpointer(tmp_path).steps() == [1]


def test_a_donated_leaf_is_refused_by_path(tmp_path):
    x = jnp.ones(4)
    jax.jit(lambda v: v + 1, donate_argnums=0)(x)
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(InputError, match="'x' was donated"):
        checkpointer.save(1, model={"x": x})


TEMPLATES = {
    "dtype": (jnp.zeros(3, jnp.int16), "jax int32[3]", "jax int16[3]"),
    "numpy dtype": (np.zeros(3, np.int32), "jax int32[3]", "numpy int32[3]"),
    "shape": (jnp.zeros(4, jnp.int32), "jax int32[3]", "jax int32[4]"),
    "abstract shape": (jax.ShapeDtypeStruct((2,), jnp.int32), "jax int32[3]", "array int32[2]"),
    "abstract dtype": (jax.ShapeDtypeStruct((3,), jnp.float32), "jax int32[3]", "array float32[3]"),
    "None": (None, "jax int32[3]", "None"),
    "int": (7, "jax int32[3]", "a Python int"),
    "bool": (True, "jax int32[3]", "a Python bool"),
    "keys": (jax.random.split(jax.random.key(0), 3), "jax int32[3]", "key key<fry>[3]"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_leaf_of_another_kind_is_refused_with_both_sides(name):
    leaf, was, now = TEMPLATES[name]
    specs, _ = flatten_model({"a": {"x": jnp.zeros(3, jnp.int32)}})
    (difference,) = compare_template(specs, {"a": {"x": leaf}})
    assert str(difference) == f"model.a.x: was {was}, is {now}"


@pytest.mark.parametrize(
    ("saved_leaf", "template_leaf"),
    [
        (None, jnp.ones(1)),
        (1, 1.0),
        (True, 1),
        (1.5, 1),
        (np.arange(3), np.arange(4)),
        (np.arange(3), np.arange(3.0)),
        (np.arange(3), jnp.arange(3)),
        (np.float32(1), np.ones((), np.float32)),
        (jax.random.key(0), jax.random.key(0, impl="rbg")),
        (jax.random.key(0), jax.random.key_data(jax.random.key(0))),
    ],
)
def test_what_orbax_would_cast_swallow_or_reshape_is_refused(saved_leaf, template_leaf):
    specs, _ = flatten_model({"x": saved_leaf})
    assert [d.path for d in compare_template(specs, {"x": template_leaf})] == ["model.x"]
    assert compare_template(specs, {"x": saved_leaf}) == []


def test_missing_and_extra_leaves_are_all_named_and_nothing_is_restored(tmp_path):
    saved(tmp_path, {"a": 1, "b": {"c": 2}})
    with pytest.raises(MismatchError) as caught:
        restored(tmp_path, {"a": 1, "b": {"d": 2}})
    assert [str(d) for d in caught.value.differences] == [
        "model.b.c: was a Python int, is (absent)",
        "model.b.d: was (absent), is a Python int",
    ]


def test_a_64_bit_model_is_refused_where_x64_is_off(tmp_path):
    with jax.enable_x64(True):
        tree = {"x": jnp.asarray([2**40 + 5])}
        saved(tmp_path, tree)
        assert same(restored(tmp_path, tree), tree)
    with pytest.raises(MismatchError, match="jax_enable_x64 is off"):
        restored(tmp_path, {"x": jax.ShapeDtypeStruct((1,), np.dtype("int64"))})


def test_any_reader_gets_the_arrays_by_path_without_a_template(tmp_path):
    arrays = saved(tmp_path, model(3)).model()
    assert set(arrays) == {"params.w", "params.b", "opt.0", "rng", "host", "count", "lr"}
    assert arrays["params.b"].dtype == jnp.bfloat16
    assert arrays["count"] == 3


def test_a_model_without_arrays_is_a_model(tmp_path):
    snapshot = saved(tmp_path, {"a": None, "b": ()})
    assert snapshot.check() == []
    assert restored(tmp_path, {"a": None, "b": ()}) == {"a": None, "b": ()}


def test_the_step_after_a_save_may_overwrite_every_buffer(tmp_path):
    """Real donation, and NumPy leaves changed in place, while the save is still being written."""
    train = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = {"big": jnp.zeros(1 << 20), "small": jnp.zeros(3), "key": jax.random.key(0)}
    host = np.zeros(1 << 18)
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(1, 7):
            expected = jax.tree.map(np.asarray, {"big": state["big"], "small": state["small"]})
            frozen = {k: v.copy() for k, v in expected.items()} | {"host": host.copy()}
            checkpointer.save(step, model={**state, "host": host})
            for _ in range(5):
                old = state["big"]
                state = train({"big": state["big"], "small": state["small"]}) | {"key": state["key"]}
                host += 1
            assert old.is_deleted()
            checkpointer.wait()
            found = Snapshot.open(tmp_path, step).model()
            for name, array in frozen.items():
                assert found[name].tobytes() == array.tobytes(), (step, name)


def test_a_jax_array_that_shares_memory_with_a_numpy_array_is_saved_as_it_was(tmp_path):
    room = np.zeros((1 << 20) + 64, np.uint8)
    start = -room.ctypes.data % 64  # JAX takes over host memory without a copy where it is aligned
    host = room[start : start + (1 << 20)].view(np.float32)
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(1, 6):
            host[:] = step
            shared = jax.device_put(host)
            checkpointer.save(step, model={"x": shared})
            host[:] = -1
            checkpointer.wait()
            assert (Snapshot.open(tmp_path, step).model()["x"] == step).all()
