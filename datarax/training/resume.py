"""Where a run goes on: what may have changed, which snapshot it is restored from, and how many steps it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datarax.checkpoint import ChangePolicy, Checkpointer, Restored, Snapshot, list_steps
from datarax.checkpoint.compose import Modules
from datarax.core.config import Checked, check_fields
from datarax.core.errors import ConfigError, SnapshotDamagedError


@dataclass(frozen=True, kw_only=True)
class ResumeConfig:
    """How a run continues from what is in its directory."""

    allow_changed: Sequence[str] = ()
    """Identity fields (dotted, a prefix covers all below it) whose change is accepted and recorded in the history."""
    warn_changed: Sequence[str] = ()
    """Likewise, but each change is also shown as a warning. Where both lists fit a field, the longer path decides."""
    on_damage: Checked[Literal["stop", "previous"]] = "stop"
    """When the newest snapshot fails its checks: stop and say so, or go back to the newest good one (unattended jobs)."""
    check_moved_files: Checked[bool] = True
    """Whether a start reads data files whole whose size or time has changed since the last one, and holds them against the
    manifest. Turn it off where a dataset is too large for that."""

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            self.policy()
        except ConfigError as error:
            raise ConfigError(f"resume.{error}") from None

    def policy(self) -> ChangePolicy:
        """What is done about each identity field that differs."""
        return ChangePolicy(accepted=self.allow_changed, warned=self.warn_changed)


def restore_or_go_back(
    checkpointer: Checkpointer,
    step: int,
    *,
    model: Any,
    data: Modules,
    go_back: bool,
    say: Callable[[str], None],
) -> Restored:
    """Restores the snapshot of a step; if it is damaged, the newest before it that is not, where that is wanted.

    Args:
        checkpointer: of the run.
        step: which one.
        model: what the snapshot's model is compared with. Where it is None, a model that is there must not be dropped.
        data: modules by name.
        go_back: whether to go back to an earlier step.
        say: told of each that is damaged.

    Raises:
        SnapshotDamagedError: if it is damaged, and there is none before it or `go_back` is False.
        SnapshotNotFoundError: if there is no such step.
        MismatchError: if it does not belong to this run; see `Checkpointer.restore`.
    """
    while True:
        try:
            template = model
            if model is None and Snapshot.open(checkpointer.directory, step).leaves is not None:
                template = {}
            return checkpointer.restore(step, model=template, data=data)
        except SnapshotDamagedError as error:
            earlier = error.earlier_step
            if earlier is None:
                error.add_note("restore it from a copy, or use another run directory")
                raise
            if not go_back:
                error.add_note(
                    f"to go back to step {earlier}, run with --step {earlier}; newer snapshots are set aside, not deleted "
                    f'(resume.on_damage = "previous" does so by itself, as far as it must)'
                )
                raise
            say(str(error))
            say(f'resume.on_damage = "previous": going back to step {earlier}')
            step = earlier


def newest_step(directory: str | Path) -> int | None:
    """The newest committed step of a run; None if there is none."""
    steps = list_steps(directory)
    return steps[-1] if steps else None


def what_stays(directory: str | Path) -> str:
    """How to go on after an error that ends a run."""
    newest = newest_step(directory)
    if newest is None:
        return "no snapshot was committed before that; run again to start over"
    return f"snapshot {newest} is committed; run again to continue after it"


def total_steps(steps: int | None, available: int | None, *, ends: str) -> int:
    """Steps of the whole run: the smaller of what is asked for and what the loader has.

    Args:
        steps: what is asked for; None: all there are.
        available: what the loader has; None if it is endless.
        ends: the settings that say when the run ends.

    Raises:
        ConfigError: if neither says.
    """
    if steps is None and available is None:
        raise ConfigError(f"nothing says when the run ends: set {ends}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"run.steps must be an integer of at least 1, got {steps!r}")
    return min(each for each in (steps, available) if each is not None)
