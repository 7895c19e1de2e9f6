"""Every single field, byte and line of code that counts: changed one at a time, found by `verify`, and named."""

import pytest

from tests.proof.lab import Lab
from tests.proof.mutations import all_mutations
from tests.proof.table import table

GROUPS = [
    "identity: a field has another value",
    "identity: a field is absent on one side",
    "state: a field has another value",
    "state: a field is absent on one side",
    "record: another field has another value",
    "steps.bin: a digest of one step is another",
    "snapshot: one byte of a file",
    "run: one byte of a shared file",
    "run: one byte of the ledger",
    "data: one byte of a file",
    "data: one byte of manifest.json",
    "data: one byte of records.blake2b64",
    "data: a record is another, file size and times are not",
    "data: a file is shorter",
    "data: a file is gone",
    "transform",
    "transform whose version stands for its code",
    "helpers in other modules of the package",
    "files that a stage depends on",
    "a file that is edited after its import",
    "flags of JAX",
    "a helper that remembers",
    "our own code",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab.made(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def judged():
    """All verdicts so far."""
    return []


def test_an_unchanged_run_is_continued_and_verified(lab):
    for code, said in (lab.restore(), lab.verify(), lab.verify("--all")):
        assert code == 0, said


def judge(lab, mutations):
    """The mutations with their verdicts; fails at the first that is not found and named by whoever must."""
    judged = []
    for mutation in mutations:
        verdict = lab.judge(mutation)
        judged.append((mutation, verdict))
        assert verdict.verify, f"{mutation.name} is not named as {mutation.named!r}:\n{verdict.said}"
        assert verdict.restore or not mutation.by_restore, f"{mutation.name} is restored:\n{verdict.said}"
    return judged


def of_group(lab, group):
    mutations = [each for each in all_mutations(lab) if each.group == group]
    assert mutations
    return mutations


@pytest.mark.parametrize("group", GROUPS)
def test_one_mutation_of_each_group_is_found_and_named(group, lab):
    mutations = of_group(lab, group)
    judge(lab, [mutations[len(mutations) // 2]])


@pytest.mark.full
@pytest.mark.parametrize("group", GROUPS)
def test_every_mutation_is_found_and_named(group, lab, judged):
    judged += judge(lab, of_group(lab, group))


@pytest.mark.full
def test_the_table_of_mutations_is_complete_and_verify_finds_all(lab, judged, capsys):
    assert {each.group for each in all_mutations(lab)} == set(GROUPS)
    lines = table(judged)
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert lines[-1].endswith("100%")
    code, said = lab.verify()
    assert code == 0, f"a mutation was not taken back:\n{said}"
