"""Many processes, one run: how they start and leave, how they agree, and which rows each reads.

The only part that asks JAX which process this is; the others are told by `Processes` and `Slots`.
"""

from datarax.multihost.processes import (
    Processes,
    check_agreement,
)
from datarax.multihost.slots import (
    Slots,
    agree_on_slots,
    check_slots,
    chosen_slots,
    fitting_row_shards,
    leading_axis,
    slots_of,
)
from datarax.multihost.startup import (
    COORDINATOR,
    COUNT,
    INDEX,
    MultihostConfig,
    current,
    finish,
    handler_address,
    leave_at_once,
    notice_replaced,
    start,
)

__all__ = [
    "COORDINATOR",
    "COUNT",
    "INDEX",
    "MultihostConfig",
    "Processes",
    "Slots",
    "agree_on_slots",
    "check_agreement",
    "check_slots",
    "chosen_slots",
    "current",
    "finish",
    "fitting_row_shards",
    "handler_address",
    "leading_axis",
    "leave_at_once",
    "notice_replaced",
    "slots_of",
    "start",
]
