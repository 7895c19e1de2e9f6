"""`docs/design/laws.md` names what there is: each function that enforces a law, and each test that fails without it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "design" / "laws.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)


def definitions(path):
    """The dotted names of all functions and classes of a file."""

    def of(body, above):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield above + node.name
                yield from of(node.body, f"{above}{node.name}.")

    return set(of(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def test_every_law_has_a_function_and_a_test():
    laws = [int(number) for number in re.findall(r"^(\d+)\. \*\*", PAGE, re.MULTILINE)]
    assert laws == list(range(1, 12))
    assert sorted({int(law) for law, _, _ in ROWS}) == laws
    assert len(ROWS) == PAGE.count("\n| ") - 1, "a row of another form"


@pytest.mark.parametrize("name", sorted({name for _, *names in ROWS for name in names}))
def test_what_the_page_names_exists(name):
    path, _, inside = name.partition("::")
    assert (ROOT / path).is_file()
    assert not inside or inside in definitions(ROOT / path)
