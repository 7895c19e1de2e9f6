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

    Raises:
        ConfigError: if it cannot be imported or found, saying what is there; if a level or randomness is
            missing or contradicts; or as `Transform` does.
    """
    found = load_attribute(use, "use")
    if isinstance(found, Transform):
        for what, asked, has in (("level", level, found.level), ("randomness", randomness, found.randomness)):
            if asked is not None and asked != has:
                raise ConfigError(
                    f"{use} is a transform with {what} {str(has)!r}; the config asks for {str(asked)!r}"
                )
        return dataclasses.replace(
            found,
            name=found.name if name is None else name,
            parameters={**found.parameters, **(parameters or {})},
            version=found.version if version is None else version,
            depends_on=found.depends_on if depends_on is None else depends_on,
        )
    if not callable(found):
        raise ConfigError(f"{use} is {found!r}, neither a Transform nor a function")
    if level is None:
        choices = " or ".join(repr(str(each)) for each in Level)
        raise ConfigError(f"{use} is a plain function; say at which level it works: level = {choices}")
    return Transform(
        fn=found,
        name=function_name(found) if name is None else name,
        level=level,  # type: ignore[arg-type]  # text becomes a member, or an error that lists them
        randomness=Randomness.NONE if randomness is None else randomness,  # type: ignore[arg-type]
        parameters=parameters or {},
        version=version,
        depends_on=() if depends_on is None else depends_on,
    )


def load_transforms(settings: Sequence[Mapping[str, Any]]) -> list[Transform]:
    """The stages that a config lists, each by its arguments of `load_transform`.

    Raises:
        ConfigError: as `load_transform` does.
    """
    return [load_transform(**each) for each in settings]
