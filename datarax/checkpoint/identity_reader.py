"""Recorded identity trees of earlier versions, so that they can be compared with today's field by field.

A field that is absent on one side is a mismatch. So whoever gives an identity a new field raises the version of its part,
and says here what the earlier version implied. What a version *does* is not lifted: an order of version 1 stays one, and what
other rules made of the same code is compared with what these rules make of it today (`comparable`).
Knows where the versions stand in a tree, and nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from datarax.core.tree import walk
from datarax.store.files import parse_json

Lift = Callable[[dict[str, Any]], dict[str, Any]]
"""The tree of one version in the form of the next, its version number included."""

# Version -> its lift, for each part of a module's identity. Empty: every part is still in its first form.
_MODULE: dict[int, Lift] = {}
"""The whole identity of a module. It has no `version` in its first form."""
_ORDER: dict[int, Lift] = {}
"""`order`: what `Order.identity` gives."""
_PIPELINE: dict[int, Lift] = {}
"""`pipeline`: what `pipeline_identity` gives (`IDENTITY_VERSION`)."""
_SOURCE: dict[int, Lift] = {}
"""Each of `sources`; the number is `sample_version` (`SAMPLE_VERSION`), or 1 where nothing is sampled."""


def parse_identity(data: bytes) -> dict[str, Any]:
    """The identity that a file of `identity/` holds: see `lift_identity`.

    Raises:
        ValueError: if it holds none.
    """
    return lift_identity(parse_json(data))


def lift_identity(tree: Any) -> dict[str, Any]:
    """A recorded identity, module name -> tree, in today's form. What is not known here stays as it is.

    A version without a lift is today's, or one that no lift can help: then it differs from today's, by name.

    Raises:
        ValueError: if it is no identity: not a tree for each name.
    """
    if not isinstance(tree, Mapping):
        raise ValueError("it holds no identity: no tree for the name of each data module")
    return {name: _lift_module(module) for name, module in tree.items()}


def _lift_module(tree: Any) -> Any:
    tree = _lifted(tree, _MODULE)
    if not isinstance(tree, Mapping):
        return tree
    parts: dict[str, Any] = {}
    for name, lifts in (("order", _ORDER), ("pipeline", _PIPELINE)):
        if name in tree:
            parts[name] = _lifted(tree[name], lifts)
    if isinstance(sources := tree.get("sources"), Mapping):
        parts["sources"] = {
            name: _lifted(source, _SOURCE, "sample_version") for name, source in sources.items()
        }
    return {**tree, **parts}


def _lifted(tree: Any, lifts: Mapping[int, Lift], key: str = "version") -> Any:
    while isinstance(tree, Mapping) and type(version := tree.get(key, 1)) is int and version in lifts:
        tree = lifts[version](dict(tree))
        assert tree.get(key, 1) > version, f"the lift of version {version} must raise it"
    return tree


@dataclass(frozen=True)
class Comparable:
    """A recorded identity and today's, made by the same rules."""

    was: Mapping[str, Any]
    """The recorded one, module name -> tree."""
    now: Mapping[str, Any]
    """Today's, by the same rules."""
    unseen: Sequence[str] | None = None
    """What today's rules see and the recorded ones did not, by path; None if they are the same rules."""


def comparable(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    identities: Mapping[str, Callable[..., Mapping[str, Any]]],
    made_with: Mapping[str, Any],
) -> Comparable:
    """A recorded identity and today's, by the rules of the recorded one.

    Args:
        was: what was recorded, module name -> tree.
        now: today's, by today's rules.
        identities: `Stream.identity` of the modules that can say it by the rules of a `recorded` one; others stay as they are.
        made_with: provenance of the start that recorded it, {} if that is not known.
    """
    by_rules = {
        name: identity(recorded=was[name])
        for name, identity in identities.items()
        if name in now and isinstance(was.get(name), Mapping)
    }
    changed = {name: tree for name, tree in by_rules.items() if tree != now[name]}
    if not changed:
        return Comparable(was, now)
    seen = {path for path, _ in walk(changed)}
    today = {name: now[name] for name in changed}
    unseen = [
        f"{path}.{key}"
        for path, node in walk(today)
        if path.endswith((".helpers", ".names")) and isinstance(node, Mapping)
        for key in node
        if f"{path}.{key}" not in seen
    ]
    x64 = made_with.get("jax_enable_x64")
    if x64 is not None:
        was = {**was, **{name: _with_x64(was[name], x64) for name in changed}}
        changed = {name: dict(_with_x64(tree, _x64_now())) for name, tree in changed.items()}
    return Comparable(was, {**now, **changed}, unseen)


def _x64_now() -> str:
    return str(bool(jax.config.read("jax_enable_x64"))).lower()


def _with_x64(tree: Mapping[str, Any], value: str) -> Mapping[str, Any]:
    """Whether JAX had 64 bits, for the stages that draw from JAX keys: version 1 left that to the provenance of the start."""
    try:
        pipeline = tree["pipeline"]
        stages = [
            {**each, "dependencies": {"jax_enable_x64": value, **each.get("dependencies", {})}}
            if each["randomness"].startswith("key")
            else each
            for each in pipeline["transforms"]
        ]
    except (
        AttributeError,
        KeyError,
        TypeError,
    ):  # a Grain pipeline, or no tree of ours: it is compared as it is
        return tree
    return {**tree, "pipeline": {**pipeline, "transforms": stages}}
