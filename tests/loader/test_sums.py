"""Counters and digests are made when somebody looks: at any look they are what adding up batch by batch gives."""

import copy
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datarax.loader.stream as stream_module
from datarax.loader import DataLoader, DataLoaderConfig
from datarax.loader.tally import Delivered, StepLog
from datarax.order import Digest
from datarax.sources import RangeConfig, RangeSource
from datarax.transforms import map_batch
from tests.support.tiers import examples

RECORDS = 23


def make(*, rows=None, owned=None, **config):
    chosen = {"batch_size": 5, "seed": 6, "num_epochs": 3, "remainder": "pad", "read_ahead": 0, **config}
    source = RangeSource(RangeConfig(stop=RECORDS), name="numbers")
    stages = [map_batch(lambda x: {"x": x}, name="columns")]
    return DataLoader(DataLoaderConfig(**chosen), source, transforms=stages, rows=rows, owned=owned)


class Naive:
    """What a loader that adds at every batch would say."""

    def __init__(self, with_bytes):
        self.with_bytes = with_bytes
        self.idx = self.applied = self.log_from = 0
        self.digest = Digest.zero(with_bytes)
        self.shared = (0, self.digest)
        self.log = []

    def take(self, loader):
        keys, hashed, rows = loader.step_digest(self.idx, with_bytes=self.with_bytes)
        self.digest = self.digest.add(keys, hashed, rows)
        self.applied += rows
        self.log.append((keys, hashed or 0))
        self.idx += 1

    def begin_log(self):
        self.log_from, self.log = self.idx, []

    def commit(self, step):
        gone = max(0, min(step - self.log_from, len(self.log)))
        self.log_from, self.log = self.log_from + gone, self.log[gone:]


def check(loader, naive, look):
    if look in ("digest", "all"):
        assert loader.digest == naive.digest
    if look in ("variables", "all"):
        assert loader.idx.get_value() == naive.idx
        assert loader.position.get_value() == loader.position_of(naive.idx)
        assert loader.digest_keys.get_value() == naive.digest.keys
        assert loader.digest_bytes.get_value() == naive.digest.bytes
    if look in ("state", "all"):
        state = loader.get_state()
        keys, hashed = naive.digest.keys, naive.digest.bytes
        found = (state["digest_rows"], state["digest_keys"], state["digest_bytes"])
        assert found == (naive.digest.rows, f"{keys:016x}", hashed if hashed is None else f"{hashed:016x}")
        assert (state["idx"], state["_applied_count"]) == (naive.idx, naive.applied)
        assert state["epoch"] == state["position"] // RECORDS
    if look in ("log", "all"):
        first, keys, hashed, complete = loader.take_step_digests()
        assert first == naive.log_from
        assert list(zip(keys.tolist(), hashed.tolist(), strict=True)) == naive.log
        assert complete is (naive.with_bytes or not naive.log)
    if look in ("share", "all"):
        share, (applied, digest) = loader.contribution(), naive.shared
        assert share["rows"] == naive.digest.rows - digest.rows
        assert share["keys"] == (naive.digest.keys - digest.keys) % 2**64
        assert share["applied"] == naive.applied - applied


ACTIONS = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 5)),
    st.tuples(st.just("look"), st.sampled_from(["digest", "variables", "state", "log", "share", "all"])),
    st.tuples(st.just("commit"), st.integers(0, 15)),
    st.tuples(st.just("seek"), st.integers(0, 14)),
    st.tuples(st.sampled_from(["save", "restore", "clone", "reset", "forget counters"]), st.none()),
)


@examples(150)
@given(
    actions=st.lists(ACTIONS, max_size=25),
    with_bytes=st.booleans(),
    share=st.sampled_from([(None, None), ([0, 2, 3], [2, 3]), ([4], [])]),
    remainder=st.sampled_from(["pad", "drop"]),
)
def test_at_any_look_the_sums_are_those_of_adding_batch_by_batch(actions, with_bytes, share, remainder):
    rows, owned = share
    loader = make(rows=rows, owned=owned, remainder=remainder, byte_digest=with_bytes)
    naive = Naive(with_bytes)
    saved = (loader.get_state(), copy.deepcopy(naive))
    for action, argument in actions:
        if action == "take":
            for _ in range(min(argument, len(loader) - naive.idx)):
                next(loader)
                naive.take(loader)
        elif action == "look":
            check(loader, naive, argument)
        elif action == "commit":
            loader.committed(argument)
            naive.commit(argument)
        elif action in ("seek", "reset"):
            naive.idx = 0 if action == "reset" else min(argument, len(loader))
            loader.reset() if action == "reset" else loader.seek(naive.idx)
            naive.begin_log()
        elif action == "save":
            saved = (loader.get_state(), copy.deepcopy(naive))
        elif action == "restore":
            loader.set_state(saved[0])
            naive = copy.deepcopy(saved[1])
            naive.begin_log()
            naive.shared = (naive.applied, naive.digest)
        elif action == "clone":
            loader = loader.clone()
            naive.begin_log()
        else:
            loader.reset_operation_stats()
            naive.applied, naive.shared = 0, (0, naive.shared[1])
    check(loader, naive, "all")


@pytest.mark.parametrize("name", ["idx", "position", "epoch", "_applied_count", "digest_rows", "digest_keys"])
def test_each_number_may_be_asked_for_first(name):
    loader, whole = make(), make()
    for _ in range(5):
        next(loader), next(whole)
    said = whole.get_state()[name]
    assert int(vars(loader)[name].get_value()) == (int(said, 16) if name == "digest_keys" else said)


@pytest.mark.parametrize("share", [(None, None), ([0, 2, 3], [2, 3]), ([4], [])])
def test_the_plan_knows_how_many_rows_count_in_any_stretch(share):
    loader = make(rows=share[0], owned=share[1])
    rows = [loader.step_digest(step)[2] for step in range(len(loader))]
    for first in range(len(loader)):
        for stop in range(first, len(loader) + 1):
            assert loader.recipe.counted_in(range(first, stop)) == sum(rows[first:stop])


@pytest.mark.parametrize("byte_digest", [True, False])
def test_a_log_that_nobody_commits_keeps_a_tail_and_the_sums_keep_all(monkeypatch, byte_digest):
    monkeypatch.setattr(stream_module, "MAX_STEPS", 4)
    loader = make(num_epochs=None, remainder="drop", byte_digest=byte_digest)
    digest = Digest.zero(byte_digest)
    for step in range(30):
        digest = digest.add(*loader.step_digest(step, with_bytes=byte_digest))
        next(loader)
        first, keys, _, _ = loader.take_step_digests()
        assert first + len(keys) == step + 1
        assert min(4, step + 1) <= len(keys) <= 8
    assert loader.digest == digest
    assert loader.get_state()["digest_rows"] == 150


def test_what_was_looked_up_before_a_seek_or_restore_stays_what_it_was():
    loader, state = make(byte_digest=True), make(byte_digest=True).get_state()
    for leave in (lambda: loader.seek(9), lambda: loader.set_state(state), loader.reset_operation_stats):
        for _ in range(3):
            next(loader)
        content = {name: vars(loader)[name].get_raw_value() for name in ("idx", "position", "digest_keys")}
        expected = loader.clone()
        leave()
        next(loader)
        for name, each in content.items():
            assert each.exact() == vars(expected)[name].get_value()


# Broken off


def at_each_place(loader, do):
    """Takes a batch and calls `do(n)` at the n-th of the places where Python looks for a signal."""
    seen = 0

    def profile(frame, event, arg):
        nonlocal seen
        if event in ("call", "c_return") and "datarax" in frame.f_code.co_filename:
            sys.setprofile(None)
            seen += 1
            do(seen)
            sys.setprofile(profile)

    sys.setprofile(profile)
    try:
        next(loader)
    finally:
        sys.setprofile(None)
    return seen


def test_ctrl_c_in_a_batch_leaves_the_sums_of_those_before_it_that_nobody_has_looked_at():
    whole = make(byte_digest=True)
    states = [whole.get_state(), *(whole.get_state() for _ in whole)]
    loader, place = make(byte_digest=True), 0

    def interrupt(n):
        if n == place:
            raise KeyboardInterrupt

    while True:
        place += 1
        loader.set_state(states[1])
        next(loader), next(loader)
        try:
            at_each_place(loader, interrupt)
            break
        except KeyboardInterrupt:
            pass
        taken = 3 + (loader.idx.get_value() > 3)
        if place % 2:  # with and without a look before the batch is taken once more
            assert repr(loader.get_state()) == repr(states[taken]), place
        list(loader)
        assert repr(loader.get_state()) == repr(states[-1]), place
        assert len(loader.take_step_digests()[1]) == len(states) - 2
    assert place > 25


def test_a_signals_handler_that_looks_amid_a_batch_sees_the_state_before_or_after_it():
    whole = make(byte_digest=True)
    states = [whole.get_state(), *(whole.get_state() for _ in whole)]
    loader = make(byte_digest=True)
    for step in range(len(loader)):
        looks = []
        at_each_place(
            loader, lambda n, looks=looks: looks.append((loader.get_state(), loader.take_step_digests()))
        )
        for state, (_, keys, _, _) in looks:
            assert repr(state) in (repr(states[step]), repr(states[step + 1]))
            assert len(keys) == state["idx"]
        assert repr(loader.get_state()) == repr(states[step + 1])


# The log of steps


@given(
    steps=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.none() | st.integers(0, 2**64 - 1)), max_size=12),
    start=st.integers(0, 3),
    cut=st.integers(0, 16),
)
def test_a_log_sums_any_stretch_and_says_where_bytes_are_missing(steps, start, cut):
    log = StepLog(start)
    end = start + len(steps)
    for step, (keys, hashed) in enumerate(steps, start):
        log = log.put(step, 1, None)  # broken off before it counted, and done again
        log = log.put(step, keys, hashed)
    log = log.since(min(cut, end), Delivered(end, end, 0, 0, Digest.zero(with_bytes=True)))
    first = min(max(start, cut), end)
    for a in range(first, end + 1):
        for b in range(a, end + 1):
            chosen = steps[a - start : b - start]
            keys, hashed = log.sums(a, b)
            assert keys == sum(each for each, _ in chosen) % 2**64
            if any(each is None for _, each in chosen):
                assert hashed is None
            else:
                assert hashed == sum(each for _, each in chosen) % 2**64
    found_first, found_keys, _, complete = log.arrays(end)
    assert (found_first, found_keys.tolist()) == (first, [each for each, _ in steps[first - start :]])
    assert complete is all(each is not None for _, each in steps[first - start :])
