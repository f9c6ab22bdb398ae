"""Weights as whole numbers, spread so evenly that every prefix is right.

`spread` orders one cycle of picks so that after any number of picks, over any number of cycles, each source is less
than one pick away from its share of the cycle. Rounding the running share of each source by itself gives no sequence
(two sources may claim one place); earliest deadline first among released picks does.

A cycle has at most 16384 picks, so its whole numbers may miss the weights; `weight_errors` says by how much.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

MAX_CYCLE = 1 << 14
MIN_ROWS = 4


def integer_parts(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in proportion to `weights` that sum to `total`: largest remainder, ties to the first."""
    exact = [Fraction(weight) for weight in weights]
    share = [weight * total / sum(exact) for weight in exact]
    parts = [int(value) for value in share]
    by_remainder = sorted(range(len(parts)), key=lambda source: (parts[source] - share[source], source))
    for source in by_remainder[: total - sum(parts)]:
        parts[source] += 1
    return parts


def weight_errors(weights: Sequence[float], parts: Sequence[int]) -> list[float]:
    """Return for each source parts / sum(parts) - weight / sum(weights), exact but for the last rounding.

    After any N samples a source stands within |error| * N + 1 of its weight.
    """
    exact = [Fraction(weight) for weight in weights]
    total, whole = sum(exact), sum(parts)
    return [float(Fraction(part, whole) - weight / total) for part, weight in zip(parts, exact, strict=True)]


def choose_rows(weights: Sequence[float], lanes: int) -> int:
    """Return how many rows of `lanes` picks one cycle has: the fewest whose whole numbers are closest to the weights.

    A cycle is at most MAX_CYCLE picks (MIN_ROWS rows where lanes are very many): a weight is met to 1 / 16384 at worst.
    """
    share = np.array(weights, np.float64) / np.sum(weights)
    rows = np.arange(1, max(MIN_ROWS, MAX_CYCLE // lanes) + 1)
    exact = rows[:, None] * lanes * share
    error = np.abs(np.round(exact) - exact).max(axis=1) / (rows * lanes)
    error[np.round(exact).min(axis=1) < 1] = np.inf
    # 1e-9: decimal weights such as 0.8 and 0.2 are not exact in binary, but mean 4 of 5.
    return int(rows[np.argmax(error <= max(float(error.min()), 1e-9))])


def spread(parts: Sequence[int]) -> NDArray[np.int16]:
    """Return sum(parts) source numbers, source s appearing parts[s] times, each prefix less than 1 from its share.

    The j-th pick of a source is released when its share passes j and due before its share reaches j + 1; such unit jobs
    always fit, and earliest deadline first finds the schedule (Tijdeman, "The chairman assignment problem", 1980).
    """
    total = sum(parts)
    released: list[list[tuple[int, int]]] = [[] for _ in range(total)]
    for source, part in enumerate(parts):
        for number in range(part):
            due = -(-(number + 1) * total // part)
            released[number * total // part].append((due, source))
    picks = np.empty(total, np.int16)
    waiting: list[tuple[int, int]] = []
    for place in range(total):
        for job in released[place]:
            heapq.heappush(waiting, job)
        due, source = heapq.heappop(waiting)
        assert due > place
        picks[place] = source
    return picks
