"""Linking what shares a bucket of a locality-sensitive hash, by any test of a pair."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from headrace.curation.select.hamming import Indices

Near = Callable[[Indices, Indices], NDArray[np.bool_]]
"""True for each pair of places that is near enough."""


def linked(keys: NDArray[np.uint64], near: Near, max_bucket: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs of places that are `near` among neighbours with equal `keys`, which must be sorted.

    A bucket over `max_bucket` is solved by stars: each member that no leader reached before becomes one and is compared
    with the whole bucket; at most `max_bucket` leaders, so a member never costs more than that many comparisons.
    """
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if keys.size else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, keys.size])
    ends = np.repeat(starts + sizes, sizes)
    active = np.flatnonzero(np.repeat(sizes <= max_bucket, sizes))
    offset = 1
    while True:
        active = active[ends[active] > active + offset]
        if not active.size:
            break
        left = active[near(active, active + offset)]
        yield left, left + offset
        offset += 1
    for start, size in zip(starts[sizes > max_bucket], sizes[sizes > max_bucket], strict=True):
        yield from _stars(int(start), int(size), near, max_bucket)


def _stars(start: int, size: int, near: Near, max_leaders: int) -> Iterator[tuple[Indices, Indices]]:
    free = np.ones(size, bool)
    for _ in range(max_leaders):
        left_over = np.flatnonzero(free)
        if not left_over.size:
            return
        leader = int(left_over[0])
        others = np.flatnonzero(np.arange(size) != leader)
        reached = others[near(np.full(others.size, start + leader), start + others)]
        free[leader] = free[reached] = False
        yield np.full(reached.size, start + leader), start + reached
