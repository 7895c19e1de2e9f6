"""Every fault of `mutants.toml` can be made, and names tests that there are; `make mutants` shows that they fail."""

import ast
from collections import Counter

import pytest

from tests.mutants import ROOT, all_mutants

LAWS = range(1, 12)


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda each: each.fault)
def test_a_fault_changes_one_place_and_names_tests(mutant):
    before = (ROOT / mutant.file).read_text()
    assert mutant.file.startswith("datarax/")
    assert before.count(mutant.old) == 1
    assert ast.dump(ast.parse(mutant.content())) != ast.dump(ast.parse(before)), "only the layout changes"
    assert mutant.law is None or mutant.law in LAWS
    assert mutant.tests
    for test in mutant.tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text()
        assert not name or f"def {name.rpartition('::')[2].partition('[')[0]}(" in text, test


def test_no_two_faults_have_one_name():
    names = [mutant.fault for mutant in all_mutants()]
    assert len(set(names)) == len(names)


def test_every_law_has_at_least_four_faults():
    laws = Counter(mutant.law for mutant in all_mutants())
    assert {law for law in LAWS if laws[law] < 4} == set()
