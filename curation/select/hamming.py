"""Distances between 256-bit hashes: linking near-duplicates in buckets, and exact search against a reference set.

A hash is four uint64 words. Linking in buckets is exact only with more bands than the distance (pigeonhole); with
fewer, `choose_bands` says so and the caller must report it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 256
WORDS = 4
FAR = np.int16(HASH_BITS + 1)

# Bands x bits of reference/curation.md 5.3: fewer, wider bands as the set grows.
BAND_COUNTS = (16, 12, 10, 8)
# About 20 s of comparisons on one core (measured: 4e7 to 6e7 pairs a second).
MAX_RANDOM_PAIRS = 1e9
# Below this many pairs a plain product of the two sets is faster than building tables.
MAX_PRODUCT = 1e6
BLOCK_PAIRS = 1 << 20

Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bands:
    """How hashes are cut into bands; hashes that agree in one whole band are compared."""

    count: int
    exact: bool
    """True if every pair within the distance must share a band."""

    def bits(self, band: int) -> tuple[int, int]:
        """Return the first bit of a band and the one after its last."""
        return HASH_BITS * band // self.count, HASH_BITS * (band + 1) // self.count


def choose_bands(num_hashes: int, distance: int) -> Bands:
    """Return the most bands whose expected number of accidental comparisons is affordable."""
    counts = sorted({distance + 1, *BAND_COUNTS}, reverse=True)
    for count in counts:
        if count * num_hashes**2 / 2 / 2 ** (HASH_BITS / count) <= MAX_RANDOM_PAIRS:
            return Bands(count, count > distance)
    return Bands(counts[-1], counts[-1] > distance)


def hash_words(hashes: bytes) -> Words:
    """Return [n, 4] words of n concatenated 32-byte hashes."""
    return np.frombuffer(hashes, dtype="<u8").astype(np.uint64).reshape(-1, WORDS)


def distance_of(left: Words, right: Words) -> NDArray[np.int16]:
    """Return the Hamming distances of paired rows, [n, 4] and [n, 4]."""
    distances: NDArray[np.int16] = np.bitwise_count(left ^ right).sum(axis=-1, dtype=np.int16)
    return distances


def linked_pairs(
    keys: NDArray[np.uint64], hashes: Words, *, distance: int, max_bucket: int
) -> Iterator[tuple[Indices, Indices]]:
    """Yield index pairs within `distance` among neighbours with equal `keys`, which must be sorted.

    A bucket over `max_bucket` is solved by stars: each member that no earlier leader reached becomes a leader and is
    compared with the whole bucket, at most `max_bucket` leaders. So a bucket never costs more than `max_bucket`
    comparisons a member.
    """
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if keys.size else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, keys.size])
    ends = np.repeat(starts + sizes, sizes)
    first_words = np.ascontiguousarray(hashes[:, 0])
    active = np.flatnonzero(np.repeat(sizes <= max_bucket, sizes))
    offset = 1
    while True:
        active = active[ends[active] > active + offset]
        if not active.size:
            break
        # One word of four rejects most accidental pairs before the other three are touched.
        near = np.bitwise_count(first_words[active] ^ first_words[active + offset]) <= distance
        left = active[near]
        left = left[distance_of(hashes[left], hashes[left + offset]) <= distance]
        if left.size:
            yield left, left + offset
        offset += 1
    for start, size in zip(starts[sizes > max_bucket], sizes[sizes > max_bucket], strict=True):
        yield from _stars(hashes[start : start + size], int(start), distance, max_bucket)


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
        self._parent = np.arange(num_nodes, dtype=np.int64)

    def link(self, left: Indices, right: Indices) -> None:
        """Join each pair of nodes."""
        while left.size:
            left, right = self.find(left), self.find(right)
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def find(self, nodes: Indices) -> Indices:
        """Return the labels of nodes."""
        roots = self._parent[nodes]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[nodes] = roots
        return roots

    def labels(self) -> Indices:
        """Return the label of every node."""
        return self.find(np.arange(self._parent.size))


class NearestReference:
    """Exact nearest reference within a distance, for any number of queries.

    Multi-index hashing (Norouzi, Punjani, Fleet, 2012): if two hashes differ in at most 31 bits, one of 16 bands
    differs in at most one bit; so each reference is entered under its 17 neighbours in every band and a query looks
    up 16 keys.
    """

    def __init__(self, references: Words, distance: int) -> None:
        self._references = references
        self._distance = distance

    def search(self, queries: Words) -> tuple[NDArray[np.int16], Indices]:
        """Return (distance, reference index) for each query; `FAR` and -1 where none is near enough.

        Of several at the same distance, the first.
        """
        best = np.full(len(queries), FAR, np.int16)
        index = np.full(len(queries), -1, np.int64)
        if len(queries) and len(self._references):
            plain = self._distance > 31 or len(queries) * len(self._references) <= MAX_PRODUCT
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
        flips = np.r_[np.uint16(0), np.left_shift(np.uint16(1), np.arange(16, dtype=np.uint16))]
        reference_bands = np.ascontiguousarray(self._references).view(np.uint16)
        query_bands = np.ascontiguousarray(queries).view(np.uint16)
        for band in range(16):
            keys = (reference_bands[:, band, None] ^ flips).ravel()
            order = np.argsort(keys, kind="stable")
            offsets = np.r_[0, np.cumsum(np.bincount(keys, minlength=1 << 16))]
            owner = order // flips.size
            wanted = query_bands[:, band]
            lengths = offsets[wanted.astype(np.int64) + 1] - offsets[wanted]
            for start, stop in _blocks(lengths):
                size = lengths[start:stop]
                query = np.repeat(np.arange(start, stop), size)
                inside = np.arange(query.size) - np.repeat(np.cumsum(size) - size, size)
                yield query, owner[np.repeat(offsets[wanted[start:stop]], size) + inside]

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


def _blocks(lengths: Indices) -> Iterator[tuple[int, int]]:
    """Cut 0..n into ranges of about `BLOCK_PAIRS` summed lengths, each at least one long."""
    total = np.cumsum(lengths)
    start = 0
    while start < lengths.size:
        base = int(total[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(total, base + BLOCK_PAIRS, side="right")))
        yield start, stop
        start = stop
