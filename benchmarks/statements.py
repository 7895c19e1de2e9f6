"""Statements by room, without docstrings: what the budgets of the house are counted in.

python -m benchmarks.statements [ROOM]…     with rooms: each of their files too
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "datarax"


def count(path: Path) -> int:
    """Statements of a file; a text that stands alone (a docstring, or one below a field) is none."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    texts = [each for each in nodes if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)]
    return len(nodes) - len(texts)


def by_room() -> Counter[str]:
    """Room -> its statements; a file beside the rooms is one of its own."""
    rooms: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        rooms[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] += count(path)
    return rooms


def main(chosen: list[str]) -> None:
    """Prints the tables."""
    rooms = by_room()
    for room, statements in rooms.most_common():
        print(f"{statements:6}  {room}")
        for path in sorted((PACKAGE / room).rglob("*.py")) if room in chosen else ():
            print(f"        {count(path):6}  {path.relative_to(PACKAGE)}")
    print(f"{sum(rooms.values()):6}  in all")


if __name__ == "__main__":
    main(sys.argv[1:])
