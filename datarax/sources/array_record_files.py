"""ArrayRecord files: written, opened when first read, closed when too many, read by the batch.

The only file that calls the ArrayRecord library, which is slow to import: only when a file is opened. Knows nothing of
modules, manifests or fingerprints.
"""

import errno
import functools
import itertools
import os
import re
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from datarax.core.errors import InputError, ReadError
from datarax.store.files import open_file

# For random access the library advises no read-ahead; its default buffer of 1 MiB costs 30 us per record, 8 KiB 5 us.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 8192
# Opening waits for the disk, or for a network file system, and counts are needed of every file without a manifest.
_COUNTING_THREADS = 16
# Of the files that a process may have open (`ulimit -n`): JAX, Orbax and the user's own code need some too.
_OUR_SHARE = 4
# Where an ArrayRecord file keeps its index.
_END_BYTES = 1 << 16

# What one call of the library's list read costs, measured: a pass over all chunks of the file, whatever is asked for
# (33 ms for 2 million chunks), then about this much per record when its threads find the data in memory.
_LIST_READ_SECONDS_PER_CHUNK = 10e-9
_LIST_READ_SECONDS_PER_RECORD = 8e-6
_NUM_PROBES = 8


def open_writer(path: str, *, group_size: int, compression: str) -> Any:
    """A writer whose bytes depend on the records alone (one thread, no time in the header)."""
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(path, f"group_size:{group_size},{compression}")


def open_reader(path: str, look: Callable[[os.stat_result], None] = lambda stat: None) -> Any:
    """Opens a file and checks that its index is whole. A read moves the reader: one thread has it at a time.

    Args:
        path: the file.
        look: shown the size and time of the file before it is opened.

    Raises:
        ReadError: if the file is missing, is no file but a directory, pipe or device, or is no complete ArrayRecord file.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    # The library names no cause, and waits for a pipe.
    look(_touch(path, 0))
    reader = ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES)
    if not reader.ok():  # a reader that is not ok says it has 0 records and raises nothing
        _touch(path, _END_BYTES)
        raise ReadError(
            f"{path} is not a complete ArrayRecord file ({os.path.getsize(path)} bytes): it is truncated, damaged or "
            f"of another format; write it again or restore it from a copy"
        )
    return reader


def _touch(path: str, num_bytes: int) -> os.stat_result:
    """Reads the last bytes of a file; returns its size and time.

    Raises:
        ReadError: with the cause that the library does not tell, if it is missing, no file, or cannot be read.
    """
    try:
        with open(open_file(path), "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            file.seek(max(0, stat.st_size - num_bytes))
            file.read(num_bytes)
            return stat
    except OSError as error:
        few = " (`ulimit -n` says how many; raise it)" if error.errno == errno.EMFILE else ""
        raise ReadError(
            f"ArrayRecord file {path} cannot be opened: {error.strerror or error}{few}"
        ) from error


def count_records(paths: Sequence[str]) -> list[int]:
    """Records in each file, found by opening every one of them.

    Raises:
        InputError: naming the first file that cannot be read.
    """
    with ThreadPoolExecutor(min(_COUNTING_THREADS, len(paths))) as pool:
        try:
            return list(pool.map(lambda path: open_reader(path).num_records(), paths))
        except ReadError as error:
            raise InputError(str(error)) from error


class ArrayRecordFiles:
    """The records of some files as one sequence, by reads that cost no pass over a file and keep few files open.

    Grain's own source makes a thread pool per call, and reaches the library's list read, whose cost grows with the
    *file* (0.7 ms per call at 200,000 records, 33 ms at 2 million). Here the records of a batch are taken in the
    order in which they lie, each by a seek in an index that is in memory; the list read, which waits for many
    records at once, takes over where that is slow: data that is not in the page cache, large compressed groups.

    Thread-safe: a thread that reads has a reader for itself; readers return to a pool of bounded size. A copy, pickled
    or not, has a pool of its own.

    Args:
        paths: absolute paths of the files.
        counts: number of records in each.
        max_open_files: readers that are kept between reads; fewer, where the process may not open as many.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int], *, max_open_files: int) -> None:
        self._paths, self._counts = paths, counts
        self._ends = np.cumsum(counts, dtype=np.int64)  # int64[num_files]
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        share = max(1, limit // _OUR_SHARE) if limit != resource.RLIM_INFINITY else max_open_files
        self._max_open_files = min(max_open_files, share)
        # The least recently used file first.
        self._pool: OrderedDict[int, list[Any]] = OrderedDict()
        self.num_open_files = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Any) -> list[bytes]:
        """The records at `indices`, int64[n] in [0, len(self)), in their order; repeats are allowed.

        Raises:
            ReadError: naming the file, and the record where it is one record that fails.
        """
        wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        file_of = np.searchsorted(self._ends, wanted, side="right")  # int64[k], ascending like the indices
        borders = np.flatnonzero(np.diff(file_of, prepend=-1)).tolist()
        records: list[bytes] = []
        for start, stop in itertools.pairwise([*borders, len(wanted)]):
            number = int(file_of[start])
            first = int(self._ends[number]) - self._counts[number]
            records += self._read_file(number, (wanted[start:stop] - first).tolist())
        return list(map(records.__getitem__, places.tolist()))

    def close(self) -> None:
        """Closes the files. A read that is going on in another thread still ends well, and keeps none open."""
        with self._lock:
            self._max_open_files = 0
            self._pool.clear()
            self.num_open_files = 0

    def _read_file(self, number: int, positions: list[int]) -> list[bytes]:
        path, expected = self._paths[number], self._counts[number]
        with self._lock:
            idle = self._pool.get(number)
            reader = idle.pop() if idle else None
            self.num_open_files -= reader is not None
        if reader is None:
            reader = self._open(number)
            if reader.num_records() != expected:
                raise ReadError(
                    f"{path} has {reader.num_records()} records, had {expected} when it was recorded: the file was "
                    f"replaced; restore it, or build the dataset and its manifest again"
                )
        try:
            records = _read_sorted(reader, positions)
        except (RuntimeError, IndexError) as error:
            # The reader is not given back: after a failure the library answers every read with the same error.
            raise ReadError(_describe_failure(path, positions, error)) from error
        with self._lock:
            self._pool.setdefault(number, []).append(reader)
            self._pool.move_to_end(number)
            self.num_open_files += 1
            while self.num_open_files > self._max_open_files:
                self._close_oldest()
        return records

    def opening(self, number: int, stat: os.stat_result) -> None:
        """Told the size and time of a file that is being opened; may raise."""

    def _open(self, number: int) -> Any:
        """Opens a file. Where the process may open no more, because of files of others, idle ones of ours make room."""
        while True:
            try:
                return open_reader(self._paths[number], functools.partial(self.opening, number))
            except ReadError as error:
                full = getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE)
                with self._lock:
                    if not full or not self._pool:
                        raise
                    self._close_oldest()

    def _close_oldest(self) -> None:
        _, closed = self._pool.popitem(last=False)  # dropping the last reference closes a file
        self.num_open_files -= len(closed)


def _read_sorted(reader: Any, positions: list[int]) -> list[bytes]:
    """Records at ascending different positions, by whichever way the first few show to be the faster."""
    start = time.perf_counter()
    records = _read_one_by_one(reader, positions[:_NUM_PROBES])
    seconds_per_record = (time.perf_counter() - start) / _NUM_PROBES
    rest = positions[_NUM_PROBES:]
    if len(rest) >= _NUM_PROBES:
        group = re.search(r"group_size:(\d+)", reader.writer_options_string() or "")
        num_chunks = reader.num_records() // int(group[1] if group else 1)
        if list_read_pays(seconds_per_record, len(rest), num_chunks):
            return records + reader.read(rest)
    return records + _read_one_by_one(reader, rest)


def list_read_pays(seconds_per_record: float, num_records: int, num_chunks: int) -> bool:
    """Whether the library's list read is clearly faster than going on at `seconds_per_record`."""
    list_read = num_chunks * _LIST_READ_SECONDS_PER_CHUNK + num_records * _LIST_READ_SECONDS_PER_RECORD
    return seconds_per_record * num_records > 2 * list_read


def _read_one_by_one(reader: Any, positions: list[int]) -> list[bytes]:
    records = []
    for last, position in itertools.pairwise([-2, *positions]):
        if position != last + 1:  # within a run the reader is already there
            reader.seek(position)
        records.append(reader.read())
    return records


def _describe_failure(path: str, positions: list[int], error: Exception) -> str:
    """Finds the first record that fails by reading them again, one by one: it happens once, and a name is worth it."""
    try:
        reader = open_reader(path)
    except ReadError as failure:
        return str(failure)
    for position in positions:
        try:
            _read_one_by_one(reader, [position])
        except (RuntimeError, IndexError) as failure:
            return f"record {position} of ArrayRecord file {path} cannot be read: {failure}"
    return f"ArrayRecord file {path} could not be read: {error}"
