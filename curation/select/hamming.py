"""Distances between 256-bit hashes: near ones of a bucket, and exact search against a reference set.

A hash is four uint64 words. `near/` searches many hashes for near ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 256
WORDS = 4
FAR = np.int16(HASH_BITS + 1)

NUM_BANDS = 16
MAX_LOOKUP_DISTANCE = 2 * NUM_BANDS - 1
ENTERED_REFERENCES = 1 << 16
"""Up to so many references are entered under their neighbours: 1 kB each."""
_FLIPS = np.r_[np.uint16(0), np.left_shift(np.uint16(1), np.arange(16, dtype=np.uint16))]

# Below this many pairs a plain product of the two sets is faster than building tables.
MAX_PRODUCT = 1e6
BLOCK_PAIRS = 1 << 20

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


def hash_words(hashes: bytes) -> Words:
    """Return [n, 4] words of n concatenated 32-byte hashes."""
    return np.frombuffer(hashes, dtype="<u8").astype(np.uint64).reshape(-1, WORDS)


def distance_of(left: Words, right: Words) -> NDArray[np.int16]:
    """Return the Hamming distances of paired rows, [n, 4] and [n, 4]."""
    distances: NDArray[np.int16] = np.bitwise_count(left ^ right).sum(axis=-1, dtype=np.int16)
    return distances


def linked_pairs(
    keys: NDArray[np.uint64], hashes: Words, *, distance: int, max_bucket: int, max_leaders: int = 0
) -> Iterator[tuple[Indices, Indices]]:
    """Yield index pairs within `distance` among neighbours with equal `keys`, which must be sorted.

    A bucket over `max_bucket` is solved by stars: each member that no earlier leader reached becomes a leader and is
    compared with the whole bucket, at most `max_leaders` leaders (0: `max_bucket`). So a bucket never costs more than
    that many comparisons a member.
    """
    same = keys[1:] == keys[:-1]
    starts = np.flatnonzero(np.r_[True, ~same]) if keys.size else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, keys.size])
    crowded = sizes > max_bucket
    for start, size in zip(starts[crowded], sizes[crowded], strict=True):
        same[start : start + size - 1] = False
        yield from _stars(hashes[start : start + size], int(start), distance, max_leaders or max_bucket)
    first, second = np.ascontiguousarray(hashes[:, 0]), np.ascontiguousarray(hashes[:, 1])
    left = np.flatnonzero(same)
    offset = 1
    while left.size:
        right = left + offset
        # Two words of four reject nearly all accidental pairs before the other two are touched.
        apart = np.bitwise_count(first[left] ^ first[right]) + np.bitwise_count(second[left] ^ second[right])
        maybe = left[apart <= distance]
        maybe = maybe[distance_of(hashes.take(maybe, axis=0), hashes.take(maybe + offset, axis=0)) <= distance]
        if maybe.size:
            yield maybe, maybe + offset
        # Whoever is followed by one more of its bucket stays.
        offset += 1
        left = left[right < same.size]
        left = left[same[left + offset - 1]]


def _stars(hashes: Words, start: int, distance: int, max_leaders: int) -> Iterator[tuple[Indices, Indices]]:
    free = np.ones(len(hashes), bool)
    leader = 0
    for _ in range(max_leaders):
        reached = np.flatnonzero(distance_of(hashes, hashes[leader]) <= distance)
        free[reached] = False
        yield np.full(reached.size, start + leader), reached + start
        rest = np.flatnonzero(free[leader:])
        if not rest.size:
            return
        leader += int(rest[0])


def largest_run(keys: Words) -> int:
    """Return the length of the longest run of equal `keys`."""
    if not keys.size:
        return 0
    ends = np.flatnonzero(np.r_[keys[1:] != keys[:-1], True])
    return int(np.diff(np.r_[-1, ends]).max())


class Components:
    """Connected components; the label of a component is its smallest node."""

    def __init__(self, num_nodes: int) -> None:
        """`num_nodes`: at most 2**32."""
        self._parent = np.arange(num_nodes, dtype=np.uint32)

    def link(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Join each pair of nodes."""
        while left.size:
            left, right = self.find(left), self.find(right)
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def find(self, nodes: NDArray[Any]) -> NDArray[np.uint32]:
        """Return the labels of nodes."""
        roots: NDArray[np.uint32] = self._parent[nodes]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[nodes] = roots
        return roots

    def labels(self) -> NDArray[np.uint32]:
        """Return the label of every node."""
        labels = self._parent
        while not np.array_equal(labels, above := labels[labels]):
            labels = above
        return labels


class NearestReference:
    """Exact nearest reference within a distance, for any number of queries.

    Multi-index hashing (Norouzi, Punjani, Fleet, 2012): of two hashes that differ in at most 15 bits, one of 16 bands
    is equal. For each bit more, the next band is looked up with its 16 neighbours too: had each of those bands two bits
    that differ, and each other one, it were a bit too many. Few references are entered under their neighbours; of many,
    to spare memory, the queries are looked up under theirs.
    """

    def __init__(self, references: Words, distance: int) -> None:
        self._references = references
        self._distance = distance
        self._words = [np.ascontiguousarray(references[:, word]) for word in range(WORDS)]
        self._tables: list[_Band] = []

    def search(self, queries: Words) -> tuple[NDArray[np.int16], Indices]:
        """Return (distance, reference index) for each query; `FAR` and -1 where none is near enough.

        Of several at the same distance, the first.
        """
        best = np.full(len(queries), FAR, np.int16)
        index = np.full(len(queries), -1, np.int64)
        if len(queries) and len(self._references):
            plain = self._distance > MAX_LOOKUP_DISTANCE or len(queries) * len(self._references) <= MAX_PRODUCT
            for query, reference in self._product(len(queries)) if plain else self._lookups(queries):
                self._improve(queries, best, index, query, reference)
        return best, index

    def _product(self, num_queries: int) -> Iterator[tuple[Indices, Indices]]:
        num_references = len(self._references)
        step = max(1, BLOCK_PAIRS // num_references)
        for start in range(0, num_queries, step):
            query = np.arange(start, min(start + step, num_queries))
            yield np.repeat(query, num_references), np.tile(np.arange(num_references), query.size)

    def _lookups(self, queries: Words) -> Iterator[tuple[Indices, Indices]]:
        if not self._tables:
            bands = np.ascontiguousarray(self._references).view(np.uint16)
            self._tables = [
                _Band.of(bands[:, band], neighbours=band < self._distance - (NUM_BANDS - 1))
                for band in range(NUM_BANDS)
            ]
        query_bands = np.ascontiguousarray(queries).view(np.uint16)
        for band, table in enumerate(self._tables):
            # Of the words that are not the band's, few pairs are as near by chance.
            words = [(band // 4 + apart) % WORDS for apart in (1, 2)]
            sides = [(np.ascontiguousarray(queries[:, word]), self._words[word]) for word in words]
            for query, reference in table.pairs(query_bands[:, band]):
                apart = sum(np.bitwise_count(mine.take(query) ^ its.take(reference)) for mine, its in sides)
                near = np.flatnonzero(apart <= self._distance)
                yield query[near], reference[near].astype(np.int64)

    def _improve(
        self, queries: Words, best: NDArray[np.int16], index: Indices, query: Indices, reference: Indices
    ) -> None:
        found = distance_of(queries[query], self._references[reference])
        near = found <= self._distance
        query, reference, found = query[near], reference[near], found[near]
        order = np.lexsort((reference, found, query))
        query, reference, found = query[order], reference[order], found[order]
        first = np.r_[True, query[1:] != query[:-1]] if query.size else np.zeros(0, bool)
        query, reference, found = query[first], reference[first], found[first]
        better = (found < best[query]) | ((found == best[query]) & (reference < index[query]))
        best[query[better]], index[query[better]] = found[better], reference[better]


@dataclass(frozen=True, slots=True)
class _Band:
    """Where the references of each value of 16 bits are."""

    owner: NDArray[np.uint32]
    """References, by the value that they are entered under."""
    offsets: Indices
    """Of each value, the place of the first in `owner`; then their number."""
    flips: NDArray[np.uint16]
    """What a query is looked up under: itself, or its neighbours too."""

    @classmethod
    def of(cls, band: NDArray[np.uint16], *, neighbours: bool) -> "_Band":
        """Enter references by their values of one band; `neighbours`: pairs that differ in one bit meet too."""
        own, around = _FLIPS[:1], _FLIPS if neighbours else _FLIPS[:1]
        entered, asked = (around, own) if len(band) <= ENTERED_REFERENCES else (own, around)
        keys = (band[:, None] ^ entered).ravel()
        owner = (np.argsort(keys, kind="stable") // entered.size).astype(np.uint32)
        return cls(owner, np.r_[0, np.cumsum(np.bincount(keys, minlength=1 << 16))], asked)

    def pairs(self, wanted: NDArray[np.uint16]) -> Iterator[tuple[Indices, NDArray[np.uint32]]]:
        """Yield (query, reference) that meet, some at a time."""
        asked = (wanted[:, None] ^ self.flips).ravel()
        starts = self.offsets[asked]
        lengths = self.offsets[asked.astype(np.int64) + 1] - starts
        for start, stop in _blocks(lengths):
            size = lengths[start:stop]
            first = starts[start:stop] - (np.cumsum(size) - size)
            place = np.repeat(first, size)
            place += np.arange(place.size)
            yield np.repeat(np.arange(start, stop) // self.flips.size, size), self.owner.take(place)


def _blocks(lengths: Indices) -> Iterator[tuple[int, int]]:
    """Cut 0..n into ranges of about `BLOCK_PAIRS` summed lengths, each at least one long."""
    total = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        base = int(total[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(total, base + BLOCK_PAIRS, side="right")))
        yield start, stop
        start = stop
