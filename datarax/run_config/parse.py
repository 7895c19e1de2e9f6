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
"""A run over a source, or over a pipeline of Grain's."""

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
    return _built(text, overrides, str(path))


def parse_config(text: str, overrides: Sequence[str] = (), *, where: str = "the config") -> RunConfig:
    """Builds the config of a run over a source of records; `where` names the text in messages.

    Raises:
        ConfigError: if it is not TOML, a key or value is wrong, or it wraps a Grain pipeline.
    """
    return _of_a_source(_built(text, overrides, where), where)


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
    return _built(text, overrides, where, stored=True)


def _of_a_source(config: AnyRunConfig, where: str) -> RunConfig:
    if isinstance(config, RunConfig):
        return config
    raise ConfigError(
        f"{where} wraps a Grain pipeline ([grain_pipeline]): only Grain knows which records its elements hold, so this needs a "
        f"config with [source] and [loader]"
    )


def _built(text: str, overrides: Sequence[str], where: str, *, stored: bool = False) -> AnyRunConfig:
    """With absolute paths, and a source whose settings are checked."""
    try:
        tree: dict[str, Any] = parsed(tomllib.loads, text)
    except ValueError as error:
        raise ConfigError(f"{where} is not valid TOML: {error}") from None
    if stored and isinstance(tree.get("loader"), dict):
        tree["loader"].setdefault("order_version", 1)  # kept since there could be two
    for override in overrides:
        _apply_override(tree, override)
    try:
        check_tree(tree)  # again: an override may lead deeper
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        kind: type[AnyRunConfig] = GrainRunConfig if "grain_pipeline" in tree else RunConfig
        config = from_tree(kind, tree)
        resolved: dict[str, Any] = {
            "run": dataclasses.replace(config.run, directory=str(local_directory(config.run.directory)))
        }
        # A kept config was checked when it was kept; to read it again no kind of source is imported.
        if isinstance(config, RunConfig) and (overrides or not stored):
            resolved["source"] = config.source.resolved()
            resolved["transforms"] = [
                dataclasses.replace(
                    each,
                    depends_on_files=each.depends_on_files
                    and [os.path.abspath(path) for path in each.depends_on_files],
                )
                for each in config.transforms
            ]
        return dataclasses.replace(config, **resolved)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.0.c=value` in `tree`; numbers index lists. The value is TOML, or else taken as text."""
    check_path(override, "--set")
    key, equals, text = override.partition("=")
    *tables, last = key.strip().split(".")
    if not equals or not all([*tables, last]):
        raise ConfigError(f"--set needs key=value, got {override!r}")
    try:
        value = parsed(tomllib.loads, f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except ValueError as error:
        raise ConfigError(f"--set {key}: {error}") from None
    node: Any = tree
    for i, part in enumerate(tables):
        index = _index(node, part, f"--set {key}: {'.'.join(tables[:i])}")
        if isinstance(node, dict):
            node.setdefault(index, {})
        node = node[index]
    node[_index(node, last, f"--set {key}: {'.'.join(tables)}")] = value


def _index(node: Any, part: str, says: str) -> Any:
    """How a part of a key leads from a table or a list to what is below it."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"{says} is a value, not a table")
    if part not in map(str, range(len(node))):
        raise ConfigError(f"{says} is a list of {len(node)}, so {part!r} is no index of it")
    return int(part)
