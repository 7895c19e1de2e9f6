"""Configs check themselves, cannot change, and are safe as static metadata of NNX."""

import dataclasses
import enum
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax.core import config as config_module
from datarax.core.config import (
    Checked,
    DataraxModuleConfig,
    Natural,
    OperatorConfig,
    Positive,
    StructuralConfig,
    Text,
    at_least,
    from_tree,
    to_tree,
)
from datarax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Child(DataraxModuleConfig):
    size: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.size < 1:
            raise ValueError("size must be positive")


class StatsModule(nnx.Module):
    def __call__(self, batch):
        return {"mean": batch.mean()}


def test_the_defaults_and_the_order_of_fields_are_the_contract():
    names = [field.name for field in dataclasses.fields(DataraxModuleConfig)]
    assert names == ["cacheable", "batch_stats_fn", "precomputed_stats"]
    assert dataclasses.astuple(DataraxModuleConfig()) == (False, None, None)
    assert DataraxModuleConfig(True, None, {"a": 1}).precomputed_stats == {"a": 1}


def test_a_config_cannot_change():
    config = DataraxModuleConfig()
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'cacheable'"):
        config.cacheable = True
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'cacheable'"):
        del config.cacheable
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.other = 1
    assert config_module.FrozenInstanceError is dataclasses.FrozenInstanceError


@pytest.mark.parametrize("make", [DataraxModuleConfig, Child, OperatorConfig, StructuralConfig])
@pytest.mark.parametrize("stats", [{}, {"a": 1}])
def test_both_ways_to_have_statistics_are_refused(make, stats):
    with pytest.raises(
        ValueError, match="Cannot specify both batch_stats_fn and precomputed_stats"
    ) as caught:
        make(batch_stats_fn=len, precomputed_stats=stats)
    assert str(caught.value).endswith("Choose dynamic computation or static values, not both.")


def test_replace_checks_again():
    with pytest.raises(ValueError, match="size must be positive"):
        dataclasses.replace(Child(size=2), size=0)


@pytest.mark.parametrize(
    ("field", "value"), [("cacheable", "yes"), ("batch_stats_fn", 3), ("precomputed_stats", [1])]
)
def test_a_field_of_the_wrong_kind_is_named(field, value):
    with pytest.raises(TypeError, match=field):
        DataraxModuleConfig(**{field: value})


def test_given_objects_are_kept_as_they_are():
    stats, module = {"a": 1}, StatsModule()
    assert DataraxModuleConfig(precomputed_stats=stats).precomputed_stats is stats
    assert DataraxModuleConfig(batch_stats_fn=module).batch_stats_fn is module


def test_repr_and_pickle_are_those_of_a_dataclass():
    config = Child(cacheable=True, precomputed_stats={"m": np.arange(2)}, size=5)
    assert repr(Child(size=5)) == (
        "Child(cacheable=False, batch_stats_fn=None, precomputed_stats=None, size=5)"
    )
    assert pickle.loads(pickle.dumps(config)) == config


ONE = {"mean": np.float32(1), "var": np.arange(3.0)}


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (ONE, {"mean": np.float32(1), "var": np.arange(3.0)}, True),
        (ONE, {"mean": np.float32(1), "var": np.arange(3.0) + 1}, False),
        (ONE, {"mean": np.float32(1), "var": np.arange(3)}, False),
        (ONE, {"mean": np.float32(1), "var": jnp.arange(3.0)}, False),
        ({"m": np.ones(2, np.float32)}, {"m": jnp.ones(2)}, False),
        (ONE, {"mean": np.float32(1), "other": np.arange(3.0)}, False),
        ({"m": [1, (jnp.ones(2),)]}, {"m": [1, (jnp.ones(2),)]}, True),
        ({"m": [1, (jnp.ones(2),)]}, {"m": [1, (jnp.zeros(2),)]}, False),
        ({"m": [1, 2]}, {"m": (1, 2)}, False),  # other structures to JAX: a trace of one is none of the other
        ({"m": {"n": 1}}, {"m": OrderedDict(n=1)}, False),
        ({"m": 1}, {"m": 1.0}, False),
        ({"m": np.array([np.nan])}, {"m": np.array([np.nan])}, True),
        (None, {}, False),
    ],
)
@pytest.mark.parametrize("make", [DataraxModuleConfig, Child])
def test_equality_is_by_value_with_arrays_too_and_equal_configs_have_equal_hashes(make, a, b, equal):
    first, second = make(precomputed_stats=a), make(precomputed_stats=b)
    assert (first == second) is equal
    assert (second == first) is equal
    if equal:
        assert hash(first) == hash(second)


def test_configs_of_different_classes_or_fields_differ():
    assert DataraxModuleConfig() != Child()
    assert Child(size=2) != Child(size=3)
    assert DataraxModuleConfig() != "config"
    assert len({Child(size=2), Child(size=2), Child(size=3)}) == 2


@pytest.mark.parametrize("make", [OperatorConfig, StructuralConfig])
def test_a_stream_name_is_needed_for_and_only_for_a_stochastic_module(make):
    with pytest.raises(ValueError, match=r"(?i)stochastic.*stream_name"):
        make(stochastic=True)
    with pytest.raises(ValueError, match="Deterministic modules should not specify stream_name"):
        make(stream_name="augment")
    assert make(stochastic=True, stream_name="augment").stream_name == "augment"


def test_an_unknown_batch_strategy_is_refused_with_the_known_ones():
    assert OperatorConfig(batch_strategy="scan").batch_strategy == "scan"
    with pytest.raises(ValueError, match="'vmap' or 'scan', got 'pmap'"):
        OperatorConfig(batch_strategy="pmap")


# What a field may hold


class Shape(enum.StrEnum):
    ROUND = "round"
    FLAT = "flat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box(DataraxModuleConfig):
    size: Positive
    depth: Natural = 0
    weight: Annotated[float, at_least(0.5)] | None = None
    label: Text | int | None = None
    shape: Checked[Shape] = Shape.FLAT
    side: Checked[Literal["left", "right"]] = "left"
    lid: Checked[bool | None] = None
    parts: Sequence[int] = ()
    notes: int = 0
    """Without a limit: the annotation is the user's own affair."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shelf:
    box: Box
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


GOOD = {"size": 3, "weight": 2, "label": "x", "shape": "round", "side": "right", "lid": True}
WRONG = [
    ({"size": 0}, "size must be an integer of at least 1, got 0"),
    ({"size": True}, "size must be an integer of at least 1, got True"),
    ({"size": 2.0}, "size must be an integer of at least 1, got 2.0"),
    ({"size": 2**63}, "size must be an integer of at least 1, got 9223372036854775808"),
    ({"size": "3"}, "size must be an integer of at least 1, got '3'"),
    ({"depth": -1}, "depth must be an integer of at least 0, got -1"),
    ({"weight": 0.1}, "weight must be a number of at least 0.5, got 0.1"),
    ({"weight": float("nan")}, "weight must be a number of at least 0.5, got nan"),
    ({"label": ""}, "label must be a string that is not empty or an integer, got ''"),
    ({"label": 1.5}, "label must be a string that is not empty or an integer, got 1.5"),
    ({"shape": "square"}, "shape must be one of 'round', 'flat', got 'square'"),
    ({"side": "top"}, "side must be one of 'left', 'right', got 'top'"),
    ({"lid": 1}, "lid must be true or false, got 1"),
]


def test_fields_with_a_limit_are_checked_and_enum_members_made_of_their_values():
    box = Box(**GOOD)
    assert box.shape is Shape.ROUND
    assert type(box.weight) is float
    assert Box(size=1, weight=math.inf, label=3).label == 3
    assert Box(size=1, notes="any").notes == "any"


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_value_that_is_not_allowed_is_named_with_what_is(values, message):
    with pytest.raises(ConfigError) as caught:
        Box(**{"size": 1, **values})
    assert str(caught.value) == f"Box.{message}"
    with pytest.raises(ConfigError) as caught:
        from_tree(Shelf, {"box": {"size": 1, **values}})
    assert str(caught.value) == f"box.{message}"


def test_a_tree_is_read_strictly_and_comes_back_from_the_config():
    tree = {"box": {**GOOD, "parts": [1, 2]}, "more": {"a": 1}}
    shelf = from_tree(Shelf, tree)
    assert shelf.box == Box(**GOOD, parts=(1, 2))
    assert from_tree(Shelf, to_tree(shelf)) == shelf
    assert to_tree(shelf)["box"] == {
        **{"cacheable": False, "depth": 0, "notes": 0},
        **{**GOOD, "weight": 2.0, "parts": [1, 2]},
    }


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"box": {}}, "box.size is required and missing"),
        ({"box": 3}, "box must be a table, got 3"),
        ({"box": {"size": 1, "lable": 2}}, "unknown key 'box.lable'; did you mean 'label'?"),
        ({"box": {"size": 1, "parts": 2}}, "box.parts must be a list, got 2"),
        ({"box": {"size": 1, "parts": [2, "x"]}}, "box.parts[1] must be an integer, got 'x'"),
        ({"box": {"size": 1, "notes": "x"}}, "box.notes must be an integer, got 'x'"),
        ({"box": {"size": 1}, "more": []}, "more must be a table, got []"),
        (
            {"box": {"size": 1, "batch_stats_fn": "x"}},
            "box.batch_stats_fn must be an object, which no config file can hold, got 'x'",
        ),
        (
            {"box": {"size": 1, "batch_stats_fn": None, "precomputed_stats": 3}},
            "box.precomputed_stats must be a table, got 3",
        ),
    ],
)
def test_what_is_wrong_in_a_tree_is_named_by_its_path(tree, message):
    with pytest.raises(ConfigError) as caught:
        from_tree(Shelf, tree)
    assert str(caught.value) == message


def test_a_class_whose_annotations_cannot_be_read_is_as_good_as_without_limits():
    Odd = dataclasses.make_dataclass(
        "Odd", [("a", "no such name", 3)], bases=(DataraxModuleConfig,), frozen=True, kw_only=True
    )
    assert Odd(a="x").a == "x"


def test_a_class_whose_annotations_cannot_be_read_is_still_held_to_the_limits_of_its_bases():
    Odd = dataclasses.make_dataclass(
        "Odd", [("a", "no such name", 3)], bases=(OperatorConfig,), frozen=True, kw_only=True
    )
    with pytest.raises(ConfigError, match="'vmap' or 'scan', got 'pmap'"):
        Odd(batch_strategy="pmap")
