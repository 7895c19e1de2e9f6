"""Finds the records of a damaged file that are not what the manifest's record hashes say."""

from __future__ import annotations

import numpy as np

from datarax.core.errors import InputError, ReadError
from datarax.sources.array_record_files import ArrayRecordFiles, Shard, open_reader
from datarax.sources.manifest import FileEntry, Manifest, load_record_hashes, record_hash

_NUM_NAMED_RECORDS = 5


def changed_records(path: str, entry: FileEntry, manifest: Manifest, directory: str) -> str:
    """What is wrong with the records of a file, as the end of a sentence; "" if nothing more can be said."""
    try:
        hashes = load_record_hashes(manifest, directory)
        num_records = open_reader(path).num_records
    except (InputError, ReadError) as error:
        return f"; {error}"
    if num_records != entry.num_records:
        return f"; it has {num_records} records, the manifest says {entry.num_records}"
    first = sum(file.num_records for file in manifest.files if file.name < entry.name)
    expected = hashes[first : first + num_records]  # uint64[num_records]
    found: list[str] = []
    files = ArrayRecordFiles([Shard(path, num_records)], max_open_files=1)
    for position in range(num_records):  # one by one: a record that cannot be read must not hide the next
        try:
            actual = np.frombuffer(record_hash(files[position]), dtype="<u8")[0]
        except ReadError as error:
            found.append(f"record {position} cannot be read ({error.__cause__ or error})")
        else:
            if actual != expected[position]:
                found.append(f"record {position} has changed")
    return _summary(found)


def _summary(found: list[str]) -> str:
    if not found:
        return "; every record is unchanged, what differs is beside the records"
    more = f", and {len(found) - _NUM_NAMED_RECORDS} more" if len(found) > _NUM_NAMED_RECORDS else ""
    return f"; {', '.join(found[:_NUM_NAMED_RECORDS])}{more}"
