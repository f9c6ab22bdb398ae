"""Nested parts of a dataset: 10 % of it lies inside 20 %, that inside 50 %.

Of every block of 64 consecutive samples the first so many of a keyed permutation are used, so a dataset that is sorted
by class keeps its balance. How many follows from the fraction and from a number of the block that rounds it up or down;
a larger fraction never takes fewer of any block, which is what nests. Nothing here depends on a seed or a name: a part
is a function of the dataset and the fraction, so that runs which differ in their order compare the same samples.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.shards.permutation import make_key, mix_keys, permute, unpermute

IntArray = NDArray[np.int64]

BLOCK = 64
GROUP = 256
"""Blocks in a group, of which the table has one number."""
UNIT = 1 << 32
"""Fractions are whole numbers of this, so that every machine agrees."""
GOLDEN = 0x9E3779B9
"""UNIT / golden ratio: multiples of it lie evenly."""


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Which samples of a dataset are used. Raises ValueError for a fraction outside 0..1, or one that leaves none."""

    num_samples: int
    """Of the whole dataset."""
    fraction: float
    _starts: IntArray = field(init=False, repr=False)
    """Samples used before each group of blocks; the last is the number of all."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be over 0 and at most 1, got {self.fraction}")
        group = np.arange(-(-self.num_samples // (BLOCK * GROUP)), dtype=np.int64)
        # Over a whole group the rounding of the blocks sums up to the rounding of the group (Hermite's identity).
        used = (self._units * BLOCK * GROUP + _offset(group) * GROUP) // UNIT
        if group.size:
            used[-1] = int(self._used(np.arange(group[-1] * GROUP, self._num_blocks, dtype=np.int64)).sum())
        object.__setattr__(self, "_starts", np.concatenate([[0], np.cumsum(used)]).astype(np.int64))

    @property
    def size(self) -> int:
        """Samples that are used."""
        return int(self._starts[-1])

    def samples(self, ordinal: IntArray) -> IntArray:
        """Return the numbers in the dataset of samples that are used; ordinals ascend from block to block."""
        block, inside = self._locate(ordinal)
        return block * BLOCK + permute(inside, self._lengths(block), mix_keys(_KEY, block))

    def in_order(self, ordinal: IntArray) -> IntArray:
        """Return the numbers in the dataset, ascending: the `ordinal`-th of those that are used."""
        block, inside = self._locate(ordinal)
        result = np.empty_like(ordinal)
        for one in np.unique(block):
            here = block == one
            used = int(self._used(np.array([one]))[0])
            blocks = np.full(used, one)
            every = permute(np.arange(used), self._lengths(blocks), mix_keys(_KEY, blocks))
            result[here] = one * BLOCK + np.sort(every)[inside[here]]
        return result

    def ordinals(self, sample: IntArray) -> IntArray:
        """Return the ordinals of numbers in the dataset, -1 for those that are not used: the inverse of `samples`."""
        block, place = np.divmod(sample, BLOCK)
        inside = unpermute(place, self._lengths(block), mix_keys(_KEY, block))
        group, blocks = np.divmod(block, GROUP)
        ordinal = self._starts[group] + self._before(group, blocks) + inside
        return np.where(inside < self._used(block), ordinal, -1)

    def _locate(self, ordinal: IntArray) -> tuple[IntArray, IntArray]:
        """Return (block, how many of its samples come before) of samples that are used."""
        group = np.searchsorted(self._starts, ordinal, side="right").astype(np.int64) - 1
        rest = ordinal - self._starts[group]
        # Of the first n blocks of a group as many are used as n times the smaller count, and one more for each that
        # rounds up; found by halving, as the sums ascend.
        low, high = np.zeros_like(group), np.full_like(group, GROUP)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            behind = self._before(group, middle) <= rest
            low, high = np.where(behind, middle, low), np.where(behind, high, middle)
        return group * GROUP + low, rest - self._before(group, low)

    def _before(self, group: IntArray, blocks: IntArray) -> IntArray:
        """Return how many samples are used in the first `blocks` blocks of a group."""
        least, rest = divmod(self._units * BLOCK, UNIT)
        # Block b rounds up if rest + step(b) reaches UNIT.
        lowest = -((rest + _offset(group) - UNIT) // (UNIT // GROUP))
        if not group.size:
            return blocks
        distinct, where = np.unique(lowest, return_inverse=True)
        up = np.stack([np.concatenate([[0], np.cumsum(one <= _BIT_REVERSED)]) for one in distinct])
        result: IntArray = blocks * least + up[where, blocks]
        return result

    def _used(self, block: IntArray) -> IntArray:
        """Return how many samples of each block are used."""
        step = _BIT_REVERSED[block % GROUP] * (UNIT // GROUP) + _offset(block // GROUP)
        return (self._units * self._lengths(block) + step) // UNIT

    def _lengths(self, block: IntArray) -> IntArray:
        return np.minimum(BLOCK, self.num_samples - block * BLOCK)

    @property
    def _num_blocks(self) -> int:
        return -(-self.num_samples // BLOCK)

    @property
    def _units(self) -> int:
        return round(self.fraction * UNIT)


def _offset(group: IntArray) -> IntArray:
    """Return what a group adds to the rounding of its blocks: under one step, evenly over the groups."""
    return ((group + 1) * GOLDEN % UNIT) // GROUP


_BIT_REVERSED = np.array([int(f"{number:08b}"[::-1], 2) for number in range(GROUP)], np.int64)
"""Neighbours far apart, so that few blocks in a row round the same way."""
_KEY = make_key("subset")
