"""The table of mutations and who detects them: `python -m tests.proof.table`, also `make proof`."""

import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.proof.lab import Lab
from tests.proof.mutations import all_mutations


def rows_of(judged):
    """One row per group: name, mutations, named by a restore, found and named by `verify`.

    Args:
        judged: pairs of a mutation and its verdict.
    """
    groups = defaultdict(list)
    for mutation, verdict in judged:
        groups[mutation.group].append(verdict)
    return [
        (group, len(each), sum(v.restore for v in each), sum(v.verify for v in each))
        for group, each in groups.items()
    ]


def table(judged):
    """The table as lines of text."""
    rows = rows_of(judged)
    rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'what is changed, one thing at a time':<{width}}  mutations  restore  verify"]
    for group, count, by_restore, by_verify in rows:
        lines.append(f"{group:<{width}}  {count:>9}  {by_restore / count:>7.0%}  {by_verify / count:>6.0%}")
    return lines


def main():
    """Judges every mutation of a new lab, and prints those that `verify` misses and the table."""
    with tempfile.TemporaryDirectory() as directory:
        lab = Lab.made(Path(directory))
        judged = [(mutation, lab.judge(mutation)) for mutation in all_mutations(lab)]
    missed = [(mutation, verdict) for mutation, verdict in judged if not verdict.verify]
    for mutation, verdict in missed:
        print(f"MISSED {mutation.group}: {mutation.name}\n{verdict.said}")
    print("\n".join(table(judged)))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
