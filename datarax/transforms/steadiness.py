"""Whether transforms give the same bytes every time: run again, in another order, and in a fresh process.

A function with a memory of its own does not: a default argument or a cache that it changes, the clock, a global generator, the
order of a set. Its source does not always tell, so it is tried. Knows neither sources nor loaders: records and seeds come in.
What is compared here are the records at hand; it proves nothing about others. Read `apply.py` first.
"""

from __future__ import annotations

import enum
import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from datarax.core.errors import InputError
from datarax.core.tree import detached, hash_tree
from datarax.transforms.apply import Seeds, apply_transform
from datarax.transforms.stack import count_rows, unstack
from datarax.transforms.transform import Randomness, Transform, check_pipeline

_START_SECONDS = 300.0
"""Within which a fresh process is to have imported what it needs."""

# This very datarax, wherever else another one may lie, and the path of this process: without the working directory, until our
# own finder keeps that behind what is installed.
_CHILD = """\
import sys
sys.path[:] = {path!r}
from datarax.transforms.steadiness import answer
answer()
"""

Rebuild = Callable[[], Sequence[Transform]]
"""Makes the same transforms in another process; it pickles."""


class Comparison(enum.StrEnum):
    """What the first run of a transform is compared with."""

    AGAIN = "again on the same records"
    """A second run in this process."""
    ORDER = "on the same records in another order"
    """A run in this process that gets the last record first."""
    PROCESS = "in a fresh process with another PYTHONHASHSEED"
    """A run in a new interpreter, which imports all modules anew and orders sets otherwise."""


@dataclass(frozen=True)
class Unsteady:
    """A transform that did not give the same bytes for the same records."""

    transform: str
    """Its name; of several in turn, with arrows, where what lies between them has no plain bytes."""
    comparison: Comparison
    """Which run gave others."""
    what: str
    """The first record that came out otherwise, or what the transform raised."""

    def __str__(self) -> str:
        return f"transform {self.transform!r}, run {self.comparison}: {self.what}"


def unsteady_transforms(
    transforms: Sequence[Transform],
    records: Any,
    seeds_for: Seeds = lambda transform: np.zeros(0, np.uint64),
    keys_text: Callable[[int], str] = lambda i: f"record {i}",
    *,
    rebuild: Rebuild | None = None,
) -> list[Unsteady]:
    """The transforms whose bytes are not the same in each comparison.

    In this process each transform is run on what the first run of the one before left, so each is judged by itself. In the
    fresh process they follow one another; the first that differs there hides those after it.

    Args:
        transforms: the pipeline.
        records: n records as a source gives them, a list or columns `[n, ...]`; they stay as they are.
        seeds_for: the row seeds `uint64[n]` of a transform that asks for randomness.
        keys_text: what the record of row i is called.
        rebuild: for the fresh process; None: nothing is compared there.

    Raises:
        InputError: if all agree here, but nothing could be compared in a fresh process; says why.
        Exception: what a transform raises when it is run first.
    """
    stages, n = check_pipeline(transforms), len(records) if isinstance(records, list) else count_rows(records)
    seeds = {each.name: seeds_for(each) for each in stages if each.randomness is not Randomness.NONE}
    found, unit, given = list[Unsteady](), list[Transform](), records
    known: list[tuple[int, str, list[bytes]]] = []
    started = time.monotonic()
    for number, transform in enumerate(stages):
        unit.append(transform)
        made = _run(unit, given, n, seeds, keys_text)
        digests = _row_digests(made)
        if digests is None:  # judged together with the next, by what that leaves
            continue
        name = " → ".join(each.name for each in unit)
        for comparison, order in ((Comparison.AGAIN, 1), (Comparison.ORDER, -1)):
            turned = {name: _in_order(own, order) for name, own in seeds.items()}
            try:
                other = _row_digests(_run(unit, _in_order(given, order), n, turned, keys_text))
                what = _first_difference(digests, other and other[::order], keys_text)
            except Exception as error:
                what = _raised(error)
            found += [Unsteady(name, comparison, what)] if what else []
        known.append((number, name, digests))
        given, unit = made, []
    if rebuild is not None and stages:
        limit = _START_SECONDS + 10 * (time.monotonic() - started)
        try:
            rows, problem = _in_a_fresh_process(rebuild, records, seeds, limit)
        except InputError:
            if found:
                return found
            raise
        for number, name, digests in known:
            if number >= len(rows):
                what = problem
            else:
                what = _first_difference(digests, rows[number], keys_text)
            if what:
                return [*found, Unsteady(name, Comparison.PROCESS, what)]
    return found


def _run(
    transforms: Sequence[Transform],
    rows: Any,
    n: int,
    seeds: Mapping[str, np.ndarray],
    keys_text: Callable[[int], str],
) -> Any:
    """What some transforms in turn make of rows, which stay as they are."""
    rows = detached(rows)
    for transform in transforms:
        rows = apply_transform(transform, rows, n, lambda each: seeds[each.name], keys_text)
    return rows


def _in_order(rows: Any, order: int) -> Any:
    """The rows from the first to the last, or back; arrays as they come from a source, without gaps."""
    if isinstance(rows, list):
        return rows[::order]

    def ordered(leaf: Any) -> Any:
        return np.ascontiguousarray(leaf[::order]) if isinstance(leaf, np.ndarray) else leaf[::order]

    return jax.tree.map(ordered, rows)


def _row_digests(rows: Any) -> list[bytes] | None:
    """SHA-256 of each row; None if one holds what has no plain bytes."""
    digests = []
    try:
        for row in rows if isinstance(rows, list) else unstack(rows):
            hasher = hashlib.sha256()
            hash_tree(hasher, row, "")
            digests.append(hasher.digest())
    except (TypeError, ValueError):
        return None
    return digests


def _first_difference(
    was: Sequence[bytes], now: Sequence[bytes] | None, keys_text: Callable[[int], str]
) -> str:
    """What to say of the first row that differs; empty if none does."""
    rows = [i for i, digest in enumerate(was) if now is None or digest != now[i]]
    return f"{len(rows)} of {len(was)} rows differ, the first is {keys_text(rows[0])}" if rows else ""


def _raised(error: Exception) -> str:
    return f"it raised {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# The fresh process

_Answer = tuple[list[list[bytes] | None], str]
"""The row digests after each transform, up to one that raised, and what it raised."""


def _in_a_fresh_process(
    rebuild: Rebuild, records: Any, seeds: Mapping[str, np.ndarray], limit_seconds: float
) -> _Answer:
    finders = [each for each in sys.meta_path if getattr(each, "__module__", "").startswith("datarax.")]
    try:
        places = pickle.dumps((sys.path, finders))
        work = pickle.dumps((rebuild, records, seeds, bool(jax.config.jax_enable_x64)))
    except Exception as error:  # what cannot be pickled raises errors of many kinds
        raise InputError(
            f"transforms or records cannot be sent to a fresh process: {type(error).__name__}: {error}"
        ) from error
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = _CHILD.format(path=[own, *filter(None, sys.path)])
    flags = ["-P"] * sys.flags.safe_path + ["-O"] * sys.flags.optimize
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the memory of a GPU is this process's already
        **os.environ,
        "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, *flags, "-c", code],
            input=places + work,
            env=environment,
            capture_output=True,
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"a fresh process did not end within {limit_seconds:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise InputError(f"a fresh process ended with code {done.returncode} and said: {said[-1]}")
    answered: _Answer = pickle.loads(done.stdout)
    return answered


def answer() -> None:
    """In the fresh process: runs the transforms that come in, and writes the row digests after each.

    Standard output is for the answer; what the transforms print goes to standard error.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    path, finders = pickle.load(sys.stdin.buffer)
    sys.meta_path[:0] = finders
    sys.path[:] = path
    rebuild, rows, seeds, x64 = pickle.load(sys.stdin.buffer)
    jax.config.update("jax_enable_x64", x64)
    answered = _digests_after(rebuild(), rows, seeds)
    with os.fdopen(own, "wb") as stream:
        pickle.dump(answered, stream)


def _digests_after(transforms: Sequence[Transform], rows: Any, seeds: Mapping[str, np.ndarray]) -> _Answer:
    digests: list[list[bytes] | None] = []
    n = len(rows) if isinstance(rows, list) else count_rows(rows)
    for transform in transforms:
        try:
            rows = _run([transform], rows, n, seeds, lambda i: f"record {i}")
        except Exception as error:
            return digests, _raised(error)
        digests.append(_row_digests(rows))
    return digests, ""


__all__ = ["Comparison", "Rebuild", "Unsteady", "unsteady_transforms"]
