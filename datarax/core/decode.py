"""Plain trees (from TOML) <-> frozen config dataclasses, strictly.

An unknown key, a value of another kind or a missing required key is a `ConfigError` that names the dotted path and,
for unknown keys, the nearest known one. Nothing is converted silently; an int is accepted for a float.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from datarax.core.errors import ConfigError

T = TypeVar("T")

REST = {"rest": True}
"""Metadata of a field that takes all keys which are no field, unchecked, as a mapping."""


def decode(kind: type[T], tree: Mapping[str, Any], path: str = "") -> T:
    """Builds the dataclass `kind` from `tree`.

    Args:
        kind: a dataclass.
        tree: its fields by name.
        path: dotted path of `tree` in the whole, for messages.

    Raises:
        ConfigError: naming the path of what is unknown, missing or of the wrong kind.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a table, got {_show(tree)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for rest in _rest(kind):
        others = {key: value for key, value in tree.items() if key not in fields or key == rest}
        tree = {rest: others, **{key: value for key, value in tree.items() if key not in others}}
    check_keys(tree, fields, path)
    hints = typing.get_type_hints(kind)
    values = {key: _value(hints[key], value, _join(path, key)) for key, value in tree.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{_join(path, name)} is required and missing")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"[{path}] {error}" if path else str(error)) from None


def encode(config: Any) -> Any:
    """The plain tree of a config, such that `decode` gives an equal one. Fields that are None are left out."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {
            field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init
        }
        for rest in _rest(config):
            values |= values.pop(rest)
        return {name: encode(value) for name, value in values.items() if value is not None}
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, Mapping):
        return {key: encode(value) for key, value in config.items() if value is not None}
    if isinstance(config, (list, tuple)):
        return [encode(value) for value in config]
    return config


def check_keys(tree: Mapping[str, Any], known: collections.abc.Iterable[str], path: str) -> None:
    """Refuses the first key of `tree` that is not `known`, naming the nearest that is.

    Raises:
        ConfigError: if there is one.
    """
    names = list(known)
    for key in tree:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(names))}"
            raise ConfigError(f"unknown key {_join(path, str(key))!r}; {hint}")


def _rest(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if "rest" in field.metadata]


def _value(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{path} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin in (list, tuple, collections.abc.Sequence):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} must be a list, got {_show(value)}")
        return tuple(_value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin in (dict, collections.abc.Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a table, got {_show(value)}")
        return dict(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return decode(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(hint, value, path)
    return _scalar(hint, value, path)


def _union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _value(choice, value, path)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _member(family: type[enum.Enum], value: Any, path: str) -> enum.Enum:
    try:
        return family(value)
    except ValueError:
        choices = ", ".join(repr(member.value) for member in family)
        raise ConfigError(f"{path} must be one of {choices}, got {value!r}") from None


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
            raise ConfigError(f"{path} must be {names[hint]}, got {_show(value)}")
        return value
    raise ConfigError(f"{path} cannot be set from a config file")


def _show(value: Any) -> str:
    return f"the {type(value).__name__} {value!r}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
