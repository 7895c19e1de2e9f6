"""What a data module may offer to a snapshot besides its state.

Each protocol is optional: a module that lacks one is still saved and restored. Implementations live in sources and
loaders; the readers of these protocols are the checkpointer and the verifier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

StepDigests = tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64], bool]
"""`(first_step, keys uint64[k], bytes uint64[k], has_bytes)`: one digest per step from `first_step` on."""


@runtime_checkable
class Stateful(Protocol):
    """State that a snapshot can hold: a plain nested dict, read and replaced as a whole."""

    def get_state(self) -> dict[str, Any]:
        """The state, as a plain nested dict of values that `datarax.core.tree` can encode."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Replace the state; validated wholly before anything changes.

        Raises:
            TypeError: if `state` is not a dict.
            ValueError: if it does not fit this module.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A module that says which recipe its data follow."""

    def identity(self) -> Mapping[str, Any]:
        """A tree with canonical JSON; equal trees promise equal batches at every position."""
        ...


@runtime_checkable
class ShowsImpurities(Protocol):
    """A module that knows where its functions keep something between their calls."""

    def impurities(self) -> Sequence[str]:
        """A sentence for each place, naming function and line."""
        ...


@runtime_checkable
class KeepsStepDigests(Protocol):
    """A module that keeps one digest per step, so that a divergence has an exact step."""

    def take_step_digests(self) -> StepDigests:
        """The digests of all steps since the last committed snapshot; nothing is dropped by asking."""
        ...

    def committed(self, step: int) -> None:
        """Told on the caller's thread that the snapshot of `step` is committed: older digests may go."""
        ...


@runtime_checkable
class KeepsDigest(Protocol):
    """A module that keeps the digest of everything it has delivered."""

    @property
    def digest(self) -> Any:
        """The digest up to the present position: sums that do not depend on how rows were split.

        Its `to_state()` is `{"version", "rows", "keys", "bytes"}`: counts as ints, sums as hex strings, `bytes` None if not
        kept.
        """
        ...


@runtime_checkable
class ReadsRecords(Protocol):
    """A module that takes states as records of any version hold them. Every `DataraxModule` does."""

    def recorded_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state in the form that `set_state` takes, for whoever has compared identities.

        Raises:
            ValueError: if it is none of this module's.
        """
        ...


@runtime_checkable
class AnswersForItsPast(Protocol):
    """A module that can say which records earlier steps had, also those that another recipe made."""

    def recall(self, history: Sequence[tuple[int, int, Mapping[str, Any]]]) -> None:
        """Told after a restore how the steps before were made.

        Args:
            history: (first step, first position, identity) of each recipe, ascending.
        """
        ...


@runtime_checkable
class SumsOverProcesses(Protocol):
    """A module whose counters and digests each process keeps for its own share of the work."""

    def contribution(self) -> dict[str, Any]:
        """What this process alone has added since the state that all share: that of the last restore, or of the beginning.

        Values with JSON.
        """
        ...

    def combined(
        self, contributions: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
        """`get_state()` and `digest.to_state()` as if one process had done it all.

        Args:
            contributions: one of each process, in the order of processes.

        Raises:
            ValueError: if they are not of one moment, naming what differs.
        """
        ...


@runtime_checkable
class BatchStream(Stateful, ReadsRecords, Identified, KeepsStepDigests, KeepsDigest, Protocol):
    """What a training session takes its batches from: a `DataLoader`, or a pipeline of another library in our envelope."""

    idx: Any
    """Variable: batches handed over, an int; also the step of the next batch."""
    metrics: Any
    """Counters (batches, rows, seconds waited) of what was handed over since it was opened."""
    state_format: int
    """Of `get_state()`, which has JSON and says of what identity it is."""

    def identity(self, *, recorded: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """As in `Identified`; made by the versions of the rules that made `recorded`, where that is given."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Batches of the whole run; None if there is no end, or none that is known before it comes."""
        ...

    def __next__(self) -> Any:
        """The next batch; only now does the state count it."""
        ...

    def close(self) -> None:
        """Ends the threads."""
        ...


class AddressableStream(BatchStream, Protocol):
    """A stream with a timeline: which records a step holds is known without reading one, so any step may be sought."""

    addressable: bool
    """True. A stream that is none says False, or nothing."""

    @property
    def timeline(self) -> Any:
        """`Timeline`: which records each step covers."""
        ...

    @property
    def source(self) -> Any:
        """`DataSource`: what is read."""
        ...

    @property
    def slots(self) -> Any:
        """`Slots`: the rows of a batch that are read here, and those that count here."""
        ...

    def identity(
        self, *, sample: bool = True, recorded: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """As in `Identified`; without `sample` no record is read."""
        ...

    def keep_byte_digests(self) -> None:
        """From now on hash every delivered byte, unless the config says whether to."""
        ...

    def seek(self, step: int) -> None:
        """Continues with the batch of `step`."""
        ...


def is_addressable(stream: Any) -> TypeGuard[AddressableStream]:
    """Whether a stream has a timeline."""
    return bool(getattr(stream, "addressable", False))
