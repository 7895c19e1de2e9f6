"""Raw text and JSONL files, and the records that are cut from them. Knows nothing of how records are stored."""

import codecs
import enum
import hashlib
import io
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from datarax.core.errors import InputError
from datarax.sources.files import find_files, refuse_twice, relative_names, walk
from datarax.store.files import open_file

PYTHON_STDLIB = "python-stdlib"
"""Stands for the source text of the running Python's standard library."""

MOST_RECORD_BYTES = 1 << 30
"""A text file or a line that is longer is no record: nothing of unknown size is read whole."""

_BLOCK_BYTES = 1 << 20
# Directories of the standard library that hold what was installed or compiled later.
_NOT_OURS = frozenset({"site-packages", "dist-packages", "__pycache__"})


class InputKind(enum.StrEnum):
    """What the input files hold."""

    TEXT = "text"
    """UTF-8 text. Its bytes become the records."""
    JSONL = "jsonl"
    """One JSON value per line. Each line becomes a record."""


def is_standard_library(inputs: str | Sequence[str]) -> bool:
    """Whether these inputs are the standard library's source text."""
    return inputs == PYTHON_STDLIB or list(inputs) == [PYTHON_STDLIB]


def find_inputs(
    inputs: str | Sequence[str],
    *,
    absent: bool = False,
    is_made: Callable[[str], bool] = lambda directory: False,
) -> dict[str, str]:
    """The files that `inputs` name, sorted: name relative to the deepest directory that holds all -> absolute path.

    A directory stands for all files below it. With `absent` what is not there is left out.

    Args:
        inputs: paths, globs, directories, or `PYTHON_STDLIB`.
        absent: whether what is not there is left out.
        is_made: whether a directory is what a build has made.

    Raises:
        AbsentError: if one is not there.
        InputError: if one is not local, is named twice, a directory on the way cannot be read, or a glob matches a directory
            that is not to be left out.
    """
    if is_standard_library(inputs):
        base = sysconfig.get_path("stdlib")
        paths = sorted(_standard_library(base))
        if not paths:
            raise InputError(f"the standard library at {base} holds no source files; name other inputs")
    else:
        paths = find_files(
            inputs,
            what="input file",
            expand_directory=_files_below,
            absent=absent,
            left_out=lambda path, is_dir: is_dir and (absent or is_made(path)),
        )
        seen: dict[str, str] = {}
        for directory in dict.fromkeys(map(os.path.dirname, paths)):
            refuse_twice(directory, seen, "input file")
    return dict(zip(relative_names(paths)[1], paths, strict=True)) if paths else {}


def input_sha256(path: str) -> str:
    """SHA-256 of an input file.

    Raises:
        InputError: if it cannot be read.
    """
    with open_input(path) as stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error


def inputs_digest(hashes: Mapping[str, str]) -> str:
    """Digest of names and contents of the files, without their directory: of name -> SHA-256, in their order."""
    hasher = hashlib.sha256()
    for name, content in hashes.items():
        hasher.update(f"{len(name)} {name} {content}\n".encode())
    return hasher.hexdigest()


def text_records(
    files: Mapping[str, str], record_bytes: int | None, leftovers: Counter[str], *, skip_undecodable: bool
) -> Iterator[bytes]:
    """The text of all files one after the other, cut into records of `record_bytes`; None: one record per file.

    What is in no record is counted when all are drawn: `skipped_files`, which are empty or, if those are skipped, not
    UTF-8, and `dropped_bytes`, which do not fill a record.

    Raises:
        InputError: naming a file that cannot be read, is not UTF-8 text, or is too large for one record.
    """
    pending = b""
    for path in files.values():
        blocks = _text(path, record_bytes or 0)
        if skip_undecodable or record_bytes is None:
            blocks = iter([_whole(path, blocks, skip_undecodable=skip_undecodable)])
        empty = True
        for block in blocks:
            empty = empty and not block
            pending += block
            size = record_bytes or max(1, len(pending))
            whole = len(pending) - len(pending) % size
            for start in range(0, whole, size):
                yield pending[start : start + size]
            pending = pending[whole:]
        leftovers["skipped_files"] += empty
    leftovers["dropped_bytes"] = len(pending)


class _NoTextError(InputError):
    """A file is not UTF-8."""


def _text(path: str, least: int) -> Iterator[bytes]:
    """A file in blocks of at least so many bytes, checked to be UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    with open_input(path) as stream:
        while True:
            try:
                block = stream.read(max(least, _BLOCK_BYTES))
                waiting, _ = decoder.getstate()
                decoder.decode(block, final=not block)
            except OSError as error:
                raise unreadable(path, error) from error
            except UnicodeDecodeError as error:
                at = before - len(waiting) + error.start
                raise _NoTextError(
                    f"input file {path} is not UTF-8 text: {error.reason} at byte {at}; convert it or leave it out"
                ) from error
            if not block:
                return
            before += len(block)
            yield block


def _whole(path: str, blocks: Iterator[bytes], *, skip_undecodable: bool) -> bytes:
    """All of a file, as one record must hold it; nothing if it is no text and may be skipped."""
    text: list[bytes] = []
    try:
        for block in blocks:
            text.append(block)
            if sum(map(len, text)) > MOST_RECORD_BYTES:
                raise InputError(
                    f"input file {path} is larger than one record can be ({MOST_RECORD_BYTES} bytes); set record_bytes"
                )
    except _NoTextError:
        if not skip_undecodable:
            raise
        return b""
    return b"".join(text)


def jsonl_records(files: Mapping[str, str], leftovers: Counter[str]) -> Iterator[bytes]:
    """The lines of all files, without their line ends and otherwise as they are.

    Files without a line are counted as `skipped_files`.

    Raises:
        InputError: naming file and line, if a line is not one JSON value or is too large for a record.
    """
    for path in files.values():
        number = 0
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                raise InputError(
                    f"{path}:{number} is empty; every line of a JSONL file must hold one JSON value"
                )
            if len(line) > MOST_RECORD_BYTES:
                raise InputError(
                    f"{path}:{number} is longer than a record can be ({MOST_RECORD_BYTES} bytes)"
                )
            record = line.removesuffix(b"\n").removesuffix(b"\r")
            try:
                # Numbers are looked at, not converted: Python refuses to make an int of more than 4,300 digits.
                json.loads(record.decode(), parse_constant=_refuse_constant, parse_int=len, parse_float=len)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number} is not valid JSON: {error}") from error
            yield record
        leftovers["skipped_files"] += not number


def _lines(path: str) -> Iterator[bytes]:
    with open_input(path) as stream:
        try:
            yield from iter(lambda: stream.readline(MOST_RECORD_BYTES + 1), b"")
        except OSError as error:
            raise unreadable(path, error) from error


def open_input(path: str) -> io.BufferedReader:
    """Opens an input file.

    Raises:
        InputError: naming the file and the cause; also if it is something else than a file.
    """
    try:
        return open(open_file(path), "rb")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: str, error: OSError) -> InputError:
    """What is said of an input that could not be read."""
    return InputError(f"input file {path} cannot be read: {error.strerror or error}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _files_below(directory: str) -> list[str]:
    everything = walk(directory, "input file")
    return [entry.path for _, entries in everything for entry in entries if not entry.is_dir()]


def _standard_library(base: str) -> Iterator[str]:
    """Its source files, where a Python installation has them itself and not by a link."""
    for where, below, names in os.walk(base, onerror=_refuse):
        below[:] = [name for name in below if name not in _NOT_OURS]
        paths = (os.path.join(where, name) for name in names if name.endswith(".py"))
        yield from filter(os.path.isfile, paths)


def _refuse(error: OSError) -> None:
    raise unreadable(error.filename, error)
