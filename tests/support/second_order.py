"""A made-up second version of the order, as if it had been added and were the default."""

import contextlib
from unittest import mock

import numpy as np

from datarax.order.permutation import keyed_permutations
from datarax.order.seeds import derive_seed
from datarax.order.versions import Algorithms

SECOND = 2


def _permutations(config, source, num_records, epochs):
    seeds = [derive_seed(config.seed, "shuffle anew", source, epoch) for epoch in epochs]
    return keyed_permutations(num_records, np.array(seeds, np.uint64))


def _row_seeds(seed, transform, source_ids, index, epoch):
    return source_ids ^ index.astype(np.uint64) ^ np.uint64(derive_seed(seed, transform))


@contextlib.contextmanager
def second_version():
    """Inside, version 2 is there and the newest."""
    with (
        mock.patch.dict("datarax.order.versions.ALGORITHMS", {SECOND: Algorithms(_permutations, _row_seeds)}),
        mock.patch("datarax.order.versions.ORDER_VERSION", SECOND),
        mock.patch("datarax.loader.config.ORDER_VERSION", SECOND),
    ):
        yield
