"""What makes two transforms the same: name, parameters, and the user's code and values that it runs.

Comments, docstrings, layout, file and module names do not count; Python and library versions are
provenance, unless the transform declares that it depends on one. The user's functions and classes count by their
source, in whatever module they are; what an import takes from a library counts by the import statement, and data counts
by value. What cannot be read is refused unless the transform declares a `version`, which then stands for all of it.

Code is the user's if its module has the transform's own top-level package, or was not installed as a copy, or if its
package is named (`identity.packages`). Version 1 knew nothing of that where an import stood in between: what an import
bound counted by the import statement, whoever it came from. Runs that recorded it are compared by it.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from datarax.core.errors import ConfigError
from datarax.core.tree import digest
from datarax.transforms.dependencies import file_digests, present_versions
from datarax.transforms.known_draws import named_randomness
from datarax.transforms.source import (
    EditedError,
    Source,
    UnreadableError,
    bound_by_import,
    function_in,
    module_sha256,
    source_of,
)
from datarax.transforms.transform import Randomness, Transform, check_pipeline
from datarax.transforms.values import (
    Definitions,
    cell_value,
    described,
    is_installed,
    is_plain,
    is_users_wrapper,
    module_of,
    package_of,
    reference,
    registered,
    shortened,
    state_of,
    wrapper_state,
)

IDENTITY_VERSION = 2
"""How identities are made. Raise it when the same transform would get another one, and keep the rules of before: what a run
has recorded is compared by the rules of then."""

# Set by the import system; where a file lies is nobody's identity.
_MODULE_NAMES = {
    *("__builtins__", "__cached__", "__doc__", "__file__", "__loader__"),
    *("__name__", "__package__", "__path__", "__spec__"),
}


def transform_identity(
    transform: Transform, *, version: int = IDENTITY_VERSION, packages: Collection[str] = ()
) -> dict[str, Any]:
    """The identity of one transform, a tree for canonical JSON whose keys are the same for every transform.

    `name`, `level`, `randomness`, `version`, `parameters`; and, each None or empty if a version is declared:
    `source_sha256` of the function's tokens, `bound` (what partials, methods and objects hold), `defaults`,
    `closure`, `attributes` (of the class of a callable object, or set on the function), `names` (global names that the function
    uses, and what it reaches through modules of the user's: data by value, imports from libraries by statement), and `helpers`
    (one digest for each function or class that it reaches, of that one's source, defaults, closure and names). Data that is
    long stands as its digest. Only where something is declared, or implied by JAX keys: `dependencies`, with versions; `files`,
    with digests; `impure`. `randomness` says so where this code does not draw what it drew when its version was new.

    Args:
        transform: the transform.
        version: of the rules, see `IDENTITY_VERSION`.
        packages: top-level packages whose code counts as the user's own, however they are installed.

    Raises:
        ConfigError: if something that counts can neither be read nor described and no version is declared, or
            if a stream of random numbers is among it, or a dependence is not installed; names it. If a file was changed since
            this process started, so that it does not say what runs.
    """
    owner = f"transform {transform.name!r}"
    declared = transform.version is not None
    read = Reader(owner, "the transform", declared=declared, version=version, packages=packages)
    code = read.code(transform.fn)
    depends_on = {*transform.depends_on}
    if version > 1 and transform.randomness is Randomness.KEY:
        depends_on.add("jax_enable_x64")  # JAX draws floats of another width by it
    if depends_on:
        code["dependencies"] = present_versions(sorted(depends_on), transform.name)
    if version > 1 and transform.depends_on_files:
        code["files"] = file_digests(transform.depends_on_files, transform.name)
    if version > 1 and transform.impure:
        code["impure"] = True
    return {
        "name": transform.name,
        "level": str(transform.level),
        "randomness": named_randomness(transform.randomness),
        "version": transform.version,
        "parameters": {
            key: read.value(transform.parameters[key], f"the parameter {key!r}")
            for key in sorted(transform.parameters)
        },
        **code,
        "helpers": read.helpers,
    }


def pipeline_identity(
    transforms: Iterable[Transform], *, version: int = IDENTITY_VERSION, packages: Collection[str] = ()
) -> dict[str, Any]:
    """The identities of a pipeline's transforms in their order, with the version of the rules; arguments as there.

    Raises:
        ConfigError: as `transform_identity` and `check_pipeline` do.
    """
    checked = check_pipeline(transforms)
    each = [transform_identity(one, version=version, packages=packages) for one in checked]
    return {"version": version, "transforms": each}


def function_identity(
    fn: Any,
    owner: str,
    *,
    versioned: str,
    declared: bool = False,
    by_name: Iterable[str] = (),
    version: int = IDENTITY_VERSION,
    packages: Collection[str] = (),
) -> dict[str, Any]:
    """The identity of a function that is no transform of ours, as `transform_identity` makes it.

    Args:
        fn: a function, a partial, a method, or an object with `__call__`.
        owner: what the function belongs to, in messages.
        versioned: what could be given a version, in messages.
        declared: whether it has one; then the version stands for all of the function, and nothing is read.
        by_name: packages whose functions, like Python's own, count by name and by what partials and methods hold.
        version: of the rules.
        packages: see `transform_identity`.

    Raises:
        ConfigError: as `transform_identity` does.
    """
    read = Reader(owner, versioned, declared=declared, version=version, packages=packages)
    if not declared and package_of(_innermost(fn)) in {*by_name, *sys.stdlib_module_names} - {"__main__"}:
        return {"library": read.value(fn, "its function"), "helpers": read.helpers}
    return {**read.code(fn), "helpers": read.helpers}


def value_identity(
    value: Any,
    what: str,
    owner: str,
    *,
    versioned: str,
    declared: bool = False,
    version: int = IDENTITY_VERSION,
    packages: Collection[str] = (),
) -> Any:
    """The described value of something that an owner of functions is told: parameters, functions of libraries, objects.

    Args:
        value: anything.
        what: what it is called in messages.
        owner: whose it is, in messages.
        versioned: what could be given a version, in messages.
        declared: whether it has one; then classes and functions count by name, and what shows no content by its class.
        version: of the rules.
        packages: see `transform_identity`.

    Raises:
        ConfigError: if it cannot be described, naming it.
    """
    read = Reader(owner, versioned, declared=declared, version=version, packages=packages)
    tree = read.value(value, what)
    return {"value": tree, "helpers": read.helpers} if read.helpers else tree


class Reader(Definitions):
    """Reads one function, collecting every function and class on the way."""

    def __init__(
        self,
        owner: str,
        versioned: str,
        *,
        declared: bool,
        version: int = IDENTITY_VERSION,
        packages: Collection[str] = (),
    ) -> None:
        self.helpers: dict[str, str | None] = {}
        self.sources: list[tuple[FunctionType | type, Source]] = []
        """What was read of the user's code."""
        self._owner = owner
        self._versioned = versioned
        self._declared = declared  # then nothing is read, parameters count by value or name
        self._version = version
        self._own = {"", *packages}  # and that of the owner's own function
        self._keys: dict[int, str] = {}
        self._extending: dict[type, bool] = {}  # many values are of one class
        self._kept: list[Any] = []  # an id stands for its object only while that lives

    def code(self, fn: Any) -> dict[str, Any]:
        """The tree of the owner's own function; an empty one if a version is declared."""
        tree: dict[str, Any] = {"source_sha256": None, "bound": [], "defaults": {}, "closure": {}}
        tree |= {"attributes": {}, "names": {}}
        return tree if self._declared else {**tree, **self._root(fn)}

    def _root(self, fn: Any) -> dict[str, Any]:
        """The same, inside partials, methods, wrappers and objects."""
        bound: list[Any] = []
        self._own.add(package_of(_innermost(fn)))
        while not isinstance(fn, FunctionType) or self._is_library_wrapper(fn):
            if isinstance(fn, functools.partial):
                held = {"args": list(fn.args), "keywords": fn.keywords}
                bound.append({"partial": self.value(held, "what its partial holds")})
                fn = fn.func
            elif isinstance(fn, MethodType):
                bound.append({"method_of": self.value(fn.__self__, "the object it is a method of")})
                fn = fn.__func__
            elif hasattr(fn, "__wrapped__"):
                bound.append(self._wrapper(fn))
                fn = fn.__wrapped__
            elif not isinstance(fn, type) and isinstance(type(fn).__call__, FunctionType):
                bound.append({"object": self.value(state_of(fn), "the attributes of its object")})
                fn = type(fn)
                break
            else:
                raise self.refused(f"its function {fn!r}", "it is not written in Python")
        if package_of(fn) in sys.stdlib_module_names - {"__main__"}:
            raise self.refused(
                f"its function {reference(fn)}", "it is Python's own and changes with its version"
            )
        self._keys[id(fn)] = "(itself)"
        return {"bound": bound, **self._tree(fn, "")}

    def _wrapper(self, fn: Any) -> dict[str, Any]:
        if is_users_wrapper(fn, self):
            of = self.define(type(fn), "the class of its wrapper")
            return {
                "wrapper_of": of,
                "object": self.value(wrapper_state(fn), "the attributes of its wrapper"),
            }
        package = package_of(fn if isinstance(fn, FunctionType) else type(fn))
        return {"wrapper": package, **registered(fn, "its function", self, self.value)}

    def value(self, value: Any, what: str) -> Any:
        """A described value, short enough for a record."""
        return shortened(described(value, what, self, opaque=self._declared))

    def define(self, definition: FunctionType | type, what: str) -> str:
        """The key of a function or class among the helpers; reads it at first sight."""
        if id(definition) in self._keys:
            return self._keys[id(definition)]
        key = base = definition.__qualname__
        count = 1
        while key in self.helpers:
            count += 1
            key = f"{base}#{count}"
        self._keys[id(definition)] = key
        self._kept.append(definition)
        self.helpers[key] = None  # taken, so that a recursion finds it
        self.helpers[key] = digest(self._tree(definition, what))
        return key

    def refused(self, what: str, why: str) -> ConfigError:
        """The error for what cannot be part of an identity."""
        return ConfigError(
            f"{self._owner} has no identity: {what} cannot be read, since {why}. Give"
            f" {self._versioned} a version (version=1), to be raised whenever what it does changes"
        )

    def module(self, module: ModuleType) -> dict[str, Any]:
        """The tree of a module that is used as a whole: of the user's, all of its text counts."""
        tree = {"$module": module.__name__}
        if self._version == 1 or self._declared or self._is_library(module.__name__):
            return tree
        return {**tree, "source_sha256": module_sha256(module)}

    def is_opaque(self, function: Any) -> bool:
        """Whether a function that is not written in Python is the user's, or has one of the user's inside."""
        if self._version == 1 or self._declared:
            return False
        if isinstance(function, np.ufunc):
            return function.__name__.endswith("(vectorized)")  # made by numpy.frompyfunc
        return not self._is_library(module_of(function))

    def _is_library(self, module: str) -> bool:
        """Whether a module's code counts by name."""
        package = module.split(".")[0]
        if package in self._own:
            return False
        # However datarax is installed, an editable copy included.
        return is_installed(module) or (self._version > 1 and package == "datarax")

    def by_name(self, definition: FunctionType | type) -> bool:
        """Whether the definition is a library's; refuses a wrapper that `_is_library_wrapper` refuses."""
        if self._declared:
            return True
        if not self._is_library(module_of(definition)):
            return False
        if isinstance(definition, FunctionType):
            self._is_library_wrapper(definition)
        return True

    def extends(self, cls: type) -> bool:
        """Whether a class, or one that it inherits from, is the user's and gives its instances more than data."""
        if cls not in self._extending:
            self._extending[cls] = any(self._adds(each) for each in cls.__mro__ if not self.by_name(each))
        return self._extending[cls]

    def _adds(self, cls: type) -> bool:
        try:
            source = source_of(cls)
        except (
            UnreadableError
        ):  # made by a call, such as collections.namedtuple: its instances are their data
            return False
        data = self._class_data(cls, source).values()
        return bool(_methods(cls, source) or self._set_on_class(cls, source)) or any(
            not isinstance(each, enum.Enum) for each in data
        )

    def _is_library_wrapper(self, fn: FunctionType) -> bool:
        """Whether `fn` is a library's wrapper around a function of the user's.

        It is not read, for its text changes with the library's version: the decorator in the user's text
        stands for it. One that was made by a call is refused, for no text says what it was called with.
        """
        inner = _innermost(fn)
        if inner is fn or not self._is_library(module_of(fn)) or self._is_library(module_of(inner)):
            return False
        if isinstance(inner, FunctionType) and self._source(inner, "the function inside").decorated:
            return True
        raise self.refused(
            f"what {package_of(fn)} was called with to wrap {reference(inner)}",
            "it is in no text; use it as a decorator or call it within a function of your own",
        )

    def _source(self, definition: FunctionType | type, what: str) -> Source:
        try:
            return source_of(definition)
        except EditedError as error:
            raise ConfigError(
                f"{self._owner} has no identity: {error} was changed after it was imported, so its text is not what runs; "
                f"start again"
            ) from None
        except UnreadableError as error:
            name = f"{what or 'its function'} ({definition.__qualname__})"
            raise self.refused(name, str(error)) from None

    def _tree(self, definition: FunctionType | type, what: str) -> dict[str, Any]:
        made = _made_by_call(definition) if self._version > 1 else None
        if made is not None:
            return {
                name: self.value(value, f"{definition.__qualname__}.{name}") for name, value in made.items()
            }
        source = self._source(definition, what)
        self.sources.append((definition, source))
        if isinstance(definition, type):
            return self._class_tree(definition, source)
        closure = {
            name: self.value(cell_value(cell), f"{name!r} in the closure of {definition.__qualname__}")
            for name, cell in zip(definition.__code__.co_freevars, definition.__closure__ or (), strict=True)
        }
        tree = {
            "source_sha256": source.sha256,
            "defaults": self._defaults(definition),
            "closure": closure,
            "names": self._names(source, definition.__globals__, set(closure), definition.__qualname__),
        }
        return {**tree, **self._set_on_function(definition, source)}

    def _set_on_function(self, fn: FunctionType, source: Source) -> dict[str, Any]:
        written = {name for _, name in source.file.attributes_set}  # also by a decorator, on any name
        found = {
            name: self.value(vars(fn)[name], f"{fn.__qualname__}.{name}")
            for name in sorted(vars(fn).keys() & written)
            if not name.startswith("__") and self._is_users(vars(fn)[name])
        }
        return {"attributes": found} if found else {}

    def _set_on_class(self, cls: type, source: Source) -> dict[str, Any]:
        """What was set on a class outside its text: data, and functions in the place of methods or besides them."""
        owners = {cls.__qualname__.rpartition("<locals>.")[2], "cls"}
        named = {name for owner, name in source.file.attributes_set if owner in owners}
        found = {}
        for name in sorted(named & vars(cls).keys()):
            function = function_in(vars(cls)[name])
            # What the body binds is counted with it, unless a function took the place of a method there.
            inside = name in source.class_assignments() and not (
                function and not source.spans(function.__code__)
            )
            value = function or vars(cls)[name]
            if not (name.startswith("__") or inside) and self._is_users(value):
                found[name] = value
        return found

    def _is_users(self, value: Any) -> bool:
        """Whether what was set on a function or class is data or the user's; what a library sets there may change."""
        if is_plain(value):
            return True
        of = value if isinstance(value, (FunctionType, type)) else type(value)
        return not self._is_library(module_of(of))

    def _defaults(self, fn: FunctionType) -> dict[str, Any]:
        positional = fn.__code__.co_varnames[: fn.__code__.co_argcount]
        values = fn.__defaults__ or ()
        given = dict(zip(positional[len(positional) - len(values) :], values, strict=True))
        given.update(fn.__kwdefaults__ or {})
        return {
            name: self.value(given[name], f"the default of {name!r} of {fn.__qualname__}")
            for name in sorted(given)
        }

    def _class_tree(self, cls: type, source: Source) -> dict[str, Any]:
        # Those of the text: what a decorator such as dataclass adds is made of the text and of the library.
        methods = _methods(cls, source)
        cells: dict[str, Any] = {}
        for method in methods:
            cells.update(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
        cells.pop("__class__", None)
        name = cls.__qualname__
        data = {**self._class_data(cls, source), **self._set_on_class(cls, source)}
        module_globals = vars(sys.modules[cls.__module__])
        return {
            "source_sha256": source.sha256,
            "defaults": {method.__name__: self._defaults(method) for method in methods},
            "closure": {
                each: self.value(cell_value(cells[each]), f"{each!r} around {name}") for each in sorted(cells)
            },
            "attributes": {each: self.value(data[each], f"{name}.{each}") for each in data},
            "names": self._names(source, module_globals, set(cells), name),
        }

    def _class_data(self, cls: type, source: Source) -> dict[str, Any]:
        return {
            each: vars(cls)[each]
            for each in sorted(source.class_assignments() & vars(cls).keys())
            if not (each.startswith("__") or hasattr(type(vars(cls)[each]), "__get__"))
        }

    def _names(
        self, source: Source, module_globals: dict[str, Any], local: set[str], owner: str
    ) -> dict[str, Any]:
        names = sorted(source.global_names() - local - _MODULE_NAMES)
        reached = [
            (name, module_globals[name], source.file.imports(name))
            for name in names
            if name in module_globals
        ]
        if self._version == 1:
            return {name: self._name(name, value, imports, owner) for name, value, imports in reached}
        package = module_globals.get("__package__") or ""
        found: dict[str, Any] = {}
        for name, value, imports in [*reached, *self._imported_within(source, package)]:
            if isinstance(value, ModuleType) and not self._is_library(value.__name__):
                found |= self._through(source, name, value, owner)
            else:
                of_libraries = imports if all(map(self._is_library, _origins(imports, package))) else ()
                found[name] = self._name(name, value, of_libraries, owner)
        return found

    def _name(self, name: str, value: Any, imports: Sequence[str], owner: str) -> Any:
        what = f"the name {name!r} that {owner} uses"
        if not imports:
            return self.value(value, what)
        if is_plain(value):  # a constant is what it is, wherever it comes from
            return {"$import": list(imports), "value": self.value(value, what)}
        return {"$import": list(imports)}

    def _through(self, source: Source, name: str, module: ModuleType, owner: str) -> dict[str, Any]:
        """What the text reaches by chains of attributes that begin at a module of the user's, up to what is no such module."""
        found = {}
        for path in sorted(source.paths(name)):
            value, at = module, name
            for part in path[1:]:
                if (
                    isinstance(value, ModuleType)
                    and not self._is_library(value.__name__)
                    and hasattr(value, part)
                ):
                    value, at = getattr(value, part), f"{at}.{part}"
            found[at] = self.value(value, f"{at!r}, which {owner} uses")
        return found

    def _imported_within(self, source: Source, package: str) -> Iterator[tuple[str, Any, Sequence[str]]]:
        """What import statements within the text bind, if it is the user's: (name, value, ())."""
        for name, written, attribute in source.local_imports():
            try:
                module = importlib.util.resolve_name(written, package)
                # Another one might be a library's, which may be absent here.
                if module.split(".")[0] in self._own or (
                    module in sys.modules and not self._is_library(module)
                ):
                    yield name, bound_by_import(name, module, attribute), ()
            except ImportError:  # as the function will find, or expects
                continue


def _made_by_call(definition: FunctionType | type) -> dict[str, Any] | None:
    """What a class is made of that `collections.namedtuple` or `enum.Enum(...)` made: no text has its name."""
    if not isinstance(definition, type):
        return None
    try:
        source_of(definition)
    except EditedError:
        return None
    except UnreadableError:
        if issubclass(definition, enum.Enum):
            return {"members": list(definition)}
        if issubclass(definition, tuple) and hasattr(definition, "_fields"):
            return {"fields": definition._fields, "defaults": vars(definition)["_field_defaults"]}
    return None


def _origins(imports: Iterable[str], package: str) -> Iterator[str]:
    """The modules that import statements take something from."""
    for statement in imports:
        try:
            yield importlib.util.resolve_name(statement.split()[1], package)
        except ImportError:
            yield package


def _methods(cls: type, source: Source) -> list[FunctionType]:
    return [m for m in map(function_in, vars(cls).values()) if m and source.file.holds(m.__code__)]


def _innermost(fn: Any) -> Any:
    """The function or class inside partials, methods and wrappers."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        else:
            return fn if isinstance(fn, (FunctionType, type)) or package_of(fn) == "builtins" else type(fn)
