"""Today's behaviour, concern by concern: what a rewrite of anything behind the public names must not change."""

import json

import pytest

from tests.behaviour.deliveries import WITH_STATE
from tests.behaviour.draws import line
from tests.behaviour.make import GOLDEN, trees, write
from tests.support.tiers import is_whole

OF_ALL_LINES = ("deliveries", "states", "identities", "records", "differences", "messages", "exit_codes")
LINES = ("jax-0.10", "jax-0.12")
EVERY = 1 if is_whole() else WITH_STATE


def first_difference(golden, today, path=""):
    """Path, golden value and today's of the first leaf that differs; None if none does."""
    if isinstance(golden, dict) and isinstance(today, dict):
        for key in sorted({*golden, *today}):
            if key not in golden or key not in today:
                return f"{path} / {key}", golden.get(key, "(absent)"), today.get(key, "(absent)")
            if found := first_difference(golden[key], today[key], f"{path} / {key}"):
                return found
        return None
    if isinstance(golden, list) and isinstance(today, list):
        for i, (one, other) in enumerate(zip(golden, today, strict=False)):
            if found := first_difference(one, other, f"{path}[{i}]"):
                return found
        if len(golden) != len(today):
            return f"{path} (length)", len(golden), len(today)
        return None
    if type(golden) is type(today) and golden == today:
        return None
    trees_in = [json.loads(text) for text in (golden, today) if isinstance(text, str) and text[:1] == "{"]
    inner = first_difference(*trees_in, f"{path}:") if len(trees_in) == 2 else None
    return inner or (path, golden, today)


@pytest.mark.parametrize("concern", [*OF_ALL_LINES, f"draws-{line()}"])
def test_behaves_as_the_golden_file_says(concern):
    name = f"{concern}.json"
    golden, today = json.loads((GOLDEN / name).read_text(encoding="utf-8")), trees(EVERY)[name]
    if concern == "deliveries":
        golden = dict(list(golden.items())[::EVERY])
    found = first_difference(golden, today)
    assert found is None, (
        f"{concern}: today's behaviour is another one.\n  first at: {found[0]}\n  golden:   {found[1]!r}\n"
        f"  today:    {found[2]!r}\nIf that is wanted: python -m tests.make_golden --replace {name}"
    )


def test_no_golden_file_is_lost():
    names = {f"{concern}.json" for concern in (*OF_ALL_LINES, *(f"draws-{each}" for each in LINES))}
    assert {path.name for path in GOLDEN.iterdir()} == names


def test_a_file_that_is_there_is_replaced_only_if_it_is_named(tmp_path):
    assert write(tmp_path, every=EVERY) == list(trees(EVERY))
    for name in ("messages.json", "states.json"):
        (tmp_path / name).write_text("as it was")
    assert write(tmp_path, every=EVERY) == []
    assert write(tmp_path, replace=["messages.json"], every=EVERY) == ["messages.json"]
    assert (tmp_path / "states.json").read_text() == "as it was"
    assert json.loads((tmp_path / "messages.json").read_text()) == trees(EVERY)["messages.json"]
