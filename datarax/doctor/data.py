"""The data: whether they open, what is recorded of them, and the files that the next steps will read."""

from __future__ import annotations

import dataclasses
import glob
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import numpy as np

from datarax.checkpoint import Change, list_steps
from datarax.core.errors import InputError
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, skipped, warning
from datarax.order import Order, Segment, Timeline
from datarax.run_config import RunConfig, batch_sharding, build_loader
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
    DataSource,
    SourceFile,
    TensorStoreConfig,
    load_manifest,
)
from datarax.sources.build import is_dataset
from datarax.sources.build_config import BuildTable
from datarax.sources.build_inputs import find_inputs
from datarax.sources.files import recorded_files, with_first_indices
from datarax.store.files import open_file
from datarax.training import LOADER_NAME
from datarax.training.unlisted_files import unlisted_note

# Looking waits for the disk, or for a network file system.
_LOOKING_THREADS = 16


def opened_source(rehearsal: Rehearsal) -> Finding:
    """The open source, and how long opening it takes; nothing is built."""
    config = rehearsal.config
    described = config.source.config()
    if isinstance(described, ArrayRecordConfig) and described.build is not None:
        directory = str(described.files)
        if not is_dataset(directory):
            return _not_built(directory, described.build)
    notes: list[str] = []
    described.check_prepared(notes.append)
    started = time.perf_counter()
    source = rehearsal.opened.enter_context(described.open())
    seconds = time.perf_counter() - started
    files = f" in {len(source.files()):,} files" if isinstance(source, ArrayRecordSource) else ""
    return Finding(
        found=f"{config.source.kind} {source.name!r}: {len(source):,} records{files}",
        numbers={"records": len(source), "open_seconds": seconds},
        details=notes,
        value=source,
    )


def _not_built(directory: str, build: BuildTable) -> Finding:
    """What a launch does before it opens the data: it builds them, if it can."""
    place = directory
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        inputs = find_inputs(tuple(build.inputs))
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"this user (uid {os.getuid()}) cannot write to {place}")
    except InputError as error:
        return failure(
            f"{directory} is not built yet, and cannot be: {error}",
            "correct [source.build], or source.files if the data are elsewhere",
        )
    return Finding(
        found=f"{directory} is not built yet: a launch builds it first, from {len(inputs):,} input files, which are there",
        details=[
            f"process 0 builds, the others wait; to build before the launch: {build.command(directory)}"
        ],
        numbers={"inputs": len(inputs)},
        usable=False,
    )


def manifest(rehearsal: Rehearsal) -> Finding:
    """Whether the content of every file is recorded."""
    source = rehearsal.values["source"]
    unlisted = unlisted_note(source, new=not list_steps(rehearsal.directory))
    if unlisted is not None:
        return warning(
            unlisted, "move these files elsewhere; to read them, begin a new run with a new manifest"
        )
    if source.content_recorded:
        return Finding(found="there: sizes, counts and SHA-256 of every file are recorded")
    if not isinstance(source, ArrayRecordSource):
        return Finding(found="this kind of source has none; its records are sampled")
    shown = os.path.join(source.base_directory, "*")
    return warning(
        "none beside the files: every file is opened to count its records, and contents can only be sampled",
        f"datarax build manifest '{shown}' (it becomes part of the identity: before the first start of a run)",
    )


def loader(rehearsal: Rehearsal) -> Finding:
    """The loader, which reads nothing yet."""
    config, mesh = rehearsal.config, rehearsal.values.get("mesh")
    sharding = None if mesh is None else batch_sharding(config, mesh)
    made = rehearsal.opened.enter_context(build_loader(config, rehearsal.values["source"], sharding=sharding))
    stages = len(config.transforms)
    shown = f"batches of {made.timeline.last.batch_size:,} rows, order {config.loader.order.value}, "
    shown += f"{stages} transform{'' if stages == 1 else 's'}"
    return Finding(found=shown, value=made, details=made.order.warnings())


def files(rehearsal: Rehearsal) -> Finding | None:
    """The files that the next steps need: there, readable, and as large as recorded."""
    config, snapshot = rehearsal.config, rehearsal.snapshot
    if config.source.kind != "array_record":
        return _directories(config)
    if rehearsal.is_yet_to_come("source"):
        return rehearsal.blocked("source")
    expected = _expected(config, rehearsal.values.get("source"), _recorded_source(rehearsal))
    if expected is None:
        return skipped(
            "nothing records which files there should be",
            "see 'source'; with a manifest beside the files this check names the missing ones",
        )
    # Where a launch would begin: step, and global row.
    start = (0, 0) if snapshot is None else (snapshot.step, int(snapshot.state(LOADER_NAME)["position"]))
    timeline, steps = (
        _timeline(config, sum(file.num_records for file in expected), start),
        rehearsal.num_steps,
    )
    ends = (start[0] + steps, config.run.steps, timeline.num_steps)
    stop = min(end for end in ends if end is not None)
    if stop <= start[0]:
        return Finding(found="no step is left, so no file is needed", numbers={"files": 0, "bytes": 0})
    return _looked_at(
        expected, _first_steps(timeline, expected, range(start[0], stop)), range(start[0], stop)
    )


def _recorded_source(rehearsal: Rehearsal) -> Any:
    """What the run says of its source, unless that may change."""
    name, snapshot = rehearsal.config.source.name, rehearsal.snapshot
    policy = rehearsal.config.resume.policy()
    if snapshot is None or policy.of(f"{LOADER_NAME}.sources.{name}") is not Change.REFUSE:
        return None
    return snapshot.identity[LOADER_NAME]["sources"].get(name)


def _directories(config: RunConfig) -> Finding:
    described = config.source.config()
    if not isinstance(described, TensorStoreConfig):
        return Finding(found="this kind of source has no files of its own")
    places = [place for place in described.places.values() if isinstance(place, str)]
    bad = [place for place in places if not os.access(place, os.R_OK | os.X_OK)]
    if bad:
        return failure(f"{', '.join(bad)} cannot be read", "make the arrays readable for this user")
    return Finding(
        found=f"{len(places)} array director{'y' if len(places) == 1 else 'ies'}; single chunks are seen when they are read"
    )


def _expected(
    config: RunConfig, source: DataSource | None, recorded: Mapping[str, Any] | None
) -> Sequence[SourceFile] | None:
    """The files by absolute paths, as the run knows them, rather than as they happen to lie there now."""
    if isinstance(source, ArrayRecordSource) and (
        recorded is None or recorded.get("num_records") == len(source)
    ):
        at = source.base_directory
        return [dataclasses.replace(f, name=os.path.join(at, f.name)) for f in source.files()]
    return expected_files(config.source.settings["files"], recorded)


def _timeline(config: RunConfig, num_records: int, start: tuple[int, int]) -> Timeline:
    """What all processes together read: needs no open source, only its length."""
    loader = config.loader
    order = Order(loader.order_config(), {config.source.name: num_records})
    first = Segment(order=order, batch_size=loader.batch_size, first_step=start[0], first_position=start[1])
    num_rows = None if loader.num_epochs is None else loader.num_epochs * num_records
    return Timeline(segments=(first,), num_rows=num_rows, remainder=loader.remainder)


def _first_steps(timeline: Timeline, expected: Sequence[SourceFile], steps: range) -> dict[int, int]:
    """For each file that is needed, by its number, the first step that needs it."""
    ends = np.cumsum([file.num_records for file in expected], dtype=np.int64)  # int64[num_files]
    holding = int(np.count_nonzero([file.num_records for file in expected]))
    needed: dict[int, int] = {}
    for rows in timeline.rows(steps):
        real = rows.keys.index >= 0
        numbers = np.searchsorted(ends, rows.keys.index[real], side="right")
        found, at = np.unique(numbers, return_index=True)
        for number, step in zip(found.tolist(), rows.step[real][at].tolist(), strict=True):
            needed.setdefault(number, step)
        if len(needed) == holding:
            break
    return needed


def _looked_at(expected: Sequence[SourceFile], needed: Mapping[int, int], steps: range) -> Finding:
    order = sorted(needed, key=lambda number: (needed[number], number))
    with ThreadPoolExecutor(_LOOKING_THREADS, "datarax-doctor") as pool:
        problems = list(pool.map(lambda number: _problem(expected[number]), order))
    bad = [
        {"path": expected[number].name, "problem": problem, "first_step": needed[number]}
        for number, problem in zip(order, problems, strict=True)
        if problem is not None
    ]
    num_bytes = sum(expected[number].size for number in order)
    numbers = {"files": len(order), "bytes": num_bytes, "first": steps[0], "last": steps[-1], "bad": bad}
    which = f"steps {steps[0]:,} to {steps[-1]:,}"
    if not bad:
        found = f"{which} need {len(order):,} of {len(expected):,} files, {num_bytes:,} bytes: readable, sizes as recorded"
        return Finding(found=found, numbers=numbers)
    return failure(
        f"{len(bad):,} of the {len(order):,} files for {which} cannot be used, the first at step {bad[0]['first_step']:,}",
        "restore these files from a copy, or build the data again",
        details=[f"{each['path']} {each['problem']}; step {each['first_step']:,} needs it" for each in bad],
        numbers=numbers,
    )


def _problem(file: SourceFile) -> str | None:
    """What is wrong with a file; None if it opens, has its size, and gives its last byte."""
    try:
        descriptor = open_file(file.name)
        try:
            size = os.fstat(descriptor).st_size
            if size != file.size:
                return f"has {size:,} bytes, should have {file.size:,}"
            os.pread(descriptor, 1, max(0, size - 1))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def expected_files(
    files: str | Sequence[str], identity: Mapping[str, Any] | None = None
) -> Sequence[SourceFile] | None:
    """The files of a dataset in the order of their records, as a manifest or else an identity lists them.

    Whether they are there, and as large, is for the caller to look.

    Args:
        files: what a config says: one directory, paths, or globs.
        identity: of the source, as a snapshot recorded it.

    Returns:
        The files, by absolute paths; None if nothing lists them.

    Raises:
        InputError: if there is a manifest that cannot be read.
    """
    named = [os.path.abspath(each) for each in ([files] if isinstance(files, str) else files)]
    base = os.path.commonpath([each if os.path.isdir(each) else os.path.dirname(each) for each in named])
    while glob.has_magic(base) and not os.path.isdir(base):
        base = os.path.dirname(base)
    manifest = load_manifest(base)
    entries = recorded_files({"files": None, **(identity or {})}) if manifest is None else manifest.files
    if entries is None:
        return None
    facts = [(os.path.join(base, each.name), each.num_records, each.size) for each in entries]
    # A manifest may list more than a config names.
    return with_first_indices([each for each in facts if any(_names(pattern, each[0]) for pattern in named)])


def _names(pattern: str, path: str) -> bool:
    """Whether a path, a directory or a glob names this file below it, as `glob` would if the file were there."""
    if "/**/" in pattern:
        depths = range(path.count("/"))
        return any(_names(pattern.replace("/**/", "/" + "*/" * depth, 1), path) for depth in depths)
    return f"{path}/".startswith(f"{pattern.removesuffix('/**')}/") or PurePath(path).match(pattern)
