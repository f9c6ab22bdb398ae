"""Healthy runs go on, damaged ones stop soon: the numbers that the docs state."""

import random
from collections import Counter
from statistics import median

import numpy as np
import pytest

from headrace.pipeline.budget import ALPHA, JUDGED_AFTER, Budget, ChunkKey, DamageTally

CHUNK = 64


def is_spent(budget: Budget, damaged: int, seen: int) -> bool:
    """The verdict on so many damaged samples, each in a chunk of its own."""
    tally = DamageTally(
        seen=seen,
        damaged=damaged,
        chunks_seen=seen,
        gains=tuple(damaged * budget._gain(1.0, rival) for rival in budget.rivals),
    )
    return budget.is_spent(tally)


def chance_of_stopping(share: float, *, budget: Budget, samples: int) -> float:
    """The chance that a rank is ever stopped, exactly: the distribution of its count, cut off where it stops."""
    counts = np.zeros(400)
    counts[0], stopped = 1.0, 0.0
    for seen in range(1, samples + 1):
        counts[1:] = counts[1:] * (1 - share) + counts[:-1] * share
        counts[0] *= 1 - share
        if seen >= JUDGED_AFTER and seen % CHUNK == 0:
            low, high = 0, len(counts)
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if is_spent(budget, middle, seen) else (middle + 1, high)
            stopped += float(counts[low:].sum())
            counts[low:] = 0
    return stopped


def test_a_million_healthy_ranks_are_not_stopped() -> None:
    budget = Budget(0.01)
    # Damage of 0.2 % against a budget of 1 %: what is stopped at all is stopped early, so 10,000 samples say it.
    assert chance_of_stopping(0.002, budget=budget, samples=10_000) < 1e-12
    # At the very budget the promise is ALPHA.
    assert chance_of_stopping(0.01, budget=budget, samples=10_000) < ALPHA


def stops_after(share: float, *, seed: int, heaps: float = 0.0, limit: int = 20_000, lanes: int = 8) -> int | None:
    """Stream a rank whose samples, and whole chunks, are damaged by chance; return when its run stops."""
    draw, budget, tally, chunks = random.Random(seed), Budget(0.01), DamageTally(), 0
    windows: list[list[tuple[ChunkKey, bool]]] = [[] for _ in range(lanes)]
    for seen in range(CHUNK, limit, CHUNK):
        damaged = []
        for number in range(CHUNK):
            window = windows[number % lanes]
            if not window:
                for chunk in range(chunks, chunks + 4):
                    heap = draw.random() < heaps
                    window += [((0, 0, chunk), heap or draw.random() < share) for _ in range(CHUNK)]
                chunks += 4
                draw.shuffle(window)
            key, bad = window.pop()
            if bad:
                damaged.append((key, CHUNK))
        tally = budget.add(tally, seen=CHUNK, chunks_seen=1.0, damaged=damaged)
        if budget.is_spent(tally):
            return seen
    return None


def test_five_percent_are_seen_within_a_few_hundred_samples() -> None:
    stops = [stops_after(0.05, seed=seed) for seed in range(20)]
    assert None not in stops
    assert median(stop or 0 for stop in stops) < 600
    assert max(stop or 0 for stop in stops) < 1500


def test_two_percent_are_seen_too() -> None:
    stops = [stops_after(0.02, seed=seed) for seed in range(5)]
    assert None not in stops
    assert max(stop or 0 for stop in stops) < 20_000


def test_a_block_of_zeros_is_one_event_and_not_64() -> None:
    """One chunk in 500 damaged whole is 0.2 % of the samples, and no reason to stop."""
    assert not [seed for seed in range(20) if stops_after(0.0, heaps=0.002, seed=seed)]
    # Nor where a rank has one lane: 64 of its first 256 samples are bad.
    tally = DamageTally()
    budget = Budget(0.01)
    tally = budget.add(tally, seen=256, chunks_seen=4.0, damaged=[((0, 0, 1), CHUNK)] * CHUNK)
    assert tally.damaged == 64
    assert not budget.is_spent(tally)
    # One chunk in 20 is five times the budget.
    assert stops_after(0.0, heaps=0.05, seed=0, limit=100_000) is not None


def test_all_damaged_stops_at_the_first_look() -> None:
    budget = Budget(0.01)
    damaged = [((0, 0, number % 8), CHUNK) for number in range(104)]
    assert budget.is_spent(budget.add(DamageTally(), seen=104, chunks_seen=104 / CHUNK, damaged=damaged))


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9, 0.99])
def test_wide_budgets_are_kept_and_judged(fraction: float) -> None:
    budget = Budget(fraction)
    assert not is_spent(budget, round(1000 * fraction), 1000)
    assert is_spent(budget, 1_000_000, 1_000_000)


def test_a_budget_of_nothing_and_of_everything() -> None:
    one = [((0, 0, 0), 1)]
    none, every = Budget(0.0), Budget(1.0)
    assert not none.is_spent(none.add(DamageTally(), seen=1000, chunks_seen=1000.0, damaged=[]))
    assert none.is_spent(none.add(DamageTally(), seen=1000, chunks_seen=1000.0, damaged=one))
    assert not every.is_spent(every.add(DamageTally(), seen=1000, chunks_seen=1000.0, damaged=one * 1000))


def test_adding_leaves_the_old_tally_and_forgets_only_old_chunks() -> None:
    budget = Budget(0.01)
    before = budget.add(DamageTally(), seen=10, chunks_seen=1.0, damaged=[((0, 0, 0), 10)])
    kept = (before.seen, before.damaged, dict(before.shares), before.gains)
    after = before
    for number in range(5000):
        after = budget.add(after, seen=10, chunks_seen=1.0, damaged=[((0, 1, number), 10)])
    assert kept == (before.seen, before.damaged, dict(before.shares), before.gains)
    assert len(after.shares) == 4096
    assert after.damaged == 5001
    # The order within a chunk and between chunks does not matter.
    keys = [((0, 0, number % 3), 10) for number in range(12)]
    one = budget.add(DamageTally(), seen=12, chunks_seen=1.2, damaged=keys)
    two = DamageTally()
    for key in reversed(keys):
        two = budget.add(two, seen=1, chunks_seen=0.1, damaged=[key])
    assert np.allclose(one.gains, two.gains)
    assert Counter(one.shares) == Counter(two.shares)
