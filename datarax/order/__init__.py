"""Which record stands at which position: order, timeline and digest, as pure integer maths on NumPy vectors.

Read `order.py` first, then `timeline.py`. Nothing here touches JAX, files, threads or a process index.
"""

from datarax.order.digest import DIGEST_VERSION, Digest, key_hashes, key_hashes_of_pass, row_hashes
from datarax.order.order import Order, RecordKeys
from datarax.order.seeds import MAX_POSITION, derive_seed, id64, mix64, row_seeds
from datarax.order.timeline import Remainder, Rows, Segment, Timeline
from datarax.order.versions import ORDER_VERSION, GrainStyle, OrderConfig, OrderPolicy, changed_algorithms

__all__ = [
    "DIGEST_VERSION",
    "MAX_POSITION",
    "ORDER_VERSION",
    "Digest",
    "GrainStyle",
    "Order",
    "OrderConfig",
    "OrderPolicy",
    "RecordKeys",
    "Remainder",
    "Rows",
    "Segment",
    "Timeline",
    "changed_algorithms",
    "derive_seed",
    "id64",
    "key_hashes",
    "key_hashes_of_pass",
    "mix64",
    "row_hashes",
    "row_seeds",
]
