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


# Files.


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "vocabulary.txt").write_text("one two")
    (tmp_path / "b" / "merges.txt").write_text("o n")
    return tmp_path


def of_files(*paths, version=2, **settings):
    return transform_identity(map_batch(stage, depends_on_files=paths, **settings), version=version)


def test_the_content_of_a_file_counts_and_its_place_does_not(files, monkeypatch):
    before = of_files(files / "a" / "vocabulary.txt")
    assert list(before["files"]) == ["vocabulary.txt"]
    (files / "a").rename(files / "elsewhere")
    assert of_files(files / "elsewhere" / "vocabulary.txt") == before
    monkeypatch.chdir(files)
    assert of_files("elsewhere/vocabulary.txt") == before
    (files / "elsewhere" / "vocabulary.txt").write_text("one too")
    (difference,) = differences(before, of_files("elsewhere/vocabulary.txt"))
    assert difference.path == "files.vocabulary.txt"


def test_several_files_are_told_apart_by_their_names_below_what_holds_them_all(files):
    paths = [files / "b" / "merges.txt", str(files / "a" / "vocabulary.txt")]
    assert list(of_files(*paths)["files"]) == ["a/vocabulary.txt", "b/merges.txt"]
    assert of_files(*paths) == of_files(*paths[::-1])


@pytest.mark.parametrize("name", ["absent.txt", "a"])
def test_a_file_that_cannot_be_read_is_refused_by_name(name, files):
    with pytest.raises(
        ConfigError, match=f"'stage' depends on the file .*{name}, which cannot be read: .*depends_on_files"
    ):
        of_files(files / name)


def test_a_file_counts_beside_a_declared_version_and_not_in_version_1(files):
    path = files / "a" / "vocabulary.txt"
    before = (
        of_files(path, version=2),
        transform_identity(map_batch(sorted, version=1, depends_on_files=[path]), version=2),
    )
    assert "files" not in of_files(path, version=1)
    path.write_text("another")
    assert transform_identity(map_batch(sorted, version=1, depends_on_files=[path]), version=2) != before[1]


@pytest.mark.parametrize("wrong", ["vocabulary.txt", [3], [""]])
def test_files_that_are_no_list_of_names_are_refused(wrong):
    with pytest.raises(ConfigError, match="depends_on_files of transform 'stage' must"):
        map_batch(stage, depends_on_files=wrong)


def test_a_config_adds_files_and_says_what_is_impure(files):
    path = str(files / "a" / "vocabulary.txt")
    assert load_transform(f"{__name__}:declared", depends_on_files=[path]).depends_on_files == (path,)
    assert load_transform(f"{__name__}:stage", level="batch", impure=True).impure
    assert not load_transform(f"{__name__}:declared").impure
    assert (
        transform_identity(load_transform(f"{__name__}:declared", impure=True), version=2)["impure"] is True
    )
    with pytest.raises(ConfigError, match="impure of transform 'stage' must be"):
        map_batch(stage, impure="yes")


# Flags of JAX.


def flagged(name, value, made):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        return made()
    finally:
        jax.config.update(name, before)


def test_x64_is_identity_of_stages_that_draw_from_jax_keys_and_of_no_other():
    kinds = ("key", "seed", "generator")
    stages = {kind: random_map_records(random_stage, name="it", randomness=kind) for kind in kinds}
    for kind, each in stages.items():
        one, other = (
            flagged("jax_enable_x64", x64, lambda each=each: transform_identity(each, version=2))
            for x64 in (False, True)
        )
        found = [difference.path for difference in differences(one, other)]
        assert found == (["dependencies.jax_enable_x64"] if kind == "key" else [])
        assert transform_identity(each, version=1) == flagged(
            "jax_enable_x64", True, lambda each=each: transform_identity(each, version=1)
        )
