"""What a loader's state may say, and where it lets the schedule begin.

Pure: functions of a state and a schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datarax.loader.statistics import RunningMeans
from datarax.order import Schedule


def check_state(state: Mapping[str, Any], schedule: Schedule, num_records: int) -> None:
    """Refuses a state that no loader with this schedule and source can have had.

    Args:
        state: of the right structure.
        schedule: of the loader that is to be restored.
        num_records: of its source.

    Raises:
        ValueError: naming the field.
    """
    idx, position, epoch = state["idx"], state["position"], state["epoch"]
    for field in ("idx", "position", "epoch", "digest_rows", "digest_keys", "stats_rows"):
        if state[field] is None:
            raise ValueError(f"{field}: expected an int, got None")
    if epoch != position // num_records:
        raise ValueError(
            f"epoch: {epoch} does not belong to position {position} of a source with {num_records} records"
        )
    if schedule.num_rows is not None and position > schedule.num_rows:
        raise ValueError(f"position: {position} is beyond the {schedule.num_rows} rows of this run")
    for field in ("digest_keys", "digest_bytes"):
        if (state[field] or 0) >= 1 << 64:
            raise ValueError(f"{field}: {state[field]} does not fit 64 bits")
    if idx == 0 and position != 0:
        raise ValueError(f"idx: 0 batches cannot have handed over {position} rows")
    if state["stats_rows"] and not isinstance(state["_computed_stats"], dict):
        raise ValueError(f"_computed_stats: there are no means of the {state['stats_rows']} stats_rows")
    RunningMeans(state["_computed_stats"] if state["stats_rows"] else None, state["stats_rows"])


def schedule_base(schedule: Schedule, idx: int, position: int) -> tuple[int, int]:
    """Where a schedule like this one must start so that step `idx` begins at `position`."""
    batch_size, end = schedule.batch_size, schedule.num_rows
    on_grid = position == idx * batch_size
    padded_end = end is not None and position == end and idx == -(-end // batch_size)
    return (0, 0) if on_grid or padded_end else (idx, position)
