"""Golden files: what every later version must give for every position, and what it must never edit."""

import hashlib
import json

import pytest

from datarax.core.tree import differences
from datarax.order import DIGEST_VERSION, ORDER_VERSION
from tests.order.make_golden import GOLDEN, golden_trees, write_missing

# Enter a line when `make_golden` prints it; never change one.
SHA256 = {
    "digest-v1.json": "65f1b06e9600ad1d2df6e6750959bcd86b9db01f1cb7d5753ea6a8e489ccad75",
    "order-v1-block.json": "03866b9c49cd37c67b061c58c07fc43ca6d64462b8fa264e099a9b36ed528df7",
    "order-v1-global.json": "06966326f84b6c45ec37584c4f3b6541e8f7792e1b896717097c631418987281",
    "order-v1-grain-index-sampler.json": "46dabc39b642eaac50bd704cc23e3307bc230969df683ab0ea68bbbd2f460c35",
    "order-v1-grain-map-dataset.json": "236f21597ee6c8177317512a8d74b34d7b2ccce977a8dde165077313b4665798",
    "order-v1-none.json": "e4b6fea40bc6b6635ecc044cf9680223f3234ad404f66842c3228fda36cd5857",
    "order-v1-seeds.json": "04fff055772820b7f678b2c56ca43945df787a53f034d8a191a9019d35935f18",
}

TREES = golden_trees()


@pytest.mark.parametrize("name", TREES)
def test_every_version_gives_what_its_golden_file_says(name):
    path = GOLDEN / name
    assert path.exists(), (
        f"{name} is missing: for a version raised on purpose, run `python -m tests.order.make_golden`"
    )
    golden = json.loads(path.read_text(encoding="utf-8"))
    found = differences(golden, json.loads(json.dumps(TREES[name])))
    assert not found, (
        f"{name}: {len(found)} values changed, first {found[0]}. An order that changes its keys, or a digest that "
        f"changes its hashes, needs a new version (now {ORDER_VERSION} and {DIGEST_VERSION})"
    )


def test_golden_files_are_never_edited_or_lost():
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in GOLDEN.glob("*.json")}
    assert found == SHA256


def test_golden_files_are_never_overwritten(tmp_path):
    kept = f"digest-v{DIGEST_VERSION}.json"
    (tmp_path / kept).write_text("as it was")
    written = write_missing(tmp_path)
    assert sorted([*written, kept]) == sorted(TREES)
    assert (tmp_path / kept).read_text() == "as it was"
    assert all((tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes() for name in written)
    assert write_missing(tmp_path) == []


def test_every_power_of_ten_to_a_million_millions_is_pinned():
    for name in ("none", "global", "block"):
        lengths = [row["num_records"] for row in TREES[f"order-v{ORDER_VERSION}-{name}.json"]["lengths"]]
        assert lengths == [10**k for k in range(2, 13)]
