"""Adds golden files that are missing, of orders, snapshots and behaviour: `make golden`. Overwrites nothing.

Of the behaviour, which is no promise to stored runs, a file that is to be written anew can be named: `--replace states.json`.
"""

import argparse
import hashlib
import os
import sys


def main():
    """Prints the lines for the two `test_golden.py`; 1 if no file was missing."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("NPROC", "2")
    from tests.behaviour import make as behaviour
    from tests.checkpoint import make_golden as snapshots
    from tests.order import make_golden as orders

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replace", action="append", default=[], choices=list(behaviour.trees()))
    replaced = parser.parse_args().replace

    orders_written = orders.write_missing(orders.GOLDEN)
    for name in orders_written:
        print(f'tests/order: "{name}": "{_sha256(orders.GOLDEN / name)}",')
    snapshots_written = snapshots.write_missing(snapshots.GOLDEN)
    for name in snapshots_written:
        print(f'tests/checkpoint: "{name}": "{_sha256(snapshots.GOLDEN / name / snapshots.EXPECTED)}",')
    behaviour_written = behaviour.write(behaviour.GOLDEN, replaced)
    for name in behaviour_written:
        print(f"tests/behaviour: {name}")
    if orders_written or snapshots_written or behaviour_written:
        return 0
    print(
        "nothing to write: golden files are never overwritten, and a changed algorithm or format needs a new version"
    )
    return 1


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
