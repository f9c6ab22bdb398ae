"""Parts of a dataset: each sample once, nested, even over the index, the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.pipeline.order.subset import BLOCK, GROUP, Subset

fractions = st.floats(0.001, 1.0)


def used(size: int, fraction: float) -> list[int]:
    subset = Subset(size, fraction)
    return subset.samples(np.arange(subset.size)).tolist()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3 * BLOCK * GROUP), fractions, fractions)
def test_a_part_lies_inside_every_larger_part(size: int, one: float, other: float) -> None:
    small, large = (used(size, fraction) for fraction in sorted((one, other)))
    assert len(set(small)) == len(small)
    assert set(small) <= set(large) <= set(range(size))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3 * BLOCK * GROUP), fractions)
def test_the_index_is_covered_evenly(size: int, fraction: float) -> None:
    samples = np.array(used(size, fraction), np.int64)
    blocks = np.bincount(samples // BLOCK, minlength=-(-size // BLOCK))
    lengths = np.minimum(BLOCK, size - np.arange(len(blocks)) * BLOCK)
    assert np.all(np.abs(blocks - fraction * lengths) < 1)
    # Any run of the index, say one class of a sorted dataset: its blocks round up and down in turn.
    running = np.cumsum(blocks - fraction * lengths)
    assert np.ptp(np.concatenate([[0.0], running])) < 8


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2000), fractions, st.data())
def test_in_order_is_the_part_ascending(size: int, fraction: float, data: st.DataObject) -> None:
    subset = Subset(size, fraction)
    if not subset.size:
        return
    ordinal = np.array(data.draw(st.lists(st.integers(0, subset.size - 1), max_size=20)), np.int64)
    assert subset.in_order(ordinal).tolist() == np.sort(used(size, fraction))[ordinal].tolist()


def test_a_whole_dataset_is_its_own_part() -> None:
    assert sorted(used(1000, 1.0)) == list(range(1000))


def test_a_part_is_the_same_for_ever() -> None:
    assert used(300, 0.05) == used(300, 0.05)
    assert used(300, 0.05) == [58, 22, 4, 94, 96, 101, 163, 136, 161, 207, 237, 217, 272, 267]


def test_a_tenth_of_two_billion_takes_a_megabyte() -> None:
    subset = Subset(2_000_000_000, 0.1)
    assert abs(subset.size - 200_000_000) < 100
    assert subset._starts.nbytes < 1 << 20
    samples = subset.samples(np.array([0, subset.size // 2, subset.size - 1], np.int64))
    assert abs(int(samples[1]) - 10**9) < 1000
    assert int(samples[2]) > 2_000_000_000 - 100


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_is_one(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be over 0 and at most 1"):
        Subset(100, fraction)
