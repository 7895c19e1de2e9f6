"""Functions with a memory of their own: whose rows depend on what ran before, so that no resume could make them again.

Found in the text of a function and of all that it reaches in the user's code: what draws from the generators that a whole
process shares, generators without a seed, and writes to names outside the function. What shows in no text (caches, mutable
defaults, time) is for a rehearsal to find.
"""

from __future__ import annotations

import ast
import contextlib
import random
import sys
from collections.abc import Collection, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from datarax.core.errors import ConfigError
from datarax.transforms.identity import Reader
from datarax.transforms.source import Source, bound_by_import, chain
from datarax.transforms.transform import Transform

_PUBLIC = [getattr(module, name) for module in (random, np.random) for name in module.__all__]
_SEEDED = [each for each in _PUBLIC if isinstance(each, type) or each is np.random.default_rng]
_SHARED = [each for each in _PUBLIC if callable(each) and not any(each is other for other in _SEEDED)]


def impurities(transforms: Iterable[Transform], *, packages: Collection[str] = ()) -> list[str]:
    """A sentence for each place where a transform shows a memory of its own; none for one that says so (`impure`).

    Args:
        transforms: a pipeline.
        packages: as for `transform_identity`.
    """
    return [
        sentence
        for each in transforms
        if not each.impure
        for sentence in function_impurities(
            [each.fn, *each.parameters.values()], f"transform {each.name!r}", packages=packages
        )
    ]


def function_impurities(functions: Iterable[Any], owner: str, *, packages: Collection[str] = ()) -> list[str]:
    """The same for functions that are no transforms; what cannot be read says nothing.

    Args:
        functions: functions, partials, methods, or objects that are called; other values may be among them.
        owner: what they belong to, in messages.
        packages: as for `transform_identity`.
    """
    read = Reader(owner, "it", declared=False, packages=packages)
    for fn in functions:
        with contextlib.suppress(ConfigError):
            if callable(fn):
                read.code(fn)
    return [
        f"{owner}: {definition.__qualname__} {what} ({source.file.filename}, line {line})"
        for definition, source in read.sources
        for line, what in sorted(set(_impure(definition, source)))
    ]


def _impure(definition: FunctionType | type, source: Source) -> Iterator[tuple[int, str]]:
    outer = set(definition.__code__.co_freevars) if isinstance(definition, FunctionType) else set()
    known = _known_names(definition, source)
    written: set[str] = set()
    for node in ast.walk(source.node):
        if isinstance(node, ast.Global):
            written |= {*node.names}
        elif isinstance(node, ast.Nonlocal):
            written |= {*node.names} & outer
        elif (
            isinstance(node, ast.Call)
            and _is_one_of(_SEEDED, _reached(node.func, known))
            and not _is_seeded(node)
        ):
            yield node.lineno, f"makes a generator without a seed: {ast.unparse(node)}"
        elif isinstance(node, (ast.Name, ast.Attribute)) and _is_one_of(_SHARED, _reached(node, known)):
            yield node.lineno, f"draws from a generator that the whole process shares: {ast.unparse(node)}"
    for node in ast.walk(source.node):
        if isinstance(node, ast.Name) and node.id in written and not isinstance(node.ctx, ast.Load):
            yield node.lineno, f"writes to a name outside: {node.id}"


def _known_names(definition: FunctionType | type, source: Source) -> dict[str, Any]:
    """What the global names of the text stand for, and those that it imports from the two modules itself."""
    of_module = (
        definition.__globals__
        if isinstance(definition, FunctionType)
        else vars(sys.modules[definition.__module__])
    )
    known = {name: of_module[name] for name in source.global_names() if name in of_module}
    for name, module, attribute in source.local_imports():
        if module.split(".")[0] in ("numpy", "random"):
            with contextlib.suppress(ImportError):
                known[name] = bound_by_import(name, module, attribute)
    return known


def _reached(node: ast.AST, known: dict[str, Any]) -> Any:
    """What a name, or a chain of attributes on modules, stands for; None if that is not known."""
    path = chain(node)
    value = known.get(path[0]) if path else None
    for part in path[1:]:
        value = getattr(value, part, None) if isinstance(value, ModuleType) else None
    return value


def _is_one_of(values: list[Any], value: Any) -> bool:
    return any(value is each for each in values)


def _is_seeded(call: ast.Call) -> bool:
    given = [*call.args, *(each.value for each in call.keywords)]
    return any(not (isinstance(each, ast.Constant) and each.value is None) for each in given)
