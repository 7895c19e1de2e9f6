"""What every source must do, whatever it reads from. A kind's test subclasses `SourceLaws` and says how to make one.

Nothing here looks behind the public interface, so a source of a user's own can be held against it as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from datarax.core.fingerprint import canonical_json
from datarax.sources import DataSource

Opener = Callable[[], DataSource]


def same(a: Any, b: Any) -> bool:
    """Whether two records, or lists of records, hold the same values of the same kinds."""
    flat_a, structure_a = jax.tree.flatten(a)
    flat_b, structure_b = jax.tree.flatten(b)
    return structure_a == structure_b and all(
        type(x) is type(y) and np.array_equal(x, y) for x, y in zip(flat_a, flat_b, strict=True)
    )


def rows_of(source: DataSource, read: Any, count: int) -> list[Any]:
    """What `read` gave, as a list of records."""
    if not source.columnar:
        return read
    return [jax.tree.map(lambda column, i=i: column[i], read) for i in range(count)]


class SourceLaws:
    """Subclasses define `build`, `expected` and `changed`, each over at least 7 records."""

    num_records = 7

    def build(self, directory: Path) -> Opener:
        """Puts data into `directory` and returns what opens a new source over it."""
        raise NotImplementedError

    def expected(self) -> list[Any]:
        """The records, made without the source."""
        raise NotImplementedError

    def changed(self, directory: Path) -> Opener:
        """Like `build`, with one byte of the first record changed."""
        raise NotImplementedError

    def shortened(self, directory: Path) -> Opener:
        """Like `build`, without the last record."""
        raise NotImplementedError

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        (tmp_path / "data").mkdir()
        return self.build(tmp_path / "data")

    @pytest.fixture
    def source(self, opener: Opener):
        with opener() as source:
            yield source

    # Reading

    def test_it_has_the_records_that_were_put_in(self, source: DataSource):
        assert len(source) == self.num_records == len(self.expected())
        read = rows_of(source, source.read(np.arange(len(source))), len(source))
        assert all(map(same, read, self.expected()))

    def test_read_and_getitem_and_getitems_agree(self, source: DataSource):
        order = [3, 0, 6, 3]
        one_by_one = [source[i] for i in order]
        assert same(rows_of(source, source.read(order), 4), one_by_one)
        assert same(source.__getitems__(order), one_by_one)

    def test_records_come_in_the_order_asked_for_repeats_included(self, source: DataSource):
        order = np.array([6, 6, 0, 5, 1, 0, 6, 2, 3, 4])
        read = rows_of(source, source.read(order), len(order))
        assert all(same(record, self.expected()[i]) for record, i in zip(read, order, strict=True))

    @pytest.mark.parametrize("empty", [[], np.array([], dtype=np.int64)])
    def test_reading_no_index_gives_no_record(self, source: DataSource, empty: Any):
        read = source.read(empty)
        if not source.columnar:
            assert read == []
        for column in jax.tree.leaves(read):
            assert column.shape[0] == 0

    @pytest.mark.parametrize("index", [7, -1, -7, 2**40])
    def test_an_index_out_of_range_is_refused_by_name(self, source: DataSource, index: int):
        with pytest.raises(IndexError, match=f"index {index} is out of range for source 'data' of 7 records"):
            source.read([0, index])
        with pytest.raises(IndexError, match=f"index {index} "):
            source[index]

    @pytest.mark.parametrize("indices", [[0.0], ["0"], [[0]], [True], 0, None])
    def test_what_is_no_list_of_integers_is_refused(self, source: DataSource, indices: Any):
        with pytest.raises(TypeError, match="indices into source 'data' must be integers"):
            source.read(indices)

    def test_what_a_reader_does_to_a_batch_stays_in_the_batch(self, source: DataSource):
        before = source[2]
        for column in jax.tree.leaves(source.read([2, 2])) if source.columnar else ():
            column[...] = 0
        assert same(source[2], before)

    def test_four_threads_read_the_same_as_one(self, source: DataSource):
        wrong: list[Any] = []

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(30):
                order = rng.integers(0, self.num_records, 5)
                read = rows_of(source, source.read(order), 5)
                wrong.extend(i for i, r in zip(order, read, strict=True) if not same(r, self.expected()[i]))

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_reading_is_refused_once_closed_and_closing_twice_is_fine(self, opener: Opener):
        source = opener()
        source.close()
        source.close()
        assert len(source) == self.num_records
        with pytest.raises(ValueError, match="source 'data' is closed"):
            source.read([0])

    # Identity

    def test_two_openings_have_one_identity_that_is_plain_and_small(self, opener: Opener):
        with opener() as a, opener() as b:
            assert canonical_json(a.identity()) == canonical_json(b.identity())
            assert len(canonical_json(a.identity())) < 4096

    def test_the_identity_holds_the_name_and_the_number_of_records(self, source: DataSource):
        assert source.identity()["name"] == "data"
        assert source.identity()["num_records"] == self.num_records

    def test_the_outline_is_the_identity_without_samples_and_reads_no_record(
        self, source: DataSource, monkeypatch: pytest.MonkeyPatch
    ):
        identity = source.identity()

        def refuse(*arguments: Any) -> Any:
            raise AssertionError("a record was read")

        monkeypatch.setattr(type(source), "_read", refuse)
        monkeypatch.setattr(type(source._runtime), "read", refuse, raising=False)
        outline = source.outline()
        identity.pop("sample", None)
        assert canonical_json(outline) == canonical_json(identity)

    def test_reading_leaves_the_identity_alone(self, source: DataSource):
        before = source.identity()
        next(source)
        source.read([4])
        assert source.identity() == before

    def test_a_moved_copy_is_the_same_data(self, opener: Opener, tmp_path: Path):
        (tmp_path / "elsewhere").mkdir()
        with opener() as a, self.build(tmp_path / "elsewhere")() as b:
            assert a.identity() == b.identity()
            assert a.content_fingerprint() == b.content_fingerprint()

    def test_another_byte_is_another_identity(self, opener: Opener, tmp_path: Path):
        (tmp_path / "other").mkdir()
        with opener() as a, self.changed(tmp_path / "other")() as b:
            assert a.identity() != b.identity()

    def test_one_record_less_is_another_identity(self, opener: Opener, tmp_path: Path):
        (tmp_path / "other").mkdir()
        with opener() as a, self.shortened(tmp_path / "other")() as b:
            assert len(b) == self.num_records - 1
            assert a.identity() != b.identity()

    def test_untouched_content_passes_its_own_check(self, source: DataSource):
        assert source.check_content() == []

    # Iteration

    def test_iterating_gives_each_record_once_and_then_ends(self, source: DataSource):
        assert all(map(same, list(source), self.expected()))
        assert list(source) == []
        assert (source.position.get_value(), source.epoch.get_value()) == (7, 1)
        source.reset()
        assert same(next(source), self.expected()[0])

    def test_a_fresh_source_continues_from_every_position(self, opener: Opener):
        with opener() as source:
            for position in range(self.num_records + 1):
                state = source.get_state()
                with opener() as fresh:
                    fresh.set_state(state)
                    assert same(list(fresh), self.expected()[position:])
                if position < self.num_records:
                    next(source)

    def test_a_used_source_goes_back(self, source: DataSource):
        next(source)
        state = source.get_state()
        list(source)
        source.set_state(state)
        assert same(list(source), self.expected()[1:])

    def test_the_state_is_a_place_and_no_data(self, source: DataSource):
        list(source)
        state = source.get_state()
        assert (state["position"], state["epoch"], state["idx"], state["current"]) == (7, 1, 6, None)
        assert sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) < 100

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("position", 8),
            ("position", None),
            ("position", 2**40),
            ("position", 3),
            ("idx", None),
            ("idx", 7),
            ("epoch", 1),
            ("epoch", None),
            ("current", b"data"),
            ("current", np.zeros(3)),
        ],
    )
    def test_a_place_that_is_not_in_the_data_is_refused_and_changes_nothing(
        self, source: DataSource, field: str, value: Any
    ):
        next(source)
        next(source)
        state = source.get_state()
        with pytest.raises(ValueError, match=field if field != "position" or value != 3 else "idx"):
            source.set_state({**state, field: value})
        assert source.get_state()["position"] == 2
        assert same(next(source), self.expected()[2])

    def test_a_clone_goes_on_alone(self, opener: Opener):
        source = opener()
        next(source)
        clone = source.clone()
        next(source)
        source.close()
        assert same(list(clone), self.expected()[1:])
        clone.close()

    def test_a_copy_starts_over(self, source: DataSource):
        next(source)
        with source.copy() as copy:
            assert same(list(copy), self.expected())
            assert copy.identity() == source.identity()

    def test_split_and_merge_keep_the_place(self, source: DataSource):
        next(source)
        merged = nnx.merge(*nnx.split(source))  # shares its Variables with `source`, as NNX has it
        assert same(list(merged), self.expected()[1:])

    def test_a_transform_lets_a_source_pass(self, source: DataSource):
        next(source)
        nnx.jit(lambda module: None)(source)
        assert same(list(source), self.expected()[1:])
