"""Recorded identity trees of earlier versions, in today's form, so that they can be compared with today's field by field.

A field that is absent on one side is a mismatch. So whoever gives an identity a new field raises the version of its part,
and says here what the earlier version implied. What a version *does* is not lifted: an order of version 1 stays one.
Knows where the versions stand in a tree, and nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
