"""No reader of a file raises anything but a refusal, whatever the file holds. `make fuzz` goes on for as long as it is told."""

import random

import pytest

from tests.fuzz import TARGETS, Target, fuzz


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_refuses_what_it_cannot_read_and_does_nothing_else(name):
    number, kept = fuzz(TARGETS[name], random.Random(f"0 {name}"), lambda tried: tried < 400)
    assert number == 400
    assert kept > 0


def test_a_reader_that_fails_is_found():
    def fragile(data):
        if data.startswith(b"[") and data.endswith(b"]"):
            raise KeyError("x")

    with pytest.raises(AssertionError, match="KeyError"):
        fuzz(Target(fragile, [b"[1,2,3]"]), random.Random(0), lambda tried: tried < 400)
