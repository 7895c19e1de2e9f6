"""Raw text and JSONL files, and the records that are cut from them. Knows nothing of how records are stored."""

import enum
import hashlib
import io
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

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


def is_standard_library(inputs: str | Sequence[str]) -> bool:
    """Whether these inputs are the standard library's source text."""
    return inputs == PYTHON_STDLIB or list(inputs) == [PYTHON_STDLIB]


def find_inputs(inputs: str | Sequence[str]) -> dict[str, str]:
    """The files that `inputs` name, sorted: name relative to the deepest directory that holds all -> absolute path.

    A directory stands for all files below it.

    Raises:
        InputError: if one is missing, not local, or named twice.
    """
    if is_standard_library(inputs):
        base = sysconfig.get_path("stdlib")
        paths = sorted(
            path
            for path in _files_below(base)
            if path.endswith(".py")
            and os.path.isfile(path)
            and not _NOT_OURS & set(os.path.relpath(path, base).split(os.sep))
        )
        if not paths:
            raise InputError(f"the standard library at {base} holds no source files; name other inputs")
    else:
        paths = find_files(inputs, what="input file", expand_directory=_files_below)
    return dict(zip(relative_names(paths)[1], paths, strict=True))


def inputs_stamp(files: Mapping[str, str]) -> str:
    """Digest of names, sizes and times of change: while it stays, the inputs need not be read to know them.

    Raises:
        InputError: if one cannot be read.
    """
    stats = zip(files, file_stats(list(files.values()), "input file"), strict=True)
    return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def inputs_digest(files: Mapping[str, str]) -> str:
    """Digest of names and contents of the files, without their directory.

    Raises:
        InputError: if one cannot be read.
    """
    hasher = hashlib.sha256()
    for name, path in files.items():
        with open_input(path) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        hasher.update(f"{len(name)} {name} {content}\n".encode())
    return hasher.hexdigest()


def text_records(
    files: Mapping[str, str], record_bytes: int | None, leftovers: Counter[str], *, skip_undecodable: bool
) -> Iterator[bytes]:
    """The text of all files one after the other, cut into records of `record_bytes`; None: one record per file.

    What is in no record is counted when all are drawn: `skipped_files`, which are empty or, if those are skipped, not
    UTF-8, and `dropped_bytes`, which do not fill a record.

    Raises:
        InputError: naming a file that cannot be read or is not UTF-8 text.
    """
    pending = b""
    for path in files.values():
        with open_input(path) as stream:
            text = stream.read()
        try:
            text.decode()
        except UnicodeDecodeError as error:
            if not skip_undecodable:
                raise InputError(
                    f"input file {path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it or leave it "
                    f"out"
                ) from error
            text = b""
        leftovers["skipped_files"] += not text
        pending += text
        size = record_bytes or max(1, len(pending))
        whole = len(pending) - len(pending) % size
        for start in range(0, whole, size):
            yield pending[start : start + size]
        pending = pending[whole:]
    leftovers["dropped_bytes"] = len(pending)


def jsonl_records(files: Mapping[str, str], leftovers: Counter[str]) -> Iterator[bytes]:
    """The lines of all files, without their line ends and otherwise as they are.

    Files without a line are counted as `skipped_files`.

    Raises:
        InputError: naming file and line, if a line is not one JSON value.
    """
    for path in files.values():
        with open_input(path) as lines:
            leftovers["skipped_files"] += not lines.peek(1)
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    raise InputError(
                        f"{path}:{number} is empty; every line of a JSONL file must hold one JSON value"
                    )
                record = line.removesuffix(b"\n").removesuffix(b"\r")
                try:
                    # Numbers are looked at, not converted: Python refuses to make an int of more than 4,300 digits.
                    json.loads(
                        record.decode(), parse_constant=_refuse_constant, parse_int=len, parse_float=len
                    )
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}:{number} is not valid JSON: {error}") from error
                yield record


def open_input(path: str) -> io.BufferedReader:
    """Opens an input file.

    Raises:
        InputError: naming the file and the cause.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"input file {path} cannot be read: {error.strerror or error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _files_below(directory: str) -> list[str]:
    found = [os.path.join(where, name) for where, _, names in os.walk(directory) for name in names]
    if not found:
        raise InputError(f"input directory {directory} holds no files")
    return found
