"""A loader answers for the steps before a restore as far as it knows how they were made, and says so where it does not."""

import multiprocessing
import pickle

import numpy as np
import pytest

from datarax.checkpoint import Checkpointer
from datarax.core.errors import InputError, MismatchError
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.sources import GrainConfig, GrainSource, MemoryConfig, MemorySource
from datarax.transforms import map_batch, random_map_batch

ROWS = 30


def doubled(batch):
    return {"x": batch["x"] * 2}


def noisy(batch, seeds):
    return {"x": batch["x"], "noise": (seeds >> np.uint64(40)).astype(np.int64)}


def make(*, stages=(doubled,), scale=1, rows=None, **config):
    chosen = {"batch_size": 4, "seed": 7, "num_epochs": 4, "read_ahead": 0, **config}
    source = MemorySource(MemoryConfig(), {"x": np.arange(ROWS) * scale})
    transforms = [map_batch(fn, name=fn.__name__) for fn in stages if fn is not noisy]
    transforms += [random_map_batch(fn, name="noisy", randomness="seed") for fn in stages if fn is noisy]
    return DataLoader(DataLoaderConfig(**chosen), source, transforms=transforms, rows=rows)


def saved(directory, loader, steps):
    """Takes some batches, saves; gives what was taken."""
    with Checkpointer(directory) as checkpointer:
        if checkpointer.latest_step() is not None:
            checkpointer.restore(data=loader)
        taken = [next(loader)["x"] for _ in range(steps)]
        checkpointer.save(int(loader.idx.get_value()), data=loader)
    return taken


def restored(directory, loader, *allowed):
    with Checkpointer(directory, allow_changed=allowed) as checkpointer:
        checkpointer.restore(data=loader)
    return loader


def test_after_an_allowed_change_of_batch_size_earlier_steps_are_what_they_were(tmp_path):
    first = saved(tmp_path, make(), 3)
    with Checkpointer(tmp_path, allow_changed=["train.batch_size"]) as checkpointer:
        loader = make(batch_size=6)
        checkpointer.restore(data=loader)
        second = [next(loader)["x"] for _ in range(2)]
        checkpointer.save(5, data=loader)
    again = restored(tmp_path, make(batch_size=5), "train.batch_size")
    for each in (loader, again):
        for step, batch in enumerate([*first, *second]):
            assert np.array_equal(each.batch_at(step)["x"], batch), step
            assert np.array_equal(each.record_keys(step).index, batch // 2)
        assert each.position_of(4) == 18
    assert [len(again.batch_at(step)["x"]) for step in (0, 2, 3, 4, 5)] == [4, 4, 6, 6, 5]


def test_reset_goes_to_the_first_step_of_the_run_and_delivers_what_it_delivered(tmp_path):
    first = saved(tmp_path, make(), 3)
    loader = restored(tmp_path, make(batch_size=6), "train.batch_size")
    rest = [batch["x"] for batch in loader]
    loader.reset()
    again = [batch["x"] for batch in loader]
    assert all(np.array_equal(a, b) for a, b in zip(again, [*first, *rest], strict=True))


def test_a_changed_seed_gives_other_records_from_the_change_on_only(tmp_path):
    first = saved(tmp_path, make(), 3)
    loader = restored(tmp_path, make(seed=8), "train.seed")
    assert all(np.array_equal(loader.batch_at(step)["x"], batch) for step, batch in enumerate(first))
    assert np.array_equal(loader.batch_at(3)["x"], make(seed=8).batch_at(3)["x"])
    assert not np.array_equal(make(seed=8).batch_at(0)["x"], first[0])


def test_random_transforms_draw_for_earlier_steps_what_they_drew_then(tmp_path):
    whole = make(stages=(noisy,))
    saved(tmp_path, make(stages=(noisy,)), 3)
    loader = restored(tmp_path, make(stages=(noisy,), seed=8, batch_size=5), "train.seed", "train.batch_size")
    assert np.array_equal(loader.batch_at(2)["noise"], whole.batch_at(2)["noise"])


@pytest.mark.parametrize(
    ("change", "allowed", "named"),
    [
        ({"scale": 3}, "train.sources", "sources"),
        ({"stages": (doubled, doubled)}, "train.pipeline", "pipeline"),
    ],
)
def test_steps_of_other_data_or_transforms_have_keys_but_no_batch_and_the_field_is_named(
    change, allowed, named, tmp_path
):
    if "stages" in change:
        change = {"stages": (doubled, noisy)}
    first = saved(tmp_path, make(), 3)
    loader = restored(tmp_path, make(**change), allowed)
    for step, batch in enumerate(first):
        assert np.array_equal(loader.record_keys(step).index, batch // 2)
        with pytest.raises(InputError, match=rf"batch of step {step} cannot be made again: {named}\."):
            loader.batch_at(step)
    assert len(loader.batch_at(3)["x"]) == 4
    with pytest.raises(InputError, match=r"first batch .* copy\(\)"):
        loader.reset()
    assert loader.idx.get_value() == 3, "a refused reset moves nothing"


def test_after_a_bare_state_of_another_batch_size_the_past_is_unknown_and_says_so():
    before = make()
    for _ in range(3):
        next(before)
    loader = make(batch_size=5)
    with pytest.raises(MismatchError, match=r"identity.batch_size"):
        loader.set_state(before.get_state())
    loader.adopt(before.get_state(), allow_changed=["batch_size"])
    for ask in (loader.record_keys, loader.batch_at, loader.position_of, loader.seek):
        with pytest.raises(IndexError, match=r"step 2 lies before step 3, .* unknown"):
            ask(2)
    with pytest.raises(InputError, match=r"nothing is known of the steps before 3; copy\(\)"):
        loader.reset()
    assert np.array_equal(next(loader)["x"], loader.batch_at(3)["x"])
    assert next(loader.copy())["x"].tolist() == make(batch_size=5).batch_at(0)["x"].tolist()


def test_a_bare_state_of_another_batch_size_leaves_the_rows_that_are_left():
    before = make()
    for _ in range(3):
        next(before)
    for batch_size in (4, 5, 12):
        loader = make(batch_size=batch_size, remainder="pad")
        loader.adopt(before.get_state(), allow_changed=["batch_size", "row_mask"])
        rest = np.concatenate([batch["x"][batch["row_mask"]] for batch in loader])
        assert len(rest) == 4 * ROWS - 12
        assert np.array_equal(
            rest, np.concatenate([make().batch_at(step)["x"] for step in range(3, len(make()))])
        )
        assert (loader.position.get_value(), loader.epoch.get_value()) == (4 * ROWS, 4)


def test_rows_that_were_given_for_one_batch_size_say_nothing_of_another(tmp_path):
    saved(tmp_path, make(rows=[0, 1]), 3)
    loader = restored(tmp_path, make(batch_size=6, rows=[0, 1, 2]), "train.batch_size")
    with pytest.raises(InputError, match="which rows of a batch of 4 are read here is not known"):
        loader.batch_at(1)
    with pytest.raises(InputError, match="nobody said which rows"):
        loader.reset()
    assert len(loader.batch_at(3)["x"]) == 3


def test_a_state_of_an_earlier_step_goes_on_alike_in_a_used_loader_and_in_a_fresh_one(tmp_path):
    before = make()
    for _ in range(2):
        next(before)
    state = before.get_state()
    saved(tmp_path, make(), 3)
    used, fresh = restored(tmp_path, make(batch_size=6), "train.batch_size"), make(batch_size=6)
    for loader in (used, fresh):
        loader.adopt(state, allow_changed=["batch_size"])
    assert next(used)["x"].tolist() == next(fresh)["x"].tolist()


# Another process


def steps_elsewhere(pickled, said):
    recipe = pickle.loads(pickled)
    reader = recipe.open()
    said.put([(rows.batch["x"].tolist(), rows.keys) for rows in map(reader, (0, 3, 5))])


def test_a_recipe_makes_the_same_rows_in_a_spawned_process():
    loader = make(stages=(doubled, noisy), byte_digest=True)
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    process = context.Process(target=steps_elsewhere, args=(pickle.dumps(loader.recipe), said))
    process.start()
    found = said.get(timeout=120)
    process.join(60)
    expected = [(loader.batch_at(step)["x"].tolist(), loader.step_digest(step)[0]) for step in (0, 3, 5)]
    assert found == expected


def test_a_pickled_loader_goes_on_where_it_was():
    loader = make(read_ahead=2)
    for _ in range(3):
        next(loader)
    other = pickle.loads(pickle.dumps(loader))
    assert repr(other.get_state()) == repr(loader.get_state())
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(loader, other, strict=True))


class Unpicklable:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index

    def __reduce__(self):
        raise TypeError("it holds a socket")


def test_what_does_not_pickle_is_named():
    def local(batch):
        return batch

    with pytest.raises(pickle.PicklingError, match="transform 'local' cannot be sent to another process"):
        pickle.dumps(make(stages=(local,)).recipe)
    source = GrainSource(GrainConfig(name="sockets", version="1"), Unpicklable())
    loader = DataLoader(DataLoaderConfig(batch_size=2), source)
    with pytest.raises(pickle.PicklingError, match=r"source 'sockets' cannot be sent .* it holds a socket"):
        pickle.dumps(loader)
