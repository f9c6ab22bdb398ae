"""Pairs of nodes: packed, gathered without repeats, and reduced to the forest that links the same nodes as nearly.

A minimum spanning forest of the pairs found has, at every distance up to the one searched, the components that all of
the pairs have. It holds fewer pairs than nodes, and with ties broken by the nodes there is one such forest only: it
does not depend on who found the pairs, or in which pieces.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.curation.select.hamming import Indices, Words, distance_of

Packed = NDArray[np.uint64]
"""Pairs of nodes, the lesser in the upper 32 bits."""
MAX_NODES = 1 << 32
NODE_BITS, NODE_MASK = np.uint64(32), np.uint64(MAX_NODES - 1)

# Pairs waiting before repeats are removed, and pairs from which on only their forest is kept: 8 bytes each.
WAITING_PAIRS = 1 << 22
MOST_PAIRS = 1 << 26
BLOCK_PAIRS = 1 << 20


@dataclass(frozen=True, slots=True)
class Forest:
    """A minimum spanning forest of near pairs, nearest first, then by nodes."""

    left: NDArray[np.uint32]
    right: NDArray[np.uint32]
    """Nodes, each `left` below its `right`."""
    distance: NDArray[np.uint8]
    """Differing bits."""

    def columns(self) -> dict[str, NDArray[np.uint32] | NDArray[np.uint8]]:
        """Return the links by column."""
        return {"left": self.left, "right": self.right, "distance": self.distance}

    def within(self, distance: int) -> tuple[Indices, Indices]:
        """Return the nodes of the links up to a distance: they make the components of all pairs up to it."""
        stop = int(np.searchsorted(self.distance, distance, side="right"))
        return self.left[:stop].astype(np.int64), self.right[:stop].astype(np.int64)


def pack(left: Indices, right: Indices) -> Packed:
    """Return pairs of different nodes as one number each; a node with itself is no pair."""
    low, high = np.minimum(left, right).astype(np.uint64), np.maximum(left, right).astype(np.uint64)
    packed: Packed = ((low << NODE_BITS) | high)[low != high]
    return packed


def unpack(pairs: Packed) -> tuple[Indices, Indices]:
    """Return the nodes of pairs."""
    return (pairs >> NODE_BITS).astype(np.int64), (pairs & NODE_MASK).astype(np.int64)


def distances(pairs: Packed, hashes: Words) -> NDArray[np.uint8]:
    """Return the distance of each pair."""
    found = np.empty(pairs.size, np.uint8)
    for start in range(0, pairs.size, BLOCK_PAIRS):
        left, right = unpack(pairs[start : start + BLOCK_PAIRS])
        found[start : start + BLOCK_PAIRS] = distance_of(hashes.take(left, axis=0), hashes.take(right, axis=0))
    return found


@dataclass(slots=True)
class Gathered:
    """Different pairs, as they are found; of very many only the forest."""

    hashes: Words
    pairs: Packed = field(default_factory=lambda: np.zeros(0, np.uint64))
    _waiting: list[Packed] = field(default_factory=list)
    _num_waiting: int = 0

    def add(self, pairs: Packed) -> None:
        """Add pairs."""
        self._waiting.append(pairs)
        self._num_waiting += pairs.size
        if self._num_waiting > max(WAITING_PAIRS, self.pairs.size):
            self.settle()

    def settle(self) -> Packed:
        """Return the pairs, sorted."""
        if self._num_waiting:
            self.pairs = sorted_distinct(np.concatenate([self.pairs, *self._waiting]))
        self._waiting, self._num_waiting = [], 0
        if self.pairs.size > MOST_PAIRS:
            forest = spanning_forest(self.pairs, self.hashes)
            self.pairs = np.sort(pack(forest.left.astype(np.int64), forest.right.astype(np.int64)))
        return self.pairs


def sorted_distinct(values: Packed) -> Packed:
    """Return the different values in order; `values` is sorted in place."""
    values.sort()
    return values[np.r_[True, values[1:] != values[:-1]]] if values.size else values


def spanning_forest(pairs: Packed, hashes: Words) -> Forest:
    """Return the minimum spanning forest of different, sorted pairs (Boruvka's rounds)."""
    apart = distances(pairs, hashes)
    order = np.argsort(apart, kind="stable")
    pairs, apart = pairs[order], apart[order]
    left, right = (side.astype(np.uint32) for side in unpack(pairs))
    taken = _lightest(left, right, len(hashes))
    return Forest(left[taken], right[taken], apart[taken])


def _lightest(left: NDArray[np.uint32], right: NDArray[np.uint32], num_nodes: int) -> Indices:
    """Return which links are in the minimum spanning forest, in order; link i weighs i."""
    root = np.arange(num_nodes, dtype=np.uint32)
    links = np.arange(left.size, dtype=np.uint32)
    ends = left, right
    taken: list[NDArray[np.uint32]] = []
    best = np.empty(num_nodes, np.uint32)
    while True:
        ends = root[ends[0]], root[ends[1]]
        apart = ends[0] != ends[1]
        links, ends = links[apart], (ends[0][apart], ends[1][apart])
        if not links.size:
            return np.sort(np.concatenate(taken)).astype(np.int64) if taken else np.zeros(0, np.int64)
        # The lightest link of each tree. Of several writes to one place the last counts: heaviest first.
        place = np.arange(links.size, dtype=np.uint32)[::-1]
        trees = np.union1d(*ends)
        best[trees] = links.size
        best[ends[0][::-1]] = place
        other = best[trees].copy()
        best[ends[1][::-1]] = place
        chosen = np.minimum(best[trees], other)
        taken.append(np.unique(links[chosen]))
        # Each tree hangs under the one at the other end; of two that chose each other the lesser stays a root.
        one, two = ends[0][chosen], ends[1][chosen]
        above = np.where(one == trees, two, one)
        root[trees] = above
        mutual = (root[above] == trees) & (trees < above)
        root[trees[mutual]] = trees[mutual]
        while True:
            higher = root[root[trees]]
            if np.array_equal(higher, root[trees]):
                break
            root[trees] = higher
