"""Which files there should be is known of data that cannot be opened, from a manifest or from what a run recorded."""

import dataclasses
import itertools
import os

import pytest

from datarax.audit.rehearse_data import expected_files
from datarax.sources import ArrayRecordConfig, ArrayRecordSource, write_manifest
from tests.sources.test_array_record import records, write


@pytest.fixture
def directory(tmp_path):
    for i, name in enumerate(["a", "b/c", "b/d"]):
        path = tmp_path / f"{name}.array_record"
        path.parent.mkdir(exist_ok=True)
        write(path, records(10 * i, 5 + i))
    return tmp_path


@pytest.fixture
def listed(directory):
    """What an open source says of the files."""
    with ArrayRecordSource(ArrayRecordConfig(files=f"{directory}/**/*.array_record")) as source:
        base = source.base_directory
        files = [dataclasses.replace(f, name=os.path.join(base, f.name)) for f in source.files()]
        return tuple(files), source.identity()


def from_the_first(*files):
    """These files, if a source has no others."""
    firsts = itertools.accumulate((file.num_records for file in files), initial=0)
    return tuple(dataclasses.replace(f, first_index=i) for f, i in zip(files, firsts, strict=False))


def test_a_manifest_says_what_an_open_source_says_also_when_a_file_is_gone(directory, listed):
    files, _ = listed
    assert [file.num_records for file in files] == [5, 6, 7]
    write_manifest((f"{directory}/**/*.array_record",))
    (directory / "b" / "c.array_record").unlink()
    everything = [file.name for file in files]
    for names in (str(directory), f"{directory}/**/*.array_record", everything):
        assert expected_files(names) == files, names


def test_a_manifest_may_list_more_than_is_asked_for(directory, listed):
    files, _ = listed
    write_manifest((f"{directory}/**/*.array_record",))
    assert expected_files([files[0].name, files[2].name]) == from_the_first(files[0], files[2])
    assert expected_files(f"{directory}/*.array_record") == from_the_first(files[0])
    some = [f"{directory}/?.array_record", f"{directory}/b/d*"]
    assert expected_files(some) == from_the_first(files[0], files[2])


def test_without_a_manifest_the_recorded_identity_says_it(directory, listed):
    files, identity = listed
    (directory / "a.array_record").unlink()
    assert expected_files(f"{directory}/**/*.array_record", identity) == files
    assert expected_files(f"{directory}/**/*.array_record") is None
    assert expected_files(str(directory), {**identity, "files": {"sha256": "0" * 64}}) is None
