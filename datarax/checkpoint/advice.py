"""For each field of identity that can differ, the nearest thing to do about it: one table from paths to sentences.

Knows fields by their paths only, and imports nothing of those who make them: the advice stands beside a refusal wherever that
is shown. A field that the table does not know gets the general advice; a test holds that no present field needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datarax.core.errors import MISSING, Difference

_GENERAL = "put this back as it was, or name the field in resume.allow_changed if the change is meant"
_DATASET = "source {source!r} is another dataset than then: restore its files, or name the dataset of then in the config"
_OTHER_RULES = (
    "use the version of datarax that made the run (`provenance` in its starts/); this one follows other rules"
)


@dataclass(frozen=True)
class _Asked:
    """A difference with what its path says."""

    difference: Difference
    parts: Mapping[str, str]
    was: Any
    """The whole recorded identity, or None."""
    now: Any
    """The whole present identity, or None."""

    @property
    def transform(self) -> str:
        """The transform that the path is about, by name if a tree tells it."""
        index = int(self.parts["index"])
        for tree in (self.was, self.now):
            names = _transform_names(tree, self.parts["loader"])
            if index < len(names):
                return f"transform {names[index]!r}"
        return f"transform {index}"


def advice(
    difference: Difference, was: Mapping[str, Any] | None = None, now: Mapping[str, Any] | None = None
) -> str:
    """The nearest thing to do about a difference of identities or models, as one sentence without a full stop.

    Args:
        difference: one field, its path beginning with the loader's name or with `model`.
        was: the whole recorded identity, if it is at hand: it tells a transform's name.
        now: the whole present identity.
    """
    for pattern, answer in _TABLE:
        found = pattern.fullmatch(difference.path)
        if found:
            asked = _Asked(difference, found.groupdict(), was, now)
            return answer.format(**asked.parts) if isinstance(answer, str) else answer(asked)
    return _GENERAL


def all_advice(
    differences: Sequence[Difference],
    was: Mapping[str, Any] | None = None,
    now: Mapping[str, Any] | None = None,
) -> list[str]:
    """The advice for each difference; said once where the same would follow several times, and then empty."""
    said: list[str] = []
    for each in differences:
        text = advice(each, was, now)
        said.append("" if text in said else text)
    return said


def _setting(key: str) -> Callable[[_Asked], str]:
    """Advice to set a key of the config again."""

    def answer(asked: _Asked) -> str:
        was = asked.difference.was
        if was is MISSING or was is None:
            return f"leave out {key} again"
        return f"set {key} = {json.dumps(was, default=str)} again"

    return answer


def _row_mask(asked: _Asked) -> str:
    if asked.difference.was is True:
        return 'set loader.remainder = "pad" again: batches had a row mask'
    return 'set loader.remainder = "drop" or "error" again: batches had no row mask, which "pad" adds'


def _version(what: str, key: str | None) -> Callable[[_Asked], str]:
    """Advice for the version of an algorithm, which is text where the code does not do what its version says."""

    def answer(asked: _Asked) -> str:
        if isinstance(asked.difference.now, str):
            return (
                f"{what} of this code does not do what its version says: install an unchanged datarax; if the code was changed "
                f"on purpose, it needs a new version"
            )
        if isinstance(asked.difference.was, str):
            return f"{what} that made the run was a changed one; it goes on only with that code"
        return _OTHER_RULES if key is None else f"set {key} = {json.dumps(asked.difference.was, default=str)}"

    return answer


def _source(asked: _Asked) -> str:
    source = asked.parts["source"]
    if asked.difference.was is MISSING:
        return f"there was no source {source!r} then: give the source the name of then (source.name)"
    return f"name the source {source!r} again: set source.name = {json.dumps(source)}"


def _num_records(asked: _Asked) -> str:
    was, source = asked.difference.was, asked.parts["source"]
    return (
        f"the dataset has changed: restore the files of source {source!r} so that it has {was} records, or name the dataset of "
        f"then in the config"
    )


def _of_transform(text: str) -> Callable[[_Asked], str]:
    """Advice about one transform; `{transform}` is its name, the rest are the parts of the path."""

    def answer(asked: _Asked) -> str:
        return text.format(**{**asked.parts, "transform": asked.transform})

    return answer


def _parameter(asked: _Asked) -> str:
    was, name = asked.difference.was, asked.parts["name"]
    if was is MISSING:
        return f"leave out the parameter {name!r} of {asked.transform} again"
    return f"give {asked.transform} the parameter {name!r} that it had: {json.dumps(was, default=str)}"


def _transforms(asked: _Asked) -> str:
    names = _transform_names(asked.was, asked.parts["loader"])
    if not names:
        return "put the transforms back as they were: the same ones, in the same order"
    return f"the transforms were {', '.join(map(repr, names))}; put them back, in this order"


def _declared(asked: _Asked) -> str:
    was = asked.difference.was
    if was is None:
        return f"take the declared version off {asked.transform} again: its source counted"
    return f"declare version = {json.dumps(was, default=str)} for {asked.transform} again, if it still does what it did then"


def _randomness(asked: _Asked) -> str:
    if "(" in str(asked.difference.now):
        return (
            f"this code draws other numbers for {asked.transform} than its version says: install an unchanged datarax; if the "
            f"code was changed on purpose, it needs a new version"
        )
    return f"give {asked.transform} the randomness that it had: {asked.difference.was}"


def _dependency(asked: _Asked) -> str:
    was, name = asked.difference.was, asked.parts["name"]
    if was is MISSING:
        return f"{asked.transform} did not depend on {name!r} then: take it out of depends_on again"
    if asked.difference.now is MISSING:
        return f"{asked.transform} declared a dependence on {name!r}: put it into depends_on again"
    return f"{asked.transform} depends on {name!r}: use {was} again"


def _model(asked: _Asked) -> str:
    leaf = asked.parts["leaf"]
    if asked.difference.was is MISSING:
        return f"the task's state has a leaf {leaf!r} that was not saved: take it out, or begin in another run directory"
    if asked.difference.now is MISSING:
        return f"the task's state lacks the leaf {leaf!r}: put it back, or begin in another run directory"
    return f"make the leaf {leaf!r} of the task's state as it was saved, or begin in another run directory"


def _transform_names(tree: Any, loader: str) -> list[str]:
    try:
        return [each["name"] for each in tree[loader]["pipeline"]["transforms"]]
    except (TypeError, KeyError):
        return []


_STAGE = r"(?P<loader>[^.]+)\.pipeline\.transforms\[(?P<index>\d+)\]"
_NAME = r"(?P<name>[^.\[]+).*"
_OF_SOURCE = r"(?P<loader>[^.]+)\.sources\.(?P<source>.+)\."

# The first pattern that fits the whole path decides.
_ANSWERS: list[tuple[str, str | Callable[[_Asked], str]]] = [
    (r"model", "give the task's state as it was, or begin in another run directory"),
    (r"model\.(?P<leaf>.+)", _model),
    (r"[^.]+", "restore with the data modules that were saved, under the same names"),
    (r"[^.]+\.batch_size", _setting("loader.batch_size")),
    (r"[^.]+\.(order\.)?seed", _setting("loader.seed")),
    (r"[^.]+\.row_mask", _row_mask),
    (r"[^.]+\.precomputed_stats.*", "give the precomputed_stats that the run was made with"),
    (r"[^.]+\.order\.version", _version("the order", "loader.order_version")),
    (r"[^.]+\.order\.policy", _setting("loader.order")),
    (r"[^.]+\.order\.block_size", _setting("loader.block_size")),
    (r"[^.]+\.order\.window_blocks", _setting("loader.window_blocks")),
    (r"[^.]+\.order\.grain_style", _setting("loader.grain_style")),
    (r"[^.]+\.order\.grain_ops_between", _setting("loader.grain_ops_between")),
    (r"[^.]+\.order\.sources\.(?P<source>.+)", _num_records),
    (_OF_SOURCE + "kind", _setting("source.kind")),
    (_OF_SOURCE + "name", _setting("source.name")),
    (_OF_SOURCE + "version", _setting("source.version")),
    (_OF_SOURCE + "start", _setting("source.start")),
    (_OF_SOURCE + "step", _setting("source.step")),
    (_OF_SOURCE + "num_records", _num_records),
    (_OF_SOURCE + "sample_version", _OTHER_RULES),
    (_OF_SOURCE + "type", "give source {source!r} an object of the type that it had"),
    (
        _OF_SOURCE + r"layout.*",
        "the records of source {source!r} have other fields, shapes or dtypes: give those of then",
    ),
    (_OF_SOURCE + r"(num_files|files.*|content|sample)", _DATASET),
    (r"(?P<loader>[^.]+)\.sources\.(?P<source>.+)", _source),
    (r"[^.]+\.pipeline\.version", _version("the pipeline's identity", None)),
    (_STAGE, _transforms),
    (_STAGE + r"\.name", _transforms),
    (_STAGE + r"\.level", _of_transform("call {transform} at the level at which it was called")),
    (_STAGE + r"\.randomness", _randomness),
    (_STAGE + r"\.version", _declared),
    (_STAGE + r"\.parameters\." + _NAME, _parameter),
    (
        _STAGE + r"\.source_sha256",
        _of_transform(
            "the text of the function of {transform} has changed: put it back; if its results are the same, declare a "
            "version and allow the change once"
        ),
    ),
    (
        _STAGE + r"\.bound.*",
        _of_transform("what {transform} is bound to has changed (its partial or object): put it back"),
    ),
    (
        _STAGE + r"\.defaults\." + _NAME,
        _of_transform("put back the default of {name!r} in the function of {transform}"),
    ),
    (
        _STAGE + r"\.closure\." + _NAME,
        _of_transform("put back the value of {name!r}, which the function of {transform} closes over"),
    ),
    (
        _STAGE + r"\.attributes\." + _NAME,
        _of_transform("put back the class attribute {name!r} of {transform}"),
    ),
    (
        _STAGE + r"\.names\." + _NAME,
        _of_transform("put back the global name {name!r}, which the function of {transform} uses"),
    ),
    (
        _STAGE + r"\.helpers\.(?P<name>.+)",
        _of_transform(
            "{name!r}, which {transform} calls, has changed (its text, a default, a closure value or a name that it uses): "
            "put it back"
        ),
    ),
    (_STAGE + r"\.files", _of_transform("declare the files of {transform} as they were (depends_on_files)")),
    (
        _STAGE + r"\.files\.(?P<name>.+)",
        _of_transform("{transform} depends on the file {name!r}: put it back as it was"),
    ),
    (_STAGE + r"\.impure", _of_transform("declare {transform} as it was (impure)")),
    (_STAGE + r"\.dependencies", _of_transform("declare the dependences of {transform} as they were")),
    (_STAGE + r"\.dependencies\.(?P<name>.+)", _dependency),
]
_TABLE = [(re.compile(pattern), answer) for pattern, answer in _ANSWERS]

__all__ = ["advice", "all_advice"]
