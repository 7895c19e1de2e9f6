"""From live modules to the bytes of a data item, on the caller's thread: what is written later cannot change any more.

Each process fixes its part; one of them merges all parts into the one data item of a snapshot. Knows nothing of directories,
locks and Orbax.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from datarax.checkpoint.layout import PROCESSES_NAME, STEPS_NAME, sha256_hex
from datarax.checkpoint.protocols import (
    Identified,
    KeepsDigest,
    KeepsStepDigests,
    Stateful,
    SumsOverProcesses,
)
from datarax.checkpoint.record import LoaderRecord, StepRange, pack_processes, pack_steps
from datarax.core.errors import DisagreementError, InputError
from datarax.core.tree import canonical_json, encode

Modules = Mapping[str, Stateful]
"""Data modules by name."""


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
    """What the data modules of one process hold at one moment: its part of the data item."""

    loaders: Mapping[str, LoaderRecord]
    """Of this process alone; a state that is its own stands here too."""
    contributions: Mapping[str, Mapping[str, Any]]
    """For modules that sum over processes, instead of a state: what this process has added to that of all."""
    pairs: bytes
    """As in `steps.bin`: digests of the steps since the last committed snapshot, over the rows that count here."""
    positions: Mapping[str, int | None]
    """Position of each module, in rows; None for a module without one."""

    def facts(self) -> dict[str, Any]:
        """What all processes must say alike: a few hundred bytes, however large the states are."""
        facts: dict[str, Any] = {"the set of data modules": sorted(self.loaders)}
        for name, one in self.loaders.items():
            facts[f"the scope of {name!r}"] = one.scope
            if one.scope == "global" and name not in self.contributions:
                # The state itself only where it is small enough to be read in a message.
                text = canonical_json(one.state)
                facts[f"the state of {name!r}"] = one.state if len(text) <= 200 else sha256_hex(text)
            if one.steps is not None:
                facts[f"the first step of {name!r} since the last snapshot"] = one.steps.first_step
                facts[f"the number of steps of {name!r} since then"] = one.steps.count
        return facts

    def shares(self) -> dict[str, dict[str, Any]]:
        """What differs between processes that agree on the facts, but for the pairs; values with JSON."""
        return {
            name: {
                "state": one.state if one.scope == "process" else None,
                "contribution": self.contributions.get(name),
                "has_bytes": one.steps is None or one.steps.has_bytes,
            }
            for name, one in self.loaders.items()
        }

    def to_bytes(self) -> bytes:
        """The pairs, and after them the shares: what `merge_data` needs of another process."""
        return self.pairs + json.dumps(self.shares()).encode()


@dataclass(frozen=True)
class MergedData:
    """The data item of all processes together, but for the record that holds `loaders`."""

    loaders: Mapping[str, LoaderRecord]
    """As in `Record.loaders`."""
    files: Mapping[str, bytes]
    """Name in the data item -> bytes."""


def fix_data(modules: Modules, *, alone: bool) -> FixedData:
    """Read and encode the states and digests of all modules.

    Args:
        modules: by name.
        alone: whether this is the only process; then its state is the state of all.

    Raises:
        EncodingError: if a state holds a value that cannot be encoded, naming its path.
    """
    loaders: dict[str, LoaderRecord] = {}
    contributions: dict[str, Mapping[str, Any]] = {}
    positions: dict[str, int | None] = {}
    blocks = []
    offset = 0
    for name, module in modules.items():
        state, scope, steps = module.get_state(), _scope(module), None
        positions[name] = position_of(state)
        if isinstance(module, SumsOverProcesses) and scope == "global" and not alone:
            contributions[name] = module.contribution()
            encoded = None
        else:
            encoded = _recorded(module, state, name)
        if isinstance(module, KeepsStepDigests):
            first, keys, values, has_bytes = module.take_step_digests()
            steps = StepRange(first_step=first, count=len(keys), has_bytes=has_bytes, offset=offset)
            blocks.append((keys, values))
            offset += len(keys)
        loaders[name] = LoaderRecord(
            scope=scope,
            state=encoded,
            plain=_is_plain(module),
            digest=_digest(module),
            steps=steps,
            lanes=None,
        )
    return FixedData(loaders, contributions, pack_steps(blocks), positions)


def merge_data(modules: Modules, own: FixedData, others: Iterable[bytes]) -> MergedData:
    """One data item of the parts of all processes.

    Args:
        modules: those of process 0; the parts of all are about the same ones.
        own: the part of process 0.
        others: `FixedData.to_bytes` of the processes after it, in their order; their facts are those of `own`.

    Raises:
        DisagreementError: if the contributions are not of one moment.
        EncodingError: if a state cannot be encoded.
    """
    shares = [own.shares()]
    pairs = np.frombuffer(own.pairs, np.dtype("<u8")).copy()
    for data in others:
        pairs += np.frombuffer(data[: len(own.pairs)], pairs.dtype)  # all have the same steps: one layout
        shares.append(json.loads(data[len(own.pairs) :]))
    loaders: dict[str, LoaderRecord] = {}
    single: dict[int, dict[str, Any]] = {index: {} for index in range(len(shares))}
    for name, module in modules.items():
        each, one = [share[name] for share in shares], own.loaders[name]
        if one.scope == "process":
            for index, share in enumerate(each):
                single[index][name] = share["state"]
            one = replace(one, state=None, digest=one.digest if len(shares) == 1 else None)
        elif isinstance(module, SumsOverProcesses) and name in own.contributions:
            try:
                total, digest = module.combined([share["contribution"] for share in each])
            except ValueError as error:
                raise DisagreementError(f"the state of the data {name!r}: {error}") from error
            one = replace(one, state=_recorded(module, total, name), digest=digest)
        if one.steps is not None:
            one = replace(one, steps=replace(one.steps, has_bytes=all(share["has_bytes"] for share in each)))
        loaders[name] = one
    files: dict[str, bytes] = {}
    if any(one.steps is not None for one in loaders.values()):
        files[STEPS_NAME] = pairs.tobytes()
    if single[0]:
        files[PROCESSES_NAME] = pack_processes(single, len(shares))
    return MergedData(loaders, files)


def _is_plain(module: Stateful) -> bool:
    return hasattr(module, "state_format")


def _recorded(module: Stateful, state: Mapping[str, Any], name: str) -> Any:
    """What a record holds of a state: of a plain one all but its identity and part, for the record is about all rows."""
    if _is_plain(module):
        return {key: value for key, value in state.items() if key not in ("identity", "part")}
    return encode(state, name)


def _scope(module: Stateful) -> Literal["global", "process"]:
    scope: Any = getattr(module, "state_scope", "process")
    if scope in ("global", "process"):
        return cast(Literal["global", "process"], scope)
    raise InputError(f"{type(module).__name__}.state_scope must be 'global' or 'process', not {scope!r}")


def _digest(module: Stateful) -> Mapping[str, Any] | None:
    return dict(module.digest.to_state()) if isinstance(module, KeepsDigest) else None
