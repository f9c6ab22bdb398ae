"""Which bits are looked up to find near hashes, and how many of the pairs at a distance that finds.

A table sorts all hashes by some of their bits and compares those that agree in all of them (bit sampling: Indyk and
Motwani, 1998). Tables come in rounds: the 256 bits in a random order, cut into parts that share no bit. The order
follows from no hash, so for a pair that differs in any d bits the chance to agree in one part of a round is known
exactly. One round of all bits, in more parts than d, finds every such pair (pigeonhole).
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from headrace.curation.select.hamming import HASH_BITS, WORDS, Words

SEED = 0x68656164
"""Of the order of the bits: part of what a search found."""

# An exact search is chosen up to so many accidental comparisons: about 20 s on one core.
MAX_RANDOM_PAIRS = 1e9
MAX_COST = 6e10
"""Nanoseconds of one core for which pairs at the asked distance are searched, where that is over `WANTED_DISTANCE`."""
WANTED_DISTANCE, WANTED_RECALL = 20, 0.998
"""Copies of real pictures differ in up to about 20 bits; of pairs that far apart this share is to be found."""
# Nanoseconds a node and table, and a comparison (benchmarks/select_rows.py): only their ratio decides.
NODE_COST, PAIR_COST = 30.0, 20.0
LEAST_BITS, MOST_BITS = 8, 40


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of one search."""

    count: int
    """Number of tables."""
    parts: int
    """Tables of a whole round; the last round may be cut short."""
    bits: int
    """Bits a table samples; 0: one round of all 256 bits in their own order, which is exact with enough parts."""

    def masks(self) -> Words:
        """Return [count, 4]: the bits of each table."""
        masks = np.zeros((self.count, WORDS), np.uint64)
        for table in range(self.count):
            turn, part = divmod(table, self.parts)
            if self.bits:
                order = np.random.Generator(np.random.Philox(key=[SEED, turn])).permutation(HASH_BITS)
                first, last = part * self.bits, (part + 1) * self.bits
            else:
                order = np.arange(HASH_BITS)
                first, last = HASH_BITS * part // self.parts, HASH_BITS * (part + 1) // self.parts
            for bit in order[first:last].tolist():
                masks[table, bit // 64] |= np.uint64(1 << bit % 64)
        return masks

    def exact(self, distance: int) -> bool:
        """Return whether every pair within `distance` agrees in a table, whatever its bits."""
        return self.count == self.parts > distance and not self.bits

    def recall(self, distance: int) -> float:
        """Return the share of the pairs exactly `distance` bits apart that agree in at least one table."""
        if self.exact(distance):
            return 1.0
        rounds, rest = divmod(self.count, self.parts)
        missed = _missed(self.parts, self.bits, distance) ** rounds * _missed(rest, self.bits, distance)
        return float(1 - missed)


@functools.cache
def _missed(parts: int, bits: int, distance: int) -> float:
    """Return the chance that `distance` random bits hit every one of `parts` disjoint parts."""
    # Inclusion and exclusion over the parts that are not hit.
    ways = sum(
        (-1) ** free * math.comb(parts, free) * math.comb(HASH_BITS - free * bits, distance)
        for free in range(parts + 1)
        if HASH_BITS - free * bits >= distance
    )
    return float(ways / math.comb(HASH_BITS, distance))


def choose_tables(num_hashes: int, distance: int) -> Tables:
    """Return tables that find every pair where that is affordable, else those of least cost that find enough."""
    exact = Tables(distance + 1, distance + 1, 0)
    if is_exact_affordable(num_hashes, distance):
        return exact
    best = _cheapest(num_hashes, distance)
    if distance > WANTED_DISTANCE and _cost(best, num_hashes) > MAX_COST:
        best = _cheapest(num_hashes, WANTED_DISTANCE)
    return best


def is_exact_affordable(num_hashes: int, distance: int) -> bool:
    """Return whether so many hashes are searched without a miss."""
    bits = HASH_BITS / (distance + 1)
    return bool((distance + 1) * num_hashes**2 / 2 / 2**bits <= MAX_RANDOM_PAIRS)


def _cheapest(num_hashes: int, distance: int) -> Tables:
    choices = [_enough(bits, distance) for bits in range(LEAST_BITS, MOST_BITS + 1)]
    return min(choices, key=lambda tables: _cost(tables, num_hashes))


def cost_of(num_hashes: int, distance: int) -> float:
    """Return about the nanoseconds of one core that a search takes."""
    tables = choose_tables(num_hashes, distance)
    bits = Tables(tables.count, tables.parts, tables.bits or HASH_BITS // tables.parts)
    return _cost(bits, num_hashes)


@functools.cache
def _enough(bits: int, distance: int) -> Tables:
    parts = HASH_BITS // bits
    count = 1
    while Tables(count, parts, bits).recall(distance) < WANTED_RECALL:
        count += 1
    return Tables(count, parts, bits)


def _cost(tables: Tables, num_hashes: int) -> float:
    return tables.count * num_hashes * (NODE_COST + PAIR_COST * num_hashes / float(2 << tables.bits))
