"""The text of a function or class as it counts: tokens without comments, docstrings, blank lines and layout.

Gives the same answer on every Python version: it works on source text, never on bytecode or on a dump of the
syntax tree. (A format string is one token up to Python 3.11 and several from 3.12 on; here it is one slice.)
What runs is what is named: code whose file was changed since this process started is compared with the text, bytecode
with bytecode. Where else they differ (import hooks, `-O`, pytest's assertions) the text counts.
Knows nothing of values: `identity.py` adds what the names in the text stand for.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import io
import linecache
import os
import symtable
import sys
import time
import token
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

Position = tuple[int, int]
"""(line from 1, column from 0 in bytes of UTF-8), as the syntax tree counts."""

_DROPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, token.ENDMARKER}
_STARTS, _ENDS = (
    {getattr(token, name) for name in (f"FSTRING_{side}", f"TSTRING_{side}") if hasattr(token, name)}
    for side in ("START", "END")
)
# An indent is its level, not its white space, and ends of lines are all alike.
_LAYOUT = {token.INDENT: "\x01", token.DEDENT: "\x02", token.NEWLINE: "\n"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
"""The syntax of a function."""
Definition = Function | ast.ClassDef | ast.Lambda
"""The syntax of what has a text of its own."""


def _process_start() -> float:
    """When this process started, in seconds since the epoch; where the system does not say, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0.0
    return time.time() - age


# Of the process that imported this, which may have forked since: then a file is looked at once more than it must be.
_STARTED = _process_start()


class UnreadableError(Exception):
    """There is no source text for this function or class, or no telling which of several it is."""


class EditedError(UnreadableError):
    """The text is not that of the code that runs: its file was changed after this process had imported it."""


class Token(NamedTuple):
    """One token of a file, with its place."""

    text: str
    """As it counts."""
    start: Position
    """Where it begins."""
    end: Position
    """Where it ends."""


class Binding(NamedTuple):
    """What an import statement binds, as written."""

    name: str
    """What the import binds."""
    module: str
    """The module that is imported, or imported from."""
    attribute: str | None
    """None: `name` is the top-level package of the module; "": it is the module itself."""

    def __str__(self) -> str:
        if self.attribute:
            return f"from {self.module} import {self.attribute}"
        return f"import {self.name if self.attribute is None else self.module}"

    def origin(self, package: str) -> str:
        """The module, as a file of `package` means it."""
        return importlib.util.resolve_name(self.module, package)

    def value(self, package: str) -> Any:
        """What it stands for in a file of `package`.

        Raises:
            ImportError: if there is no such thing.
        """
        module = self.origin(package)
        value: Any = importlib.import_module(module)
        if self.attribute is None:
            return sys.modules[self.name]
        if self.attribute and not hasattr(value, self.attribute):
            importlib.import_module(f"{module}.{self.attribute}")
        return getattr(value, self.attribute) if self.attribute else value


@dataclass(frozen=True, eq=False)
class Source:
    """The text of one definition."""

    file: SourceFile
    """Where it stands."""
    node: Definition
    """Its place in the syntax tree."""

    @property
    def start(self) -> Position:
        """Where it begins: at the `@` of its first decorator, if it has one."""
        start, _ = _extent(self.node)
        if not self.decorators:
            return start
        first, _ = _extent(self.decorators[0])
        return max(each.start for each in self.file.tokens if each.text == "@" and each.start < first)

    @property
    def decorators(self) -> Sequence[ast.expr]:
        """Those of the text."""
        return () if isinstance(self.node, ast.Lambda) else self.node.decorator_list

    @property
    def sha256(self) -> str:
        """SHA-256 of the tokens that count, decorators included, as 64 hex digits."""
        start, (_, end) = self.start, _extent(self.node)
        silent = [_extent(each) for each in ast.walk(self.node) if _is_bare_text(each)]
        kept: list[str] = []
        closing = False  # right behind a dropped statement: its end of line goes with it
        for each in self.file.tokens:
            if each.start < start or each.end > end or each.end == start:
                continue  # an end of block that has the place of `start` belongs to what stands before
            if any(first <= each.start and each.end <= last for first, last in silent):
                closing = True
                continue
            if not (closing and each.text in ("\n", ";")):
                kept.append(each.text)
            closing = False
        return sha256(kept)

    def global_names(self) -> set[str]:
        """The names that the text takes from its module or from the builtins, nested definitions included.

        For a class those of its bases and decorators too. Names in the decorators and defaults of a
        function are left out: they have done their work when the function exists.
        """
        table = self._table()
        names = {
            symbol.get_name()
            for each in (table, *_tables(table))
            for symbol in each.get_symbols()
            if symbol.is_global() and symbol.get_name().isidentifier()
        }
        if isinstance(self.node, ast.ClassDef):
            keywords = [each.value for each in self.node.keywords]
            around = [*self.node.bases, *self.node.decorator_list, *keywords]
            names |= {n.id for top in around for n in ast.walk(top) if isinstance(n, ast.Name)}
        return names

    def _table(self) -> symtable.SymbolTable:
        if isinstance(self.node, ast.Lambda):  # by itself: names of functions around it look global
            return next(_tables(symtable.symtable(f"({self.file.text_of(self.node)}\n)", "<lambda>", "exec")))
        place = self.node.name, self.node.lineno
        return next(
            each for each in _tables(self.file.table) if (each.get_name(), each.get_lineno()) == place
        )

    def paths(self, root: str) -> set[tuple[str, ...]]:
        """The chains of attributes, as written, that begin at the name `root`; `(root,)` where it stands alone."""
        inner = {id(n.value) for n in ast.walk(self.node) if isinstance(n, ast.Attribute)}
        return {path for n in ast.walk(self.node) if id(n) not in inner and (path := chain(n))[:1] == (root,)}

    def spans(self, code: CodeType) -> bool:
        """Whether the code was compiled from this text or from one within it."""
        _, (last, _) = _extent(self.node)
        return self.file.holds(code) and self.start[0] <= code.co_firstlineno <= last

    def class_assignments(self) -> set[str]:
        """The names that the body of a class assigns."""
        return {symbol.get_name() for symbol in self._table().get_symbols() if symbol.is_assigned()}


def source_of(definition: FunctionType | type) -> Source:
    """The source of a Python function, lambda or class.

    Raises:
        UnreadableError: if there is none, or if it is not certain which one it is; says why.
        EditedError: if it is not the text of what runs.
    """
    if isinstance(definition, type):
        return _class_source(definition)
    code = definition.__code__
    file = source_file(code.co_filename, definition.__globals__)
    file.check_runs([code])
    return Source(
        file, _lambda_node(file, code) if code.co_name == "<lambda>" else _function_node(file, code)
    )


@dataclass(frozen=True, eq=False)
class SourceFile:
    """One file, parsed once."""

    filename: str
    """Where it lies."""
    text: str
    """All of it."""
    tree: ast.Module
    """Its syntax."""
    tokens: Sequence[Token]
    """Those that count, in order."""
    table: symtable.SymbolTable
    """The symbols of its scopes."""

    def holds(self, code: CodeType) -> bool:
        """Whether the code was compiled from this file."""
        return code.co_filename == self.filename

    @property
    def edited(self) -> bool:
        """Whether the file was changed after this process started."""
        try:
            stat = os.stat(self.filename)
        except OSError:  # in an archive, or in a notebook
            return False
        return max(stat.st_mtime, stat.st_ctime) > _STARTED

    def check_runs(self, codes: Iterable[CodeType]) -> None:
        """Refuses code of this file that is another one than that of its text, if the file was edited.

        Raises:
            EditedError: naming file and function.
        """
        for code in codes if self.edited else ():
            if self.holds(code) and (code.co_qualname, _shape(code)) not in self._shapes:
                raise EditedError(f"{code.co_qualname} of {self.filename}")

    @functools.cached_property
    def _shapes(self) -> set[tuple[str, Any]]:
        """Qualified name and shape of every code object of the text as it is now."""
        module = compile(self.text, self.filename, "exec", dont_inherit=True)
        return {(code.co_qualname, _shape(code)) for code in _codes(module)}

    @functools.cached_property
    def attributes_set(self) -> frozenset[tuple[str, str]]:
        """(owner, attribute), as written, of the statements here that set an attribute of something."""
        return frozenset(pair for node in ast.walk(self.tree) for pair in _attribute_set(node))

    @functools.cached_property
    def assigned(self) -> frozenset[str]:
        """The names that are assigned anywhere in the file, by other statements than `def`, `class` and `import`."""
        names = (node for node in ast.walk(self.tree) if isinstance(node, ast.Name))
        return frozenset(node.id for node in names if isinstance(node.ctx, ast.Store))

    def text_of(self, node: ast.AST) -> str:
        """The node's text, as written."""
        return ast.get_source_segment(self.text, node) or ""

    def imports(self, name: str) -> list[Binding]:
        """What the import statements outside functions bind to `name`; none if anything else does too."""
        return [each for each in self._imports if each.name == name]

    @functools.cached_property
    def _imports(self) -> Sequence[Binding]:
        symbols = (symbol for symbol in self.table.get_symbols() if symbol.is_imported())
        alone = {symbol.get_name() for symbol in symbols if not symbol.is_assigned()}
        return [each for each in imports_in(self.tree, outside_definitions=True) if each.name in alone]


def source_file(filename: str, module_globals: dict[str, Any] | None = None) -> SourceFile:
    """The file that code was compiled from, as it is now.

    Raises:
        UnreadableError: if there is none.
    """
    if filename in ("<string>", "<stdin>"):
        raise UnreadableError(f"it was typed in or made by exec ({filename})")
    linecache.checkcache(filename)
    lines = linecache.getlines(filename, module_globals)
    if not lines:
        raise UnreadableError(f"the source file {filename} cannot be read")
    return _parsed("".join(lines), filename)


@functools.lru_cache(maxsize=64)
def _parsed(text: str, filename: str) -> SourceFile:
    try:
        table = symtable.symtable(text, filename, "exec")
        return SourceFile(filename, text, ast.parse(text), tuple(_tokens(text)), table)
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        raise UnreadableError(f"the source file {filename} does not parse: {error}") from None


def sha256(texts: Iterable[str]) -> str:
    """SHA-256 of texts in a row, as 64 hex digits."""
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _tokens(text: str) -> Iterator[Token]:
    # Not splitlines(): it also splits at form feeds and other characters that end no line of Python.
    lines = text.split("\n")
    depth, opened = 0, (0, 0)
    for kind, string, start, end, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind in _STARTS:
            opened = opened if depth else start
            depth += 1
        elif kind in _ENDS:
            depth -= 1
            if not depth:
                string, start = _slice(lines, opened, end), opened
        if not depth and kind not in _DROPPED:
            yield Token(_LAYOUT.get(kind, string), _in_bytes(lines, start), _in_bytes(lines, end))


def _in_bytes(lines: Sequence[str], place: Position) -> Position:
    """The place of a token, which the tokenizer counts in characters; the end of a line lies behind its text."""
    line, column = place
    text = lines[line - 1] if column else ""
    return line, column if text.isascii() else len(text[:column].encode()) + max(0, column - len(text))


def _slice(lines: Sequence[str], start: Position, end: Position) -> str:
    taken = list(lines[start[0] - 1 : end[0]])
    taken[-1] = taken[-1][: end[1]]
    taken[0] = taken[0][start[1] :]
    return "\n".join(taken)


def _extent(node: Any) -> tuple[Position, Position]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def _is_bare_text(node: ast.AST) -> bool:
    # Docstrings, and the strings under fields that document them: statements that do nothing.
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def _attribute_set(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(owner, attribute) of `owner.attribute = …` and of `setattr(owner, "attribute", …)`."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield ast.unparse(node.value), node.attr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
        owner, name = (*node.args, None, None)[:2]
        if owner is not None and isinstance(name, ast.Constant):
            yield ast.unparse(owner), str(name.value)


def _function_node(file: SourceFile, code: CodeType) -> Definition:
    named = [node for node in _named(file, code.co_qualname) if not isinstance(node, ast.ClassDef)]
    there = [n for n in named if min(e.lineno for e in (n, *n.decorator_list)) == code.co_firstlineno]
    found = there or named  # an import hook may have moved it
    if len(found) != 1:
        raise UnreadableError(
            f"{code.co_filename} has {len(found)} functions {code.co_qualname!r} that it could be; it was made by other code"
        )
    return found[0]


def _lambda_node(file: SourceFile, code: CodeType) -> Definition:
    # Where each instruction came from, in (line, byte column); empty spans are the interpreter's own.
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, end_line, column, end_column) and (line, column) != (end_line, end_column)
    ]
    fitting = [
        node
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and _argument_names(node.args) == _code_arguments(code)
        and all(_holds(node.body, *span) for span in spans)
    ]
    if spans and fitting:  # of a lambda within a lambda both hold the inner one's instructions
        fitting = [min(fitting, key=lambda node: len(file.text_of(node)))]
    if not fitting and file.edited:
        raise EditedError(f"{code.co_qualname} of {code.co_filename}")
    if not fitting:
        raise UnreadableError(f"{code.co_filename} has no such lambda at line {code.co_firstlineno}")
    if len({Source(file, node).sha256 for node in fitting}) > 1:
        raise UnreadableError(
            f"line {code.co_firstlineno} of {code.co_filename} has {len(fitting)} lambdas that it could be;"
            " put each on its own line, or use def"
        )
    return fitting[0]


def _holds(node: Any, first: Any, last: Any) -> bool:
    start, end = _extent(node)
    return start <= first and last <= end


def _argument_names(arguments: ast.arguments) -> list[str]:
    named = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    return [each.arg for each in named if each is not None]


def _code_arguments(code: CodeType) -> list[str]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return list(code.co_varnames[:count])


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _shape(code: CodeType) -> Any:
    """What code does, without where it stands."""
    constants = [_shape(each) if isinstance(each, CodeType) else _spelled(each) for each in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return code.co_code, code.co_exceptiontable, tuple(constants), names, counts


def _spelled(constant: Any) -> str:
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _class_source(cls: type) -> Source:
    module = sys.modules.get(cls.__module__)
    filename = getattr(module, "__file__", None)
    if filename is None:
        raise UnreadableError("it is not written in Python, or its module has no file")
    file = source_file(filename, vars(module))
    methods = [method.__code__ for method in map(function_in, vars(cls).values()) if method]
    file.check_runs(methods)
    nodes = [node for node in _named(file, cls.__qualname__) if isinstance(node, ast.ClassDef)]
    if len(nodes) > 1:  # one name, several classes (if/else): the one that holds the methods
        nodes = [node for node in nodes if any(map(Source(file, node).spans, methods))]
    if len(nodes) != 1:
        raise UnreadableError(f"{filename} has {len(nodes)} classes {cls.__qualname__!r} that it could be")
    named = {each.name for each in nodes[0].body if isinstance(each, Function)}
    if file.edited and any(name not in vars(cls) for name in named if name[:2] != "__" or name[-2:] == "__"):
        raise EditedError(f"{cls.__qualname__} of {filename}")
    return Source(file, nodes[0])


def function_in(member: Any) -> FunctionType | None:
    """The function of a method, whatever kind it is of; None if it is none."""
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if isinstance(member, property):
        member = member.fget
    return member if isinstance(member, FunctionType) else None


def _named(file: SourceFile, qualname: str) -> list[Function | ast.ClassDef]:
    return [node for name, node in _definitions(file.tree, "") if name == qualname]


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        below = prefix
        if isinstance(child, (ast.ClassDef, Function)):
            yield prefix + child.name, child
            below += child.name + ("." if isinstance(child, ast.ClassDef) else ".<locals>.")
        yield from _definitions(child, below)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        if isinstance(child, (symtable.Function, symtable.Class)):
            yield child
        yield from _tables(child)


def imports_in(node: ast.AST, *, outside_definitions: bool = False) -> Iterator[Binding]:
    """What the import statements below a node bind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield from map(functools.partial(_binding, child), child.names)
        elif not (outside_definitions and isinstance(child, Definition)):
            yield from imports_in(child, outside_definitions=outside_definitions)


def _binding(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> Binding:
    name = alias.asname or alias.name
    if isinstance(statement, ast.ImportFrom):
        return Binding(name, "." * statement.level + (statement.module or ""), alias.name)
    return Binding(name.split(".")[0], alias.name, "" if alias.asname else None)


def chain(node: ast.AST) -> tuple[str, ...]:
    """The names of a chain of attributes; () if it does not begin at a name."""
    if isinstance(node, ast.Name):
        return (node.id,)
    below = chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*below, node.attr) if below and isinstance(node, ast.Attribute) else ()
