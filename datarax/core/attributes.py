"""Objects that a config names as `module:attribute`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from datarax.core.errors import ConfigError


def load_attribute(use: str, key: str) -> Any:
    """The object named `module:attribute` (dots go deeper); `key` names the config key in messages.

    Raises:
        ConfigError: if the text has another form, the module's import raises anything, or it has no such attribute;
            then it says what there is.
    """
    module_name, _, path = use.partition(":") if isinstance(use, str) else ("", "", "")
    if not module_name or not path:
        raise ConfigError(f"{key} must be 'module:attribute', got {use!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs here and may raise anything
        raise ConfigError(
            f"{key} = {use!r}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    at = module_name
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{key} = {use!r}: {at!r} has no attribute {part!r}; {_what_is_there(found, part)}"
            )
        found, at = getattr(found, part), f"{at}.{part}"
    return found


def _what_is_there(owner: Any, missing: str) -> str:
    names = sorted(name for name in dir(owner) if not name.startswith("_"))
    if not names:
        return "it has no public names"
    near = difflib.get_close_matches(missing, names, n=1)
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"did you mean {near[0]!r}? It has {listed}" if near else f"it has {listed}"
