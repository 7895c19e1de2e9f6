"""However the rows of a batch are shared among processes: together they deliver, count and digest what one alone does."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datarax.core.errors import ConfigError
from datarax.core.tree import decode
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource, RangeConfig, RangeSource
from datarax.transforms import map_batch, random_map_batch
from tests.support.tiers import examples

RECORDS = 23


def columns(numbers):
    return {"x": np.asarray(numbers, np.int64)}


def noisy(batch, seeds):
    return {**batch, "noise": (seeds >> np.uint64(11)).astype(np.float64)}


def statistics(batch):
    rows = batch["x"][batch.get("row_mask", slice(None))]
    return {"mean": rows.mean(), "two": np.array([rows.mean(), 1.0])}


def loader(batch_size, *, rows=None, owned=None, remainder="pad", epochs=2, stats=False):
    config = DataLoaderConfig(
        batch_size=batch_size,
        num_epochs=epochs,
        seed=4,
        remainder=remainder,
        byte_digest=True,
        read_ahead=0,
        batch_stats_fn=statistics if stats else None,
    )
    source = MemorySource(MemoryConfig(), np.arange(RECORDS) * 10, name="numbers")
    stages = [map_batch(lambda records: {"x": np.asarray(records)}, name="columns", version=1)]
    stages.append(random_map_batch(noisy, name="noisy"))
    return DataLoader(config, source, transforms=stages, rows=rows, owned=owned)


@st.composite
def splits(draw, batch_size):
    """For each process the slots that it reads, each slot read by someone, and those it owns: the lowest reader does."""
    count = draw(st.integers(1, 4))
    readers = [draw(st.sets(st.integers(0, count - 1), min_size=1)) for _ in range(batch_size)]
    for process in range(count):  # each reads something
        if not any(process in each for each in readers):
            readers[draw(st.integers(0, batch_size - 1))].add(process)
    rows = [[slot for slot, each in enumerate(readers) if process in each] for process in range(count)]
    owned = [[slot for slot in rows[process] if min(readers[slot]) == process] for process in range(count)]
    return list(zip(rows, owned, strict=True))


def shared(split, batch_size, **settings):
    return [loader(batch_size, rows=rows, owned=owned, **settings) for rows, owned in split]


def advance(loaders, steps):
    for each in loaders:
        for _ in range(steps):
            next(each)


def total(loaders):
    parts = [each.contribution() for each in loaders]
    states = [each.combined(parts) for each in loaders]
    for state, digest in states:
        assert plain(state) == plain(states[0][0])
        assert digest == states[0][1]
    return states[0]


def plain(state, *, but=()):
    return {name: str(value) for name, value in state.items() if name not in but}


@examples(60)
@given(st.data(), st.integers(1, 7), st.sampled_from(["pad", "drop"]), st.booleans())
def test_the_sum_of_all_processes_is_the_state_of_one(data, batch_size, remainder, stats):
    kinds = {"remainder": remainder, "stats": stats}
    with loader(batch_size, **kinds) as alone:
        length, now, state = len(alone), 0, None
        for _ in range(3):  # three starts, each on another number of processes
            split = data.draw(splits(batch_size))
            loaders = shared(split, batch_size, **kinds)
            if state is not None:
                for each in loaders:
                    each.set_state(state)
                    assert plain(each.get_state(), but=("part",)) == plain(state, but=("part",))
            alone.committed(now)
            steps = data.draw(st.integers(0, length - now))
            advance([alone, *loaders], steps)
            now += steps
            state, digest = total(loaders)
            rounded = ("_computed_stats", "_is_stats_reset")
            assert plain(state, but=rounded) == plain(alone.get_state(), but=rounded)
            assert digest == alone.digest.to_state()
            if stats and now:
                together = decode(state["_computed_stats"])
                for name, mean in alone.get_statistics().items():
                    np.testing.assert_allclose(together[name], mean, rtol=1e-12)
            first, keys, values, _ = alone.take_step_digests()
            logs = [each.take_step_digests() for each in loaders]
            assert {log[0] for log in logs} == {now - steps}
            assert np.array_equal(
                np.sum([log[1] for log in logs], axis=0, dtype=np.uint64), keys[now - steps - first :]
            )
            assert np.array_equal(
                np.sum([log[2] for log in logs], axis=0, dtype=np.uint64), values[now - steps - first :]
            )
            for each in loaders:
                each.close()


@examples(40)
@given(st.data(), st.integers(1, 7))
def test_every_process_reads_its_rows_of_the_one_batch(data, batch_size):
    split = data.draw(splits(batch_size))
    owners = np.concatenate([owned for _, owned in split])
    assert sorted(owners) == list(range(batch_size))
    with loader(batch_size) as alone:
        step = data.draw(st.integers(0, len(alone) - 1))
        whole = alone.batch_at(step)
        for each, (rows, owned) in zip(shared(split, batch_size), split, strict=True):
            part = each.batch_at(step)
            for name in whole:
                assert part[name].tobytes() == whole[name][rows].tobytes()
            keys = each.record_keys(step)
            assert np.array_equal(keys.index, alone.record_keys(step).index[rows])
            assert each.step_digest(step)[2] == int(whole["row_mask"][owned].sum())
            each.close()


def two(batch_size=4):
    return shared([([0, 1, 2], [0, 1, 2]), ([2, 3], [3])], batch_size)


def test_parts_of_different_moments_are_no_state():
    ahead, behind = two()
    advance([ahead], 1)
    with pytest.raises(ValueError, match="idx differs between the processes: 1, 0"):
        ahead.combined([ahead.contribution(), behind.contribution()])


def test_parts_that_began_with_different_states_are_no_state():
    first, second = two()
    advance([first, second], 2)
    state, _ = total([first, second])
    advance([second], 1)
    second.seek(2)  # as far as the other, but it counted more
    second.set_state(second.get_state())
    first.set_state(state)
    with pytest.raises(ValueError, match="the state they began with differs"):
        first.combined([first.contribution(), second.contribution()])


def test_a_clone_has_added_what_its_original_has():
    loaders = two()
    advance(loaders, 3)
    clones = [each.clone() for each in loaders]
    assert plain(total(clones)[0]) == plain(total(loaders)[0])
    advance(clones, 1)
    advance(loaders, 1)
    assert plain(total(clones)[0]) == plain(total(loaders)[0])
    assert total([each.copy() for each in loaders])[0]["idx"] == 0


def test_what_all_have_in_common_counts_once():
    alone, state = loader(4), None
    for _ in range(3):
        loaders = two()
        for each in loaders if state else ():
            each.set_state(state)
        advance([alone, *loaders], 2)
        state, digest = total(loaders)
        assert plain(state) == plain(alone.get_state())
        assert digest == alone.digest.to_state()


def test_one_that_digests_no_bytes_among_others_that_do_is_refused():
    first, second = two()
    second = second.copy(config=dataclasses.replace(second.config, byte_digest=False))
    advance([first, second], 2)
    with pytest.raises(ValueError, match="differs between the processes"):
        first.combined([first.contribution(), second.contribution()])


def test_sums_are_exact_beyond_2_to_the_40():
    config = DataLoaderConfig(batch_size=6, seed=1, byte_digest=True, read_ahead=0)
    source = RangeSource(RangeConfig(stop=10**13), name="numbers")
    step = (2**41 + 3) // 6
    made = [
        DataLoader(config, source, transforms=[map_batch(columns, name="columns")], rows=rows, owned=owned)
        for rows, owned in ((None, None), ([0, 1, 2, 3], [0, 1, 2, 3]), ([3, 4, 5], [4, 5]))
    ]
    alone, *loaders = made
    for each in made:
        each.seek(step)
    advance(made, 3)
    state, digest = total(loaders)
    assert state["position"] == 6 * (step + 3) > 2**41
    assert plain(state) == plain(alone.get_state())
    assert digest == alone.digest.to_state()


@pytest.mark.parametrize(
    ("rows", "owned"), [([0, 1], [2]), ([0, 1], [1, 0]), ([0, 1], [0, 0]), ([0, 1], [-1]), ([0, 1], [9])]
)
def test_what_is_owned_must_be_among_what_is_read(rows, owned):
    with pytest.raises(ConfigError):
        loader(4, rows=rows, owned=owned)


def test_a_process_that_owns_nothing_still_reads():
    reads = loader(4, rows=[1, 2], owned=[])
    batch = next(reads)
    assert len(batch["x"]) == 2
    assert reads.contribution()["rows"] == 0
    assert reads.digest.rows == 0
    assert reads.get_state()["position"] == 4
