"""Which record stands at which position: order, schedule and digest, as pure integer maths on NumPy vectors.

Read `order.py` first, then `permutation.py`. Nothing here touches JAX, files, threads or a process index.
"""

from datarax.order.digest import DIGEST_VERSION as DIGEST_VERSION
from datarax.order.digest import Digest as Digest
from datarax.order.digest import key_hashes as key_hashes
from datarax.order.digest import key_hashes_of_pass as key_hashes_of_pass
from datarax.order.digest import row_hashes as row_hashes
from datarax.order.known_answers import changed_algorithms as changed_algorithms
from datarax.order.order import Order as Order
from datarax.order.order import RecordKeys as RecordKeys
from datarax.order.policy import ORDER_VERSION as ORDER_VERSION
from datarax.order.policy import GrainStyle as GrainStyle
from datarax.order.policy import OrderConfig as OrderConfig
from datarax.order.policy import OrderPolicy as OrderPolicy
from datarax.order.positions import MAX_POSITION as MAX_POSITION
from datarax.order.seeds import derive_seed as derive_seed
from datarax.order.seeds import id64 as id64
from datarax.order.seeds import mix64 as mix64
from datarax.order.seeds import row_seeds as row_seeds
from datarax.order.timeline import Remainder as Remainder
from datarax.order.timeline import Rows as Rows
from datarax.order.timeline import Segment as Segment
from datarax.order.timeline import Timeline as Timeline

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
