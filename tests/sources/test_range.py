"""Ranges as long as 64 bits allow, at no cost."""

from __future__ import annotations

import numpy as np
import pytest

from datarax.core.errors import ConfigError, InputError
from datarax.sources import RangeConfig, RangeSource


@pytest.mark.parametrize(
    ("start", "stop", "step"),
    [
        (0, 10**12, 1),
        (0, 2**63 - 1, 1),
        (5, 2**53 + 9, 2),  # a length that floating point rounds
        (-(2**62), 2**62 - 1, 3),
        (2**62, -(2**62) + 1, -7),
        (-(2**63), 0, 2**62),
    ],
)
def test_every_number_is_exact(start: int, stop: int, step: int):
    numbers = range(start, stop, step)
    source = RangeSource(RangeConfig(start=start, stop=stop, step=step))
    assert len(source) == len(numbers)
    indices = sorted({0, 1 % len(numbers), len(numbers) // 3, len(numbers) // 2, len(numbers) - 1})
    assert source.read(np.array(indices)).tolist() == [numbers[i] for i in indices]
    assert source.identity()["num_records"] == len(numbers)


def test_a_long_range_continues_where_it_was():
    source = RangeSource(RangeConfig(stop=2**62))
    state = {**source.get_state(), "position": 2**61 + 3, "idx": 2**61 + 2}
    source.set_state(state)
    assert next(source) == 2**61 + 3
    assert source.get_state()["position"] == 2**61 + 4


def test_an_empty_range_is_refused():
    with pytest.raises(InputError, match=r"source 'data' is empty: range\(3, 3\) holds no integer"):
        RangeSource(RangeConfig(start=3, stop=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop": 1.5}, "RangeConfig.stop must be an integer of 64 bits, got 1.5"),
        ({"stop": True}, "RangeConfig.stop must be an integer of 64 bits, got True"),
        ({"stop": 2**63}, "RangeConfig.stop must be an integer of 64 bits, got 9223372036854775808"),
        ({"stop": 3, "step": 0}, "step of a range must not be 0"),
        ({"start": -(2**62), "stop": 2**62 + 1}, "longer than"),
    ],
)
def test_a_range_that_is_none_is_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        RangeConfig(**settings)
