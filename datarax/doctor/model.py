"""The model: whether the task's `init` makes what the snapshot holds, and how large it is. Nothing is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.errors
import jax
import numpy as np

from datarax.checkpoint.model_item import LeafKind, LeafSpec, describe, named_leaves
from datarax.core.errors import MISSING, Difference
from datarax.doctor.rehearsal import Finding, Rehearsal, failure, raised, skipped, warning
from datarax.run_config import BaseRunConfig
from datarax.training import load_task

# What a function raises that is all right with values and cannot do without them.
_NEEDS_VALUES = (jax.errors.JAXTypeError, jax.errors.JAXIndexError, flax.errors.TraceContextError)
_ARRAYS = (LeafKind.JAX, LeafKind.KEY, LeafKind.NUMPY)


def model(rehearsal: Rehearsal) -> Finding:
    """The state of the task, its shapes alone, against the leaves of the snapshot."""
    config, snapshot, mesh = rehearsal.config, rehearsal.snapshot, rehearsal.values.get("mesh")
    recorded = None if snapshot is None else snapshot.leaves
    if config.task is None:
        if recorded is not None:
            return failure(
                f"the snapshot holds a model of {len(recorded):,} leaves, the config has no [task]",
                "name the task, or use another run directory",
            )
        return Finding(found="no [task]: snapshots hold the place in the data only", value=0)
    try:
        leaves = _abstract_leaves(config, mesh)
    except _NEEDS_VALUES as error:
        return skipped(
            f"init of {config.task.use} cannot be evaluated without values ({type(error).__name__})",
            "nothing: a launch calls it with values",
        )
    except (OSError, ImportError) as error:
        return raised(error, f"make what init of {config.task.use} reads available")
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return warning(
            f"init of {config.task.use}, evaluated without values, raised {type(error).__name__}: {first}",
            "if it would also raise with values, correct it",
        )
    num_bytes = sum(_num_bytes(leaf) for leaf in leaves.values())
    numbers = {"leaves": len(leaves), "bytes": num_bytes}
    if snapshot is None:
        return Finding(found=f"{len(leaves):,} leaves, {num_bytes:,} bytes", numbers=numbers, value=num_bytes)
    differing = _differing(recorded or (), leaves)
    if differing:
        return failure(
            f"{len(differing)} leaves differ from the snapshot of step {snapshot.step:,}",
            "build the model as it was, or use another run directory",
            details=[str(each) for each in differing],
            numbers=numbers,
            value=num_bytes,
            usable=True,
        )
    return Finding(
        found=f"{len(leaves):,} leaves, {num_bytes:,} bytes, as in the snapshot of step {snapshot.step:,}",
        numbers=numbers,
        value=num_bytes,
    )


def _abstract_leaves(config: BaseRunConfig, mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
    assert config.task is not None
    task, parameters = load_task(config.task.use), dict(config.task.parameters)
    if mesh is None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return dict(named_leaves(jax.eval_shape(lambda: task.init(parameters, mesh)))[0])


def _num_bytes(leaf: Any) -> int:
    if leaf is None:
        return 0
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _differing(recorded: Sequence[LeafSpec], present: Mapping[str, Any]) -> list[Difference]:
    """Leaves that are only on one side, and arrays of another shape or dtype.

    Without values, Python numbers and NumPy arrays look like JAX arrays: of them only what cannot change is compared.
    """
    was = {spec.path: spec for spec in recorded}
    found = []
    for path in sorted({*was, *present}):
        spec = was.get(path)
        leaf = describe(path, present[path]) if path in present else None
        if spec is None or leaf is None or not _fits(spec, leaf):
            found.append(
                Difference(f"model.{path}", *(MISSING if s is None else _Text(str(s)) for s in (spec, leaf)))
            )
    return found


def _fits(was: LeafSpec, now: LeafSpec) -> bool:
    if (was.kind is LeafKind.NONE) != (now.kind is LeafKind.NONE):
        return False
    if was.kind in _ARRAYS and was.shape != now.shape:
        return False
    return was.kind not in (LeafKind.JAX, LeafKind.KEY) or was.dtype == now.dtype


class _Text(str):
    """A description in a `Difference`, printed without quotes."""

    def __repr__(self) -> str:
        return str(self)
