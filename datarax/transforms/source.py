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
import importlib
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
from types import CodeType, FunctionType, ModuleType
from typing import Any

Position = tuple[int, int]
"""(line from 1, column from 0 in characters)."""

_DROPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, token.ENDMARKER}
_STARTS, _ENDS = (
    {getattr(token, name) for name in (f"FSTRING_{side}", f"TSTRING_{side}") if hasattr(token, name)}
    for side in ("START", "END")
)
# An indent is its level, not its white space, and ends of lines are all alike.
_LAYOUT = {token.INDENT: "\x01", token.DEDENT: "\x02", token.NEWLINE: "\n"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda


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


@dataclass(frozen=True)
class Token:
    """One token of a file, with its place."""

    text: str
    start: Position
    end: Position


@dataclass(frozen=True, eq=False)
class Source:
    """The text of one definition."""

    file: SourceFile
    """Where it stands."""
    node: Definition
    """Its place in the syntax tree."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the tokens that count, as 64 hex digits."""
        return _sha256(self.file.tokens_of(self.node))

    @property
    def decorated(self) -> bool:
        """Whether decorators are part of the text."""
        return not isinstance(self.node, ast.Lambda) and bool(self.node.decorator_list)

    def global_names(self) -> set[str]:
        """The names that the text takes from its module or from the builtins, nested definitions included.

        For a class those of its bases and decorators too. Names in the decorators and defaults of a
        function are left out: they have done their work when the function exists.
        """
        if isinstance(self.node, ast.Lambda):
            return _globals_of(self.file.lambda_table(self.node))
        names = _globals_of(self.file.table_of(self.node))
        if isinstance(self.node, ast.ClassDef):
            keywords = [each.value for each in self.node.keywords]
            around = [*self.node.bases, *self.node.decorator_list, *keywords]
            names |= {n.id for top in around for n in ast.walk(top) if isinstance(n, ast.Name)}
        return names

    def paths(self, root: str) -> set[tuple[str, ...]]:
        """The chains of attributes, as written, that begin at the name `root`; `(root,)` where it stands alone."""
        inner = {id(n.value) for n in ast.walk(self.node) if isinstance(n, ast.Attribute)}
        tops = (n for n in ast.walk(self.node) if id(n) not in inner)
        return {path for path in map(chain, tops) if path[:1] == (root,)}

    def local_imports(self) -> Iterator[tuple[str, str, str | None]]:
        """(name, module, attribute), as written, of each name that an import statement within the text binds.

        Where there is no attribute, it is None for the module's top-level package and "" for the module itself.
        """
        for node in ast.walk(self.node):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield from _bindings(node)

    def spans(self, code: CodeType) -> bool:
        """Whether the code was compiled from this text or from one within it."""
        decorators = [] if isinstance(self.node, ast.Lambda) else self.node.decorator_list
        first = min(each.lineno for each in [self.node, *decorators])
        return self.file.holds(code) and first <= code.co_firstlineno <= (self.node.end_lineno or first)

    def class_assignments(self) -> set[str]:
        """The names that the body of a class assigns."""
        symbols = self.file.table_of(self.node).get_symbols()
        return {symbol.get_name() for symbol in symbols if symbol.is_assigned()}


def source_of(definition: FunctionType | type) -> Source:
    """The source of a Python function, lambda or class.

    Raises:
        UnreadableError: if there is none, or if it is not certain which one it is; says why.
        EditedError: if it is not the text of what runs.
    """
    if isinstance(definition, FunctionType):
        file = _source_file(definition.__code__.co_filename, definition.__globals__)
        file.check_runs([definition.__code__])
        return Source(file, _function_node(file, definition.__code__))
    return _class_source(definition)


def module_sha256(module: ModuleType) -> str | None:
    """SHA-256 of all tokens of a module; None if it has no readable text."""
    try:
        tokens = _source_file(module.__file__ or "", vars(module)).tokens
    except (UnreadableError, AttributeError):
        return None
    return _sha256(each.text for each in tokens)


@dataclass(frozen=True, eq=False)
class SourceFile:
    """One file, parsed once."""

    filename: str
    text: str
    lines: Sequence[str]
    tree: ast.Module
    tokens: Sequence[Token]
    table: symtable.SymbolTable

    def tokens_of(self, node: Definition) -> list[str]:
        """The tokens of a definition that count, decorators included."""
        start, end = self._start(node), self._position(node.end_lineno, node.end_col_offset)
        silent = [self._span(each) for each in ast.walk(node) if _is_bare_text(each)]
        kept: list[str] = []
        closing = False  # right behind a dropped statement: its end of line goes with it
        for each in self.tokens:
            if each.start < start or each.end > end or each.end == start:
                continue  # an end of block that has the place of `start` belongs to what stands before
            if any(first <= each.start and each.end <= last for first, last in silent):
                closing = True
            elif closing and each.text in ("\n", ";"):
                closing = False
            else:
                closing = False
                kept.append(each.text)
        return kept

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

    def text_of(self, node: ast.AST) -> str:
        """The node's text, as written."""
        return ast.get_source_segment(self.text, node) or ""

    def table_of(self, node: Any) -> symtable.SymbolTable:
        """The symbol table of a `def` or `class`."""
        for table in _tables(self.table):
            if (table.get_name(), table.get_lineno()) == (node.name, node.lineno):
                return table
        raise UnreadableError(f"no symbol table for {node.name!r}")

    def lambda_table(self, node: ast.Lambda) -> symtable.SymbolTable:
        """The symbol table of a lambda, by itself: names of functions around it look global."""
        return next(_tables(symtable.symtable(f"({self.text_of(node)}\n)", "<lambda>", "exec")))

    def imports(self, name: str) -> list[str]:
        """The import statements outside functions that bind `name`; none if anything else does too."""
        try:
            symbol = self.table.lookup(name)
        except KeyError:
            return []
        if not symbol.is_imported() or symbol.is_assigned():
            return []
        return [text for statement in _outer_imports(self.tree) if (text := _import_text(statement, name))]

    def _start(self, node: Definition) -> Position:
        if isinstance(node, ast.Lambda) or not node.decorator_list:
            return self._position(node.lineno, node.col_offset)
        first = self._position(node.decorator_list[0].lineno, node.decorator_list[0].col_offset)
        return max(each.start for each in self.tokens if each.text == "@" and each.start < first)

    def _span(self, node: Any) -> tuple[Position, Position]:
        return self._position(node.lineno, node.col_offset), self._position(
            node.end_lineno, node.end_col_offset
        )

    def _position(self, line: Any, column: Any) -> Position:
        # The syntax tree counts bytes of UTF-8, the tokenizer counts characters.
        return line, len(self.lines[line - 1].encode()[:column].decode())


def _sha256(texts: Iterable[str]) -> str:
    return hashlib.sha256("\x00".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _source_file(filename: str, module_globals: dict[str, Any] | None) -> SourceFile:
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
        tree = ast.parse(text)
        tokens = tuple(_tokens(text))
        table = symtable.symtable(text, filename, "exec")
    except (SyntaxError, tokenize.TokenError, ValueError) as error:
        raise UnreadableError(f"the source file {filename} does not parse: {error}") from None
    # Not splitlines(): it also splits at form feeds and other characters that end no line of Python.
    return SourceFile(filename, text, text.split("\n"), tree, tokens, table)


def _tokens(text: str) -> Iterator[Token]:
    lines = text.split("\n")
    depth, opened = 0, (0, 0)
    for kind, string, start, end, _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind in _STARTS:
            opened = opened if depth else start
            depth += 1
        elif kind in _ENDS:
            depth -= 1
            if not depth:
                yield Token(_slice(lines, opened, end), opened, end)
        elif not depth and kind not in _DROPPED:
            yield Token(_LAYOUT.get(kind, string), start, end)


def _slice(lines: Sequence[str], start: Position, end: Position) -> str:
    taken = list(lines[start[0] - 1 : end[0]])
    taken[-1] = taken[-1][: end[1]]
    taken[0] = taken[0][start[1] :]
    return "\n".join(taken)


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
    if code.co_name == "<lambda>":
        return _lambda_node(file, code)
    line = code.co_firstlineno
    for node in ast.walk(file.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == code.co_name:
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            if first == line and _argument_names(node) == _code_arguments(code):
                return node
    # An import hook may have moved it.
    named = [node for name, node in _definitions(file.tree, "") if name == code.co_qualname]
    if len(named) == 1:
        return named[0]
    raise UnreadableError(
        f"{code.co_filename} has no function {code.co_name!r} of these arguments at line {line}; it was made by other code"
    )


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _shape(code: CodeType) -> Any:
    """What code does, without where it stands."""
    constants = [_shape(c) if isinstance(c, CodeType) else _spelled(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return code.co_code, code.co_exceptiontable, tuple(constants), names, counts


def _spelled(constant: Any) -> str:
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _lambda_node(file: SourceFile, code: CodeType) -> ast.Lambda:
    found = [
        node
        for node in ast.walk(file.tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and _argument_names(node) == _code_arguments(code)
    ]
    # Where each instruction came from, in (line, byte column); empty spans are the interpreter's own.
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if None not in (line, end_line, column, end_column) and (line, column) != (end_line, end_column)
    ]
    fitting = [node for node in found if all(_holds(node.body, first, last) for first, last in spans)]
    if spans and fitting:  # of a lambda within a lambda both hold the inner one's instructions
        fitting = [min(fitting, key=lambda node: len(file.text_of(node)))]
    if not fitting and file.edited:
        raise EditedError(f"{code.co_qualname} of {code.co_filename}")
    if not fitting:
        raise UnreadableError(f"{code.co_filename} has no such lambda at line {code.co_firstlineno}")
    if len({tuple(file.tokens_of(node)) for node in fitting}) > 1:
        raise UnreadableError(
            f"line {code.co_firstlineno} of {code.co_filename} has {len(fitting)} lambdas that it could be;"
            " put each on its own line, or use def"
        )
    return fitting[0]


def _holds(node: Any, first: Any, last: Any) -> bool:
    return (node.lineno, node.col_offset) <= first and last <= (node.end_lineno, node.end_col_offset)


def _argument_names(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [each.arg for each in [*named, arguments.vararg, arguments.kwarg] if each is not None]


def _code_arguments(code: CodeType) -> list[str]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return list(code.co_varnames[:count])


def _class_source(cls: type) -> Source:
    try:
        filename = inspect.getsourcefile(cls)
    except TypeError:
        filename = None
    if filename is None:
        raise UnreadableError("it is not written in Python, or its module has no file")
    file = _source_file(filename, None)
    methods = [method.__code__ for method in map(function_in, vars(cls).values()) if method]
    file.check_runs(methods)
    lines = {code.co_firstlineno for code in methods}
    found = (node for name, node in _definitions(file.tree, "") if name == cls.__qualname__)
    nodes = [node for node in found if isinstance(node, ast.ClassDef)]
    if len(nodes) > 1:  # one name, several classes (if/else): the one that holds the methods
        nodes = [
            node for node in nodes if any(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
        ]
    if len(nodes) != 1:
        raise UnreadableError(f"{filename} has {len(nodes)} classes {cls.__qualname__!r} that it could be")
    named = {each.name for each in nodes[0].body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))}
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


def _definitions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        below = prefix
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
            below += child.name + ("." if isinstance(child, ast.ClassDef) else ".<locals>.")
        yield from _definitions(child, below)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        if isinstance(child, (symtable.Function, symtable.Class)):
            yield child
        yield from _tables(child)


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    return {
        symbol.get_name()
        for each in (table, *_tables(table))
        for symbol in each.get_symbols()
        if symbol.is_global() and symbol.get_name().isidentifier()
    }


def _outer_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _outer_imports(child)


def chain(node: ast.AST) -> tuple[str, ...]:
    """The names of a chain of attributes; () if it does not begin at a name."""
    if isinstance(node, ast.Name):
        return (node.id,)
    below = chain(node.value) if isinstance(node, ast.Attribute) else ()
    return (*below, node.attr) if below and isinstance(node, ast.Attribute) else ()


def bound_by_import(name: str, module: str, attribute: str | None) -> Any:
    """What an import binds: see `Source.local_imports`; `module` is absolute.

    Raises:
        ImportError: if there is no such thing.
    """
    value: Any = importlib.import_module(module)
    if attribute is None:
        return sys.modules[name]
    if attribute and not hasattr(value, attribute):
        importlib.import_module(f"{module}.{attribute}")
    return getattr(value, attribute) if attribute else value


def _bindings(statement: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str | None]]:
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            yield alias.asname or alias.name, "." * statement.level + (statement.module or ""), alias.name
        else:
            yield alias.asname or alias.name.split(".")[0], alias.name, "" if alias.asname else None


def _import_text(statement: ast.Import | ast.ImportFrom, name: str) -> str | None:
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom) and (alias.asname or alias.name) == name:
            return f"from {'.' * statement.level}{statement.module or ''} import {alias.name}"
        if isinstance(statement, ast.Import) and (alias.asname or alias.name.split(".")[0]) == name:
            return f"import {alias.name if alias.asname else name}"
    return None
