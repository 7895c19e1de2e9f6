"""Does this code still give what its version says? A few answers are asked for and held against those of the golden files.

A version number is a promise that whoever edits the code has to remember; these answers notice when nobody did. They are asked
for once by each order and for what is used only, in about a millisecond. Golden files pin far more, in tests; what is here
travels with the package, so that a restore can name a changed algorithm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from datarax.core.tree import digest
from datarax.order.digest import DIGEST_VERSION, key_hashes, row_hashes
from datarax.order.policy import ORDER_VERSION, OrderConfig, OrderPolicy
from datarax.order.seeds import id64
from datarax.order.versions import ALGORITHMS

SOURCE = "golden"

# The configs of the golden files, and some of their lengths: one for each way through the code.
CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "none": ({"policy": "none"}, (100,)),
    "global": ({"policy": "global", "seed": 20}, (100, 10**5, 10**12)),
    "block": ({"policy": "block", "seed": 20, "block_size": 16, "window_blocks": 8}, (10**3, 10**9)),
    "grain-index-sampler": (
        {"policy": "grain", "seed": 20, "grain_style": "index_sampler"},
        (65_536, 10**5, 10**9, 10**12),
    ),
    "grain-map-dataset": (
        {"policy": "grain", "seed": 20, "grain_style": "map_dataset", "grain_ops_between": 1},
        (65_536, 10**5, 10**9, 10**12),
    ),
}

KNOWN: dict[str, dict[int, str]] = {
    "none": {1: "a46fe9d3ccf2dc8d"},
    "global": {1: "6aae5fc4afdb11cb"},
    "block": {1: "a6c9c4779183d792"},
    "grain-index-sampler": {1: "9cff5659a98bf331"},
    "grain-map-dataset": {1: "accd4a165802d89e"},
    "row seeds": {1: "8ebbb71c380c59ac"},
    "digest": {1: "0e7c99079231f4c5"},
}
"""Name of an algorithm -> version -> what `answer` gives, as in the golden files. Entries are added, never edited."""


def order_name(config: OrderConfig) -> str:
    """The name among the `CONFIGS` of the algorithm that a config asks for."""
    if config.policy is not OrderPolicy.GRAIN:
        return config.policy.value
    assert config.grain_style is not None
    return f"grain-{config.grain_style.value.replace('_', '-')}"


def positions_of(name: str, num_records: int) -> list[int]:
    """Positions at borders of epochs, blocks and integer widths; a choice of those in the golden files."""
    n = num_records
    first_epoch = {p for p in (0, 1, 17, 128, n // 2, n - 1) if p < n}
    if name.startswith("grain") and n <= 1 << 16:
        return sorted(first_epoch)  # there each further epoch is a table of its own, at a millisecond
    return sorted({*first_epoch, n, 7 * n + 3, 2**32, 2**62 + 3})


def named_version(name: str, version: int) -> int | str:
    """The version of an algorithm as an identity names it: text that tells it apart where the code does not do what it says.

    Args:
        name: one of `KNOWN`.
        version: the version that the code claims to be.
    """
    found = deviation(name, version)
    return version if found is None else f"{version} (this code is another than version {version}: {found})"


def deviation(name: str, version: int) -> str | None:
    """The first digits of this code's answer if it is not the known one; None if it is, or none is known."""
    known = KNOWN[name].get(version)
    found = answer(name, version)
    return None if known is None or found == known else found


def answer(name: str, version: int) -> str:
    """What this code answers for a version of an algorithm, as 16 hex digits."""
    return shortened(functools.partial(_ASKED[name], version))


def shortened(ask: Callable[[], Any]) -> str:
    """An answer (values with canonical JSON) as 16 hex digits, or the kind of error that asking raises."""
    try:
        return digest(ask())[:16]
    except (
        Exception
    ) as error:  # changed code may do anything; whoever asks wants to name it, not to fail with it
        return type(error).__name__


def changed_algorithms() -> list[str]:
    """A sentence for each algorithm of this package that does not do what its version says; [] if all is well."""
    said = []
    for name in KNOWN:
        what, version, consequence = _described(name, ORDER_VERSION)
        if deviation(name, version) is not None:
            said.append(f"{what} of this code does not do what version {version} says: {consequence}")
    return said


def _described(name: str, order_version: int) -> tuple[str, int, str]:
    if name == "digest":
        return "the digest", DIGEST_VERSION, "the digests of all steps differ, whatever was delivered"
    if name == "row seeds":
        return "the seeding of rows", order_version, "random transforms draw other numbers"
    return f"the {name} order", order_version, "other records come at the same positions"


def _keys(name: str, version: int) -> list[Any]:
    from datarax.order.order import Order  # order.py asks this module what its identity is to say

    fields, lengths = CONFIGS[name]
    tree: list[Any] = []
    for n in lengths:
        positions = positions_of(name, n)
        keys = Order(OrderConfig(**fields, version=version), {SOURCE: n}).keys(np.array(positions))
        tree.append([n, [[p, i, e] for p, (_, i, e) in zip(positions, keys.rows(), strict=True)]])
    return tree


def _row_seeds(version: int) -> list[str]:
    index, epoch = np.array([0, 1, 2**40 + 3]), np.array([0, 1, 2**33])
    return _hex(ALGORITHMS[version].row_seeds(7, "crop", np.full(3, id64(SOURCE), np.uint64), index, epoch))


def _hashes(version: int) -> list[list[str]]:
    del version  # one for now
    position = np.array([0, 1, -1, 2**40])
    index, epoch = np.array([5, 6, -1, 7]), np.array([0, 0, -1, 1])
    source = np.array(id64(SOURCE), np.uint64)
    image = (np.arange(4 * 64 * 64 * 3) % 251).astype("f4").reshape(4, 64, 64, 3)  # several segments
    odd = (np.arange(4 * 13) % 251).astype("u1").reshape(4, 13)  # a word that is not full
    return [
        _hex(key_hashes(position, source, index, epoch)),
        _hex(key_hashes(position, source, index, epoch, part=1, start=np.arange(4), length=9)),
        _hex(row_hashes(position, [("image", image)])),
        _hex(row_hashes(position, [("odd bytes", odd)])),
    ]


def _hex(hashes: np.ndarray) -> list[str]:
    return [f"{value:016x}" for value in hashes.tolist()]


_ASKED: dict[str, Callable[[int], Any]] = {
    **{name: functools.partial(_keys, name) for name in CONFIGS},
    "row seeds": _row_seeds,
    "digest": _hashes,
}
