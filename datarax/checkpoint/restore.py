"""Putting a snapshot back: every check first, then everything or nothing, on all processes or on none.

Knows neither locks nor managers, so that a verifier can restore from a run that someone else is writing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.compose import Modules, identities, identities_as_recorded, named_modules
from datarax.checkpoint.layout import DATA_ITEM, MODEL_ITEM, sha256_hex
from datarax.checkpoint.model_item import compare_template, rebuild_model, wanted_shardings
from datarax.checkpoint.policy import Change, ChangePolicy, identity_differences
from datarax.checkpoint.protocols import AnswersForItsPast, ReadsRecords, Stateful
from datarax.checkpoint.record import HistoryEntry, Record
from datarax.checkpoint.snapshot import Snapshot, read_identity
from datarax.core.errors import MISSING, Difference, InputError, MismatchError, SnapshotDamagedError
from datarax.core.tree import canonical_json
from datarax.multihost import Processes, check_agreement


@dataclass(frozen=True)
class Restored:
    """What a restore gave back; the data modules were changed in place."""

    step: int
    model: Any
    """The model in the structure and shardings of the template; None if none was asked for."""
    record: Record
    history: tuple[HistoryEntry, ...]
    """The whole history of the run up to this step, oldest first."""
    identity_changed: tuple[Difference, ...] = ()
    """Differences of the identity that were accepted, warned of or not."""
    reason: str | None = None
    """Why the identity is another from here on; None if it is the same."""
    identity_warned: tuple[Difference, ...] = ()
    """Those of them that the policy wants a person to see."""
    unknown_fields: tuple[str, ...] = ()
    """A sentence for each field of the policy that neither identity has."""


@dataclass(frozen=True)
class _Compared:
    """What differs, and what the policy says of it."""

    refused: Sequence[Difference]
    accepted: Sequence[Difference] = ()
    warned: Sequence[Difference] = ()
    unknown_fields: Sequence[str] = ()
    now: Mapping[str, Any] | None = None
    """The present identity, made by the versions that recorded the other, if data was compared."""
    raised: bool = False
    """Whether today's versions make another of the same."""

    @property
    def reason(self) -> str | None:
        """Why the identity is recorded anew, for the history."""
        changed = [difference.path for difference in self.accepted]
        reasons = [f"allowed: {', '.join(changed)}"] if changed else []
        return "; ".join(reasons + ["identity version"] * self.raised) or None


@dataclass(frozen=True)
class _Checked:
    """A restore of which every check has passed and nothing has been applied."""

    model: Any
    states: Mapping[str, Any]
    history: tuple[HistoryEntry, ...]
    compared: _Compared


def restore_snapshot(
    snapshot: Snapshot,
    *,
    model: Any = None,
    data: Stateful | Modules | None = None,
    identity: Mapping[str, Any] | None = None,
    policy: ChangePolicy | None = None,
    processes: Processes | None = None,
    timeout_seconds: float | None = None,
) -> Restored:
    """Restore a model, data modules, or both from one snapshot.

    Args:
        snapshot: where from.
        model: template: a PyTree of arrays, `jax.ShapeDtypeStruct`s (with sharding, if any), PRNG keys, numbers and None.
        data: one module, recorded as `train`, or all recorded modules by name.
        identity: identity tree of each module; by default what the modules say.
        policy: which fields of the identity may differ; by default none.
        processes: those of the run; all of them must call this, and restore only if all can.
        timeout_seconds: how much longer than this process the others may take to read their part.

    Raises:
        InputError: if neither model nor data is asked for.
        SnapshotDamagedError: if a file of what is asked for is not as it was written.
        MismatchError: if the snapshot does not belong to this identity, these modules or this model; nothing has changed.
        PeerError: if it failed on some processes only, naming them; nothing has changed on any.
        DisagreementError: if the processes are not about to restore the same.
    """
    if model is None and data is None:
        raise InputError("restore was asked for neither a model nor data; pass model=, data= or both")
    modules = None if data is None else named_modules(data)
    processes = processes or Processes()
    about = f"the restore of step {snapshot.step}"
    problems = processes.exchange(
        "restore_files",
        lambda: _problems(snapshot, model, processes),
        _union,
        about=about,
        timeout_seconds=timeout_seconds,
    )
    if problems:
        raise snapshot.damaged(problems)
    checked: list[_Checked] = []

    def check() -> dict[str, Any]:
        checked.append(_check(snapshot, model, modules, identity, policy or ChangePolicy(), processes))
        return {
            "the step": snapshot.step,
            "the snapshot": sha256_hex(snapshot.manifest.to_bytes()),
            "the identity": None
            if modules is None
            else _digest_of(identities(modules) if identity is None else identity),
        }

    processes.exchange(
        "restore",
        check,
        lambda parts: check_agreement(parts, about),
        about=about,
        timeout_seconds=timeout_seconds,
    )
    done = checked[0]
    if modules is not None:
        _apply_together(snapshot, modules, done.states, processes, about)
        if len(done.history) > 1 or done.compared.accepted:
            _recall(snapshot, modules, done.history)
    return Restored(
        snapshot.step,
        done.model,
        snapshot.record,
        done.history,
        identity_changed=tuple(done.compared.accepted),
        reason=done.compared.reason,
        identity_warned=tuple(done.compared.warned),
        unknown_fields=tuple(done.compared.unknown_fields),
    )


def _recall(snapshot: Snapshot, modules: Modules, history: Sequence[HistoryEntry]) -> None:
    """Tells modules which recipes made the steps before, as far as that can be read; what cannot, they do not know."""
    for name, module in modules.items():
        if isinstance(module, AnswersForItsPast):
            with contextlib.suppress(SnapshotDamagedError, KeyError):
                trees = [read_identity(snapshot.layout.directory, entry.identity)[name] for entry in history]
                places = [(entry.from_step, entry.positions.get(name) or 0) for entry in history]
                module.recall([(*place, tree) for place, tree in zip(places, trees, strict=True)])


def _problems(snapshot: Snapshot, model: Any, processes: Processes) -> list[str]:
    """What is wrong with this process's share of the files."""
    wanted = [DATA_ITEM]
    if model is not None and MODEL_ITEM in snapshot.manifest.items:
        wanted.append(MODEL_ITEM)
    return snapshot.check(wanted, share=(processes.index, processes.count))


def _union(parts: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(problem for part in parts for problem in part))


def _check(
    snapshot: Snapshot,
    model: Any,
    modules: Modules | None,
    identity: Mapping[str, Any] | None,
    policy: ChangePolicy,
    processes: Processes,
) -> _Checked:
    compared = _compare(snapshot, model, modules, identity, policy)
    if compared.refused:
        raise _mismatch(snapshot, compared)
    states = _states(snapshot, modules, processes.index, processes.count)
    history = tuple(snapshot.history)
    return _Checked(None if model is None else _read_model(snapshot, model), states, history, compared)


def _digest_of(identity: Mapping[str, Any]) -> str:
    return sha256_hex(canonical_json(identity))


def _compare(
    snapshot: Snapshot,
    model: Any,
    modules: Modules | None,
    identity: Mapping[str, Any] | None,
    policy: ChangePolicy,
) -> _Compared:
    of_model = [] if model is None else _compare_model(snapshot, model)
    if modules is None:
        return _Compared(of_model)
    recorded = snapshot.record.loaders
    refused: list[Difference] = []
    for name in sorted({*recorded, *modules}):
        if (name in recorded) != (name in modules):
            shown = (_Words("a data module") if name in side else MISSING for side in (recorded, modules))
            refused.append(Difference(name, *shown))
    was = snapshot.identity
    today = identities(modules) if identity is None else identity
    now = {**today, **identities_as_recorded(modules, was)}
    common = {name for name in now if name in recorded and name in modules}
    found = identity_differences({n: was.get(n) for n in common}, {n: now[n] for n in common})
    return _Compared(
        refused + policy.select(found, Change.REFUSE) + of_model,
        policy.select(found, Change.ACCEPT, Change.WARN),
        policy.select(found, Change.WARN),
        policy.unknown_fields(was, now),
        now,
        any(now[name] != today[name] for name in common),
    )


def _compare_model(snapshot: Snapshot, model: Any) -> list[Difference]:
    if snapshot.leaves is None:
        return [Difference("model", MISSING, _Words("a model"))]
    return compare_template(snapshot.leaves, model)


class _Words(str):
    def __repr__(self) -> str:
        return str(self)


def _mismatch(snapshot: Snapshot, compared: _Compared) -> MismatchError:
    found = compared.refused
    count = f"{len(found)} field{'s differ' if len(found) > 1 else ' differs'}"
    advice = "restore with what the run was made with, or use another run directory"
    if not all(difference.path.split(".")[0] == "model" for difference in found):
        advice += "; a deliberate change of the data is allowed field by field in resume.allow_changed"
    text = f"the snapshot of step {snapshot.step} in {snapshot.layout.directory} does not belong here, {count}; {advice}"
    was = None if compared.now is None else snapshot.identity
    error = MismatchError(text, found, all_advice(found, was, compared.now))
    for sentence in compared.unknown_fields:
        error.add_note(sentence)
    return error


def _states(
    snapshot: Snapshot, modules: Modules | None, process_index: int, process_count: int
) -> dict[str, Any]:
    if modules is None:
        return {}
    try:
        return snapshot.states(process_index=process_index, process_count=process_count)
    except ValueError as error:
        if isinstance(error, SnapshotDamagedError):
            raise
        raise MismatchError(
            f"the snapshot of step {snapshot.step} cannot be restored here: {error}"
        ) from error


def _read_model(snapshot: Snapshot, template: Any) -> Any:
    leaves = snapshot.leaves
    assert leaves is not None
    arrays = snapshot.read_model(wanted_shardings(leaves, template))
    try:
        return rebuild_model(leaves, arrays, template)
    except ValueError as error:
        raise snapshot.damaged([f"{MODEL_ITEM}: {error}"]) from error


def _apply_together(
    snapshot: Snapshot, modules: Modules, states: Mapping[str, Any], processes: Processes, about: str
) -> None:
    before: dict[str, Any] = {}

    def apply() -> None:
        before.update({name: module.get_state() for name, module in modules.items()})
        try:
            _apply(snapshot, modules, states, before)
        except BaseException:
            before.clear()  # put back already
            raise

    try:
        processes.exchange("restore_apply", apply, lambda parts: None, about=about)
    except BaseException:
        for name in reversed(before):  # this process could, another could not
            modules[name].set_state(before[name])
        raise


def _apply(
    snapshot: Snapshot, modules: Modules, states: Mapping[str, Any], before: Mapping[str, Any]
) -> None:
    done: list[str] = []
    try:
        for name, module in modules.items():
            done.append(name)
            state = states[name]
            # What is of the module's own kind knows states of earlier formats, and that the identity has been compared.
            module.set_state(module.recorded_state(state) if isinstance(module, ReadsRecords) else state)
    except BaseException as error:
        # The refusing module is put back too: its set_state promises not to have changed it, a user's own may not.
        for name in reversed(done):
            modules[name].set_state(before[name])
        if not isinstance(error, (TypeError, ValueError)):
            raise
        cause = error.__cause__ or error
        raise MismatchError(
            f"the state of {done[-1]!r} in the snapshot of step {snapshot.step} does not fit the module: {cause}; "
            "nothing was changed"
        ) from error
