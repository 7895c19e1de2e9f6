"""Each process of a run has a state of its own in the one snapshot, and none takes that of another shard."""

import grain

from datarax import Checkpointer
from datarax.core.errors import DataraxError
from tests.support.grain_pipelines import double, wrap
from tests.support.joined import joined


def shard(index, count):
    return wrap(grain.MapDataset.range(23).shuffle(seed=2)[index::count].map(double))


def save(processes, run):
    module = shard(processes.index, processes.count)
    with Checkpointer(run, processes=processes) as checkpointer:
        for _ in range(3):
            next(module)
        checkpointer.save(3, data=module)
        checkpointer.wait()
    return list(module)


def go_on(processes, run):
    module = shard(processes.index, processes.count)
    with Checkpointer(run, processes=processes) as checkpointer:
        checkpointer.restore(data=module)
    return list(module)


def crossed(processes, run):
    module = shard(1 - processes.index, processes.count)
    before = module.get_state()
    with Checkpointer(run, processes=processes) as checkpointer:
        try:
            checkpointer.restore(data=module)
        except DataraxError as error:
            return str(error), module.get_state() == before
    return None


def test_every_process_goes_on_with_its_own_shard_and_refuses_another(tmp_path):
    run = tmp_path / "run"
    rest = joined(save, run, count=2)
    assert sorted(map(len, rest)) == [8, 9]
    assert joined(go_on, run, count=2) == rest
    for told, unchanged in joined(crossed, run, count=2):
        assert "shards.pipeline.02_SliceMapDataset: this is the state of shard" in told
        assert unchanged
