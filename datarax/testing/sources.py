"""`SourceLaws`: what every source must do, whatever it reads from, as a pytest class to subclass.

Nothing here looks behind the public interface of `DataSource`. Needs pytest.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from datarax.core.tree import canonical_json
from datarax.sources import DataSource
from datarax.testing.resume import assert_resumes_everywhere
from datarax.testing.streams import difference, must_equal

Opener = Callable[[], DataSource]
"""Opens a new source over the same data at each call."""

_MIN_RECORDS = 5
_MAX_RECORDS = 100


class SourceLaws:
    """The laws of sources, as tests; a subclass named `Test…` says how to make the source.

    It defines `build` and `records`, and `changed` and `shortened` where the defaults do not do. The tests make and close
    the sources; each has a directory of its own.

        class TestMySourceLaws(SourceLaws):
            def records(self):
                return [b"record %d" % i for i in range(7)]

            def build(self, directory, records):
                write_my_file(directory / "data.bin", records)
                return lambda: DataSource(SourceConfig(), MyRecords(directory / "data.bin"))
    """

    def records(self) -> list[Any]:
        """The records that a source over them must give: 5 to 100, no two the same, made without the source."""
        raise NotImplementedError("say which records the source holds: define records()")

    def build(self, directory: Path, records: list[Any]) -> Opener:
        """Puts `records` into `directory`, which is empty, and returns what opens a new source over them at each call."""
        raise NotImplementedError("say how to make the source: define build()")

    def changed(self, directory: Path) -> Opener:
        """Like `build`, with one byte of the first record changed.

        The default builds from `records()` with one bit of the first record flipped; bytes, text, integers, NumPy arrays
        and scalars can be, and the first of these in a tree.
        """
        first, *rest = self.records()
        return self.build(directory, [altered(first), *rest])

    def shortened(self, directory: Path) -> Opener:
        """Like `build`, without the last record. The default builds from all other `records()`."""
        return self.build(directory, self.records()[:-1])

    @pytest.fixture
    def expected(self) -> list[Any]:
        """The records, of which there must be enough for the laws to mean something."""
        records = list(self.records())
        if not _MIN_RECORDS <= len(records) <= _MAX_RECORDS:
            raise ValueError(
                f"records() must give {_MIN_RECORDS} to {_MAX_RECORDS} records, got {len(records)}"
            )
        for i, record in enumerate(records):
            if any(difference(record, other) is None for other in records[:i]):
                raise ValueError(f"records() must give records that differ, but record {i} is there twice")
        return records

    @pytest.fixture
    def opener(self, tmp_path_factory: pytest.TempPathFactory, expected: list[Any]) -> Opener:
        """What opens a source over the records."""
        return self.build(tmp_path_factory.mktemp("data"), expected)

    @pytest.fixture
    def source(self, opener: Opener) -> Iterator[DataSource]:
        """An open source over the records."""
        with opener() as source:
            yield source

    # Reading

    def test_it_has_the_records_that_were_put_in(self, source: DataSource, expected: list[Any]) -> None:
        """`len` and one read of all."""
        assert len(source) == len(expected)
        _check_read(source, list(range(len(expected))), expected)

    def test_read_and_getitem_and_getitems_agree(self, source: DataSource, expected: list[Any]) -> None:
        """Three ways to the same records."""
        order = [3, 0, len(expected) - 1, 3]
        one_by_one = [source[i] for i in order]
        must_equal([expected[i] for i in order], one_by_one, f"source[i] for i in {order}")
        must_equal(one_by_one, source.__getitems__(order), f"source.__getitems__({order})")
        _check_read(source, order, expected)

    def test_records_come_in_the_order_asked_for_repeats_included(
        self, source: DataSource, expected: list[Any]
    ) -> None:
        """A record depends on its index, not on what was read before or with it."""
        last = len(expected) - 1
        for order in ([last, last, 0, last - 1, 1, 0, last, 2, 3], list(range(last, -1, -1)), [2], [1]):
            _check_read(source, order, expected)

    def test_reading_no_index_gives_no_record(self, source: DataSource) -> None:
        """An empty list of indices is none."""
        _check_read(source, [], [])
        _check_read(source, np.array([], dtype=np.int64), [])

    def test_an_index_out_of_range_is_refused_by_name(self, source: DataSource, expected: list[Any]) -> None:
        """An IndexError names the index, the source and its length; nothing counts from the end."""
        count, name = len(expected), re.escape(repr(source.name))
        for index in (count, -1, -count, 2**40):
            told = f"index {index} is out of range for source {name} of {count} records"
            with pytest.raises(IndexError, match=told):
                source.read([0, index])
            with pytest.raises(IndexError, match=f"index {index} "):
                source[index]

    def test_what_is_no_list_of_integers_is_refused(self, source: DataSource) -> None:
        """A TypeError names the source."""
        said = f"indices into source {re.escape(repr(source.name))} must be integers"
        for indices in ([0.0], ["0"], [[0]], [True], 0, None):
            with pytest.raises(TypeError, match=said):
                source.read(indices)  # type: ignore[arg-type]

    def test_what_a_reader_does_to_a_batch_stays_in_the_batch(
        self, source: DataSource, expected: list[Any]
    ) -> None:
        """Columns are new arrays at each read."""
        for column in jax.tree.leaves(source.read([2, 2])) if source.columnar else ():
            column[...] = 0
        must_equal(expected[2], source[2], "record 2 after a batch with it was overwritten")

    def test_four_threads_read_the_same_as_one(self, source: DataSource, expected: list[Any]) -> None:
        """A loader reads from several threads."""

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(30):
                _check_read(source, rng.integers(0, len(expected), 5).tolist(), expected)

        # Threads take turns a thousand times as often, so that those who share what they must not get in each other's way.
        before = sys.getswitchinterval()
        sys.setswitchinterval(before / 1000)
        try:
            with ThreadPoolExecutor(4) as threads:
                errors = [work.exception() for work in [threads.submit(read, seed) for seed in range(4)]]
        finally:
            sys.setswitchinterval(before)
        for error in filter(None, errors):
            raise AssertionError(
                f"read by four threads at once it does not read as by one: {type(error).__name__}: {error}"
            ) from error

    def test_reading_is_refused_once_closed_and_closing_twice_is_fine(
        self, opener: Opener, expected: list[Any]
    ) -> None:
        """A ValueError names the source; the length is known all the same."""
        source = opener()
        source.close()
        source.close()
        assert len(source) == len(expected)
        said = f"source {re.escape(repr(source.name))} is closed"
        with pytest.raises(ValueError, match=said):
            source.read([0])

    # Identity

    def test_two_openings_have_one_identity_that_is_plain_and_small(self, opener: Opener) -> None:
        """The identity is JSON and stands in every run."""
        with opener() as a, opener() as b:
            assert canonical_json(a.identity()) == canonical_json(b.identity())
            assert len(canonical_json(a.identity())) < 4096

    def test_the_identity_holds_the_name_and_the_number_of_records(
        self, source: DataSource, expected: list[Any]
    ) -> None:
        """Both decide which records are in a batch."""
        assert source.identity()["name"] == source.name
        assert source.identity()["num_records"] == len(expected)

    def test_reading_leaves_the_identity_alone(self, source: DataSource) -> None:
        """It says what the data is, not what was done with it."""
        before = source.identity()
        next(source)
        source.read([4])
        assert source.identity() == before

    def test_a_moved_copy_is_the_same_data(self, opener: Opener, tmp_path: Path, expected: list[Any]) -> None:
        """Paths are no identity."""
        copied = self.build(tmp_path, expected)
        with opener() as a, copied() as b:
            must_equal(a.identity(), b.identity(), "the identity of the same records in another directory")
            assert a.content_fingerprint() == b.content_fingerprint()

    def test_another_byte_is_another_identity(self, opener: Opener, tmp_path: Path) -> None:
        """The quick fingerprint samples content; in so few records it must see the first."""
        with opener() as a, self.changed(tmp_path)() as b:
            if a.identity() == b.identity():
                raise AssertionError(
                    f"one byte of the first record was changed, and the identity is still {a.identity()}: a restore on "
                    f"other data would pass; put a digest of sampled records into identity()"
                )

    def test_one_record_less_is_another_identity(
        self, opener: Opener, tmp_path: Path, expected: list[Any]
    ) -> None:
        """Another length is another order."""
        with opener() as a, self.shortened(tmp_path)() as b:
            assert len(b) == len(expected) - 1
            assert a.identity() != b.identity()

    def test_untouched_content_passes_its_own_check(self, source: DataSource) -> None:
        """No false alarm."""
        assert source.check_content() == []

    # Iteration

    def test_iterating_gives_each_record_once_and_then_ends(
        self, source: DataSource, expected: list[Any]
    ) -> None:
        """First to last; `reset` starts over."""
        must_equal(expected, list(source), "the records in turn")
        assert list(source) == []
        assert (source.position.get_value(), source.epoch.get_value()) == (len(expected), 1)
        source.reset()
        must_equal(expected[0], next(source), "the first record after reset()")

    def test_it_resumes_everywhere(self, opener: Opener) -> None:
        """From each of the first records, into fresh and used sources, in memory and through JSON."""
        assert_resumes_everywhere(opener, steps=min(len(self.records()), 12), snapshots=False)

    def test_the_state_is_a_place_and_no_data(self, source: DataSource, expected: list[Any]) -> None:
        """What each field means, at the end."""
        list(source)
        state, count = source.get_state(), len(expected)
        assert (state["position"], state["epoch"], state["idx"], state["current"]) == (
            count,
            1,
            count - 1,
            None,
        )
        assert sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state)) < 100

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("position", "beyond the end"),
            ("position", None),
            ("position", 2**40),
            ("position", 3),
            ("idx", None),
            ("idx", 4),
            ("epoch", 1),
            ("epoch", None),
            ("current", b"data"),
            ("current", np.zeros(3)),
        ],
    )
    def test_a_place_that_is_not_in_the_data_is_refused_and_changes_nothing(
        self, source: DataSource, expected: list[Any], field: str, value: Any
    ) -> None:
        """A ValueError names the field; an idx that does not go with the position is told as such."""
        next(source)
        next(source)
        given = {**source.get_state(), field: len(expected) + 1 if isinstance(value, str) else value}
        said = "idx" if (field, value) == ("position", 3) else field
        with pytest.raises(ValueError, match=said):
            source.set_state(given)
        assert source.get_state()["position"] == 2
        must_equal(expected[2], next(source), "the next record after a refused state")

    def test_a_clone_goes_on_alone(self, opener: Opener, expected: list[Any]) -> None:
        """It has files of its own, which stay open."""
        source = opener()
        next(source)
        clone = source.clone()
        next(source)
        source.close()
        must_equal(expected[1:], list(clone), "the rest of a clone, after the original was closed")
        clone.close()

    def test_a_copy_starts_over(self, source: DataSource, expected: list[Any]) -> None:
        """The same data, no state."""
        next(source)
        copy = source.copy()
        assert isinstance(copy, DataSource)
        with copy:
            must_equal(expected, list(copy), "the records of a copy")
            assert copy.identity() == source.identity()

    def test_a_pickled_source_reads_the_same(self, source: DataSource, expected: list[Any]) -> None:
        """A worker process gets one at the same place, with files of its own."""
        next(source)
        try:
            pickled = pickle.dumps(source)
        except Exception as error:
            raise AssertionError(
                f"source {source.name!r} cannot be pickled, so no other process can read it: {type(error).__name__}: "
                f"{error}; give it data that pickles, or let its records say in __reduce__ what they are made from"
            ) from error
        identity = source.identity()
        source.close()
        with pickle.loads(pickled) as other:
            must_equal(identity, other.identity(), "the identity of a pickled source")
            must_equal(
                expected[1:], list(other), "the rest of a pickled source, after the original was closed"
            )
        with pickle.loads(pickle.dumps(source)) as other:
            _check_read(other, [1, 0], expected)

    def test_split_and_merge_keep_the_place(self, source: DataSource, expected: list[Any]) -> None:
        """A source may be an argument of an NNX transform."""
        next(source)
        merged = nnx.merge(*nnx.split(source))  # shares its Variables with `source`, as NNX has it
        must_equal(expected[1:], list(merged), "the rest of a source that was split and merged")

    def test_a_transform_lets_a_source_pass(self, source: DataSource, expected: list[Any]) -> None:
        """`nnx.jit` changes neither the place nor the records."""
        next(source)
        nnx.jit(lambda module: None)(source)
        must_equal(expected[1:], list(source), "the rest of a source that went through nnx.jit")


def _check_read(source: DataSource, order: Any, expected: list[Any]) -> None:
    """Holds one read against the records."""
    read = source.read(order)
    if source.columnar:
        assert {len(column) for column in jax.tree.leaves(read)} == {len(order)}
        read = [jax.tree.map(lambda column, i=i: column[i], read) for i in range(len(order))]
    must_equal([expected[i] for i in order], read, f"read({order}) differs at")


def altered(record: Any) -> Any:
    """A copy of `record` in which one bit of the first leaf with content is another.

    Raises:
        TypeError: if it holds nothing whose bits are known.
    """
    leaves, structure = jax.tree.flatten(record)
    for i, leaf in enumerate(leaves):
        changed = _altered_leaf(leaf)
        if changed is not None:
            return jax.tree.unflatten(structure, [*leaves[:i], changed, *leaves[i + 1 :]])
    raise TypeError(f"cannot change a bit of {record!r}; define changed() in the subclass of SourceLaws")


def _altered_leaf(leaf: Any) -> Any:
    """The leaf with another first bit; None if it has no content, or its bits are not known."""
    # NumPy's byte strings are bytes as well, so arrays and scalars come first.
    if isinstance(leaf, (np.ndarray, np.generic)):
        if leaf.size == 0 or leaf.dtype.hasobject or leaf.dtype == np.bool_:
            return None
        raw = bytearray(leaf.tobytes())
        raw[0] ^= 1
        changed = np.frombuffer(raw, leaf.dtype).reshape(leaf.shape)
        return changed if isinstance(leaf, np.ndarray) else changed[()]
    if isinstance(leaf, int) and not isinstance(leaf, bool):
        return leaf ^ 1
    if isinstance(leaf, bytes) and leaf:
        return bytes([leaf[0] ^ 1]) + leaf[1:]
    return chr(ord(leaf[0]) ^ 1) + leaf[1:] if isinstance(leaf, str) and leaf else None
