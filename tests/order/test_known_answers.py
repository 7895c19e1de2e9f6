"""A change to an algorithm that nobody gave a new version is noticed by the code itself, and named."""

import json

import numpy as np
import pytest

from datarax.core.tree import differences, digest
from datarax.order import ORDER_VERSION, Order, OrderConfig, changed_algorithms, versions
from datarax.order import digest as digest_module
from datarax.order import grain as grain_module
from datarax.order import permutation as permutation_module
from datarax.order import seeds as seeds_module
from datarax.order.versions import CONFIGS, KNOWN, answer, named_version, order_name, positions_of
from tests.order.make_golden import GOLDEN


@pytest.fixture(autouse=True)
def _asked_anew():
    """Answers are kept for the life of a process, in which code does not change outside of these tests."""

    def forget():
        grain_module._simon_table.cache_clear()

    forget()
    yield
    forget()


def order_of(name):
    fields, lengths = CONFIGS[name]
    return Order(OrderConfig(**fields), {"books": lengths[-1]})


def test_this_code_does_what_its_versions_say():
    assert {name: KNOWN[name][1] for name in KNOWN} == {name: answer(name, 1) for name in KNOWN}
    assert changed_algorithms() == []
    for name in CONFIGS:
        assert order_of(name).identity()["version"] == ORDER_VERSION


@pytest.mark.parametrize("name", CONFIGS)
def test_the_known_answers_are_those_of_the_golden_files(name):
    golden = json.loads((GOLDEN / f"order-v1-{name}.json").read_text())
    fields, lengths = CONFIGS[name]
    assert fields == golden["config"]
    assert golden["source"] == versions.SOURCE
    by_length = {each["num_records"]: each["position_index_epoch"] for each in golden["lengths"]}
    wanted = {n: positions_of(name, n) for n in lengths}
    tree = [[n, [key for key in by_length[n] if key[0] in wanted[n]]] for n in lengths]
    assert [len(keys) for _, keys in tree] == [len(wanted[n]) for n in lengths]
    assert digest(tree)[:16] == KNOWN[name][1]


def test_the_known_seeds_and_hashes_are_those_of_the_golden_files():
    seeds = json.loads((GOLDEN / "order-v1-seeds.json").read_text())
    assert digest(seeds["row_seeds"])[:16] == KNOWN["row seeds"][1]
    hashes = json.loads((GOLDEN / "digest-v1.json").read_text())
    rows = hashes["row_hashes"]
    tree = [hashes["key_hashes"], hashes["key_hashes_of_parts"], rows["image"], rows["odd bytes"]]
    assert digest(tree)[:16] == KNOWN["digest"][1]


def test_every_version_has_its_known_answers():
    for name in CONFIGS:
        assert ORDER_VERSION in KNOWN[name]
    assert ORDER_VERSION in KNOWN["row seeds"]
    assert digest_module.DIGEST_VERSION in KNOWN["digest"]


CHANGES = {
    "rounds": (permutation_module, "ROUNDS", 9, {"global", "block"}),
    "a multiplier": (permutation_module, "_MULTIPLY_1", np.uint32(0x7FEB352F), {"global", "block"}),
    "a shift": (permutation_module, "_SHIFT_16", np.uint32(17), {"global", "block"}),
    "the step of windows": (permutation_module, "GOLDEN", 0x9E3779B97F4A7C17, {"block"}),
    "the cipher's rounds": (grain_module, "ROUNDS", 5, {"grain-index-sampler", "grain-map-dataset"}),
    "the cipher's least block": (grain_module, "MIN_BLOCK_BITS", 18, {"grain-index-sampler", "grain-map-dataset"}),
    "the rotation": (
        grain_module,
        "_rotated",
        lambda x, by, half_bits: x,
        {"grain-index-sampler", "grain-map-dataset"},
    ),
    "the mixer": (seeds_module, "_MIX_1", np.uint64(0xBF58476D1CE4E5BB), {"global", "block", "row seeds", "digest"}),
    "a coefficient of the key hash": (digest_module, "_BY_EPOCH", np.uint64(77), {"digest"}),
    "the salt of the row hash": (digest_module, "_POSITION_SALT", np.uint64(77), {"digest"}),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of(what, monkeypatch):
    module, constant, value, changed = CHANGES[what]
    before = {name: order_of(name).identity() for name in CONFIGS}
    grain_module._simon_table.cache_clear()
    monkeypatch.setattr(module, constant, value)
    assert {name for name in KNOWN if versions.deviation(name, 1) is not None} == changed
    for name in CONFIGS:
        found = differences(before[name], order_of(name).identity())
        assert [each.path for each in found] == (["version"] if name in changed else [])
        for each in found:
            assert str(each).startswith("version: was 1, is '1 (this code is another than version 1: ")
    sentences = changed_algorithms()
    assert len(sentences) == len(changed)
    assert all("does not do what version 1 says" in sentence for sentence in sentences)


def test_two_changes_are_two_identities(monkeypatch):
    found = []
    for rounds in (8, 9, 10):
        monkeypatch.setattr(permutation_module, "ROUNDS", rounds)
        found.append(named_version("global", 1))
    assert found[0] == 1
    assert len(set(found)) == 3


def test_a_version_of_which_nothing_is_known_is_itself():
    assert named_version("global", 99) == 99


def test_the_code_is_asked_once_by_each_order(monkeypatch):
    asked = []
    real = versions.answer
    monkeypatch.setattr(versions, "answer", lambda name, version: asked.append(name) or real(name, version))
    order = order_of("global")
    for _ in range(3):
        order.identity()
    assert asked == ["global"]
    assert order_name(OrderConfig(policy="grain", grain_style="map_dataset")) == "grain-map-dataset"
