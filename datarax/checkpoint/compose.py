"""From live modules to the bytes of a data item, on the caller's thread: what is written later cannot change any more.

Knows nothing of directories, locks and Orbax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.checkpoint.encoding import encode
from datarax.checkpoint.layout import PROCESSES_NAME, RECORD_NAME, STEPS_NAME
from datarax.checkpoint.record import LoaderRecord, Record, StepRange, pack_processes, pack_steps
from datarax.core.errors import InputError
from datarax.core.protocols import Identified, KeepsDigest, KeepsStepDigests, Stateful, StepDigests

Modules = Mapping[str, Stateful]


def named_modules(data: Stateful | Modules) -> dict[str, Stateful]:
    """The modules by name; one module alone is `train`.

    Raises:
        InputError: if there is none, a name is unusable, or something has no state.
    """
    modules = dict(data) if isinstance(data, Mapping) else {"train": data}
    if not modules:
        raise InputError("data is an empty mapping; pass at least one module, or leave data out")
    for name, module in modules.items():
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise InputError(f"the data module name {name!r} is not made of letters, digits, '_' and '-'")
        if not isinstance(module, Stateful):
            kind = type(module).__name__
            raise InputError(f"the data module {name!r} is a {kind}, which has no get_state and set_state")
    return modules


def identities(modules: Modules) -> dict[str, Any]:
    """The identity tree of each module; of a module that offers none, its class."""
    return {name: _identity(module) for name, module in modules.items()}


def _identity(module: Stateful) -> Any:
    if isinstance(module, Identified):
        return module.identity()
    return {"class": f"{type(module).__module__}.{type(module).__qualname__}"}


def position_of(state: Mapping[str, Any]) -> int | None:
    """The position in a state, in rows; None for a module without one."""
    position = state.get("position")
    return position if type(position) is int else None


@dataclass(frozen=True)
class FixedData:
    """Everything of the data modules that a snapshot holds, as it was at one moment."""

    loaders: Mapping[str, LoaderRecord]
    own: Mapping[str, Any]
    """Encoded states that belong to this process."""
    digests: Sequence[StepDigests]
    """In the order of their offsets."""
    positions: Mapping[str, int | None]

    def files(self, record: Record, *, process_index: int, process_count: int) -> dict[str, bytes]:
        """The files of the data item.

        Raises:
            SaveError: if the record is too large.
        """
        files = {RECORD_NAME: record.to_bytes()}
        if self.digests:
            files[STEPS_NAME] = pack_steps([(keys, values) for _, keys, values, _ in self.digests])
        if self.own:
            files[PROCESSES_NAME] = pack_processes({process_index: self.own}, process_count)
        return files


def fix_data(modules: Modules) -> FixedData:
    """Read and encode the states and digests of all modules.

    Raises:
        EncodingError: if a state holds a value that cannot be encoded, naming its path.
    """
    loaders: dict[str, LoaderRecord] = {}
    own: dict[str, Any] = {}
    digests: list[StepDigests] = []
    positions: dict[str, int | None] = {}
    offset = 0
    for name, module in modules.items():
        state = module.get_state()
        positions[name] = position_of(state)
        encoded, scope, steps = encode(state, name), _scope(module), None
        if scope == "process":
            own[name], encoded = encoded, None
        if isinstance(module, KeepsStepDigests):
            first, keys, _, has_bytes = taken = module.take_step_digests()
            steps = StepRange(first_step=first, count=len(keys), has_bytes=has_bytes, offset=offset)
            digests.append(taken)
            offset += len(keys)
        loaders[name] = LoaderRecord(scope=scope, state=encoded, digest=_digest(module), steps=steps)
    return FixedData(loaders, own, digests, positions)


def _scope(module: Stateful) -> str:
    scope = getattr(module, "state_scope", "process")
    if scope not in ("global", "process"):
        raise InputError(f"{type(module).__name__}.state_scope must be 'global' or 'process', not {scope!r}")
    return scope


def _digest(module: Stateful) -> Mapping[str, Any] | None:
    return dict(module.digest.to_state()) if isinstance(module, KeepsDigest) else None
