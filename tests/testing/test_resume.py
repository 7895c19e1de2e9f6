"""`assert_resumes_everywhere` holds for our own loaders and sources, cleans up, and sees what splitting does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from flax import nnx

from datarax.core.config import DataraxModuleConfig
from datarax.core.module import CheckpointableIteratorModule, DataraxModule
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    MemoryConfig,
    MemorySource,
    RangeConfig,
    RangeSource,
)
from datarax.testing import assert_resumes_everywhere
from datarax.transforms import map_batch, random_map_batch
from tests.support.processes import run_python
from tests.testing import streams

RECORDS = 23
NOISE = random_map_batch(lambda batch, seeds: {**batch, "noise": seeds}, name="noise")
COLUMN = map_batch(lambda x: {"x": np.asarray(x)}, name="column")
TEXT = map_batch(lambda records: {"size": np.array([len(each) for each in records])}, name="text")
ORDERS = (
    {"order": "none"},
    {"order": "global"},
    {"order": "block", "block_size": 4, "window_blocks": 2},
    {"order": "grain", "grain_style": "map_dataset"},
)


def loader(source=None, transforms=(COLUMN, NOISE), rows=None, **settings):
    settings = {"batch_size": 6, "seed": 11, "num_epochs": 2, **settings}
    source = source or RangeSource(RangeConfig(stop=RECORDS))
    return DataLoader(DataLoaderConfig(**settings), source, transforms=transforms, rows=rows)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order["order"])
@pytest.mark.few(2)
def test_a_loader_resumes_everywhere_in_each_order_and_however_it_is_split(order):
    settings = {**order, "remainder": "pad", "byte_digest": True}
    assert_resumes_everywhere(
        lambda: loader(**settings), make_part=lambda rows: loader(rows=rows, **settings)
    )


@pytest.mark.parametrize("read_ahead", [0, 3])
@pytest.mark.few(1)
def test_an_endless_loader_with_statistics_and_random_streams_resumes_everywhere(read_ahead):
    def make(rows=None):
        config = DataLoaderConfig(
            batch_size=4,
            read_ahead=read_ahead,
            num_threads=2,
            batch_stats_fn=lambda batch: {"mean": batch["x"].mean()},
        )
        source = MemorySource(MemoryConfig(), {"x": np.arange(RECORDS, dtype=np.float32)})
        return DataLoader(config, source, transforms=[NOISE], rows=rows, rngs=nnx.Rngs(3))

    assert_resumes_everywhere(make, steps=7, make_part=make)  # into the second epoch


def test_a_loader_of_jax_arrays_far_beyond_32_bits_resumes_everywhere():
    def make():
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        config = DataLoaderConfig(batch_size=6, seed=1)
        far = DataLoader(config, RangeSource(RangeConfig(stop=10**6)), transforms=[COLUMN], sharding=sharding)
        far.seek(2**40 + 3)
        return far

    assert_resumes_everywhere(make, steps=5)


@pytest.fixture
def files(tmp_path):
    for name, count in (("a", 4), ("b", 5)):
        writer = ArrayRecordWriter(str(tmp_path / f"{name}.array_record"), "group_size:1")
        for i in range(count):
            writer.write(b"%s%d" % (name.encode() * i, i))
        writer.close()
    return str(tmp_path / "*.array_record")


def test_sources_resume_everywhere(files):
    for make in (
        lambda: RangeSource(RangeConfig(stop=5)),
        lambda: MemorySource(MemoryConfig(), [b"a", b"bc", b""]),
        lambda: MemorySource(MemoryConfig(), {"x": np.arange(6).reshape(3, 2)}),
        lambda: ArrayRecordSource(ArrayRecordConfig(files=files)),
    ):
        assert_resumes_everywhere(make)


def test_a_loader_over_files_resumes_everywhere(files):
    with ArrayRecordSource(ArrayRecordConfig(files=files)) as source:
        assert_resumes_everywhere(
            lambda: loader(source, transforms=[TEXT], batch_size=2, byte_digest=True),
            make_part=lambda rows: loader(
                source, transforms=[TEXT], batch_size=2, byte_digest=True, rows=rows
            ),
        )


class RandomWalk(CheckpointableIteratorModule):
    """A user's own endless module: arrays in its state, and a random stream that belongs there."""

    def __init__(self):
        super().__init__(DataraxModuleConfig(), rngs=nnx.Rngs(data=5))
        self.position = nnx.Variable(0)
        self.place = nnx.Variable(jnp.zeros(2, jnp.bfloat16))
        self.history = nnx.Variable(np.zeros(3, np.int16))

    def __next__(self):
        self.position.set_value(self.position.get_value() + 1)
        step = jax.random.normal(self.rngs.data(), (2,), jnp.bfloat16)
        self.place.set_value(self.place.get_value() + step)
        self.history.set_value(np.roll(self.history.get_value() * np.int16(3) + np.int16(1), 1))
        return {
            "place": self.place.get_value(),
            "history": self.history.get_value(),
            "at": (None, "now", 0.1),
        }


def test_a_module_of_ones_own_resumes_everywhere():
    assert_resumes_everywhere(RandomWalk, steps=5)


class Wrapper(DataraxModule):
    """An iterator module within another; what it shows as `current` may be of any kind."""

    def __init__(self):
        super().__init__(DataraxModuleConfig())
        self.inner = RandomWalk()

    def __next__(self):
        element = next(self.inner)
        self.inner.current.set_value(self.inner.position.get_value())
        return element


def test_a_module_around_another_resumes_everywhere():
    assert_resumes_everywhere(Wrapper, steps=4)


class Short(streams.Stream):
    def __init__(self):
        super().__init__()
        self.index = streams.LENGTH - self.left


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_stream_of_hardly_any_elements_can_be_tested(left):
    assert_resumes_everywhere(type("Short", (Short,), {"left": left}))


def test_a_stream_that_ends_just_at_the_last_tested_element_is_tested_to_its_end():
    with pytest.raises(AssertionError, match="element 10 differs at the whole: expected the end"):
        assert_resumes_everywhere(streams.EndsOnce, steps=streams.LENGTH)
    assert_resumes_everywhere(streams.EndsOnce, steps=streams.LENGTH - 1)


class Counted(streams.Stream):
    open = 0

    def __init__(self):
        super().__init__()
        Counted.open += 1

    def close(self):
        Counted.open -= 1


def test_all_modules_are_closed_whether_they_pass_or_not():
    assert_resumes_everywhere(Counted)
    assert Counted.open == 0
    with pytest.raises(AssertionError):
        assert_resumes_everywhere(type("Broken", (Counted, streams.OneBack), {}))
    assert Counted.open == 0


def test_what_the_module_raises_on_its_own_comes_through_and_says_where():
    class Fails(streams.Stream):
        is_restored = False

        def set_state(self, state):
            super().set_state(state)
            self.is_restored = True

        def element(self, at):
            if self.is_restored and at == 3:
                raise ZeroDivisionError("no such day")
            return super().element(at)

    with pytest.raises(ZeroDivisionError, match="no such day") as caught:
        assert_resumes_everywhere(Fails)
    assert caught.value.__notes__ == ["restored before element 0 into a fresh module, in memory"]


def test_the_limit_of_a_state_and_the_snapshots_are_the_callers_choice():
    assert_resumes_everywhere(streams.HoldsData, max_state_bytes=200_000, snapshots=False)
    assert_resumes_everywhere(streams.OtherIdentityAtEachStart, snapshots=False)


def test_wrong_use_is_told():
    one = streams.Stream()
    with pytest.raises(AssertionError, match="make_loader gave the same module twice"):
        assert_resumes_everywhere(lambda: one)
    with pytest.raises(TypeError, match="make_loader must return a module with __next__, get_state and set_"):
        assert_resumes_everywhere(lambda: [1, 2])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        assert_resumes_everywhere(streams.Stream, steps=0)
    with pytest.raises(TypeError, match="make_part is for a DataLoader, but make_loader gave a Stream"):
        assert_resumes_everywhere(streams.Stream, make_part=lambda rows: streams.Stream())
    with pytest.raises(TypeError, match="make_part must return a DataLoader, got Stream"):
        assert_resumes_everywhere(loader, make_part=lambda rows: streams.Stream())
    with pytest.raises(ValueError, match=r"none of process_counts \[7\] is at most the 6 rows of a batch"):
        assert_resumes_everywhere(loader, make_part=lambda rows: loader(rows=rows), process_counts=[7])


def test_a_transform_that_looks_at_the_place_in_its_batch_is_caught_without_a_split():
    number = map_batch(lambda x: {"x": np.asarray(x), "number": np.arange(len(x))}, name="number")
    with pytest.raises(
        AssertionError,
        match=r"transform 'number', run on the same records in another order: 6 of 6 rows differ, the first is data:\d+ ",
    ):
        assert_resumes_everywhere(lambda: loader(transforms=[number]), steps=1, snapshots=False)


# Splitting over processes.


def test_a_part_that_reads_other_rows_than_asked_for_is_refused():
    with pytest.raises(
        AssertionError, match=r"asked for the rows \[0 1 2\] and gave a loader of \[0 1 2 3 4 5\]"
    ):
        assert_resumes_everywhere(loader, snapshots=False, make_part=lambda rows: loader())


def test_a_transform_that_looks_at_the_place_in_its_own_batch_is_caught():
    number = map_batch(lambda x: {"x": np.asarray(x), "number": np.arange(len(x))}, name="number")
    with pytest.raises(
        AssertionError,
        match=r"read by one process, going on with 2 after 3 batches: element 3 differs at number\[3\]",
    ):
        assert_resumes_everywhere(
            lambda: loader(transforms=[number]),
            snapshots=False,
            make_part=lambda rows: loader(transforms=[number], rows=rows),
        )


def test_a_part_with_another_seed_is_caught():
    with pytest.raises(AssertionError, match="read by one process: element 0 differs at "):
        assert_resumes_everywhere(loader, snapshots=False, make_part=lambda rows: loader(rows=rows, seed=12))


def test_parts_that_do_not_digest_alike_are_caught():
    with pytest.raises(
        AssertionError,
        match="is not that of an undisturbed module, at digest_bytes: expected str '0000000000000000', got None",
    ):
        assert_resumes_everywhere(
            lambda: loader(num_epochs=None, byte_digest=True),
            steps=1,
            snapshots=False,
            make_part=lambda rows: loader(num_epochs=None, rows=rows),
        )


# Importing.


@pytest.mark.full
def test_without_pytest_a_stream_can_be_tested_and_the_laws_say_what_to_install():
    output = run_python(
        "-c",
        "import sys\n"
        "sys.modules['pytest'] = None\n"
        "from datarax.testing import assert_resumes_everywhere\n"
        "from datarax.sources import RangeConfig, RangeSource\n"
        "assert_resumes_everywhere(lambda: RangeSource(RangeConfig(stop=2)))\n"
        "try:\n"
        "    from datarax.testing import SourceLaws\n"
        "except ImportError as error:\n"
        "    print(error)\n",
    )
    assert (
        "datarax.testing.SourceLaws needs pytest, which is not installed: pip install datarax[test]" in output
    )


def test_datarax_does_not_load_the_test_kit():
    loaded = run_python(
        "-c", "import sys, datarax.cli.main, datarax.loader, datarax.training; print(*sys.modules)"
    ).split()
    assert not {"datarax.testing", "pytest"} & set(loaded)
