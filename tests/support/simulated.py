"""Thousands of processes in one: each has one of the CPU devices that XLA was told to make; the shardings are real."""

import os

DEVICES = 4096


def force_devices(count=DEVICES):
    """Before JAX starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"


def check_all(axes, *, rows_per_shard=2, steps=(1, 10**9)):
    """Every process's slots and record keys under a mesh of all devices; what they make together is what one process reads.

    Args:
        axes: name -> size of the mesh; rows are split over `data`.
        rows_per_shard: rows of each row shard.
        steps: which steps to compare.

    Returns:
        How many processes own slots.
    """
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from datarax.multihost import slots_of
    from datarax.order import Order, OrderConfig, Segment, Timeline

    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes))
    batch_size = axes["data"] * rows_per_shard
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    order = Order(OrderConfig(seed=3), {"web": 10**12})
    timeline = Timeline(segments=(Segment(order=order, batch_size=batch_size),))
    whole = {step: timeline.rows_at(np.array([step])) for step in steps}
    readers = np.zeros(batch_size, np.int64)
    owners = np.zeros(batch_size, np.int64)
    sums = dict.fromkeys(steps, 0)
    owning = 0
    for process in range(len(mesh.devices.flat)):
        slots = slots_of(sharding, batch_size, process_index=process, process_of=lambda device: device.id)
        readers[slots.rows] += 1
        owners[slots.owned] += 1
        owning += len(slots.owned) > 0
        if process % 64 and process != len(mesh.devices.flat) - 1 and len(slots.owned) == 0:
            continue
        owned = np.isin(slots.rows, slots.owned)
        for step in steps:
            mine, all_of_it = timeline.rows_at(np.array([step]), slots.rows), whole[step]
            assert np.array_equal(mine.keys.index, all_of_it.keys.index[slots.rows])
            assert np.array_equal(mine.position, all_of_it.position[slots.rows])
            sums[step] += int(mine.hashes()[owned].sum(dtype=np.uint64))
    assert np.all(owners == 1), "every slot has one owner"
    assert np.all(readers == len(mesh.devices.flat) // axes["data"])
    for step in steps:
        assert sums[step] % 2**64 == int(whole[step].hashes().sum(dtype=np.uint64))
    return owning
