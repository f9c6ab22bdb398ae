"""Keyed permutations: bijections of any size, the same in every version, unlike for unlike keys."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.shards.permutation import make_key, permute


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, (1 << 64) - 1))
def test_every_value_comes_once(size: int, key: int) -> None:
    result = permute(np.arange(size), size, key)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(np.sort(result), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(
        st.tuples(st.integers(1, 1 << 40), st.floats(0, 1, exclude_max=True), st.integers(0, 1 << 63)),
        min_size=1,
        max_size=20,
    )
)
def test_arrays_of_sizes_and_keys_are_single_calls(entries: list[tuple[int, float, int]]) -> None:
    index = np.array([int(size * share) for size, share, _ in entries], np.int64)
    sizes = np.array([size for size, _, _ in entries], np.int64)
    keys = np.array([key for _, _, key in entries], np.uint64)
    together = permute(index, sizes, keys)
    alone = [permute(int(i), int(size), int(key)) for i, size, key in zip(index, sizes, keys, strict=True)]
    assert together.tolist() == alone


def test_the_values_are_pinned() -> None:
    """A run's order follows from these; a change breaks every resumed run."""
    assert make_key(0, "a") == 15721033795769508722
    assert [permute(i, 10, make_key(0, "a")) for i in range(10)] == [1, 9, 8, 5, 3, 0, 4, 7, 6, 2]
    assert permute(123_456_789, 2_000_000_000, make_key("x", 7)) == 1_389_674_832


def test_parts_of_a_key_do_not_run_together() -> None:
    keys = [
        make_key(*parts)
        for parts in [(1, 2), (12,), (2, 1), ("1", 2), ("12",), ("1", "2"), (), ("",), (0,), (1, 2, "")]
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0)])
def test_outside_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        permute(index, size, 1)


def test_neighbouring_keys_give_unrelated_orders() -> None:
    size = 1000
    orders = [permute(np.arange(size), size, make_key(seed, "epoch")) for seed in range(40)]
    for first, second in itertools.pairwise(orders):
        # Expected fixed points of one permutation against another: 1 (Poisson); over 10 in none of 1e6.
        assert int((first == second).sum()) < 10
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.17  # 5 standard deviations of 1/sqrt(1000)


@pytest.mark.parametrize("size", [7, 64, 100])
def test_each_place_is_as_likely(size: int) -> None:
    draws = 4000
    first = np.array([permute(0, size, make_key(seed)) for seed in range(draws)])
    expected = draws / size
    chi_square = float((((np.bincount(first, minlength=size) - expected) ** 2) / expected).sum())
    # mean size-1, variance 2(size-1); six standard deviations.
    assert chi_square < (size - 1) + 6 * (2 * (size - 1)) ** 0.5


def test_an_order_has_no_runs_left() -> None:
    size = 5000
    order = permute(np.arange(size), size, make_key("runs"))
    assert int((np.abs(np.diff(order)) == 1).sum()) < 15  # expected 2
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.07
