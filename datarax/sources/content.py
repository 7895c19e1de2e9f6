"""A manifest for what is no ArrayRecord dataset: a 64-bit hash of every record, or of every block of them.

`source.manifest` names the file, `datarax build manifest CONFIG` writes it. It holds no path and no time. Knows nothing of
files: that is `manifest.py`.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.core.config import Natural, Positive, from_tree
from datarax.core.errors import InputError, ReadError
from datarax.core.tree import canonical_json, digest, hash_tree
from datarax.sources.records import Records
from datarax.store.files import parse_json, read_file, write_whole

CONTENT_FORMAT = 1
"""Raise this when the meaning of a field changes."""

_MOST_HASHES = 1 << 16
_MOST_BYTES = 1 << 24
_RECORDS_PER_READ = 256
_NUM_NAMED = 5


@dataclass(frozen=True)
class Content:
    """The recorded content of a source."""

    kind: str
    """Of the source."""
    num_records: Natural
    """Its length."""
    records_per_hash: Positive
    """How many records each hash is of; the last one may be of fewer."""
    hashes: str
    """The first 64 bits of the SHA-256 of each block, 16 hex digits each, in the order of the records."""
    format: int = CONTENT_FORMAT
    """Version of this description."""

    files = ()
    """Of the data that are recorded; none of their names is identity."""

    @property
    def num_hashes(self) -> int:
        """Blocks of records."""
        return -(-self.num_records // self.records_per_hash)

    def fingerprint(self) -> dict[str, Any]:
        """What stands for all of it."""
        return {"num_records": self.num_records, "sha256": digest(vars(self))}

    def changed(self, records: Records, numbers: Iterable[int]) -> Iterator[tuple[range, str]]:
        """Of these blocks the records of each that is not what was recorded, and a sentence that says so."""
        for number in numbers:
            first = number * self.records_per_hash
            span = range(first, min(first + self.records_per_hash, self.num_records))
            which = f"record {first}" if len(span) == 1 else f"a record in {first} to {span[-1]}"
            try:
                if _block_hash(records, span) != self.hashes[16 * number : 16 * number + 16]:
                    yield span, f"{which} has changed"
            except ReadError as error:
                yield span, f"{which} cannot be read ({error})"

    def problems(self, records: Records, name: str) -> list[str]:
        """What all records have that was not recorded."""
        changed = [what for _, what in self.changed(records, range(self.num_hashes))]
        more = [f"and {len(changed) - _NUM_NAMED} more"] if len(changed) > _NUM_NAMED else []
        named = ", ".join([*changed[:_NUM_NAMED], *more])
        return [f"source {name!r} is not what its manifest says: {named}"] if changed else []


def _block_hash(records: Records, span: range) -> str:
    hasher = hashlib.sha256()
    for start in range(span.start, span.stop, _RECORDS_PER_READ):
        indices = np.arange(start, min(start + _RECORDS_PER_READ, span.stop), dtype=np.int64)
        hash_tree(hasher, records.read(indices), "the records")
    return hasher.hexdigest()[:16]


def content_of(records: Records) -> Content:
    """Reads everything.

    Raises:
        InputError: if something cannot be read, or a record holds something that has no plain bytes.
    """
    per_hash = -(-len(records) // _MOST_HASHES)
    spans = (range(at, min(at + per_hash, len(records))) for at in range(0, len(records), per_hash))
    try:
        return Content(
            records.kind, len(records), per_hash, "".join(_block_hash(records, span) for span in spans)
        )
    except (ReadError, TypeError) as error:
        raise InputError(f"the records cannot be hashed: {error}") from error


def load_content(path: str) -> Content:
    """The content that a file records.

    Raises:
        InputError: if there is none, or it does not say what it must.
    """
    try:
        tree = parse_json(read_file(path, _MOST_BYTES))
        checksum = tree.pop("checksum")
        content = from_tree(Content, tree)
        if checksum != digest(vars(content)) or content.format != CONTENT_FORMAT:
            raise ValueError("its checksum does not match its content, or its format is not known")
        if len(content.hashes) != 16 * content.num_hashes:
            raise ValueError("it has another number of hashes than its records")
        return content
    except OSError as error:
        raise InputError(
            f"manifest {path} cannot be read: {error.strerror}; `datarax build manifest CONFIG` writes it"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"manifest {path} is damaged or none of datarax ({error}); remove it and write it again"
        ) from error


def write_content(path: str, records: Records) -> Content:
    """Records the content of a source; what is there already must say the same.

    Raises:
        InputError: if it cannot be read or written, or something else is recorded there.
    """
    content = content_of(records)
    if os.path.lexists(path):
        if load_content(path) != content:
            raise InputError(f"{path} records something else than these data; remove it if it is out of date")
        return content
    try:
        write_whole(path, canonical_json({**vars(content), "checksum": digest(vars(content))}) + b"\n")
    except OSError as error:
        raise InputError(f"manifest {path} cannot be written: {error}") from error
    return content
