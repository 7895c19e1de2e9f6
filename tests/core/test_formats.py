"""The reader of a version is found by its number, and a number without a reader is refused in words."""

import pytest

from datarax.core.tree import UnknownFormatError, reader_of

READERS = {1: "first", 2: "second"}


@pytest.mark.parametrize("version", READERS)
def test_each_version_has_its_own_reader(version):
    assert reader_of(version, READERS) == READERS[version]


def test_a_later_version_is_refused_with_what_is_read_and_what_to_do():
    with pytest.raises(
        UnknownFormatError, match="its format is 3; this version of datarax reads up to 2: use the version"
    ):
        reader_of(3, READERS)


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused_as_such(version):
    with pytest.raises(UnknownFormatError, match=f"its format is {version}, which no version"):
        reader_of(version, READERS)


@pytest.mark.parametrize("version", [None, True, "1", 1.0, [1]])
def test_what_is_no_number_is_refused(version):
    with pytest.raises(ValueError, match="no digest version number"):
        reader_of(version, READERS, "digest version")
