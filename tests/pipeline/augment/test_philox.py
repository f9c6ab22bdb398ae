"""Many positions at once give the numbers that numpy's generator gives for each."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.augment.crop import DRAWS, position_draws
from headrace.pipeline.augment.philox import draws_at


@given(
    key=st.integers(0, 2**64 - 1),
    positions=st.lists(st.integers(0, 2**62 - 1), max_size=5),
    number=st.integers(1, 64),
)
def test_the_numbers_are_those_of_numpys_generator(key: int, positions: list[int], number: int) -> None:
    draws = draws_at(key, np.array(positions, np.int64), number)
    assert draws.shape == (len(positions), number)
    assert draws.tolist() == [position_draws(key, position, number) for position in positions]


def test_so_many_as_a_window_takes() -> None:
    assert draws_at(7, np.arange(3), DRAWS)[2].tolist() == position_draws(7, 2)
