"""Beside each field that differs stands the nearest thing to do."""

import copy
import functools

import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainConfig,
    GrainSource,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
    map_batch,
    map_records,
    random_map_batch,
)
from datarax.checkpoint.advice import advice, all_advice
from datarax.core.errors import MISSING, Difference, MismatchError
from datarax.core.tree import differences

SHIFT = 2


def helped(rows):
    return rows


def shifted(batch, by=1):
    return {"x": helped(batch["x"]) + by + SHIFT}


def noisy(batch, seeds, scale=1.0):
    return batch


def scaling(factor):
    def scaled(record):
        return {"x": record["x"] * factor}

    return scaled


STAGES = (
    map_batch(shifted),
    random_map_batch(noisy, parameters={"scale": 2.0}),
    map_records(scaling(3)),
    map_batch(functools.partial(shifted, by=4), name="bound", version=2),
)


def identity(source=None, **settings):
    source = source or MemorySource(MemoryConfig(name="numbers"), {"x": np.arange(40)})
    with DataLoader(
        DataLoaderConfig(**{"batch_size": 4, "seed": 5, **settings}), source, transforms=STAGES
    ) as loader:
        return {"train": loader.identity()}


def leaves(tree, path=""):
    """Every path that a difference may have, with the node at which it lies."""
    items = (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    )
    for key, value in items:
        below = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
        yield tree, key, below
        yield from leaves(value, below)


def changed_everywhere(tree):
    """A copy of the tree for each value in it changed, and for each taken out."""
    for number, (node, key, path) in enumerate(list(leaves(tree))):
        if isinstance(node[key], (dict, list)):
            continue
        for change in ("take out", "change"):
            other = copy.deepcopy(tree)
            node, key, _ = list(leaves(other))[number]
            if change == "change":
                node[key] = "another"
            elif isinstance(node, dict):
                del node[key]
            yield path, other


@pytest.mark.parametrize(
    "was",
    [
        identity(remainder="pad", num_epochs=1),
        identity(order="block", block_size=4, window_blocks=2),
        identity(order="grain", grain_style="map_dataset", grain_ops_between=1),
        identity(RangeSource(RangeConfig(name="odd.name", start=1, stop=90, step=2))),
        identity(GrainSource(GrainConfig(version="v1"), [{"x": np.arange(3)}] * 9)),
    ],
    ids=["global", "block", "grain", "range", "foreign"],
)  # fmt: skip
def test_every_field_of_an_identity_has_advice_of_its_own(was):
    count = 0
    for path, now in changed_everywhere(was):
        for left, right in ((was, now), (now, was)):
            for difference in differences(left, right):
                text = advice(difference, left, right)
                assert text, path
                assert "put this back as it was" not in text, difference
                count += 1
    assert count > 100


def said(path, was, now, *trees):
    return advice(Difference(path, was, now), *trees)


TREE = identity()


@pytest.mark.parametrize(
    ("path", "was", "now", "expected"),
    [
        ("train.seed", 5, 6, "set loader.seed = 5 again"),
        ("train.batch_size", 4, 8, "set loader.batch_size = 4 again"),
        ("train.order.policy", "global", "none", 'set loader.order = "global" again'),
        ("train.order.block_size", MISSING, 8, "leave out loader.block_size again"),
        ("train.order.version", 1, 2, "set loader.order_version = 1"),
        ("train.row_mask", True, False, 'set loader.remainder = "pad" again'),
        ("train.sources.numbers.num_records", 812, 815, "so that it has 812 records"),
        ("train.sources.numbers", {}, MISSING, 'set source.name = "numbers"'),
        ("train.sources.text.files[3].size", 1, 2, "source 'text' is another dataset than then"),
        ("train.pipeline.transforms[0].source_sha256", "a", "b", "the function of transform 'shifted' has changed"),
        ("train.pipeline.transforms[0].defaults.by", 1, 2, "the default of 'by' in the function of transform 'shifted'"),
        ("train.pipeline.transforms[0].names.SHIFT", 2, 3, "'SHIFT', which the function of transform 'shifted' uses"),
        ("train.pipeline.transforms[0].helpers.helped", "a", "b", "'helped', which transform 'shifted' calls"),
        ("train.pipeline.transforms[0].helpers.A.<locals>.b", "a", "b", "'A.<locals>.b', which transform"),
        ("train.pipeline.transforms[2].closure.factor.$array.x", 1, 2, "the value of 'factor', which"),
        ("train.pipeline.transforms[1].parameters.scale", 2.0, 3.0, "transform 'noisy' the parameter 'scale' that it had: 2.0"),
        ("train.pipeline.transforms[3].version", 2, 3, "declare version = 2 for transform 'bound'"),
        ("train.pipeline.transforms[0].name", "shifted", "noisy", "the transforms were 'shifted', 'noisy', 'scaled', 'bound'"),
        ("train.pipeline.transforms[4]", MISSING, {"name": "extra"}, "put them back, in this order"),
        ("model.params.w", "float32[3]", "float32[4]", "the leaf 'params.w'"),
        ("eval", "a data module", MISSING, "the data modules that were saved"),
        ("train.something.new", 1, 2, "resume.allow_changed"),
    ],
)  # fmt: skip
def test_advice_names_the_setting_the_file_or_the_function(path, was, now, expected):
    assert expected in said(path, was, now, TREE, TREE)


def test_without_the_trees_a_transform_goes_by_its_number():
    assert "transform 1 has changed" in said("train.pipeline.transforms[1].source_sha256", "a", "b")


def test_the_same_advice_is_given_once():
    found = [Difference(f"train.sources.text.files[{i}].size", 1, 2) for i in range(3)]
    texts = all_advice([*found, Difference("train.seed", 1, 2)])
    assert [bool(text) for text in texts] == [True, False, False, True]
    message = str(MismatchError("no", [*found], texts))
    assert message.splitlines()[1:3] == [
        "  train.sources.text.files[0].size: was 1, is 2",
        f"    do: {texts[0]}",
    ]
    assert message.count("do:") == 1
