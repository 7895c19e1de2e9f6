"""One state of many processes: each counts the rows that it owns, and the sums are those of one process that read all.

The state that all processes share (that of the last restore, or of the beginning) is counted once; each adds what it has
delivered since. Pure: knows no process index and asks nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from datarax.loader.statistics import RunningMeans
from datarax.order import Digest

if TYPE_CHECKING:
    from datarax.loader.stream import Runtime

_SUMMED = ("_applied_count", "_skipped_count", "digest_rows", "digest_keys", "digest_bytes")
_MEANS = ("_computed_stats", "stats_rows")
_WRAP = (1 << 64) - 1


def contribution(runtime: Runtime, state: Mapping[str, Any], own_means: bool) -> dict[str, Any]:
    """What one process has added, with JSON, and what it must have in common with the others.

    Args:
        runtime: of the stream.
        state: its state.
        own_means: whether each process averages statistics of its own rows, even if it had no row so far.
    """
    now, base, statistics = runtime.tally.delivered, runtime.base, runtime.tally.place.statistics
    return {
        "idx": now.idx,
        "position": now.position,
        "the state they began with": _digest(
            [dict(base.digest.to_state()), base.applied, base.skipped, statistics.base.to_tree()]
        ),
        "the rest of the state": _rest(state, own_means),
        "applied": now.applied - base.applied,
        "skipped": now.skipped - base.skipped,
        "rows": now.digest.rows - base.digest.rows,
        "keys": (now.digest.keys - base.digest.keys) & _WRAP,
        "bytes": None
        if now.digest.bytes is None or base.digest.bytes is None
        else (now.digest.bytes - base.digest.bytes) & _WRAP,
        "means": statistics.added.to_tree(),
    }


def combined(
    runtime: Runtime, state: Mapping[str, Any], contributions: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The state and digest of all processes together; `state` is that of one of them.

    Raises:
        ValueError: if the contributions are not of one moment, naming what differs.
    """
    for name in ("idx", "position", "the state they began with", "the rest of the state"):
        values = [each[name] for each in contributions]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} differs between the processes: {', '.join(map(str, values[:8]))}")
    if len(contributions) == 1:
        return dict(state), runtime.tally.delivered.digest.to_state()
    base = runtime.base
    digest = base.digest
    for each in contributions:
        hashed = digest.bytes is not None and each["bytes"] is not None
        if not hashed:
            digest = Digest(digest.rows, digest.keys, None)
        digest = digest.add(each["keys"], each["bytes"] if hashed else None, each["rows"])
    total = dict(state)
    total["_applied_count"] = np.asarray(
        base.applied + sum(each["applied"] for each in contributions), np.int64
    )
    total["_skipped_count"] = np.asarray(
        base.skipped + sum(each["skipped"] for each in contributions), np.int64
    )
    total["digest_rows"], total["digest_keys"], total["digest_bytes"] = digest.rows, digest.keys, digest.bytes
    means = RunningMeans.merged(
        [
            runtime.tally.place.statistics.base,
            *(RunningMeans.from_tree(each["means"]) for each in contributions),
        ]
    )
    if means.rows:
        total["_computed_stats"], total["stats_rows"] = means.values(), means.rows
    return total, digest.to_state()


def _rest(state: Mapping[str, Any], own_means: bool) -> str:
    """Digest of what no process has for itself: random streams, statistics that were set."""
    left_out = {*_SUMMED, "_is_stats_reset", *(_MEANS if own_means else ())}
    return _digest({name: value for name, value in state.items() if name not in left_out})


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(tree), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        array = np.asarray(value)
        return [str(array.dtype), list(array.shape), array.tobytes().hex()]
    return repr(value)
