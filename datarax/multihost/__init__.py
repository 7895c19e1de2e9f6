"""Many processes, one run: how they start and leave, how they agree, and which rows each reads.

The only part that asks JAX which process this is; the others are told by `Processes` and `Slots`.
"""

from datarax.multihost.processes import Processes as Processes
from datarax.multihost.processes import check_agreement as check_agreement
from datarax.multihost.slots import Slots as Slots
from datarax.multihost.slots import check_slots as check_slots
from datarax.multihost.slots import chosen_slots as chosen_slots
from datarax.multihost.slots import fitting_row_shards as fitting_row_shards
from datarax.multihost.slots import leading_axis as leading_axis
from datarax.multihost.slots import slots_of as slots_of
from datarax.multihost.startup import COORDINATOR as COORDINATOR
from datarax.multihost.startup import COUNT as COUNT
from datarax.multihost.startup import INDEX as INDEX
from datarax.multihost.startup import MultihostConfig as MultihostConfig
from datarax.multihost.startup import current as current
from datarax.multihost.startup import finish as finish
from datarax.multihost.startup import handler_address as handler_address
from datarax.multihost.startup import leave_at_once as leave_at_once
from datarax.multihost.startup import notice_replaced as notice_replaced
from datarax.multihost.startup import start as start

__all__ = [
    "COORDINATOR",
    "COUNT",
    "INDEX",
    "MultihostConfig",
    "Processes",
    "Slots",
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
