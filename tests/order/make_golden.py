"""Writes the golden files of orders and digests that are missing: `python -m tests.order.make_golden`.

A golden file is never edited or overwritten. When an algorithm changes on purpose, raise `ORDER_VERSION` (or
`DIGEST_VERSION`), run `make golden` once, and enter the new file's hash in `test_golden.py`; the old files stay.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from datarax.order import (
    DIGEST_VERSION,
    MAX_POSITION,
    Digest,
    Order,
    OrderConfig,
    RecordKeys,
    derive_seed,
    id64,
    key_hashes,
    row_hashes,
)
from datarax.order.versions import ALGORITHMS

GOLDEN = Path(__file__).parents[2] / "checkpoints" / "golden" / "order"

SOURCE = "golden"
POWERS = [10**k for k in range(2, 13)]
GRAIN_LENGTHS = [*POWERS, 65_536, 65_537, 262_145]
LARGEST_WHOLE_EPOCH = 10**5

CONFIGS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "none": ({"policy": "none"}, POWERS),
    "global": ({"policy": "global", "seed": 20}, POWERS),
    "block": ({"policy": "block", "seed": 20, "block_size": 16, "window_blocks": 8}, POWERS),
    "grain-index-sampler": ({"policy": "grain", "seed": 20, "grain_style": "index_sampler"}, GRAIN_LENGTHS),
    "grain-map-dataset": (
        {"policy": "grain", "seed": 20, "grain_style": "map_dataset", "grain_ops_between": 1},
        GRAIN_LENGTHS,
    ),
}


def order_tree(name: str, version: int) -> dict[str, Any]:
    """Keys of one policy at every length: at probed positions, and of three whole epochs as one hash."""
    fields, lengths = CONFIGS[name]
    config = OrderConfig(**fields, version=version)
    orders = [Order(config, {SOURCE: n}) for n in lengths]
    return {
        "order_version": version,
        "config": fields,
        "source": SOURCE,
        "lengths": [_keys_of(order) for order in orders],
    }


def _keys_of(order: Order) -> dict[str, Any]:
    n = order.num_records
    positions = _probed(n)
    keys = [[p, i, e] for p, (_, i, e) in zip(positions, order.keys(np.array(positions)).rows(), strict=True)]
    tree: dict[str, Any] = {"num_records": n, "position_index_epoch": keys}
    if n <= LARGEST_WHOLE_EPOCH:
        index = order.keys(np.arange(3 * n)).index.astype("<i8")
        tree["three_epochs_sha256"] = hashlib.sha256(index.tobytes()).hexdigest()
    return tree


def _probed(n: int) -> list[int]:
    """Positions at the borders of epochs, windows, blocks and integer widths."""
    near = [0, 1, 2, 15, 16, 17, 127, 128, 129, n // 2, n - 2, n - 1, n, n + 1, 2 * n - 1, 2 * n, 7 * n + 3]
    far = [2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62 + 3, MAX_POSITION - 1, MAX_POSITION]
    return sorted({p for p in [*near, *far] if p <= MAX_POSITION})


def seeds_tree(version: int) -> dict[str, Any]:
    """Derived seeds, ids and row seeds."""
    paths = [[], [0], [1, "shuffle", "books", 0], [-1, "", "ü", 2**64]]
    index, epoch = np.array([0, 1, 2**40 + 3]), np.array([0, 1, 2**33])
    order = Order(OrderConfig(seed=7, version=version), {SOURCE: 2**41})
    rows = order.row_seeds("crop", RecordKeys(np.zeros(3, np.int32), index, epoch))
    return {
        "order_version": version,
        "derive_seed": [[path, f"{derive_seed(*path):016x}"] for path in paths],
        "id64": {name: f"{id64(name):016x}" for name in ("", SOURCE, "ü")},
        "row_seeds": [f"{seed:016x}" for seed in rows.tolist()],
    }


def digest_tree() -> dict[str, Any]:
    """Key hashes, row hashes of several dtypes and shapes, and the digest of a short run."""
    position = np.array([0, 1, -1, 2**40])
    index, epoch = np.array([5, 6, -1, 7]), np.array([0, 0, -1, 1])
    keys = key_hashes(position, id64(SOURCE), index, epoch)
    parts = key_hashes(position, id64(SOURCE), index, epoch, part=1, start=np.arange(4), length=9)
    batches = {name: _batch(dtype, shape) for name, (dtype, shape) in _LEAVES.items()}
    leaves = {name: row_hashes(position, [(name, batch)]) for name, batch in batches.items()}
    rows = row_hashes(position, list(batches.items()))
    digest = Digest.zero(with_bytes=True).add(keys.sum(), rows.sum(), 3)
    return {
        "digest_version": DIGEST_VERSION,
        "key_hashes": _hex(keys),
        "key_hashes_of_parts": _hex(parts),
        "row_hashes": {name: _hex(hashes) for name, hashes in leaves.items()},
        "row_hashes_of_all_leaves": _hex(rows),
        "digest": digest.to_state(),
    }


_LEAVES = {
    "uint8 row of 2 KiB": ("u1", (2048,)),
    "odd bytes": ("u1", (13,)),
    "scalar": ("i4", ()),
    "empty": ("f4", (0, 3)),
    "image": ("f4", (64, 64, 3)),
    "half": ("f2", (5,)),
    "bfloat16": (ml_dtypes.bfloat16, (5,)),
    "bool": ("?", (9,)),
    "text": ("S3", (2,)),
}


def _batch(dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Four rows of counting numbers modulo 251, as the dtype."""
    count = np.arange(4 * int(np.prod(shape, dtype=int))) % 251
    return count.astype(dtype).reshape(4, *shape)


def _hex(hashes: np.ndarray) -> list[str]:
    return [f"{value:016x}" for value in hashes.tolist()]


def golden_trees() -> dict[str, dict[str, Any]]:
    """File name -> content: of the order every version there ever was, of the digest the present one."""
    trees = {}
    for version in ALGORITHMS:
        trees |= {f"order-v{version}-{name}.json": order_tree(name, version) for name in CONFIGS}
        trees[f"order-v{version}-seeds.json"] = seeds_tree(version)
    trees[f"digest-v{DIGEST_VERSION}.json"] = digest_tree()
    return trees


def spelled(tree: dict[str, Any]) -> str:
    """JSON with each innermost list on one line, so that a difference can be read."""
    text = json.dumps(tree, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^][{}]*\]", lambda inner: " ".join(inner.group().split()), text) + "\n"


def write_missing(directory: Path) -> list[str]:
    """Writes each golden file that the directory lacks, and returns their names."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = {name: tree for name, tree in golden_trees().items() if not (directory / name).exists()}
    for name, tree in missing.items():
        (directory / name).write_text(spelled(tree), encoding="utf-8")
    return list(missing)


def main() -> int:
    """Prints the lines for `test_golden.py`; 1 if no file was missing."""
    written = write_missing(GOLDEN)
    for name in written:
        print(f'    "{name}": "{hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest()}",')
    if not written:
        print(
            "nothing to write: golden files are never overwritten, and a changed algorithm needs a new version"
        )
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
