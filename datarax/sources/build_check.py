"""Whether a finished dataset is what its config says today: the options, and the inputs, file by file.

A manifest holds one digest over all inputs and no path. Beside it a build leaves what it read, which is believed as far as that
digest confirms it: names, sizes, times and hashes. It saves reading inputs that did not move, and tells inputs that are gone
from inputs that are not meant any more. Read next: `build.py`.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datarax.core.config import Natural, from_tree
from datarax.core.errors import InputError
from datarax.core.tree import canonical_json, differences
from datarax.sources.build_config import BuildConfig
from datarax.sources.build_inputs import PYTHON_STDLIB, find_inputs, input_sha256, inputs_digest
from datarax.sources.files import AbsentError, file_stamps
from datarax.sources.manifest import INPUTS_STAMP_NAME, load_manifest
from datarax.store.files import local_path, parse_json, read_file, write_whole

_MOST_STAMP_BYTES = 1 << 30
_NUM_NAMED_INPUTS = 5


@dataclass(frozen=True)
class InputFile:
    """One file that a build read."""

    size: Natural
    """Bytes."""
    mtime_ns: int
    """When it was changed."""
    sha256: str
    """SHA-256 of its content, 64 hex digits."""


@dataclass(frozen=True)
class InputsRead:
    """What a build read, or what lies there for it now."""

    named: Sequence[str]
    """The inputs as they were named, by absolute paths."""
    output: str
    """Where the dataset was."""
    base: str
    """The deepest directory that holds all the files."""
    files: Mapping[str, InputFile]
    """By name relative to that directory."""

    def digest(self) -> str:
        """See `inputs_digest`."""
        return inputs_digest({name: file.sha256 for name, file in self.files.items()})

    def write(self, directory: str) -> None:
        """Leaves this for the next build; a directory that cannot be written to keeps the old one, which only costs time."""
        with contextlib.suppress(OSError):
            write_whole(os.path.join(directory, INPUTS_STAMP_NAME), canonical_json(asdict(self)))


def look_at_inputs(
    config: BuildConfig,
    files: Mapping[str, str],
    was: InputsRead | None = None,
    reading: Callable[[], object] = bool,
) -> InputsRead:
    """Looks at the files, and reads those that are not where and as they were; `reading` is called before the first.

    Raises:
        InputError: if one cannot be read.
    """
    known = {os.path.join(was.base, name): file for name, file in was.files.items()} if was else {}
    stamps = file_stamps(files, files.values(), "input file")
    moved = [name for name, path in files.items() if _stamp_of(known.get(path)) != stamps[name]]
    if moved:
        reading()
    hashes = {name: input_sha256(files[name]) for name in moved}
    found = {
        name: InputFile(stamps[name][0], stamps[name][1], hashes[name]) if name in hashes else known[path]
        for name, path in files.items()
    }
    base = next((path.removesuffix(f"/{name}") for name, path in files.items()), "")
    named = tuple(config.resolved().inputs)
    return InputsRead(named, local_path(config.output, "output directory"), base, found)


def _stamp_of(file: InputFile | None) -> list[int] | None:
    return None if file is None else [file.size, file.mtime_ns]


def inputs_read(directory: str, build: Mapping[str, Any]) -> InputsRead | None:
    """What the build of a dataset read; None if it left nothing that its manifest confirms.

    Args:
        directory: the dataset's.
        build: `build` of its manifest.
    """
    try:
        data = read_file(os.path.join(directory, INPUTS_STAMP_NAME), _MOST_STAMP_BYTES)
        tree = parse_json(data)
        read = from_tree(InputsRead, tree if isinstance(tree, dict) else {})
    except (OSError, ValueError):  # without it the inputs are read
        return None
    return read if build.get("inputs") == {"count": len(read.files), "sha256": read.digest()} else None


def check_dataset(config: BuildConfig, *, keep: bool, say: Callable[[str], None]) -> None:
    """Whether the finished dataset at the output is what the config describes, as far as its inputs are still there.

    Args:
        config: what the dataset must be built from.
        keep: write down what was looked at, so that it is not read again.
        say: told what a person should know: inputs that are read, or are not there any more.

    Raises:
        InputError: if the options or the inputs are others, naming them and the ways out.
    """
    output = local_path(config.output, "output directory")
    recorded = recorded_build(output)
    was = inputs_read(output, recorded)
    now = look_at_inputs(
        config, inputs_of(config, absent=True), was, lambda: say(f"reading the inputs of {output}")
    )
    identity = config.identity(now.digest(), len(now.files))
    if not differences(recorded, identity):
        if keep and now != was:
            now.write(output)
        return
    options = differences({**recorded, "inputs": None}, {**identity, "inputs": None})
    gone = None if options else _gone(was, now)
    if gone is None:
        raise InputError(
            f"{refusal(config, was, now)}\n"
            f"  name another directory in source.files; or replace it with `{config.command(output)} --again`, which sets it "
            f"aside when the new one is done; or take [source.build] out of the config: then the data are used as they are"
        )
    say(f"note: {gone}; the built data are used as recorded")


def recorded_build(directory: str) -> Mapping[str, Any]:
    """What the manifest of a dataset says of its build; {} if it says nothing.

    Raises:
        InputError: if it cannot be read.
    """
    manifest = load_manifest(directory)
    return (manifest and manifest.build) or {}


def refusal(config: BuildConfig, was: InputsRead | None, now: InputsRead) -> str:
    """What is said of a dataset that is not what the config describes: each option and each input that differs."""
    output = now.output
    found = differences(recorded_build(output), config.identity(now.digest(), len(now.files)))
    lines = [str(difference) for difference in found]
    if was is not None:
        if sorted(was.named) != sorted(now.named):
            lines.append(f"inputs: was {', '.join(was.named)}, is {', '.join(now.named)}")
        others = [
            f"{os.path.join(now.base, name)} {'has changed' if name in was.files else 'was not among them'}"
            for name, file in now.files.items()
            if name not in was.files or was.files[name].sha256 != file.sha256
        ]
        lines += others[:_NUM_NAMED_INPUTS]
        lines += [f"and {len(others) - _NUM_NAMED_INPUTS} more"] if len(others) > _NUM_NAMED_INPUTS else []
    head = f"{output} holds a dataset that was built from something else; give another output, or delete it and build again:"
    return "\n  ".join([head, *lines])


def inputs_of(config: BuildConfig, *, absent: bool = False) -> dict[str, str]:
    """The inputs, without what builds of this dataset have made among them; `absent`: as far as they are there.

    Raises:
        InputError: see `find_inputs`.
    """
    parent, name = os.path.split(os.path.realpath(local_path(config.output, "output directory")))
    name = re.escape(name)
    made = re.compile(rf"{name}(\.replaced-\d+)?(/.*)?|\.{name}\.(build-lock|building-.*)")
    real = functools.cache(os.path.realpath)

    def is_made(path: str) -> bool:
        directory, base = os.path.split(path)
        return made.fullmatch(os.path.relpath(os.path.join(real(directory), base), parent)) is not None

    files = find_inputs(config.inputs, absent=absent, is_made=is_made)
    found = {key: path for key, path in files.items() if not is_made(path)}
    if not found and not absent:
        raise AbsentError(f"the inputs of {config.output} are what was built from them; name other inputs")
    return found


def _gone(was: InputsRead | None, now: InputsRead) -> str | None:
    """What to say if the inputs are the same but for those that are gone; None if they are others."""
    if was is None:
        return None if now.files else f"the inputs of {now.output} are not there any more"

    def moved(path: str) -> str:
        """Where a path is if it was moved together with the dataset."""
        relative = os.path.relpath(path, was.output)
        return path if path == PYTHON_STDLIB else os.path.normpath(os.path.join(now.output, relative))

    for move in (str, moved):
        if sorted(map(move, was.named)) == sorted(now.named):
            read = {os.path.join(move(was.base), name): file.sha256 for name, file in was.files.items()}
            there = {os.path.join(now.base, name): file.sha256 for name, file in now.files.items()}
            gone = read.keys() - there.keys()
            if gone and there.items() <= read.items():
                first = min(gone)
                lost = f"{len(gone)} of {len(read)} inputs of {now.output}"
                return f"{lost} are not there any more, the first is {first}"
    return None
