"""Promises of `--part I/N`: every item is in one part, and a part that is none is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.part import Part, parse_part


@given(num_units=st.integers(0, 60), parts=st.integers(1, 12))
def test_every_unit_is_in_one_part(num_units: int, parts: int) -> None:
    units = list(range(num_units))
    found = [unit for number in range(parts) for unit in Part(number + 1, parts).mine(units)]
    assert sorted(found) == units


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/4/2", "\u0661/2", "", "1/9999999"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected I/N with I from 1 to N"):
        parse_part(text)
