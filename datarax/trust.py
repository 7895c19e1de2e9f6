"""The one door from a text to code: the object that `module:attribute` names, and whose code that is.

Whose it is is asked before it is imported, and before anything is called.

A config says what is called with which parameters, so a name in the standard library (`os:system`) would make it a program.
This is no sandbox: what a user's own module does is its own affair.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, MethodType
from typing import Any

from datarax.core.errors import ConfigError

_STANDARD = sys.stdlib_module_names | {"test"}
"""Top-level names of the standard library; Python's list leaves out its own tests, which delete trees and start programs."""


def load_attribute(use: str, key: str) -> Any:
    """The object named `module:attribute` (dots go deeper); `key` names the config key in messages.

    Raises:
        ConfigError: if the text has another form, the module's import raises anything, or it has no such attribute;
            then it says what there is. If it is the standard library's, or could be two different modules; then nothing was
            imported or called.
    """
    module_name, _, path = use.partition(":") if isinstance(use, str) else ("", "", "")
    if not all([*module_name.split("."), *path.split(".")]):  # a name that begins with a dot is of no package
        raise ConfigError(f"{key} must be 'module:attribute', got {use!r}")
    check_module(module_name, f"{key} = {use!r}")
    with _raises_config_error(f"{key} = {use!r}: importing {module_name!r} raised"):  # its own code runs here
        found: Any = importlib.import_module(module_name)
    at = module_name
    for part in path.split("."):
        says = f"{key} = {use!r}: {at!r}"
        # The user's own code runs here too: of a module that imports its parts when they are asked for.
        with _raises_config_error(f"{says} raised at the attribute {part!r}"):
            has_it = hasattr(found, part)
        if not has_it:
            names = sorted(name for name in dir(found) if not name.startswith("_"))
            near = difflib.get_close_matches(part, names, n=1)
            hint = f"did you mean {near[0]!r}? It has" if near else "it has"
            listed = ", ".join(names[:20] + ["…"] * (len(names) > 20)) or "no public names"
            raise ConfigError(f"{says} has no attribute {part!r}; {hint} {listed}")
        found, at = getattr(found, part), f"{at}.{part}"
    check_owner(found, f"{key} = {use!r}")
    return found


@contextlib.contextmanager
def _raises_config_error(says: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ConfigError(f"{says} {type(error).__name__}: {error}") from error


def call(function: Any, parameters: Mapping[str, Any], says: str) -> Any:
    """What a function that a config names returns.

    Raises:
        ConfigError: if it cannot be called with these parameters; says which are missing or too many.
    """
    try:
        inspect.signature(function).bind(**parameters)
    except TypeError as error:
        raise ConfigError(f"{says} cannot be called with these parameters: {error}") from error
    except ValueError:
        pass  # of some functions in C nobody knows what they take
    return function(**parameters)


def check_module(name: str, says: str) -> None:
    """Refuses a module that no config may name.

    Args:
        name: dotted name of the module.
        says: the key and what stands there, for messages.

    Raises:
        ConfigError: if the working directory, in which it would be found last, holds another module of that name, or if it
            belongs to the standard library.
    """
    top = name.partition(".")[0]
    if top == "datarax":
        return  # which one runs is settled: this one
    found, here = _found(top), _in_working_directory(top)
    if found is not None and here is not None and os.path.realpath(found) != os.path.realpath(here):
        raise ConfigError(
            f"{says}: {top!r} is {found}, which comes first, but the working directory holds {here} too; rename the one that "
            f"you mean, or start in another directory"
        )
    if top in _STANDARD:
        raise ConfigError(
            f"{says} names the standard library, which a config may not call; write a function of your own that does"
        )


def check_owner(found: Any, says: str) -> None:
    """Refuses what would be called and is the standard library's, however it is reached (`my_module:os.system`).

    Raises:
        ConfigError: if it is.
    """
    if callable(found) and all(each.partition(".")[0] in _STANDARD for each in _owners(found)):
        raise ConfigError(
            f"{says} is {found!r} of the standard library, which a config may not call; write a function of your own that does"
        )


def _owners(thing: Any) -> list[str]:
    """The modules that a callable may come from: a decorator of the standard library makes a function its own, and back."""
    while isinstance(thing, (functools.partial, MethodType)):
        thing = thing.func if isinstance(thing, functools.partial) else thing.__func__
    if isinstance(thing, FunctionType):
        return [thing.__module__ or "", thing.__globals__.get("__name__", "")]
    module = getattr(thing, "__module__", None)
    if module is None:
        # Of methods in C: the class that has it, or the object that it is bound to, which may be a class.
        has_it = getattr(thing, "__objclass__", getattr(thing, "__self__", thing))
        module = has_it.__module__ if isinstance(has_it, type) else type(has_it).__module__
    return [str(module)]


def _found(top: str) -> str | None:
    """Where Python finds a module; None if nowhere."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made, not found: `__main__`
        return None
    return None if spec is None else _place(spec)


def _in_working_directory(top: str) -> str | None:
    """The module of this name in the working directory, if modules are looked for there."""
    if "" not in sys.path:
        return None
    spec = PathFinder.find_spec(top, [os.getcwd()])
    # A directory without an `__init__.py` hides nothing, and many are called like some package.
    return None if spec is None or spec.loader is None else _place(spec)


def only_in_working_directory(top: str) -> bool:
    """Whether a module is found in the working directory and nowhere else: another host may not have it.

    All finders are asked: what was installed with `pip install -e` is often on no path, and its own finder knows where it lies.
    """
    if _in_working_directory(top) is None:
        return False
    elsewhere = [entry for entry in sys.path if entry]
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return not any(finder.find_spec(top, elsewhere if finder is PathFinder else None) for finder in finders)


def _place(spec: ModuleSpec) -> str:
    if spec.origin is not None:
        return spec.origin
    return next(iter(spec.submodule_search_locations or []), "built in")
