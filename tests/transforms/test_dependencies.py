"""A library's version is nobody's identity, except of a transform that says so."""

import importlib.metadata
import pickle
import platform

import jax
import pytest

from datarax.core.errors import ConfigError
from datarax.core.tree import canonical_json, differences
from datarax.transforms import (
    load_transform,
    map_batch,
    map_records,
    random_map_batch,
    random_map_records,
    transform_identity,
)


def stage(rows):
    return rows


def random_stage(rows, rng):
    return rows


declared = map_batch(stage, depends_on=["numpy"])


def other_versions(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0")
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")


@pytest.mark.parametrize(
    ("make", "fn"),
    [
        (map_records, stage),
        (map_batch, stage),
        (random_map_records, random_stage),
        (random_map_batch, random_stage),
    ],
)
def test_each_maker_takes_dependences_and_without_one_versions_do_not_count(make, fn, monkeypatch):
    plain, depending = make(fn), make(fn, depends_on=("numpy", "python", "numpy"))
    before = transform_identity(plain), transform_identity(depending)
    assert "dependencies" not in before[0]
    assert before[1]["dependencies"] == {
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }
    other_versions(monkeypatch)
    assert transform_identity(plain) == before[0]
    found = differences(before[1], transform_identity(depending))
    assert [each.path for each in found] == ["dependencies.numpy", "dependencies.python"]


def test_a_dependence_counts_beside_a_declared_version(monkeypatch):
    stage_of_a_library = map_batch(sorted, version=1, depends_on=["numpy"])
    before = transform_identity(stage_of_a_library)
    other_versions(monkeypatch)
    (difference,) = differences(before, transform_identity(stage_of_a_library))
    assert difference.path == "dependencies.numpy"


def test_a_setting_of_jax_may_be_depended_on():
    depending = map_batch(stage, depends_on=["jax_enable_x64", "device_kind", "xla_cpu_threads"])
    before = transform_identity(depending)
    canonical_json(before)
    x64 = bool(jax.config.read("jax_enable_x64"))
    jax.config.update("jax_enable_x64", not x64)
    try:
        (difference,) = differences(before, transform_identity(depending))
    finally:
        jax.config.update("jax_enable_x64", x64)
    assert difference.path == "dependencies.jax_enable_x64"


@pytest.mark.parametrize(
    ("depends_on", "message"),
    [
        ("numpy", "must be a list of packages, not the text 'numpy'"),
        ([""], "must hold names of packages, got ''"),
        ([3], "must hold names of packages, got 3"),
    ],
)
def test_a_dependence_that_is_no_name_is_refused(depends_on, message):
    with pytest.raises(ConfigError, match=message):
        map_batch(stage, depends_on=depends_on)


def test_a_package_that_is_not_installed_is_refused_by_name():
    with pytest.raises(ConfigError, match="'stage' depends on 'nunpy', which is no installed package"):
        transform_identity(map_batch(stage, depends_on=["nunpy"]))


def test_dependences_survive_a_copy_and_a_config_adds_or_keeps_them():
    assert pickle.loads(pickle.dumps(declared)).depends_on == ("numpy",)
    assert load_transform(f"{__name__}:declared").depends_on == ("numpy",)
    assert load_transform(f"{__name__}:declared", depends_on=["jax"]).depends_on == ("jax",)
    assert load_transform(f"{__name__}:stage", level="batch").depends_on == ()
    assert load_transform(f"{__name__}:stage", level="batch", depends_on=["jax"]).depends_on == ("jax",)
