"""From TOML text and `key=value` overrides to a config, strictly.

Relative paths become absolute: a kept config means the same from any working directory.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datarax.checkpoint.layout import local_directory
from datarax.core.config import from_tree
from datarax.core.errors import ConfigError, InputError
from datarax.run_config.config import GrainRunConfig, RunConfig
from datarax.store.files import check_path, check_tree, parsed, read_file

AnyRunConfig = RunConfig | GrainRunConfig

_MOST_BYTES = 1 << 24
"""What a config file may hold: far more than any was ever written with."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads the config of a run over a source of records: see `load_any_config`.

    Raises:
        InputError: if the file cannot be read.
        ConfigError: if it is not TOML, a key or value is wrong, or it wraps a Grain pipeline.
    """
    return _of_a_source(load_any_config(path, overrides), str(path))


def load_any_config(path: str | Path, overrides: Sequence[str] = ()) -> AnyRunConfig:
    """Reads a TOML file and applies `key=value` overrides.

    Raises:
        InputError: if the file cannot be read.
        ConfigError: if it is not TOML, or a key or value is wrong.
    """
    check_path(str(path), "the config")
    try:
        text = read_file(path, _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the config {str(path)!r}: {reason}") from None
    return _built(_parsed(text, str(path)), overrides, str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, where: str = "the config") -> RunConfig:
    """Builds the config of a run over a source of records; `where` names the text in messages.

    Raises:
        ConfigError: if it is not TOML, a key or value is wrong, or it wraps a Grain pipeline.
    """
    return _of_a_source(_built(_parsed(text, where), overrides, where), where)


def parse_stored_config(text: str, overrides: Sequence[str] = (), *, where: str) -> RunConfig:
    """Builds the config of a run over a source of records from what the run has kept: see `parse_any_stored_config`.

    Raises:
        ConfigError: if it is not TOML, a key or value is wrong, or it wraps a Grain pipeline.
    """
    return _of_a_source(parse_any_stored_config(text, overrides, where=where), where)


def parse_any_stored_config(text: str, overrides: Sequence[str] = (), *, where: str) -> AnyRunConfig:
    """Builds a config from what a run has kept.

    What the version that stored it left out, it implied: that is filled in, not today's default.

    Raises:
        ConfigError: if it is not TOML, or a key or value is wrong.
    """
    tree = _parsed(text, where)
    if isinstance(loader := tree.get("loader"), dict):
        loader.setdefault("order_version", 1)  # kept since there could be two
    return _built(tree, overrides, where, stored=True)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        return parsed(tomllib.loads, text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None


def _of_a_source(config: AnyRunConfig, where: str) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    raise ConfigError(
        f"{where} wraps a Grain pipeline ([grain_pipeline]): only Grain knows which records its elements hold, so this needs a "
        f"config with [source] and [loader]"
    )


def _built(
    tree: dict[str, Any], overrides: Sequence[str], where: str, *, stored: bool = False
) -> AnyRunConfig:
    for override in overrides:
        _apply_override(tree, override)
    try:
        check_tree(tree)  # again: an override may lead deeper
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        if "grain_pipeline" in tree:
            return _resolved(from_tree(GrainRunConfig, tree))
        # A kept config was checked when it was kept; to read it again no kind of source is imported.
        return _resolved(from_tree(RunConfig, tree), checked=stored and not overrides)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.0.c=value` in `tree`; numbers index lists. The value is TOML, or else taken as text."""
    check_path(override, "--set")
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set needs key=value, got {override!r}")
    try:
        value = parsed(tomllib.loads, f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except ValueError as error:
        raise ConfigError(f"--set {key}: {error}") from None
    node: Any = tree
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, list):
            if part not in map(str, range(len(node))):
                raise ConfigError(
                    f"--set {key}: {'.'.join(parts[:i])} is a list of {len(node)}, so {part!r} is no index of it"
                )
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            raise ConfigError(f"--set {key}: {'.'.join(parts[:i])} is a value, not a table")
        if last:
            node[index] = value
        elif isinstance(node, dict) and index not in node:
            node[index] = {}
        node = node[index] if not last else None


def _resolved(config: AnyRunConfig, *, checked: bool = False) -> AnyRunConfig:
    """With absolute paths, and a source whose settings are checked."""
    run = dataclasses.replace(config.run, directory=str(local_directory(config.run.directory)))
    if isinstance(config, GrainRunConfig):
        return dataclasses.replace(config, run=run)
    source = config.source if checked else config.source.resolved()
    stages = [
        dataclasses.replace(each, depends_on_files=[os.path.abspath(path) for path in each.depends_on_files])
        if each.depends_on_files
        else each
        for each in config.transforms
    ]
    return dataclasses.replace(config, run=run, source=source, transforms=stages)


__all__ = [
    "AnyRunConfig",
    "load_any_config",
    "load_config",
    "parse_any_stored_config",
    "parse_config",
    "parse_stored_config",
]
