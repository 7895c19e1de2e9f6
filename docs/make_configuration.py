"""Writes `docs/configuration.md` from the config dataclasses: the text under each field is its documentation.

python docs/make_configuration.py            writes the page
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from pathlib import Path

from datarax.checkpoint import SaveConfig
from datarax.grain_pipeline import GrainPipelineTable
from datarax.loader import DataLoaderConfig
from datarax.multihost import MultihostConfig
from datarax.run_config import (
    IdentitySection,
    MeshSection,
    RunConfig,
    RunSection,
    TaskSection,
    TransformSection,
)
from datarax.sources.build import BuildTable
from datarax.sources.open import KINDS, SourceTable, setting_names
from datarax.training import LogConfig, ResumeConfig
from datarax.trust import load_attribute

PAGE = Path(__file__).with_name("configuration.md")

_TABLES = [
    ("run", RunSection),
    ("task", TaskSection),
    ("source", SourceTable),
    ("source.build", BuildTable),
    ("loader", DataLoaderConfig),
    ("[transforms]", TransformSection),
    ("grain_pipeline", GrainPipelineTable),
    ("mesh", MeshSection),
    ("multihost", MultihostConfig),
    ("save", SaveConfig),
    ("resume", ResumeConfig),
    ("log", LogConfig),
    ("identity", IdentitySection),
]
# Set from Python only, or given in another place of the file.
_LEFT_OUT = {"cacheable", "batch_stats_fn", "precomputed_stats"}

_TOML_WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    collections.abc.Sequence: "list",
    tuple: "list",
    collections.abc.Mapping: "table",
}

_INTRO = """\
# Configuration

A run is one TOML file. Unknown keys, values of another kind and missing required keys are errors that name the key; nothing is
converted or ignored. Any key can be set from the command line with `--set table.key=value` (values are TOML; list elements by
number: `--set transforms.0.version=2`). Relative paths are relative to the working directory. The resolved config, with
defaults filled in and absolute paths, is kept with the run.

*This page is made from the code by `python docs/make_configuration.py`.*
"""


def render() -> str:
    """The whole page."""
    parts = [_INTRO]
    for name, kind in _TABLES:
        parts.append(f"## `[{name}]`\n\n{_about(kind)}\n")
        if kind is SourceTable:
            parts += _source_kinds()
        else:
            parts += [*_keys(kind, {each.name for each in dataclasses.fields(kind)} - _LEFT_OUT), ""]
    parts.append("## Top level\n")
    parts.append(f"`batch_stats_fn`: {' '.join(field_texts(RunConfig)['batch_stats_fn'].split())}\n")
    return "\n".join(parts)


def _about(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("Raises:")[0].strip()


def _keys(kind: type, shown: collections.abc.Collection[str]) -> list[str]:
    """A table of these fields of a dataclass."""
    rows, texts = ["| key | kind | default | |\n|---|---|---|---|"], field_texts(kind)
    for field in dataclasses.fields(kind):
        if field.name in shown:
            text = " ".join(texts[field.name].split())
            rows.append(f"| `{field.name}` | {_kind(kind, field)} | {_default(field)} | {text} |")
    return rows


def _source_kinds() -> list[str]:
    """The keys of each kind of source: those of its config."""
    parts = [
        f"`kind` (required): one of {', '.join(f'`{name}`' for name in KINDS)}. The other keys are the kind's:\n"
    ]
    for name, where in KINDS.items():
        config = load_attribute(where, "source.kind")
        shown = [key for key in setting_names(config) if key != "build"]
        parts += [f'### `kind = "{name}"`\n\n{_about(config)}\n', *_keys(config, shown), ""]
    return parts


def field_texts(kind: type) -> dict[str, str]:
    """The string literal under each field of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        body = ast.parse(inspect.getsource(each)).body[0].body  # type: ignore[attr-defined]
        for field, below in zip(body, [*body[1:], None], strict=True):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and documented:
                texts[field.target.id] = str(below.value.value)  # type: ignore[union-attr]
    return texts


def _kind(kind: type, field: dataclasses.Field) -> str:
    """What may stand there, in TOML's words; the members of closed families."""
    return _words(typing.get_type_hints(kind, include_extras=True)[field.name])


def _words(hint: typing.Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return f"{_words(arguments[0])} {arguments[1].words()}".rstrip()
    if origin in (typing.Union, types.UnionType):
        return ", ".join(_words(choice) for choice in arguments if choice is not type(None))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f'`"{member.value}"`' for member in hint)
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    return _TOML_WORDS.get(origin or hint, str(origin or hint))


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = getattr(field.default, "value", field.default)
        return "" if value is None else f"`{value!r}`".replace("'", '"')
    return "" if field.default_factory is not dataclasses.MISSING else "required"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
