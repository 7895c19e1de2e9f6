"""`SourceLaws` passes for a correct source of a user's own, and each broken one fails the laws that it breaks."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from datarax.testing import SourceLaws
from datarax.testing.sources import altered

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What pytest says of each class: {class: {law: message}} of all laws that fail, from a process of its own."""
    report = tmp_path_factory.mktemp("report") / "report.xml"
    laws = Path(__file__).parent / "broken_sources.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        str(laws),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = found.setdefault(case.get("classname").split(".")[-1], {})
        for problem in (*case.findall("failure"), *case.findall("error")):
            failed[case.get("name").split("[")[0].removeprefix("test_")] = (
                problem.get("message") + problem.text
            )
    return found


# Of each broken source: one law that it must fail, and what is said then.
FAULTS = {
    "TestSortsWhatItReads": (
        "records_come_in_the_order_asked_for_repeats_included",
        "read([6, 6, 0, 5, 1, 0, 6, 2, 3]) differs at 0: expected str 'line 6', got str 'line 0'",
    ),
    "TestReadsOnFromTheLast": (
        "records_come_in_the_order_asked_for_repeats_included",
        "differs at 0: expected str 'line 6'",
    ),
    "TestSharesACursor": (
        "four_threads_read_the_same_as_one",
        "read by four threads at once it does not read as by one: AssertionError: read([",
    ),
    "TestCountsFromTheEnd": (
        "an_index_out_of_range_is_refused_by_name",
        "Actual message: 'list index out of range'",
    ),
    "TestIdentityOfLengthAlone": (
        "another_byte_is_another_identity",
        "one byte of the first record was changed, and the identity is still",
    ),
    "TestIdentityOfAPath": (
        "a_moved_copy_is_the_same_data",
        "the identity of the same records in another directory: path: expected str",
    ),
    "TestIdentityOfADay": ("two_openings_have_one_identity_that_is_plain_and_small", "opened"),
    "TestMovesBeforeItReads": (
        "it_resumes_everywhere",
        "restored before element 0 into a fresh module, in memory: the state before element 0 is not that of an undisturbed "
        "module, at position: expected int 0, got int 1",
    ),
    "TestSharesItsFileWithAClone": ("a_clone_goes_on_alone", "IndexError"),
    "TestSharesWhatIsOpen": ("a_clone_goes_on_alone", "IndexError"),
    "TestCannotBePickled": (
        "a_pickled_source_reads_the_same",
        "source 'lines' cannot be pickled, so no other process can read it: TypeError: cannot pickle '_thread.lock' object",
    ),
    "TestLosesItsPlaceInAPickle": (
        "a_pickled_source_reads_the_same",
        "the rest of a pickled source, after the original was closed",
    ),
    "TestGivesItsOwnArrays": (
        "what_a_reader_does_to_a_batch_stays_in_the_batch",
        "record 2 after a batch with it was overwritten: the whole: expected 2.0, got 0.0",
    ),
    "TestWidensNumbers": (
        "it_has_the_records_that_were_put_in",
        "expected float32 of dtype float32 and shape [], got float64 of dtype float64",
    ),
    "TestTooFewRecords": (
        "it_has_the_records_that_were_put_in",
        "records() must give 5 to 100 records, got 2",
    ),
    "TestTheSameRecordTwice": (
        "it_has_the_records_that_were_put_in",
        "records() must give records that differ, but record 6 is there twice",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.full
def test_a_broken_source_fails_its_law_by_name(outcomes, name):
    law, said = FAULTS[name]
    assert law in outcomes[name], outcomes[name].keys()
    assert said in outcomes[name][law]


@pytest.mark.full
@pytest.mark.parametrize("name", ["TestCorrect", "TestCorrectRecords"])
def test_a_correct_source_of_ones_own_passes_all_laws(outcomes, name):
    assert outcomes[name] == {}


@pytest.mark.full
def test_every_broken_source_is_tried(outcomes):
    assert outcomes.keys() == {*FAULTS, "TestCorrect", "TestCorrectRecords"}


@pytest.mark.full
def test_a_plain_assert_in_a_law_shows_its_values(outcomes):
    # Only where pytest has rewritten the module of the laws.
    told = outcomes["TestIdentityOfADay"]["reading_leaves_the_identity_alone"]
    assert "assert {" in told
    assert "'opened'" in told


def test_a_subclass_that_says_nothing_is_told_what_to_define(tmp_path):
    with pytest.raises(NotImplementedError, match="define records"):
        SourceLaws().records()
    with pytest.raises(NotImplementedError, match="define build"):
        SourceLaws().build(tmp_path, [])


@pytest.mark.parametrize(
    "record",
    [
        b"ab",
        "ab",
        5,
        np.int16(5),
        np.float64(0.5),
        np.arange(4, dtype=np.float32).reshape(2, 2),
        {"empty": b"", "flag": True, "none": None, "last": (1.5, np.array(["ab"]))},
    ],
    ids=lambda record: type(record).__name__,
)
def test_an_altered_record_differs_in_one_bit_and_keeps_its_form(record):
    def raw(value):
        if isinstance(value, dict):
            return value["last"][1].tobytes()
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tobytes()
        return (
            value.to_bytes(1, "big")
            if isinstance(value, int)
            else value
            if isinstance(value, bytes)
            else value.encode()
        )

    before = raw(record)
    changed = altered(record)
    assert type(changed) is type(record)
    assert raw(record) == before
    bits = [bin(a ^ b).count("1") for a, b in zip(before, raw(changed), strict=True)]
    assert sum(bits) == 1


def test_a_record_without_known_bits_cannot_be_altered():
    with pytest.raises(TypeError, match=r"cannot change a bit of \[None, b'', 0.5\]; define changed"):
        altered([None, b"", 0.5])
