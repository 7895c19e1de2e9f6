"""Objects that a config names as `module:attribute`."""

from __future__ import annotations

import importlib
from typing import Any

from datarax.core.errors import ConfigError


def load_attribute(use: str, key: str) -> Any:
    """The object named `module:attribute` (dots go deeper); `key` names the config key in messages.

    Raises:
        ConfigError: if the text has another form, the module does not import, or it has no such attribute.
    """
    module_name, _, attribute = use.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{key} must be 'module:attribute', got {use!r}")
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key} = {use!r}: cannot import {module_name!r}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = ", ".join(sorted(name for name in vars(found) if not name.startswith("_"))[:20])
            raise ConfigError(f"{key} = {use!r}: {module_name!r} has no {attribute!r}; it has: {public}")
        found = getattr(found, part)
    return found
