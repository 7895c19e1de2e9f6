"""Transforms by name: what a config's `use = "module:attribute"` stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from datarax.core.errors import ConfigError
from datarax.transforms.transform import Level, Randomness, Transform, function_name
from datarax.trust import load_attribute


def load_transform(
    use: str,
    *,
    name: str | None = None,
    level: Level | str | None = None,
    randomness: Randomness | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    version: str | int | None = None,
    depends_on: Sequence[str] | None = None,
    depends_on_files: Sequence[str] | None = None,
    impure: bool | None = None,
) -> Transform:
    """The transform that `use` names, with what is given in place of its own.

    Args:
        use: `module:attribute`, importable; the attribute (`Class.method` too) is a `Transform` or a
            function.
        name: Of the transform; its own, or the function's name, if None.
        level: Needed for a function; for a `Transform` it must be the one that it has.
        randomness: As `level`, but a function has none if None.
        parameters: Added to a `Transform`'s own, replacing those of the same name.
        version: Declared version; a `Transform`'s own if None.
        depends_on: Packages whose version is identity; a `Transform`'s own if None.
        depends_on_files: Files whose content is identity; a `Transform`'s own if None.
        impure: Whether the function may keep something between its calls; as a `Transform` says if None.

    Raises:
        ConfigError: if it cannot be imported or found, saying what is there; if a level or randomness is
            missing or contradicts; or as `Transform` does.
    """
    found = load_attribute(use, "use")
    said: dict[str, Any] = {"name": name, "version": version, "depends_on": depends_on}
    said |= {"depends_on_files": depends_on_files, "impure": impure}
    said = {key: value for key, value in said.items() if value is not None}
    if isinstance(found, Transform):
        for what, asked, has in (("level", level, found.level), ("randomness", randomness, found.randomness)):
            if asked is not None and asked != has:
                raise ConfigError(
                    f"{use} is a transform with {what} {str(has)!r}; the config asks for {str(asked)!r}"
                )
        return dataclasses.replace(found, parameters={**found.parameters, **(parameters or {})}, **said)
    if not callable(found):
        raise ConfigError(f"{use} is {found!r}, neither a Transform nor a function")
    if level is None:
        choices = " or ".join(repr(str(each)) for each in Level)
        raise ConfigError(f"{use} is a plain function; say at which level it works: level = {choices}")
    of_function: dict[str, Any] = {
        "level": level,
        "randomness": Randomness.NONE if randomness is None else randomness,
    }
    if name is None:
        of_function["name"] = function_name(found)
    return Transform(fn=found, parameters=parameters or {}, **of_function, **said)


def load_transforms(settings: Sequence[Mapping[str, Any]]) -> list[Transform]:
    """The stages that a config lists, each by its arguments of `load_transform`.

    Raises:
        ConfigError: as `load_transform` does.
    """
    return [load_transform(**each) for each in settings]
