"""Functions and values that belong to no transform of ours count by the same rules."""

import functools

import numpy as np
import pytest

from datarax.core.errors import ConfigError
from datarax.transforms import function_identity, map_records, transform_identity, value_identity

SCALE = 3


def helper(x):
    return x + 1


def scaled(x, by=2):
    return helper(x) * by * SCALE


def of(fn, **settings):
    return function_identity(fn, "pipeline 'text', map,", versioned="the pipeline", **settings)


@pytest.mark.parametrize("fn", [scaled, functools.partial(scaled, by=4)])
def test_a_foreign_function_is_read_like_that_of_a_transform(fn):
    ours, foreign = transform_identity(map_records(fn, name="scaled")), of(fn)
    assert foreign == {key: ours[key] for key in foreign}
    assert foreign["names"]["SCALE"] == 3
    assert set(foreign["helpers"]) == {"helper"}


def test_functions_of_the_named_packages_count_by_name():
    assert of(np.square, by_name={"numpy"}) == {"library": {"$function": "numpy:square"}, "helpers": {}}
    held = of(functools.partial(np.stack, axis=1), by_name={"numpy"})["library"]
    assert held["held"] == {"args": [], "keywords": {"axis": 1}}


def test_a_declared_version_stands_for_the_function():
    tree = of(eval("lambda x: x"), declared=True)
    assert tree["source_sha256"] is None


def test_what_cannot_be_read_is_refused_in_the_words_of_its_owner():
    with pytest.raises(
        ConfigError, match=r"pipeline 'text', map, has no identity.*Give the pipeline a version"
    ):
        of(eval("lambda x: x"))


class Rule:
    def __init__(self, limit):
        self.limit = limit


def value(of_what, **settings):
    return value_identity(of_what, "the rule", "pipeline 'text'", versioned="the pipeline", **settings)


def test_a_value_is_described_and_plain_data_stands_for_itself():
    assert value({"a": (1, 2.5, "x")}) == {"a": [1, 2.5, "x"]}
    one, two = value(Rule(1)), value(Rule(2))
    assert one["value"]["state"] == {"limit": 1}
    assert one["helpers"] == two["helpers"]
    assert one != two


def test_an_object_without_content_is_refused_unless_a_version_is_declared():
    with pytest.raises(ConfigError, match="the rule cannot be read"):
        value(object())
    assert value(object(), declared=True) == {"$opaque": "builtins:object"}
