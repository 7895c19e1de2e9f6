"""Putting a snapshot back: every check first, then everything or nothing, on all processes or on none.

Knows neither locks nor managers, so that a verifier can restore from a run that someone else is writing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint.advice import all_advice
from datarax.checkpoint.compose import Modules, identities, named_modules
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
    """The step of the snapshot."""
    model: Any
    """The model in the structure and shardings of the template; None if none was asked for."""
    record: Record
    """What it says of the data."""
    history: tuple[HistoryEntry, ...]
    """The whole history of the run up to this step, oldest first."""
    identity_changed: tuple[Difference, ...] = ()
    """Differences of the identity that were accepted, warned of or not."""
    identity_warned: tuple[Difference, ...] = ()
    """Those of them that the policy wants a person to see."""
    unknown_fields: tuple[str, ...] = ()
    """A sentence for each field of the policy that neither identity has."""
    unseen: tuple[str, ...] | None = None
    """What today's rules of identity see and those of the record did not, by path; None if they are the same rules."""

    @property
    def reason(self) -> str | None:
        """Why the identity is another from here on, for the history; None if it is the same."""
        changed = ", ".join(difference.path for difference in self.identity_changed)
        reasons = [f"allowed: {changed}"] * bool(changed) + ["identity version"] * (self.unseen is not None)
        return "; ".join(reasons) or None


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
    if modules is not None and identity is None:
        identity = identities(modules)
    processes = processes or Processes()
    about = f"the restore of step {snapshot.step}"
    items = (
        [DATA_ITEM] if model is None or MODEL_ITEM not in snapshot.manifest.items else [DATA_ITEM, MODEL_ITEM]
    )
    problems = processes.exchange(
        "restore_files",
        lambda: snapshot.check(items, share=(processes.index, processes.count)),
        lambda parts: list(dict.fromkeys(problem for part in parts for problem in part)),
        about=about,
        timeout_seconds=timeout_seconds,
    )
    if problems:
        raise snapshot.damaged(problems)
    checked: list[tuple[Restored, dict[str, Any]]] = []

    def check() -> dict[str, Any]:
        checked.append(_checked(snapshot, model, modules, identity, policy or ChangePolicy(), processes))
        return {
            "the step": snapshot.step,
            "the snapshot": sha256_hex(snapshot.manifest.to_bytes()),
            "the identity": None if modules is None else sha256_hex(canonical_json(identity)),
        }

    processes.exchange(
        "restore",
        check,
        lambda parts: check_agreement(parts, about),
        about=about,
        timeout_seconds=timeout_seconds,
    )
    restored, states = checked[0]
    if modules is not None:
        _apply_together(snapshot, modules, states, processes, about)
        if len(restored.history) > 1 or restored.identity_changed:
            _recall(snapshot, modules, restored.history)
    return restored


def _recall(snapshot: Snapshot, modules: Modules, history: Sequence[HistoryEntry]) -> None:
    """Tells modules which recipes made the steps before, as far as that can be read; what cannot, they do not know."""
    for name, module in modules.items():
        if isinstance(module, AnswersForItsPast):
            with contextlib.suppress(SnapshotDamagedError, KeyError):
                trees = [read_identity(snapshot.layout.directory, entry.identity)[name] for entry in history]
                places = [(entry.from_step, entry.positions.get(name) or 0) for entry in history]
                module.recall([(*place, tree) for place, tree in zip(places, trees, strict=True)])


def _checked(
    snapshot: Snapshot,
    model: Any,
    modules: Modules | None,
    identity: Mapping[str, Any] | None,
    policy: ChangePolicy,
    processes: Processes,
) -> tuple[Restored, dict[str, Any]]:
    """What the restore gives, and the state of each module: every check has passed, and nothing is applied yet."""
    differences: list[Difference] = []
    accepted: list[Difference] = []
    was: Mapping[str, Any] | None = None
    unseen, unknown_fields = None, []
    if modules is not None:
        recorded = snapshot.record.loaders
        for name in sorted(recorded.keys() ^ modules.keys()):
            shown = (_Words("a data module") if name in side else MISSING for side in (recorded, modules))
            differences.append(Difference(name, *shown))
        compared = snapshot.comparable(identity or {}, modules)
        was, identity, unseen = compared.was, compared.now, compared.unseen
        common = recorded.keys() & modules.keys() & identity.keys()
        sides = ({name: side.get(name) for name in common} for side in (was, identity))
        found = identity_differences(*sides)
        differences += policy.select(found, Change.REFUSE)
        accepted = policy.select(found, Change.ACCEPT, Change.WARN)
        unknown_fields = policy.unknown_fields(was, identity)
    if model is not None and snapshot.leaves is None:
        differences.append(Difference("model", MISSING, _Words("a model")))
    elif model is not None:
        differences += compare_template(snapshot.leaves or (), model)
    if differences:
        raise _mismatch(snapshot, differences, was, identity, unknown_fields)
    states: dict[str, Any] = {}
    if modules is not None:
        try:
            states = snapshot.states(process_index=processes.index, process_count=processes.count)
        except SnapshotDamagedError:
            raise
        except ValueError as error:
            raise MismatchError(
                f"the snapshot of step {snapshot.step} cannot be restored here: {error}"
            ) from error
    history = tuple(snapshot.history)
    restored = Restored(
        snapshot.step,
        None if model is None else _read_model(snapshot, model),
        snapshot.record,
        history,
        identity_changed=tuple(accepted),
        identity_warned=tuple(policy.select(accepted, Change.WARN)),
        unknown_fields=tuple(unknown_fields),
        unseen=None if unseen is None else tuple(unseen),
    )
    return restored, states


class _Words(str):
    def __repr__(self) -> str:
        return str(self)


def _mismatch(
    snapshot: Snapshot,
    found: Sequence[Difference],
    was: Mapping[str, Any] | None,
    now: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> MismatchError:
    count = f"{len(found)} field{'s differ' if len(found) > 1 else ' differs'}"
    advice = "restore with what the run was made with, or use another run directory"
    if not all(difference.path.split(".")[0] == "model" for difference in found):
        advice += "; a deliberate change of the data is allowed field by field in resume.allow_changed"
    text = f"the snapshot of step {snapshot.step} in {snapshot.layout.directory} does not belong here, {count}; {advice}"
    error = MismatchError(text, found, all_advice(found, was, None if was is None else now))
    for sentence in notes:
        error.add_note(sentence)
    return error


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
