"""The data: whether they open, what is recorded of them, the files that the next steps will read, and the first batches."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePath
from typing import Any

import jax
import numpy as np

from datarax.audit.rehearsal import Finding, Rehearsal, Verdict, failure, skipped, warning
from datarax.checkpoint import Change, list_steps
from datarax.core.errors import InputError
from datarax.core.tree import ARRAYS
from datarax.multihost import current
from datarax.order import Order, Segment, Timeline
from datarax.run_config import GrainRunConfig, RunConfig, batch_sharding, build_grain_pipeline, build_loader
from datarax.run_config.build import transform_settings
from datarax.sources import (
    ArrayRecordConfig,
    ArrayRecordSource,
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
from datarax.transforms.load import load_transforms
from datarax.transforms.steadiness import unsteady_transforms

# Looking waits for the disk, or for a network file system.
_LOOKING_THREADS = 16
_MOST_SECONDS = 3.0
_MOST_BATCHES = 100
# Grain may have hundreds of elements ready by the time that it gives the first.
_MOST_ELEMENTS = 10_000
# Of one step, run four times.
_MOST_RECORDS = 256


def opened_source(rehearsal: Rehearsal) -> Finding:
    """The open source, and how long opening it takes; nothing is built."""
    table = rehearsal.config.source
    described = table.config()
    build = described.build if isinstance(described, ArrayRecordConfig) else None
    if build is not None and not is_dataset(table.settings["files"]):
        return _not_built(table.settings["files"], build)
    notes: list[str] = []
    described.check_prepared(notes.append)
    started = time.perf_counter()
    source = rehearsal.opened.enter_context(described.open())
    seconds = time.perf_counter() - started
    files = f" in {len(source.files()):,} files" if isinstance(source, ArrayRecordSource) else ""
    return Finding(
        found=f"{table.kind} {source.name!r}: {len(source):,} records{files}",
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
    source = rehearsal.value("source")
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
    config = rehearsal.config
    sharding = batch_sharding(config, rehearsal.value("mesh"))
    made = rehearsal.opened.enter_context(build_loader(config, rehearsal.value("source"), sharding=sharding))
    shown = f"batches of {made.timeline.last.batch_size:,} rows, order {config.loader.order.value}, "
    stages = len(config.transforms)
    shown += f"{stages} transform{'' if stages == 1 else 's'}"
    return Finding(found=shown, value=made, details=made.order.warnings())


def pipeline(rehearsal: Rehearsal) -> Finding:
    """A Grain pipeline, as process 0 has it: whether it can be made and resumed."""
    count = current().count
    made = rehearsal.opened.enter_context(build_grain_pipeline(rehearsal.config, process_count=count))
    stages, elements = list(made.identity()["pipeline"]), made.num_steps
    told = made.warnings()
    length = "it has no end, or does not say where" if elements is None else f"it has {elements:,} elements"
    plain = Finding(
        found=f"{made.name!r} for process 0 of {count}, {' → '.join(stages)}; {length}",
        numbers={"process_count": count, "stages": stages, "elements": elements},
        value=made,
    )
    do = "make sure that this is wanted; what to change is said there (identity: before the first start)"
    return warning(plain.found, do, details=told, numbers=plain.numbers, value=made) if told else plain


def files(rehearsal: Rehearsal) -> Finding | None:
    """The files that the next steps need: there, readable, and as large as recorded."""
    config, snapshot, source = rehearsal.config, rehearsal.snapshot, rehearsal.value("source")
    if isinstance(config, GrainRunConfig):
        return skipped(
            "Grain does not say which records it will read, so nobody knows which files the next steps need",
            "nothing: 'batches' reads the first elements",
        )
    if config.source.kind != "array_record":
        return _directories(config)
    if source is None and rehearsal.checks["source"].verdict is Verdict.OK:
        return rehearsal.blocked("source")
    expected = _expected(
        config, source, None if snapshot is None else snapshot.identity[LOADER_NAME]["sources"]
    )
    if expected is None:
        return skipped(
            "nothing records which files there should be",
            "see 'source'; with a manifest beside the files this check names the missing ones",
        )
    # Where a launch would begin: step, and global row.
    first, row = (0, 0) if snapshot is None else (snapshot.step, int(snapshot.state(LOADER_NAME)["position"]))
    timeline = _timeline(config, sum(file.num_records for file in expected), first, row)
    ends = (first + rehearsal.num_steps, config.run.steps, timeline.num_steps)
    steps = range(first, min(end for end in ends if end is not None))
    if not steps:
        return Finding(found="no step is left, so no file is needed", numbers={"files": 0, "bytes": 0})
    needed = _first_steps(timeline, expected, steps)
    order = sorted(needed, key=lambda file: (needed[file], file.first_index))
    with ThreadPoolExecutor(_LOOKING_THREADS, "datarax-doctor") as pool:
        problems = zip(order, pool.map(_problem, order), strict=True)
    bad = [
        {"path": file.name, "problem": problem, "first_step": needed[file]}
        for file, problem in problems
        if problem is not None
    ]
    num_bytes = sum(file.size for file in order)
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


def _directories(config: RunConfig) -> Finding:
    described = config.source.config()
    if not isinstance(described, TensorStoreConfig):
        return Finding(found="this kind of source has no files of its own")
    places = [place for place in described.places.values() if isinstance(place, str)]
    bad = [place for place in places if not os.access(place, os.R_OK | os.X_OK)]
    if bad:
        return failure(f"{', '.join(bad)} cannot be read", "make the arrays readable for this user")
    directories = f"{len(places)} array director{'y' if len(places) == 1 else 'ies'}"
    return Finding(found=f"{directories}; single chunks are seen when they are read")


def _expected(config: RunConfig, source: Any, was: Mapping[str, Any] | None) -> Sequence[SourceFile] | None:
    """The files by absolute paths, as the run knows them, rather than as they happen to lie there now."""
    name = config.source.name
    may_change = config.resume.policy().of(f"{LOADER_NAME}.sources.{name}") is not Change.REFUSE
    recorded = None if was is None or may_change else was.get(name)
    if source is not None and (recorded is None or recorded.get("num_records") == len(source)):
        at = source.base_directory
        return [dataclasses.replace(f, name=os.path.join(at, f.name)) for f in source.files()]
    return expected_files(config.source.settings["files"], recorded)


def _timeline(config: RunConfig, num_records: int, step: int, row: int) -> Timeline:
    """What all processes together read: needs no open source, only its length."""
    settings = config.loader
    order = Order(settings.order_config(), {config.source.name: num_records})
    begun = Segment(order=order, batch_size=settings.batch_size, first_step=step, first_position=row)
    num_rows = None if settings.num_epochs is None else settings.num_epochs * num_records
    return Timeline(segments=(begun,), num_rows=num_rows, remainder=settings.remainder)


def _first_steps(timeline: Timeline, expected: Sequence[SourceFile], steps: range) -> dict[SourceFile, int]:
    """The files that are needed, each with the first step that needs it."""
    holding = [file for file in expected if file.num_records]
    firsts = np.array([file.first_index for file in holding], np.int64)
    needed: dict[int, int] = {}
    for rows in timeline.rows(steps):
        real = rows.keys.index >= 0
        numbers = np.searchsorted(firsts, rows.keys.index[real], side="right") - 1
        found, at = np.unique(numbers, return_index=True)
        needed = dict(zip(found.tolist(), rows.step[real][at].tolist(), strict=True)) | needed
        if len(needed) == len(holding):
            break
    return {holding[number]: step for number, step in needed.items()}


def _problem(file: SourceFile) -> str | None:
    """What is wrong with a file; None if it opens, has its size, and gives its last byte."""
    try:
        with open(open_file(file.name), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            os.pread(stream.fileno(), 1, max(0, size - 1))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if size == file.size else f"has {size:,} bytes, should have {file.size:,}"


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


def first_batches(rehearsal: Rehearsal) -> Finding:
    """Takes batches for a few seconds, against the clock; they are thrown away. Gives the first step."""
    stream, left, config = rehearsal.stream, rehearsal.value("steps"), rehearsal.config
    if left == 0:
        return Finding(found="no step is left")
    is_loader = isinstance(config, RunConfig)
    most, called = (_MOST_BATCHES, "batches") if is_loader else (_MOST_ELEMENTS, "elements")
    at, rows_before = int(stream.idx.get_value() or 0), stream.metrics.rows
    ends: list[float] = []
    num_bytes = 0
    started = time.perf_counter()
    try:
        while len(ends) < min(most, left or most) and time.perf_counter() - started < _MOST_SECONDS:
            leaves = jax.tree.leaves(next(stream))
            ends.append(time.perf_counter() - started)
            num_bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, ARRAYS))
    except StopIteration:
        here = at + len(ends)
        if left is None and not ends:
            return Finding(found=f"the data end after {here:,} steps, which are done")
        if left is not None:
            return failure(
                f"the data end after {here:,} steps, before the run does",
                f"set run.steps = {here}, or give it more data"
                if here
                else "give it data: there is not one element",
                numbers={"step": here},
            )
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return failure(
            f"step {at + len(ends):,} raised {type(error).__name__}: {first}",
            "correct the transform or the record that is named; a launch would end with exit code 70 or 74 here",
            details=getattr(error, "__notes__", ()),
            numbers={"step": at + len(ends)},
        )
    seconds = _seconds_per_batch(ends, config.loader.read_ahead + 1 if is_loader else len(ends))
    batch_bytes = num_bytes // len(ends)
    rows = (stream.metrics.rows - rows_before) / len(ends)
    # What opening and restoring took: a launch waits for it too.
    before = [rehearsal.checks.get(name) for name in ("source", "pipeline", "identity", "restore")]
    first_seconds = sum(check.seconds for check in before if check is not None) + ends[0]
    found = f"from step {at:,}: the first after {first_seconds:.2g} s, then {1 / seconds:,.3g} {called}/s, "
    found += f"{rows / seconds:,.3g} rows/s and {batch_bytes / seconds / 1e6:,.3g} MB/s"
    return Finding(
        found=found if left is None else f"{found}; {_duration(left * seconds)} to the end",
        details=[
            f"measured over {len(ends)} {called} of {batch_bytes:,} bytes: this machine, the data alone, with page caches "
            f"that may be warm"
        ],
        numbers={
            "batches": len(ends),
            "batch_bytes": batch_bytes,
            "seconds_to_first_batch": first_seconds,
            "batches_per_second": 1 / seconds,
            "rows_per_second": rows / seconds,
            "bytes_per_second": batch_bytes / seconds,
            "seconds_for_the_steps_left": None if left is None else left * seconds,
        },
        value=at,
    )


def _seconds_per_batch(ends: Sequence[float], made_ahead: int) -> float:
    """The median time from one batch to the next; where read-ahead had, or may have, made most of them already, the mean.

    Args:
        ends: when each was there, since the first was asked for.
        made_ahead: how many may have been made before they were asked for.
    """
    gaps = [after - before for before, after in itertools.pairwise(ends)][made_ahead:]
    mean = ends[-1] / len(ends)
    return max(statistics.median(gaps) if len(gaps) > 2 * made_ahead else mean, 1e-9)


def _duration(seconds: float) -> str:
    """Rounded, in the largest unit that shows something."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 86400:,.3g} days"


def steady_transforms(rehearsal: Rehearsal) -> Finding:
    """Whether each transform gives the same bytes for the next records every time."""
    stream, step = rehearsal.stream, rehearsal.value("batches")
    if step is None:
        return Finding(found="no step is left")
    names = [each.name for each in stream.recipe.transforms]
    if not names:
        return Finding(found="none")
    keys, order, source = stream.record_keys(step), stream.order, stream.source
    keys = keys[keys.source >= 0][:_MOST_RECORDS]
    rebuild = partial(load_transforms, transform_settings(rehearsal.config))
    numbers: dict[str, Any] = {"step": step, "records": len(keys), "transforms": names}
    try:
        found = unsteady_transforms(
            stream.recipe.transforms,
            source.read(keys.index),
            lambda transform: order.row_seeds(transform.name, keys),
            lambda i: f"{source.name}:{keys.index[i]} (epoch {keys.epoch[i]})",
            rebuild=rebuild,
        )
    except InputError as error:
        return skipped(
            f"the same bytes again and in another order; nothing could be compared in a fresh process: {error}",
            "nothing, or correct what is said there: transforms and records must reach another process",
        )
    if found:
        guilty = ", ".join(dict.fromkeys(each.transform for each in found))
        return failure(
            f"{guilty}: other bytes for the same records",
            "make it a function of the record, its parameters and the randomness that it is given alone: no default "
            "argument, cache or global that it changes, no clock, no order of a set",
            details=[str(each) for each in found],
            numbers={**numbers, "unsteady": [vars(each) for each in found]},
        )
    return Finding(
        found=f"{', '.join(names)}: the same bytes for {len(keys):,} records of step {step:,}, run again, in another order, "
        f"and in a fresh process",
        numbers=numbers,
    )
