"""Which order: the policies, the config that chooses one, and the algorithms of each `ORDER_VERSION`; is this code them?

One entry for each version that ever was, and none is ever changed: a run keeps the version it was begun with, so every version
must stay callable for ever. A new version is a new entry made of new functions: what an old entry calls, golden files pin.

A version number is a promise that whoever edits the code has to remember. A few known answers notice when nobody did: each
order asks once, for what it uses, in about a millisecond. Golden files pin far more, in tests; what is here travels with the
package, so that a restore can name a changed algorithm. Knows nothing of positions; `order.py` asks it.
"""

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np

from datarax.core.config import Checked, Limit, Natural, Positive, check_fields
from datarax.core.errors import ConfigError
from datarax.core.tree import digest
from datarax.order.digest import DIGEST_VERSION, key_hashes, row_hashes
from datarax.order.grain import GrainPermutations, derived_shuffle_seed
from datarax.order.permutation import BlockPermutations, Permutations, keyed_permutations
from datarax.order.seeds import derive_seed, id64, row_seeds

ORDER_VERSION = 1
"""Raise this when any policy gives another key for any position, add an entry to `ALGORITHMS` and a golden file."""


class OrderPolicy(enum.StrEnum):
    """How the records of one epoch are arranged."""

    NONE = "none"
    """As they stand in the source, every epoch alike."""
    GLOBAL = "global"
    """A keyed permutation of all records, another one each epoch."""
    BLOCK = "block"
    """Storage blocks in a permuted order, their records mixed inside windows of blocks: reads stay long."""
    GRAIN = "grain"
    """What Grain's global shuffle makes of it, bit for bit; for runs that move over from Grain."""


class GrainStyle(enum.StrEnum):
    """How the Grain run that is moved over was given its seed."""

    INDEX_SAMPLER = "index_sampler"
    """`IndexSampler(shuffle=True, seed=seed)`, and also `MapDataset.shuffle(seed=seed)`."""
    MAP_DATASET = "map_dataset"
    """`MapDataset.seed(seed)` and later `.shuffle()`, which hashes the seed with its distance from `seed`."""


_FIELD_OF_POLICY = {
    "block_size": OrderPolicy.BLOCK,
    "window_blocks": OrderPolicy.BLOCK,
    "grain_style": OrderPolicy.GRAIN,
}


@dataclass(frozen=True, kw_only=True)
class OrderConfig:
    """Which order, with its seed; every field that matters for the policy is identity."""

    policy: Checked[OrderPolicy] = OrderPolicy.GLOBAL
    """How the records of one epoch are arranged."""
    seed: Natural = 0
    """0 <= seed < 2^63. The key of the shuffle, hashed with the source's name and the epoch; never added."""

    block_size: Positive | None = None
    """Consecutive records that stay together in storage; needed for, and only for, the block policy."""
    window_blocks: Positive | None = None
    """Blocks whose records are mixed with each other; needed for, and only for, the block policy."""
    grain_style: Checked[GrainStyle | None] = None
    """How the Grain run got its seed; needed for, and only for, the grain policy."""
    grain_ops_between: (
        Annotated[int, Limit(lambda count: 0 <= count < 2**31, "from 0 to 2^31 - 1")] | None
    ) = None
    """Operations between `seed` and `shuffle` of the Grain pipeline (None: 0); only for `map_dataset`."""
    version: int = ORDER_VERSION
    """Which algorithms: every version that ever was can be asked for, so that a run keeps the one it was begun with."""

    def __post_init__(self) -> None:
        check_fields(self, "the order")
        if type(self.version) is not int or not 1 <= self.version <= ORDER_VERSION:
            raise ConfigError(
                f"order.version is {self.version!r} (loader.order_version in a config); this version of datarax has the orders "
                f"1 to {ORDER_VERSION}: use one of them, or a later datarax if the run was made by one"
            )
        for field, policy in _FIELD_OF_POLICY.items():
            value = getattr(self, field)
            if self.policy is policy and value is None:
                choices = f", one of: {', '.join(GrainStyle)}" if field == "grain_style" else ""
                raise ConfigError(f"order.policy {policy.value!r} needs order.{field}{choices}")
            if self.policy is not policy and value is not None:
                raise ConfigError(
                    f"order.{field} is {value!r} but order.policy is {self.policy.value!r}; it is for "
                    f"{policy.value!r} only: leave it out or change the policy"
                )
        if self.grain_ops_between is not None and self.grain_style is not GrainStyle.MAP_DATASET:
            raise ConfigError(
                f"order.grain_ops_between is {self.grain_ops_between!r}; it is for order.grain_style "
                "'map_dataset' only: leave it out or change the style"
            )
        # Grain takes no more there; everywhere else the limit is TOML's.
        if self.grain_style is GrainStyle.INDEX_SAMPLER and self.seed >= 2**32:
            raise ConfigError(
                f"seed of the order must be below 2^32 for Grain's IndexSampler, got {self.seed}"
            )


@dataclass(frozen=True)
class Algorithms:
    """What one version of the order is made of."""

    permutations: Callable[[OrderConfig, str, int, tuple[int, ...]], Permutations]
    """(config, source name, number of records, epochs) -> where each record of these epochs goes; not for the policy
    `none`, nor for one record, which every version leaves where they are."""
    row_seeds: Callable[[int, str, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(seed, transform, source ids, index, epoch) -> one seed for each row; see `seeds.row_seeds`."""


def _permutations_v1(
    config: OrderConfig, source: str, num_records: int, epochs: tuple[int, ...]
) -> Permutations:
    def seeds(purpose: str) -> np.ndarray:
        return np.array([derive_seed(config.seed, purpose, source, epoch) for epoch in epochs], np.uint64)

    if config.policy is OrderPolicy.GRAIN:
        seed = config.seed
        if config.grain_style is GrainStyle.MAP_DATASET:
            seed = derived_shuffle_seed(seed, config.grain_ops_between or 0)
        return GrainPermutations(
            num_records, np.array([(seed + epoch) % 2**32 for epoch in epochs], np.uint32)
        )
    if config.policy is OrderPolicy.BLOCK:
        return BlockPermutations(
            num_records,
            cast(int, config.block_size),
            cast(int, config.window_blocks),
            block_seeds=seeds("shuffle blocks"),
            window_seeds=seeds("shuffle windows"),
        )
    return keyed_permutations(num_records, seeds("shuffle"))


ALGORITHMS: Mapping[int, Algorithms] = {1: Algorithms(_permutations_v1, row_seeds)}
"""`ORDER_VERSION` -> its algorithms, for every version from 1 on."""

# Known answers

SOURCE = "golden"
"""The name of the source that is asked about."""

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
"""The configs of the golden files, and some of their lengths: one for each way through the code."""

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
    return f"grain-{config.grain_style}".replace("_", "-")


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


_CHANGED_ORDER = (
    "the {name} order of this code does not do what version {version} says: "
    "other records come at the same positions"
)
_CHANGED = {
    "digest": "the digest of this code does not do what version {version} says: "
    "the digests of all steps differ, whatever was delivered",
    "row seeds": "the seeding of rows of this code does not do what version {version} says: "
    "random transforms draw other numbers",
}


def changed_algorithms() -> list[str]:
    """A sentence for each algorithm of this package that does not do what its version says; [] if all is well."""
    newest = dict.fromkeys(KNOWN, ORDER_VERSION) | {"digest": DIGEST_VERSION}
    changed = [name for name, version in newest.items() if deviation(name, version) is not None]
    return [_CHANGED.get(name, _CHANGED_ORDER).format(name=name, version=newest[name]) for name in changed]


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


def _hashes(_: int) -> list[list[str]]:  # one version for now
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
