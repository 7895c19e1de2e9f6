"""Finds the records of a file that are not what the manifest's record hashes say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from datarax.core.errors import InputError, ReadError
from datarax.sources.array_record_files import ArrayRecordFiles, Shard, open_reader
from datarax.sources.manifest import FileEntry, Manifest, load_record_hashes, record_hash

_NUM_NAMED_RECORDS = 5


def changed_records(path: str, entry: FileEntry, manifest: Manifest, directory: str) -> str:
    """What is wrong with the records of a file, as the end of a sentence; "" if nothing more can be said."""
    try:
        hashes = file_hashes(entry, manifest, directory)
        num_records = open_reader(path).num_records
    except (InputError, ReadError) as error:
        return f"; {error}"
    if num_records != entry.num_records:
        return f"; it has {num_records} records, the manifest says {entry.num_records}"
    return _summary([what for _, what in changed_at(path, range(num_records), hashes)])


def file_hashes(entry: FileEntry, manifest: Manifest, directory: str) -> np.ndarray:
    """The recorded hashes of one file's records, uint64[num_records].

    Raises:
        InputError: if the side file is missing, or is not the one that the manifest names.
    """
    first = sum(file.num_records for file in manifest.files if file.name < entry.name)
    return load_record_hashes(manifest, directory)[first : first + entry.num_records]


def changed_at(path: str, positions: Iterable[int], hashes: np.ndarray) -> Iterator[tuple[int, str]]:
    """The positions in a file at which a record is not what its hash says, each with a sentence that says so.

    Args:
        path: the file.
        positions: in the file, each in [0, len(hashes)).
        hashes: uint64[num_records], as recorded.
    """
    files = ArrayRecordFiles([Shard(path, len(hashes))], max_open_files=1)
    for position in positions:  # one by one: a record that cannot be read must not hide the next
        try:
            actual = np.frombuffer(record_hash(files[position]), dtype="<u8")[0]
        except ReadError as error:
            yield position, f"record {position} cannot be read ({error.__cause__ or error})"
        else:
            if actual != hashes[position]:
                yield position, f"record {position} has changed"


def _summary(found: list[str]) -> str:
    if not found:
        return "; every record is unchanged, what differs is beside the records"
    more = f", and {len(found) - _NUM_NAMED_RECORDS} more" if len(found) > _NUM_NAMED_RECORDS else ""
    return f"; {', '.join(found[:_NUM_NAMED_RECORDS])}{more}"
