"""Which leaves of a model hold inf or NaN, from snapshot to snapshot.

Both may be meant: the best loss so far begins at inf, and a mask is 0 and -inf. So a value is no fault by itself; what was not
there in the snapshot before is worth a word.
"""

from __future__ import annotations

import numpy as np

from datarax.audit.report import SnapshotReport, VerifyReport

_BLOCK = 1 << 20  # values; with the booleans that are made of them a block stays in the cache

_NAMED_LEAVES = 5


def held(leaf: np.ndarray) -> str | None:
    """What a leaf holds that is not finite: "nan", else "inf" of either sign, else None. No copy of the leaf is made."""
    if leaf.dtype.kind not in "fcV":  # bfloat16 and its like are "V" to NumPy
        return None
    found, values = None, leaf.reshape(-1)
    for begin in range(0, values.size, _BLOCK):
        block = values[begin : begin + _BLOCK]
        if np.isfinite(block).all():
            continue
        if np.isnan(block).any():
            return "nan"
        found = "inf"
    return found


def note_not_finite(report: VerifyReport, *, require_finite: bool) -> None:
    """Tells of each snapshot whose model holds inf or NaN where the one before did not: a note, or a problem if so asked.

    The first one has none before. An inf there may be how it began; a NaN is told of all the same.
    """
    before: SnapshotReport | None = None
    for snapshot in report.snapshots:
        if snapshot.model_leaves is None:  # only in the ledger, or damaged
            continue
        news = _news(snapshot, before)
        if news and require_finite:
            snapshot.problems.append(f"model: {news} (--require-finite)")
        elif news:
            report.notes.append(f"snapshot {snapshot.step}: {news}, as it was recorded")
        before = snapshot


def _news(snapshot: SnapshotReport, before: SnapshotReport | None) -> str:
    """What a snapshot's model holds that the one before did not; "" if nothing."""
    was = {} if before is None else before.not_finite
    news = [
        f"{path} ({value})"
        for path, value in snapshot.not_finite.items()
        if was.get(path) not in (value, "nan") and (before is not None or value == "nan")
    ]
    if not news:
        return ""
    more = f" and {len(news) - _NAMED_LEAVES} more" if len(news) > _NAMED_LEAVES else ""
    since = "" if before is None else f", which snapshot {before.step} does not"
    return f"{', '.join(news[:_NAMED_LEAVES])}{more} of the model hold what is not finite{since}"


__all__ = ["held", "note_not_finite"]
