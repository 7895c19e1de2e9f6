"""Fresh iterators of a Grain pipeline, at its beginning or at a recorded state, and these states as values.

An iterator is never restored in place: Grain leaves flags, positions and buffers of what was before in it. It hands out and
keeps dicts that it goes on changing, and reads a state without a look at its form; here a state is copied at each border and
compared with one of the same pipeline before Grain sees it. Knows nothing of modules and snapshots.
"""

import contextlib
import copy
import json
import traceback
from typing import Any

import grain
import jax
import numpy as np

from datarax.core.errors import InputError
from datarax.core.tree import check_plain
from datarax.grain_pipeline.graph import Node, all_stages, attribute, is_grains

# What a DataLoader writes into its state to recognise its parts: a repr, which for most objects holds an address. Our
# identity says what these are, so they are filled in anew.
_DESCRIPTIONS = ("sampler", "data_source")

_NOT_USERS = ("grain", "concurrent", "contextlib", "threading")
"""Whose frames lie between a call of an iterator and the function of the user's that is called."""
_SCALARS = (type(None), bool, int, float, str, bytes)
_USUAL = frozenset({*_SCALARS, np.ndarray, *np.sctypeDict.values()})
"""Types of leaves that need no further look."""
_DATASETS = (grain.MapDataset, grain.IterDataset)
_HAS_GUARDS = "_has_guards_of_datarax"
_WORKERS = "iterators_in_use_states"
_FREE = (_WORKERS, "future_states")
"""Lists and dicts whose content differs from place to place in a run: the states of whichever datasets are open."""
_INDICES = "iterators_in_use_indices"
_MAY_RETURN_TO_ZERO = "next_index_in_buffer"
"""A flat map whose parent has ended forgets where it was in a buffer that it will never fill again."""


def opened(pipeline: Any, node: Node, state: Any = None) -> Any:
    """A fresh iterator, at the beginning or where a state says.

    Args:
        pipeline: what the user built.
        node: the same, as read.
        state: as `state_of` gave it, and it stays as it is; None for the beginning.

    Raises:
        ValueError: if the state does not fit this pipeline, or if Grain gives back another one.
        OSError: if what Grain reads to take up its place cannot be read.
    """
    if _has_processes(node):
        from absl import flags

        # Else Grain raises UnparsedFlagAccessError in a script that does not run under absl's `app.run`.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
    iterator = iter(_with_guards(pipeline))
    if state is not None:
        with contextlib.ExitStack() as undo:
            undo.callback(close, iterator)
            _restore(iterator, node, state)
            undo.pop_all()
    return iterator


# A StopIteration of a user's function passes for the end, wherever Grain asks for one element after the other, and a mask gets
# lost wherever it packs or shares memory. So what runs is a copy of the pipeline in which no function lets either out. It goes
# to worker processes by value: it must not need this module there, unless something unusual comes out.


def _with_guards(part: Any) -> Any:
    if isinstance(part, list | tuple):  # the parents of a stage, or the datasets of an interleave
        return type(part)(map(_with_guards, part))
    made = copy.copy(part) if is_grains(part) else part
    if isinstance(made, grain.DataLoader):
        made._dataset = _with_guards(attribute(part, "_dataset"))
    elif made is not part and isinstance(part, _DATASETS) and _HAS_GUARDS not in vars(part):
        for name, value in vars(made).items():
            is_function = callable(value) and not isinstance(value, type)
            vars(made)[name] = _guarded(value) if is_function else _with_guards(value)
        vars(made)[_HAS_GUARDS] = True
        if isinstance(part, grain.MapDataset):
            kind = type(part)  # its sources are guarded here
            is_source = not attribute(part, "_parents")
            methods = {
                name: _guarded(getattr(kind, name), is_users=is_source)
                for name in ("__getitem__", "_getitems")
            }
            made.__class__ = type(kind.__name__, (kind,), methods)
    elif isinstance(part, grain.experimental.FlatMapTransform):
        made = copy.copy(part)
        # A list, as Grain itself makes one: what comes out of a generator can be looked at then.
        object.__setattr__(made, "flat_map", _guarded(lambda element: list(part.flat_map(element))))
    return made


def _guarded(function: Any, *, is_users: bool = True) -> Any:
    def is_usual(tree: Any) -> bool:
        found = [tree]
        for each in found:  # grows on the way; a function that calls itself would be a cycle for each guard
            kind = type(each)
            if kind is dict:
                found.extend(each.values())
            elif kind not in (list, tuple):
                if kind not in _USUAL:
                    return False
            elif not _USUAL.issuperset(map(type, each)):
                found.extend(each)
        return True

    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            given = function(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(
                "StopIteration was raised by a function of the pipeline; it would have ended the loop in silence"
            ) from error
        if not is_users or is_usual(given):
            return given
        from datarax.grain_pipeline.iterators import admitted

        return admitted(given)

    return called


def admitted(given: Any) -> Any:
    """What a user's function gave, with guards in the datasets in it.

    Raises:
        InputError: if an array in it is more than its numbers, naming its path.
    """
    try:
        pairs = jax.tree_util.tree_leaves_with_path(given)
    except ValueError:
        return given  # keys that cannot be sorted: Grain can neither join nor pack nor share this
    for keys, leaf in pairs:
        if is_grains(leaf) and type(leaf).__name__ == "Record":  # what goes through a DataLoader
            admitted(attribute(leaf, "data"))
        elif isinstance(leaf, np.ndarray) and not is_grains(leaf):
            at = jax.tree_util.keystr(keys) or "its top"
            check_plain(type(leaf), f"what a function or source of the pipeline gave, at {at},")
    if not any(isinstance(leaf, _DATASETS) for _, leaf in pairs):
        return given
    return jax.tree.map(lambda leaf: _with_guards(leaf) if isinstance(leaf, _DATASETS) else leaf, given)


def close(iterator: Any) -> None:
    """Ends the threads and processes of an iterator."""
    is_plain = isinstance(iterator, grain.DatasetIterator)
    (iterator if is_plain else attribute(iterator, "_iterator")).close()


def is_end(error: StopIteration) -> bool:
    """Whether an iterator said that it is at its end, Grain's or the user's, and not some other function of the user's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]  # the first is the caller's
    users = [each for each in frames if each.f_globals.get("__name__", "").split(".")[0] not in _NOT_USERS]
    return not users or users[0].f_code.co_name == "__next__"


def _has_processes(node: Node) -> bool:
    stages = [stage for _, stage in all_stages(node)]
    return any(stage.kind == "mp_prefetch" or stage.parameters.get("worker_count") for stage in stages)


def state_of(iterator: Any) -> Any:
    """The state of an iterator, as a private copy that a snapshot can hold.

    Raises:
        InputError: if it holds something that no snapshot can hold.
    """
    state = iterator.get_state()
    if not isinstance(state, bytes):
        return frozen(state)
    return {key: value for key, value in json.loads(state).items() if key not in _DESCRIPTIONS}


def _restore(iterator: Any, node: Node, state: Any) -> None:
    is_known = all(stage.known for _, stage in all_stages(node))
    start = state_of(iterator)
    wrong = difference(start, state, form_only=True) if is_known else None
    if wrong is not None:
        raise ValueError(wrong)
    try:
        given = for_grain(state, start if _has_processes(node) else None)
        own = iterator.get_state()
        if isinstance(own, bytes):
            # With a flat map among the operations there are none.
            given |= {key: value for key, value in json.loads(own).items() if key in _DESCRIPTIONS}
            given = json.dumps(given).encode()
        iterator.set_state(given)
        found = state_of(iterator)
    except OSError:
        raise  # the disk's fault, not the state's
    except Exception as error:
        raise ValueError(f"grain_state: Grain cannot restore it: {type(error).__name__}: {error}") from error
    changed = difference(state, found) if is_known else None
    if changed is not None:
        raise ValueError(f"Grain gives another state back than was set: {changed}")


# States


def frozen(state: Any, path: str = "") -> Any:
    """A copy of a state that shares nothing with it that anyone could change; tuples and int keys stay what they are.

    Raises:
        InputError: if it holds what a snapshot cannot hold, naming the place.
    """
    kind = type(state)
    if kind in _SCALARS or isinstance(state, np.generic):
        return state
    if kind in (dict, Unshared):
        return {key: frozen(value, f"{path}.{key}" if path else str(key)) for key, value in state.items()}
    if kind in (list, tuple):
        return kind(frozen(value, f"{path}[{i}]") for i, value in enumerate(state))
    if kind is np.ndarray and not state.dtype.hasobject:
        return state.copy()
    raise InputError(
        f"Grain's state holds a {kind.__module__}.{kind.__qualname__} at {path or 'its top'}, which a snapshot cannot "
        f"hold; keep None, bool, int, float, str, bytes, list, tuple, dict or NumPy values in the state of your iterator"
    )


class Unshared(dict[str, Any]):
    """A state for Grain that gives another copy of the list of open datasets at each look.

    An interleave keeps that list and writes into it, and so do what stands above it and holds the same state for its next
    save (window shuffles, flat maps, packing): after a restore in place of the list itself, their saves would be wrong.
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return list(value) if key == _INDICES else value


def for_grain(state: Any, start: Any) -> Any:
    """A private copy of a state that Grain may keep.

    Args:
        state: a frozen state.
        start: the one that the pipeline starts from, if processes read it, else None. A process slices the pipeline for
            itself, but the state of one that has delivered nothing was made of the whole: restored there it fails, or reads
            what belongs to another. So nothing is said of a process that is where it started.
    """
    if isinstance(state, dict):
        below = start if isinstance(start, dict) else {}
        copied = Unshared(
            {
                key: for_grain(value, None if key == _WORKERS else below.get(key))
                for key, value in state.items()
            }
        )
        if _INDICES in state and _WORKERS in below:
            began = zip(below[_INDICES], below[_WORKERS], strict=True)
            places = zip(began, state[_INDICES], state[_WORKERS], copied[_WORKERS], strict=True)
            copied[_WORKERS] = [
                {} if was_at == at and now is not None and difference(was, now) is None else own
                for (was_at, was), at, now, own in places
            ]
        return copied
    if isinstance(state, (list, tuple)):
        has_starts = isinstance(start, (list, tuple)) and len(start) == len(state)
        pairs = zip(state, start if has_starts else [None] * len(state), strict=True)
        return type(state)(for_grain(each, was) for each, was in pairs)
    return frozen(state)


def difference(was: Any, now: Any, path: str = "grain_state", *, form_only: bool = False) -> str | None:
    """Where two states differ, in words; None if they mean the same and are the same to the last type.

    Args:
        was: one state.
        now: the other.
        path: what paths begin with.
        form_only: whether only keys, lengths and types are compared, with those of the state that `now`'s pipeline starts from.
    """
    is_free = form_only and path.endswith(_FREE)
    if form_only and was is None:
        return None
    if type(was) is not type(now):
        return f"{path} is of another kind: expected {type(was).__name__}, got {now!r}"
    if isinstance(was, dict):
        if is_free or (not now and _WORKERS in path):
            return None  # nothing was said of it: see `for_grain`
        missing, extra = set(was) - set(now), set(now) - set(was)
        if missing or extra:
            return (
                f"{path} has other keys: missing={sorted(missing, key=str)}, extra={sorted(extra, key=str)}"
            )
        below = [(was[key], now[key], f"{path}.{key}") for key in was]
    elif isinstance(was, (list, tuple)):
        if len(was) != len(now):
            return (
                f"{path} has {len(now)} entries, {'this pipeline has' if form_only else 'it had'} {len(was)}"
            )
        below = (
            [] if is_free else [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(was, now, strict=True))]
        )
    else:
        if form_only or (path.endswith(f".{_MAY_RETURN_TO_ZERO}") and now == 0):
            return None
        same = np.array_equal(was, now) if isinstance(was, np.ndarray) else was == now
        return None if same else f"{path} was {was!r}, is {now!r}"
    return next(filter(None, (difference(*each, form_only=form_only) for each in below)), None)
