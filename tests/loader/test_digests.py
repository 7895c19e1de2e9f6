"""Digests are of what was delivered alone: not of how it was read, by how many, or from where a run continued."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import datarax.order.timeline as timeline_module
from datarax.core.errors import InputError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.order import Digest, id64, key_hashes, key_hashes_of_pass, row_hashes
from datarax.sources import MemoryConfig, MemorySource, RangeConfig, RangeSource
from datarax.transforms import map_batch, random_map_batch
from tests.support.tiers import examples

RECORDS = 23


def noisy(numbers, seeds):
    return {"x": numbers, "noise": (seeds >> np.uint64(11)).astype(np.float64)}


def make(*, records=RECORDS, rows=None, owned=None, **config):
    chosen = {"batch_size": 5, "seed": 6, "num_epochs": 3, "remainder": "pad", "byte_digest": True, **config}
    return DataLoader(
        DataLoaderConfig(**chosen),
        RangeSource(RangeConfig(stop=records), name="numbers"),
        transforms=[random_map_batch(noisy, name="noisy")],
        rows=rows,
        owned=owned,
    )


def log_of(loader):
    first, keys, hashed, complete = loader.take_step_digests()
    assert complete
    return {first + i: pair for i, pair in enumerate(zip(keys.tolist(), hashed.tolist(), strict=True))}


# Whatever the way


@examples(30)
@given(
    starts=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(1, 3)), max_size=4),
    remainder=st.sampled_from(["pad", "drop"]),
)
def test_read_ahead_threads_and_restores_change_no_digest(starts, remainder):
    with make(remainder=remainder, read_ahead=0) as straight:
        list(straight)
        expected, total, length = log_of(straight), straight.digest, len(straight)
    state, seen = None, {}
    for steps, read_ahead, num_threads in [*starts, (length, 2, 1)]:
        with make(remainder=remainder, read_ahead=read_ahead, num_threads=num_threads) as loader:
            if state is not None:
                loader.set_state(state)
            for _ in range(min(steps, length - loader.get_state()["idx"])):
                next(loader)
            seen |= log_of(loader)
            state, digest = loader.get_state(), loader.digest
    assert seen == expected
    assert digest == total


@examples(40)
@given(data=st.data(), batch_size=st.integers(1, 9))
def test_the_digests_of_a_step_add_up_over_any_owners(data, batch_size):
    owner = data.draw(st.lists(st.integers(0, 3), min_size=batch_size, max_size=batch_size))
    with make(batch_size=batch_size) as alone:
        step = data.draw(st.integers(0, len(alone) - 1))
        whole = alone.step_digest(step, with_bytes=True)
        assert alone.step_digest(step) == (whole[0], None, whole[2])
    parts = []
    for process in sorted(set(owner)):
        owned = [slot for slot in range(batch_size) if owner[slot] == process]
        more = data.draw(st.sets(st.integers(0, batch_size - 1)))  # read here too, counted elsewhere
        with make(batch_size=batch_size, rows=sorted({*owned, *more}), owned=owned) as part:
            parts.append(part.step_digest(step, with_bytes=True))
            assert part.step_digest(step) == (parts[-1][0], None, parts[-1][2])
    keys, hashed, rows = (sum(column) for column in zip(*parts, strict=True))
    assert (keys % 2**64, hashed % 2**64, rows) == whole


@pytest.mark.parametrize(
    "order", [{"order": "none"}, {"order": "block", "block_size": 4, "window_blocks": 2}, {}]
)
@pytest.mark.parametrize("records", [RECORDS, 40_000], ids=["many epochs a block", "many blocks an epoch"])
def test_a_step_digest_is_the_sum_of_the_hashes_of_its_rows(records, order):
    owned = [0, 3, 4, 18]
    with make(records=records, batch_size=19, owned=owned, **order) as loader:
        # Both ends of blocks of keys, and the ends of the first epoch and of the run.
        steps = {0, 1, 861, 862, 863, records // 19, len(loader) - 2, len(loader) - 1}
        for step in sorted(step for step in steps if step < len(loader)):
            (positions,) = loader.timeline.positions(np.array([step]), np.arange(19))
            keys, batch = loader.record_keys(step), loader.batch_at(step)
            hashes = key_hashes(positions, np.full(19, id64("numbers"), np.uint64), keys.index, keys.epoch)
            leaves = [(f"['{name}']", batch[name]) for name in ("x", "noise")]
            counted = np.isin(np.arange(19), owned)
            assert loader.step_digest(step, with_bytes=True) == (
                int(hashes[counted].sum(dtype=np.uint64)),
                int(row_hashes(positions, leaves)[counted].sum(dtype=np.uint64)),
                int((positions[counted] >= 0).sum()),
            )


def test_a_hand_over_adds_as_a_digest_does():
    with make() as loader:
        digest = Digest.zero(with_bytes=True)
        for step in range(len(loader)):
            next(loader)
            digest = digest.add(*loader.step_digest(step, with_bytes=True))
            assert loader.digest == digest
        assert digest.rows == 3 * RECORDS


RESHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import MemoryConfig, MemorySource
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
data = {"image": np.arange(23 * 6 * 4, dtype=np.int32).reshape(23, 6, 4), "label": np.arange(23, dtype=np.int32)}
def make(*spec, plain=False):
    config = DataLoaderConfig(batch_size=8, num_epochs=2, remainder="pad", byte_digest=True)
    sharding = None if plain else NamedSharding(mesh, P(*spec))
    return DataLoader(config, MemorySource(MemoryConfig(), data, name="data"), sharding=sharding)
alone = make(plain=True)
list(alone)
_, keys, hashed, _ = alone.take_step_digests()
state = make(plain=True).get_state()
for step, spec in enumerate(((), ("data",), (("data", "model"),), ("data", "model"), ("data", None, "model"), (None, "model"))):
    loader = make(*spec)
    for each in range(len(alone)):
        found = loader.step_digest(each, with_bytes=True)
        assert found[:2] == (int(keys[each]), int(hashed[each])), (spec, each)
    loader.set_state(state)
    if step < len(alone):
        next(loader)
        assert loader.take_step_digests()[1:3] == ([keys[step]], [hashed[step]])
    state = loader.get_state()
assert len(alone) == 6
assert loader.digest == alone.digest
"""


def test_shardings_over_devices_change_no_digest_even_between_steps():
    done = subprocess.run(
        [sys.executable, "-c", RESHARDED],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )
    assert (done.returncode, done.stderr) == (0, "")


# How much work


def test_keys_are_hashed_in_blocks_of_steps(monkeypatch):
    sizes = []

    def counted(position, *fields):
        sizes.append(len(position))
        return key_hashes_of_pass(position, *fields)

    monkeypatch.setattr(timeline_module, "key_hashes_of_pass", counted)
    with make(records=10**6, batch_size=32, num_epochs=None, read_ahead=0, byte_digest=None) as loader:
        for _ in range(1024):
            next(loader)
    assert sizes == [1 << 14, 1 << 14]


def calls_of_one_batch(batch_size, *, byte_digest):
    """Calls of functions, of Python's or of C's, by this package for one batch in the middle of a block of keys."""
    data = {"x": np.zeros((5000, 16), np.uint8)}
    config = DataLoaderConfig(batch_size=batch_size, read_ahead=0, byte_digest=byte_digest)
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call") and "datarax" in frame.f_code.co_filename

    with DataLoader(config, MemorySource(MemoryConfig(), data)) as loader:
        for _ in range(3):
            next(loader)
        gc.disable()  # or what other tests left is closed within this one's batch
        sys.setprofile(count)
        try:
            next(loader)
        finally:
            sys.setprofile(None)
            gc.enable()
    return calls


@pytest.mark.parametrize("byte_digest", [False, True])
def test_a_batch_takes_as_many_calls_whatever_its_rows(byte_digest):
    assert calls_of_one_batch(1000, byte_digest=byte_digest) == calls_of_one_batch(8, byte_digest=byte_digest)


@pytest.mark.parametrize("batch_size", [1, 8, 500])
def test_a_batch_is_one_read_whatever_its_rows(batch_size):
    reads = []

    class Counting(MemorySource):
        def read(self, indices):
            reads.append(len(indices))
            return super().read(indices)

    source = Counting(MemoryConfig(), {"x": np.zeros((5000, 16), np.uint8)})
    with DataLoader(DataLoaderConfig(batch_size=batch_size, read_ahead=0), source) as loader:
        for _ in range(3):
            next(loader)
    assert reads == [batch_size] * 3


# Whether bytes are hashed


def test_bytes_are_hashed_if_asked_for_and_else_left_to_whoever_uses_the_loader():
    for asked, alone, kept in ((None, None, 0), (True, 0, 0), (False, None, None)):
        with make(byte_digest=asked) as loader:
            assert loader.digest.bytes == alone
            loader.keep_byte_digests()
            assert loader.digest.bytes == kept
            assert loader.get_state()["digest_bytes"] == (None if kept is None else "0" * 16)


def test_a_loader_that_was_told_to_hash_bytes_is_like_one_whose_config_says_so():
    whole, told = make(), make(byte_digest=None)
    told.keep_byte_digests()
    for _ in range(4):
        next(whole), next(told)
    resumed = make(byte_digest=None)
    resumed.keep_byte_digests()
    resumed.set_state(told.get_state())
    clone = told.clone()
    for loader in (whole, told, resumed, clone):
        list(loader)
        assert loader.digest == whole.digest
        assert repr(loader.get_state()) == repr(whole.get_state())
    assert told.contribution() == whole.contribution()
    assert told.copy().digest.bytes is None


def test_what_was_delivered_without_byte_digests_stays_without():
    bare = make(byte_digest=None)
    next(bare)
    told = make(byte_digest=None)
    told.keep_byte_digests()
    told.set_state(bare.get_state())
    bare.keep_byte_digests()
    for loader in (bare, told):
        next(loader)
        assert loader.digest.bytes is None


def test_asking_for_byte_digests_keeps_the_place():
    loader = make(byte_digest=None)
    loader.seek(3)
    loader.keep_byte_digests()
    assert np.array_equal(next(loader)["x"], make().batch_at(3)["x"])


def test_a_leaf_without_fixed_bytes_says_how_to_go_on_without():
    loader = DataLoader(
        DataLoaderConfig(batch_size=4, byte_digest=True),
        RangeSource(RangeConfig(stop=8)),
        transforms=[map_batch(lambda x: {"x": x.astype(np.longdouble)}, name="long")],
    )
    with pytest.raises(InputError, match=r"loader\.byte_digest = false"):
        next(loader)
