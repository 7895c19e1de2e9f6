"""From live modules to the bytes of a data item, on the caller's thread: what is written later cannot change any more.

Each process fixes its part; one of them merges all parts into the one data item of a snapshot. Knows nothing of directories,
locks and Orbax.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datarax.checkpoint.encoding import encode
from datarax.checkpoint.layout import PROCESSES_NAME, STEPS_NAME, sha256_hex
from datarax.checkpoint.record import LoaderRecord, StepRange, pack_processes, pack_steps, unpack_steps
from datarax.core.errors import DisagreementError, InputError
from datarax.core.fingerprint import canonical_json
from datarax.core.protocols import Identified, KeepsDigest, KeepsStepDigests, Stateful, SumsOverProcesses
from datarax.multihost import check_agreement

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
    """What the data modules of one process hold at one moment: its part of the data item."""

    parts: Mapping[str, Mapping[str, Any]]
    """For each module, values with JSON: `scope`, `state` or `contribution`, `digest`, `steps` if it keeps digests of steps."""
    positions: Mapping[str, int | None]


@dataclass(frozen=True)
class MergedData:
    """The data item of all processes together, but for the record that holds `loaders`."""

    loaders: Mapping[str, LoaderRecord]
    files: Mapping[str, bytes]


def fix_data(modules: Modules, *, alone: bool) -> FixedData:
    """Read and encode the states and digests of all modules.

    Args:
        modules: by name.
        alone: whether this is the only process; then its state is the state of all.

    Raises:
        EncodingError: if a state holds a value that cannot be encoded, naming its path.
    """
    parts: dict[str, Mapping[str, Any]] = {}
    positions: dict[str, int | None] = {}
    for name, module in modules.items():
        state = module.get_state()
        positions[name] = position_of(state)
        part: dict[str, Any] = {"scope": _scope(module), "state": None, "contribution": None}
        if isinstance(module, SumsOverProcesses) and part["scope"] == "global" and not alone:
            part["contribution"] = module.contribution()
        else:
            part["state"] = encode(state, name)
        part["digest"] = _digest(module)
        part["steps"] = None
        if isinstance(module, KeepsStepDigests):
            first, keys, values, has_bytes = module.take_step_digests()
            packed = base64.b85encode(pack_steps([(keys, values)])).decode()
            part["steps"] = {"first_step": first, "count": len(keys), "has_bytes": has_bytes, "pairs": packed}
        parts[name] = part
    return FixedData(parts, positions)


def merge_data(modules: Modules, parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> MergedData:
    """One data item of the parts of all processes, in the order of processes.

    Args:
        modules: those of this process; the parts of all are about the same ones.
        parts: `FixedData.parts` of each process.

    Raises:
        DisagreementError: if the parts are not of one moment, naming the processes.
        EncodingError: if a state cannot be encoded.
    """
    about = "the state of the data"
    if len(parts) > 1:
        check_agreement([_facts(part) for part in parts], about)
    loaders: dict[str, LoaderRecord] = {}
    blocks: list[bytes] = []
    own: dict[int, dict[str, Any]] = {index: {} for index in range(len(parts))}
    offset = 0
    for name, module in modules.items():
        each = [part[name] for part in parts]
        scope, state, digest = each[0]["scope"], each[0]["state"], each[0]["digest"]
        if scope == "process":
            for index, one in enumerate(each):
                own[index][name] = one["state"]
            state, digest = None, digest if len(parts) == 1 else None
        elif isinstance(module, SumsOverProcesses) and each[0]["contribution"] is not None:
            try:
                total, digest = module.combined([one["contribution"] for one in each])
            except ValueError as error:
                raise DisagreementError(f"{about} {name!r}: {error}") from error
            state = encode(total, name)
        steps = None
        if each[0]["steps"] is not None:
            said = each[0]["steps"]
            keys, values = _summed_steps([one["steps"] for one in each])
            has_bytes = all(one["steps"]["has_bytes"] for one in each)
            steps = StepRange(
                first_step=said["first_step"], count=said["count"], has_bytes=has_bytes, offset=offset
            )
            blocks.append(pack_steps([(keys, values)]))
            offset += said["count"]
        loaders[name] = LoaderRecord(scope=scope, state=state, digest=digest, steps=steps)
    files: dict[str, bytes] = {}
    if any(each.steps is not None for each in loaders.values()):
        files[STEPS_NAME] = b"".join(blocks)
    if own[0]:
        files[PROCESSES_NAME] = pack_processes(own, len(parts))
    return MergedData(loaders, files)


def _facts(part: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What all processes must say alike."""
    facts: dict[str, Any] = {"the set of data modules": sorted(part)}
    for name, one in part.items():
        facts[f"the scope of {name!r}"] = one["scope"]
        if one["scope"] == "global" and one["contribution"] is None:
            # The state itself only where it is small enough to be read in a message.
            text = canonical_json(one["state"])
            facts[f"the state of {name!r}"] = one["state"] if len(text) <= 200 else sha256_hex(text)
        if one["steps"] is not None:
            facts[f"the first step of {name!r} since the last snapshot"] = one["steps"]["first_step"]
            facts[f"the number of steps of {name!r} since then"] = one["steps"]["count"]
    return facts


def _summed_steps(
    parts: Sequence[Mapping[str, Any]],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    count = parts[0]["count"]
    keys, values = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    whole = StepRange(first_step=0, count=count, has_bytes=True, offset=0)
    for part in parts:
        more_keys, more_values = unpack_steps(base64.b85decode(part["pairs"]), whole)
        assert more_values is not None
        keys += more_keys
        values += more_values
    return keys, values


def _scope(module: Stateful) -> str:
    scope = getattr(module, "state_scope", "process")
    if scope not in ("global", "process"):
        raise InputError(f"{type(module).__name__}.state_scope must be 'global' or 'process', not {scope!r}")
    return scope


def _digest(module: Stateful) -> Mapping[str, Any] | None:
    return dict(module.digest.to_state()) if isinstance(module, KeepsDigest) else None
