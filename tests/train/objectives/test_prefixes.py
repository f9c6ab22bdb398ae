"""Prefix lengths drawn at once are those that were drawn one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.permutation import make_key
from headrace.train.objectives.prefixes import prefix_lengths


def one_by_one(positions: list[int], num_patches: int, seed: int) -> list[int]:
    """The rule: the first draw of each position's own generator."""
    key = make_key(seed, "prefix")
    return [
        int(np.random.Generator(np.random.Philox(key=key, counter=position)).integers(1, num_patches))
        for position in positions
    ]


@given(
    positions=st.lists(st.integers(0, 2**63 - 1), max_size=40),
    num_patches=st.integers(2, 4096) | st.integers(2**31, 2**32),
    seed=st.integers(0, 2**31),
)
def test_prefixes_of_a_batch_are_those_of_single_draws(positions: list[int], num_patches: int, seed: int) -> None:
    """Up to 2 ** 32 values: there a word in two is refused and the next one is taken."""
    drawn = prefix_lengths(np.array(positions, np.int64), num_patches, seed)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == one_by_one(positions, num_patches, seed)


def test_a_position_whose_words_are_all_refused_is_drawn_alone() -> None:
    """2 ** 31 + 1 values refuse nearly half of the words: of 4,000 positions some refuse all eight."""
    positions = list(range(4000))
    assert prefix_lengths(np.array(positions), 2**31 + 2, 3).tolist() == one_by_one(positions, 2**31 + 2, 3)
