"""Laws of the order: every record once an epoch, any position alone, and the way back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datarax.order import Order, OrderConfig


@given(n=st.integers(1, 400), seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40))
def test_each_epoch_delivers_every_record_once(n, seed, first):
    order = Order(OrderConfig(seed=seed), {"books": n})
    keys = order.keys(np.arange(first * n, (first + 2) * n))
    for e in (0, 1):
        assert sorted(keys[e * n : (e + 1) * n].index.tolist()) == list(range(n))
        assert set(keys[e * n : (e + 1) * n].epoch.tolist()) == {first + e}
