"""A correct source as a user would write one, and one that is broken in each way, each under the laws.

`test_source_laws.py` runs this file with pytest of its own and looks at which laws fail; it is not collected with the tests.
"""

import contextlib
import hashlib
import threading

import numpy as np

from datarax.sources import DataSource, Records, SourceConfig
from datarax.testing import SourceLaws

RECORDS = [f"line {i}" for i in range(7)]


class Content:
    def __init__(self, lines):
        self.lines = lines


class Lines(DataSource):
    """The lines of a text file."""

    columnar = False

    def __init__(self, config, path):
        super().__init__(config)
        self.path = path
        self._runtime = Content(path.read_text().splitlines())

    def copy(self, **changes):
        return type(self)(self.config, self.path)

    def _length(self):
        return len(self._runtime.lines)

    def _read(self, indices):
        return [self._runtime.lines[i] for i in indices]

    def identity(self):
        content = hashlib.sha256("\n".join(self._runtime.lines).encode()).hexdigest()
        return {"kind": "lines", "name": self.name, "num_records": self._length(), "content": content}

    def content_fingerprint(self):
        return {"content": self.identity()["content"]}

    def _close(self):
        pass

    def _reopened(self):
        return Content(self._runtime.lines)


class LinesLaws(SourceLaws):
    kind = Lines

    def records(self):
        return RECORDS

    def build(self, directory, records):
        path = directory / "data.txt"
        path.write_text("\n".join(records))
        return lambda: self.kind(SourceConfig(name="lines"), path)


class TestCorrect(LinesLaws):
    pass


class LineRecords(Records):
    """The same, as an adapter."""

    kind = "lines"

    def __init__(self, path):
        self.path = path
        self.lines = path.read_text().splitlines()

    def __reduce__(self):
        return type(self), (self.path,)

    def __len__(self):
        return len(self.lines)

    def read(self, indices):
        return [self.lines[i] for i in indices]

    def outline(self):
        return {}


class TestCorrectRecords(LinesLaws):
    records_of = LineRecords

    def build(self, directory, records):
        super().build(directory, records)
        path = directory / "data.txt"
        return lambda: DataSource(SourceConfig(name="lines"), self.records_of(path))


class TestSharesWhatIsOpen(TestCorrectRecords):
    """A clone loses what the original closes."""

    class records_of(LineRecords):
        def __init__(self, path):
            super().__init__(path)
            self.count = len(self.lines)

        def __copy__(self):
            return self

        def __len__(self):
            return self.count

        def close(self):
            self.lines.clear()


class TestCannotBePickled(LinesLaws):
    class kind(Lines):
        def __init__(self, config, path):
            super().__init__(config, path)
            self._runtime.lock = threading.Lock()


class TestLosesItsPlaceInAPickle(LinesLaws):
    class kind(Lines):
        def __reduce__(self):
            return type(self), (self.config, self.path)


class TestSortsWhatItReads(LinesLaws):
    class kind(Lines):
        def _read(self, indices):
            return super()._read(np.sort(indices))


class TestReadsOnFromTheLast(LinesLaws):
    """Right from first to last, as a reader of a stream is."""

    class kind(Lines):
        at = 0

        def _read(self, indices):
            found = super()._read((self.at + np.arange(len(indices))) % len(self))
            self.at = (self.at + len(indices)) % len(self)
            return found


class TestSharesACursor(LinesLaws):
    """Two threads that read at once move the cursor of the other."""

    class kind(Lines):
        both = threading.Barrier(2, timeout=2)

        def _read(self, indices):
            return [self.line(index) for index in indices]

        def line(self, index):
            self.cursor = index
            if threading.current_thread() is not threading.main_thread():
                with contextlib.suppress(threading.BrokenBarrierError):  # the last thread is alone
                    self.both.wait()
            return self._runtime.lines[self.cursor]


class TestCountsFromTheEnd(LinesLaws):
    """Python's own errors, and negative indices."""

    class kind(Lines):
        def read(self, indices):
            return [self._runtime.lines[i] for i in indices]


class TestIdentityOfLengthAlone(LinesLaws):
    class kind(Lines):
        def identity(self):
            return {"kind": "lines", "name": self.name, "num_records": self._length()}


class TestIdentityOfAPath(LinesLaws):
    class kind(Lines):
        def identity(self):
            return {**super().identity(), "path": str(self.path)}


class TestIdentityOfADay(LinesLaws):
    class kind(Lines):
        opened = 0

        def identity(self):
            Lines.opened = Lines.opened + 1 if "opened" in vars(Lines) else 0
            return {**super().identity(), "opened": Lines.opened}


class TestMovesBeforeItReads(LinesLaws):
    """Its place is one further than what it has handed over, once it was restored."""

    class kind(Lines):
        def _state_restored(self):
            self.position.set_value(min(self.position.get_value() + 1, len(self)))


class TestSharesItsFileWithAClone(LinesLaws):
    """A clone loses what the original closes."""

    class kind(Lines):
        def __init__(self, config, path):
            super().__init__(config, path)
            self.length = len(self._runtime.lines)

        def _length(self):
            return self.length

        def _close(self):
            self._runtime.lines = []

        def _reopened(self):
            return self._runtime


class TestGivesItsOwnArrays(SourceLaws):
    class kind(DataSource):
        """Columns of numbers; a read of one stretch is a view."""

        columnar = True

        def __init__(self, numbers):
            super().__init__(SourceConfig())
            self._runtime = numbers

        def copy(self, **changes):
            return type(self)(self._runtime)

        def _length(self):
            return len(self._runtime)

        def _read(self, indices):
            if len(indices) and (indices == indices[0]).all():
                return (
                    np.broadcast_to(self._runtime[indices[0]], len(indices))
                    if len(indices) > 2
                    else (self._runtime[indices[0] : indices[0] + 1])
                )
            return self._runtime[indices]

        def identity(self):
            content = self._runtime.tobytes().hex()
            return {"name": self.name, "num_records": self._length(), "content": content}

        def _close(self):
            pass

        def _reopened(self):
            return self._runtime

    def records(self):
        return list(np.arange(7, dtype=np.float32))

    def build(self, directory, records):
        return lambda: self.kind(np.array(records))


class TestWidensNumbers(TestGivesItsOwnArrays):
    class kind(TestGivesItsOwnArrays.kind):
        def _read(self, indices):
            return self._runtime[indices].astype(np.float64)


class TestTooFewRecords(LinesLaws):
    def records(self):
        return ["a", "b"]


class TestTheSameRecordTwice(LinesLaws):
    def records(self):
        return [*"abcdef", "a"]
