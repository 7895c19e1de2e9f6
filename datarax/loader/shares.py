"""Many processes, one state: what each has added to what all began with, and the sum.

The state that all share (that of the last restore, or of the beginning) is counted once. Counters and digests are sums over the
rows that each process owns, so they are exact whoever read what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from datarax.core.tree import decode, digest, encode
from datarax.loader.state import spelled
from datarax.loader.statistics import RunningMeans, Statistics
from datarax.loader.tally import Delivered
from datarax.order import Digest

# Of a state, what each process has of its own; the rest is the same on all.
_OWN = frozenset(
    {
        "_applied_count",
        "_skipped_count",
        "digest_rows",
        "digest_keys",
        "digest_bytes",
        "_is_stats_reset",
        "part",
    }
)
_OWN_MEANS = frozenset({"_computed_stats", "stats_rows"})
_COMMON = ("idx", "position", "the state they began with", "the rest of the state")
_WRAP = (1 << 64) - 1


def share(
    base: Delivered, now: Delivered, statistics: Statistics, state: Mapping[str, Any], *, own_means: bool
) -> dict[str, Any]:
    """What one process has added, and what it must have in common with the others; has JSON.

    Args:
        base: what all began with.
        now: what this one has by now.
        statistics: of this one.
        state: of this one.
        own_means: whether each process averages statistics of its own rows.
    """
    own = _OWN | _OWN_MEANS if own_means else _OWN
    means = statistics.base
    began = [base.digest.to_state(), base.applied, base.skipped, means.rows, means.values()]
    return {
        "idx": now.idx,
        "position": now.position,
        "the state they began with": digest(encode(began))[:16],
        "the rest of the state": digest(encode({k: v for k, v in state.items() if k not in own}))[:16],
        "applied": now.applied - base.applied,
        "skipped": now.skipped - base.skipped,
        "rows": now.digest.rows - base.digest.rows,
        "keys": (now.digest.keys - base.digest.keys) & _WRAP,
        # All rows since are hashed if those before were, and none if not.
        "bytes": None
        if base.digest.bytes is None
        else (cast(int, now.digest.bytes) - base.digest.bytes) & _WRAP,
        "means": encode([statistics.added.values(), statistics.added.rows]),
    }


def summed(
    shares: Sequence[Mapping[str, Any]], base: Delivered, means: RunningMeans
) -> tuple[dict[str, Any], Digest]:
    """The fields of a state that are sums, and the digest, as if one process had read all rows.

    Args:
        shares: one of each process, in the order of processes.
        base: what all began with.
        means: those that all began with.

    Raises:
        ValueError: if they are not of one moment, naming what differs.
    """
    for name in _COMMON:
        values = [each[name] for each in shares]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name} differs between the processes: {', '.join(map(str, values[:8]))}")
    total = base.digest
    for each in shares:
        total = total.add(each["keys"], each["bytes"], each["rows"])
        added, rows = decode(each["means"])
        means = means.after(added, rows) if rows else means
    fields = {
        "_applied_count": base.applied + sum(each["applied"] for each in shares),
        "_skipped_count": base.skipped + sum(each["skipped"] for each in shares),
        "digest_rows": total.rows,
        "digest_keys": total.keys,
        "digest_bytes": total.bytes,
    }
    if len(shares) > 1 and means.rows:
        fields |= {"_computed_stats": means.values(), "stats_rows": means.rows}
    return spelled(fields), total
