"""Raw text and JSONL files, and the records that are cut from them. Knows nothing of how records are stored."""

from __future__ import annotations

import enum
import hashlib
import io
import json
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datarax.core.errors import InputError
from datarax.core.tree import digest
from datarax.sources.files import file_stats, find_files, relative_names

PYTHON_STDLIB = "python-stdlib"
"""Stands for the source text of the running Python's standard library."""

# Directories of the standard library that hold what was installed or compiled later.
_NOT_OURS = frozenset({"site-packages", "dist-packages", "__pycache__"})


class InputKind(enum.StrEnum):
    """What the input files hold."""

    TEXT = "text"
    """UTF-8 text. Its bytes become the records."""
    JSONL = "jsonl"
    """One JSON value per line. Each line becomes a record."""


@dataclass(frozen=True)
class InputFile:
    """One raw file."""

    name: str
    """Relative to the deepest directory that holds all inputs."""
    path: str
    """Absolute path."""


@dataclass
class Leftovers:
    """What was read and is in no record. Filled while the records are drawn."""

    skipped_files: int = 0
    """Input files without a record: empty ones, and files of the standard library that are not UTF-8."""
    dropped_bytes: int = 0
    """Bytes after the last whole record."""


def is_standard_library(inputs: str | Sequence[str]) -> bool:
    """Whether these inputs are the standard library's source text."""
    return inputs == PYTHON_STDLIB or list(inputs) == [PYTHON_STDLIB]


def find_inputs(inputs: str | Sequence[str]) -> list[InputFile]:
    """The files that `inputs` name, sorted by their relative names; a directory stands for all files below it.

    Raises:
        InputError: if one is missing, not local, or named twice.
    """
    if is_standard_library(inputs):
        base = sysconfig.get_path("stdlib")
        sources = (path for path in _files_below(base) if path.endswith(".py") and os.path.isfile(path))
        paths = [path for path in sources if not _NOT_OURS & set(os.path.relpath(path, base).split(os.sep))]
        if not paths:
            raise InputError(f"the standard library at {base} holds no source files; name other inputs")
    else:
        paths = find_files(inputs, what="input file", expand_directory=_files_below)
        base, _ = relative_names(paths)
    names = [os.path.relpath(path, base).replace(os.sep, "/") for path in paths]
    return [InputFile(name, path) for name, path in sorted(zip(names, paths, strict=True))]


def inputs_stamp(files: Sequence[InputFile]) -> str:
    """Digest of names, sizes and times of change: while it stays, the inputs need not be read to know them.

    Raises:
        InputError: if one cannot be read.
    """
    stats = zip(files, file_stats([file.path for file in files], "input file"), strict=True)
    return digest([[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats])


def inputs_digest(files: Sequence[InputFile]) -> str:
    """Digest of names and contents of the files, without their directory.

    Raises:
        InputError: if one cannot be read.
    """
    hasher = hashlib.sha256()
    for file in files:
        with open_input(file) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        hasher.update(f"{len(file.name)} {file.name} {content}\n".encode())
    return hasher.hexdigest()


def text_records(
    files: Sequence[InputFile], record_bytes: int | None, leftovers: Leftovers, *, skip_undecodable: bool
) -> Iterator[bytes]:
    """The text of all files one after the other, cut into records of `record_bytes`; None: one record per file.

    Raises:
        InputError: naming a file that cannot be read or is not UTF-8 text.
    """
    pending = bytearray()
    for file in files:
        text = _read_text(file, skip_undecodable)
        if not text:
            leftovers.skipped_files += 1
        elif record_bytes is None:
            yield text
        else:
            pending += text
            whole = len(pending) - len(pending) % record_bytes
            for start in range(0, whole, record_bytes):
                yield bytes(pending[start : start + record_bytes])
            del pending[:whole]
    leftovers.dropped_bytes = len(pending)


def jsonl_records(files: Sequence[InputFile], leftovers: Leftovers) -> Iterator[bytes]:
    """The lines of all files, without their line ends and otherwise as they are.

    Raises:
        InputError: naming file and line, if a line is not one JSON value.
    """
    for file in files:
        with open_input(file) as lines:
            number = 0
            for number, line in enumerate(lines, start=1):
                record = line.removesuffix(b"\n").removesuffix(b"\r")
                _check_json(record, file.path, number)
                yield record
            leftovers.skipped_files += number == 0


def open_input(file: InputFile) -> io.BufferedReader:
    """Opens an input file.

    Raises:
        InputError: naming the file and the cause.
    """
    try:
        return open(file.path, "rb")
    except OSError as error:
        raise InputError(f"input file {file.path} cannot be read: {error.strerror or error}") from error


def _check_json(line: bytes, path: str, number: int) -> None:
    if not line.strip():
        raise InputError(f"{path}:{number} is empty; every line of a JSONL file must hold one JSON value")
    try:
        # Numbers are looked at, not converted: Python refuses to make an int of more than 4,300 digits.
        json.loads(line.decode(), parse_constant=_refuse_constant, parse_int=len, parse_float=len)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{number} is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_text(file: InputFile, skip_undecodable: bool) -> bytes:
    with open_input(file) as stream:
        text = stream.read()
    try:
        text.decode()
    except UnicodeDecodeError as error:
        if skip_undecodable:
            return b""
        raise InputError(
            f"input file {file.path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it or leave it out"
        ) from error
    return text


def _files_below(directory: str) -> list[str]:
    found = [os.path.join(where, name) for where, _, names in os.walk(directory) for name in names]
    if not found:
        raise InputError(f"input directory {directory} holds no files")
    return found
